"""Keyed randomness: the generator's known answers, and what orders and splits promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from preferent import randomness

ONES = 0xFFFFFFFF
# The known answers of Random123 (kat_vectors, philox4x32 10): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_its_known_answers(counter, key, result):
    assert randomness.philox(np.array(counter, dtype=np.uint64), key).tolist() == list(result)


def test_uniforms_do_not_depend_on_what_else_is_drawn():
    table = randomness.uniforms(3, "rollout", np.arange(7)[:, None], np.arange(5)[None, :])
    assert table.shape == (7, 5)
    assert all(table[i, j] == randomness.uniforms(3, "rollout", i, j) for i in range(7) for j in range(5))


def test_uniforms_depend_on_every_part_of_the_key():
    here = randomness.uniforms(0, "a", 1, 2)
    big = 1 << 40
    others = [
        (1, "a", 1, 2),
        (0, "b", 1, 2),
        (0, "a", 2, 2),
        (0, "a", 1, 1),
        (0, "a", big + 1, 2),
        (0, "a", 1, big + 2),
    ]
    assert len({float(here), *(float(randomness.uniforms(*key)) for key in others)}) == 7


def test_uniforms_are_uniform_and_below_one():
    numbers = randomness.uniforms(0, "test", np.arange(20_000), 0)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(1, 60))
def test_a_permutation_holds_everything_once(seed, item, size):
    order = randomness.permutation(seed, "p", item, size)
    assert sorted(order.tolist()) == list(range(size))
    assert order.tolist() == randomness.permutation(seed, "p", item, size).tolist()


def test_permutations_differ_by_item():
    assert randomness.permutation(0, "p", 0, 50).tolist() != randomness.permutation(0, "p", 1, 50).tolist()


@given(st.integers(1, 40), st.integers(1, 25), st.integers(0, 5))
def test_every_epoch_of_rows_holds_every_row_once(size, batch_size, seed):
    steps = -(-3 * size // batch_size)
    drawn = np.concatenate([randomness.rows(seed, "train", step, batch_size, size) for step in range(steps)])
    for epoch in range(3):
        assert sorted(drawn[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


def test_rows_are_a_function_of_the_step_alone():
    whole = np.concatenate([randomness.rows(0, "t", step, 4, 10) for step in range(6)])
    assert np.concatenate([randomness.rows(0, "t", step, 8, 10) for step in range(3)]).tolist() == whole.tolist()


GROUPS = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=60)


@given(GROUPS, st.integers(0, 9), st.lists(st.floats(0, 0.4), min_size=1, max_size=2))
def test_a_split_deals_whole_groups_in_their_shares(groups, seed, shares):
    parts = randomness.split(seed, "split", groups, shares)
    assert len(parts) == len(groups)
    part_of = dict(zip(groups, parts.tolist(), strict=True))
    assert parts.tolist() == [part_of[group] for group in groups]
    for index, share in enumerate(shares):
        held = sum(part == index for part in part_of.values())
        least = 1 if share > 0 and len(part_of) > len(shares) else 0
        assert held <= max(round(share * len(part_of)), least)


@given(GROUPS, st.integers(0, 9))
def test_a_split_depends_on_names_and_not_on_order(groups, seed):
    forward = dict(zip(groups, randomness.split(seed, "s", groups, [0.2, 0.2]).tolist(), strict=True))
    backward = dict(zip(groups[::-1], randomness.split(seed, "s", [*groups[::-1]], [0.2, 0.2]).tolist(), strict=True))
    assert forward == backward


def test_a_split_keeps_its_shares_exactly_and_is_another_for_another_seed():
    groups = [f"group {i}" for i in range(200)]
    parts = randomness.split(0, "split", groups, [0.05, 0.1])
    assert np.bincount(parts).tolist() == [10, 20, 170]
    assert parts.tolist() != randomness.split(1, "split", groups, [0.05, 0.1]).tolist()
    assert np.bincount(randomness.split(0, "split", groups, [0.001])).tolist() == [1, 199]
