"""Win rates: counts, the interval against its definition and by simulation, and the small measures beside it."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from preferent import draw, winrate

Z = 1.959963984540054


def own(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def outcomes(win: int, tie: int, loss: int) -> list[float]:
    return [1.0] * win + [0.5] * tie + [0.0] * loss


def test_counts_and_rate() -> None:
    rate = winrate.win_rate(outcomes(5, 3, 2), own(10))
    assert (rate.win, rate.tie, rate.loss, rate.n, rate.prompts) == (5, 3, 2, 10, 10)
    assert rate.win_rate == 0.65
    assert rate.interval[0] < 0.65 < rate.interval[1]


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_all_wins_have_wilsons_lower_limit(n: int) -> None:
    low, high = winrate.win_rate(outcomes(n, 0, 0), own(n)).interval
    assert low == pytest.approx(n / (n + Z * Z), abs=1e-9)
    assert high == 1.0


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_all_ties_keep_a_width(n: int) -> None:
    low, high = winrate.win_rate(outcomes(0, n, 0), own(n)).interval
    assert high - 0.5 == pytest.approx(Z * Z / (n + Z * Z) / 2, abs=1e-9)
    assert low + high == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("win", "tie", "loss"), [(12, 36, 2), (5, 0, 5), (1, 0, 9), (0, 7, 3), (300, 50, 150)])
def test_limits_satisfy_the_score_equation(win: int, tie: int, loss: int) -> None:
    """At each limit the score statistic, with the restricted likelihood maximised numerically, is plus or minus z."""
    n = win + tie + loss
    for limit in winrate.win_rate(outcomes(win, tie, loss), own(n)).interval:
        difference = 2 * limit - 1

        def surprise(p_loss: float, d: float = difference) -> float:
            shares = np.maximum([p_loss + d, 1 - 2 * p_loss - d, p_loss], 1e-300)
            return -float(np.dot([win, tie, loss], np.log(shares)))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        p_loss = minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = n * (2 * p_loss + difference - difference**2)
        assert abs(win - loss - n * difference) / np.sqrt(variance) == pytest.approx(Z, rel=1e-5)


def test_swapping_sides_mirrors_the_interval() -> None:
    low, high = winrate.win_rate(outcomes(7, 2, 3), own(12)).interval
    assert winrate.win_rate(outcomes(3, 2, 7), own(12)).interval == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_repeated_rows_of_a_prompt_are_no_new_evidence() -> None:
    once, names = outcomes(14, 2, 4), own(20)
    repeated = winrate.win_rate(once * 5, names * 5)
    single = winrate.win_rate(once, names)
    assert (repeated.n, repeated.prompts) == (100, 20)
    assert repeated.interval[1] - repeated.interval[0] > single.interval[1] - single.interval[0]
    assert winrate.design_effect(np.array(once * 5), names * 5) == pytest.approx(5 * 99 / 95)


def test_design_effect_by_hand() -> None:
    """Two prompts of two rows, {1, 1} and {0, 0}: variance 2/1 x (1 + 1) together, 4/3 x 1 apart."""
    assert winrate.design_effect(np.array([1.0, 1.0, 0.0, 0.0]), ["x", "x", "y", "y"]) == pytest.approx(3.0)
    assert winrate.design_effect(np.array([1.0, 0.0, 1.0, 0.0]), ["x", "x", "y", "y"]) == 0.0
    assert winrate.design_effect(np.array([1.0, 1.0, 1.0]), ["x", "x", "y"]) == pytest.approx(5 / 3)


def test_one_prompt_says_nothing() -> None:
    assert winrate.win_rate(outcomes(3, 0, 0), ["same"] * 3).interval == (0.0, 1.0)


@pytest.mark.parametrize("bad", [([], []), ([1.0], ["a", "b"]), ([0.7], ["a"])])
def test_what_is_no_outcome_is_refused(bad: tuple[list[float], list[str]]) -> None:
    with pytest.raises(ValueError, match="outcome"):
        winrate.win_rate(*bad)


@pytest.mark.parametrize(
    ("prompts", "rows", "p_win", "p_tie", "within"),
    [
        (30, 1, 0.5, 0.0, (0.93, 0.98)),
        (30, 1, 0.55, 0.3, (0.93, 0.98)),
        (30, 4, 0.55, 0.3, (0.93, 0.98)),
        (100, 1, 0.8, 0.1, (0.93, 0.98)),
        (100, 1, 0.95, 0.0, (0.93, 0.98)),
        (100, 4, 0.8, 0.1, (0.93, 0.97)),
    ],
)
def test_simulated_coverage(prompts: int, rows: int, p_win: float, p_tie: float, within: tuple[float, float]) -> None:
    """With fixed draws: rows of a prompt repeat its first outcome with probability 0.7, else are drawn anew."""
    trials, true = 600, p_win + p_tie / 2
    uniform = draw.uniforms(1, "coverage", np.arange(trials)[:, None], np.arange(2 * prompts * rows))
    uniform = uniform.reshape(trials, 2, prompts, rows)
    fresh = np.where(uniform[:, 0] < p_win, 1.0, np.where(uniform[:, 0] < p_win + p_tie, 0.5, 0.0))
    drawn = np.where(uniform[:, 1] < 0.7, fresh[:, :, :1], fresh).reshape(trials, -1)
    names = [name for name in own(prompts) for _ in range(rows)]
    intervals = np.array([winrate.win_rate(row, names).interval for row in drawn])
    covered = np.mean((intervals[:, 0] <= true) & (true <= intervals[:, 1]))
    assert within[0] <= covered <= within[1]


def test_mean_is_over_prompts() -> None:
    found = winrate.mean([1.0, 3.0, 8.0], ["x", "x", "y"])
    assert (found.mean, found.n) == (5.0, 3)
    assert found.standard_error == pytest.approx(np.sqrt(18) / np.sqrt(2))
    assert winrate.mean([1.0], ["x"]).standard_error is None


def test_lengths() -> None:
    found = winrate.lengths([10, 20, 30, 5], [12, 20, 10, 1], own(4))
    assert (found.mean_a, found.mean_b, found.difference) == (16.25, 10.75, 5.5)
    assert (found.share_longer, found.share_shorter) == (0.5, 0.25)
    assert found.standard_error == pytest.approx(np.std([-2, 0, 20, 4], ddof=1) / 2)


def test_agreement_counts_ties() -> None:
    assert winrate.agreement.percent(["A", "B", "tie", "A"], ["A", "A", "tie", "tie"]) == 0.5


def test_reliability_and_its_error() -> None:
    assert [b.count for b in winrate.reliability(np.arange(0.51, 1, 0.01), np.ones(49))] == [4, *[5] * 9]
    bins = winrate.reliability([0.5, 0.54, 0.97, 1.0], [0.5, 0, 1, 1])
    assert bins == [winrate.Bin(0.52, 0.25, 2), winrate.Bin(0.985, 1.0, 2)]
    assert winrate.calibration_error(bins) == pytest.approx((2 * 0.27 + 2 * 0.015) / 4)


def test_rank_correlation_is_spearmans() -> None:
    x, y = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0], [2.0, 7.0, 1.0, 8.0, 2.0, 8.0]
    assert winrate.rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    for order in itertools.permutations(range(4)):
        assert winrate.rank_correlation(order, range(4)) == pytest.approx(spearmanr(order, range(4)).statistic)
    assert winrate.rank_correlation(x, [1.0] * 6) == 0.0
