"""Best of n against its closed forms: bound and law, the estimator against every subset, the Gaussian frontier."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import norm

from preferent import best_of

REFERENCE, REWARDS = [0.5, 0.3, 0.15, 0.05], [0.0, 1.0, 2.0, 3.0]
BOUNDS = [(1, 0.0), (2, 0.1931471806), (4, 0.6362943611), (16, 1.8350887222), (64, 3.1745080834)]
BOUNDS += [(1024, 5.9324483681), (12_500, 8.4335639233), (60_000, 10.0021165079)]


@pytest.mark.parametrize(("n", "nats"), BOUNDS)
def test_the_bound(n: int, nats: float) -> None:
    assert best_of.kl_bound(n) == pytest.approx(nats, abs=1e-10)


def test_the_law_of_the_bandit() -> None:
    kept = best_of.law(REFERENCE, REWARDS, 4)
    assert kept == pytest.approx([0.0625, 0.3471, 0.40490625, 0.18549375], abs=1e-12)
    assert kept @ REWARDS == pytest.approx(1.71339375, abs=1e-12)
    assert best_of.kl(REFERENCE, REWARDS, 4) == pytest.approx(0.5659147331, abs=1e-10)
    assert best_of.law(REFERENCE, REWARDS, 1) == pytest.approx(REFERENCE, abs=1e-15)


@pytest.mark.parametrize("rewards", [REWARDS, [1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 3.0, 3.0, 1.0]])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_law_is_that_of_all_draws(rewards: list[float], n: int) -> None:
    """Every one of the 4^n draws, its best the first of the highest reward."""
    kept = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        winner = draws[int(best_of.best(np.array([[rewards[i] for i in draws]]))[0])]
        kept[winner] += math.prod(REFERENCE[i] for i in draws)
    assert best_of.law(REFERENCE, rewards, n) == pytest.approx(kept, abs=1e-12)
    divergence = float(np.sum(kept * np.log(kept / REFERENCE)))
    assert best_of.kl(REFERENCE, rewards, n) == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_the_bound_is_reached_without_ties_and_only_then(n: int) -> None:
    """Many answers of nearly no probability each are as good as a continuous reward; ties always cost."""
    many = 1_000_000
    even = np.full(many, 1 / many)
    assert best_of.kl(even, np.arange(many), n) == pytest.approx(best_of.kl_bound(n), abs=1e-4)
    for rewards in (REWARDS, [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]):
        assert best_of.kl(REFERENCE, rewards, n) < best_of.kl_bound(n)
    assert best_of.kl(REFERENCE, [1.0] * 4, n) == pytest.approx(0.0, abs=1e-15)


def test_answers_without_probability_are_never_kept() -> None:
    kept = best_of.law([0.5, 0.0, 0.5, 0.0], [0.0, 9.0, 1.0, 1.0], 3)
    assert kept == pytest.approx([0.125, 0.0, 0.875, 0.0], abs=1e-15)
    assert best_of.kl([0.5, 0.0, 0.5, 0.0], [0.0, 9.0, 1.0, 1.0], 3) > 0


SAMPLES = {
    "no ties": [0.3, -1.2, 2.5, 0.9, -0.4, 1.7, 0.0],
    "ties": [1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0],
    "all equal": [1.0] * 7,
}


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("proxy", SAMPLES.values(), ids=SAMPLES)
def test_the_estimator_is_the_mean_over_all_subsets(proxy: list[float], n: int) -> None:
    """By the score itself and by a second one, a tie in the first broken at random."""
    gold = [0.11, 0.52, -0.73, 0.24, 0.95, -0.36, 0.47]
    for values in (proxy, gold):
        found = []
        for subset in itertools.combinations(range(7), n):
            most = max(proxy[i] for i in subset)
            found.append(np.mean([values[i] for i in subset if proxy[i] == most]))
        assert best_of.expected(values, proxy, n) == pytest.approx(np.mean(found), abs=1e-12)
        assert best_of.expected(values[::-1], proxy[::-1], n) == pytest.approx(np.mean(found), abs=1e-12)


def test_the_weights_are_exact_at_any_size() -> None:
    size = 12_500
    for n in (1, 2, 100, 6_000, size):
        weights = best_of.weights(size, n)
        assert weights.sum() == pytest.approx(1.0, abs=1e-10)
        for rank in (n, (n + size) // 2, size - 1, size):
            exact = float(Fraction(math.comb(rank - 1, n - 1), math.comb(size, n)))
            assert weights[rank - 1] == pytest.approx(exact, rel=1e-10, abs=1e-300)
        assert not weights[: n - 1].any()


@pytest.mark.parametrize("n", [0, 8])
def test_no_more_than_was_sampled_can_be_estimated(n: int) -> None:
    with pytest.raises(ValueError, match=f"the best of {n} cannot be estimated from 7 samples"):
        best_of.expected([0.0] * 7, [0.0] * 7, n)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_best_of_n_wins_n_of_n_plus_1(n: int) -> None:
    """Against one answer of the base, by enumeration, ties one half: n / (n + 1) where rewards hardly ever tie."""
    many = 100_000
    even = np.full(many, 1 / many)
    kept = best_of.law(even, np.arange(many), n)
    below = np.cumsum(even) - even
    assert float(kept @ (below + even / 2)) == pytest.approx(n / (n + 1), abs=1e-5)


FRONTIER = {2: 0.9077, 4: 0.9125, 16: 0.9218, 64: 0.9302}


@pytest.mark.parametrize(("n", "ratio"), FRONTIER.items())
def test_the_gaussian_frontier(n: int, ratio: float) -> None:
    """Rewards N(0, 1): the gain of the best of n over the most that its KL can buy, sqrt(2 KL)."""
    edges = np.linspace(-9, 9, 400_001)
    p = np.diff(norm.cdf(edges))
    middle = (edges[1:] + edges[:-1]) / 2
    gain = float(best_of.law(p / p.sum(), middle, n) @ middle)
    assert gain / math.sqrt(2 * best_of.kl_bound(n)) == pytest.approx(ratio, abs=5e-5)


def test_the_first_of_equals_is_kept() -> None:
    assert best_of.best(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 5.0]])).tolist() == [1, 0, 2]
