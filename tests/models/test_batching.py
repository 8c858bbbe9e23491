"""Plans, padding and packing."""

import numpy as np

from preferent.models import batching


def test_plan_holds_every_row_once_and_fits() -> None:
    lengths = [5, 9, 1, 30, 7, 7, 2]
    parts = batching.plan(lengths, 20)
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 20


def test_plan_does_not_depend_on_the_order_of_equal_rows() -> None:
    assert [p.tolist() for p in batching.plan([4, 4, 4], 8)] == [[0, 1], [2]]


def test_a_part_is_as_full_as_it_may_be() -> None:
    assert [part.tolist() for part in batching.plan([1] * 7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part.tolist() for part in batching.plan([0, 0], 2)] == [[0, 1]]
    assert [part.tolist() for part in batching.plan([9, 2, 9], 4)] == [[0], [2], [1]]


def test_minibatches_are_whole_micro_batches_and_keyed() -> None:
    lengths = np.arange(1, 65)
    dealt = batching.minibatches(lengths, 4, 100, seed=3, step=7)
    assert [sum(len(micro) for micro in part) for part in dealt] == [16] * 4
    assert sorted(i for part in dealt for micro in part for i in micro) == list(range(64))
    again = batching.minibatches(lengths, 4, 100, seed=3, step=7)
    other = batching.minibatches(lengths, 4, 100, seed=3, step=8)
    first = [micro.tolist() for part in dealt for micro in part]
    assert first == [micro.tolist() for part in again for micro in part]
    assert first != [micro.tolist() for part in other for micro in part]


def test_pad_left_and_right() -> None:
    rows = [np.array([1, 2]), np.array([], dtype=int), np.array([3, 4, 5])]
    assert batching.pad(rows, 0).tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]
    assert batching.pad(rows, 0, left=True).tolist() == [[0, 1, 2], [0, 0, 0], [3, 4, 5]]


def test_pack_joins_with_eos() -> None:
    assert batching.pack([[5, 6], [7], [8, 9, 10]], 2, 4).tolist() == [[5, 6, 2, 7], [2, 8, 9, 10]]
