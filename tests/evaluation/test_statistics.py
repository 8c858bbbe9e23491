"""Win rates: counts, the interval against its definition and by simulation, and the small measures beside it."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import t as student
from statsmodels.stats.proportion import proportion_confint

from bench import coverage
from preferent import randomness
from preferent.evaluation import statistics
from preferent.evaluation.statistics import agreement, resampling, win_rates

Z = 1.959963984540054


def own(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def outcomes(win: int, tie: int, loss: int) -> list[float]:
    return [1.0] * win + [0.5] * tie + [0.0] * loss


def test_counts_and_rate() -> None:
    rate = statistics.win_rate(outcomes(5, 3, 2), own(10))
    assert (rate.win, rate.tie, rate.loss, rate.n, rate.prompts) == (5, 3, 2, 10, 10)
    assert rate.win_rate == 0.65
    assert rate.interval[0] < 0.65 < rate.interval[1]


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_all_wins_have_wilsons_lower_limit(n: int) -> None:
    low, high = statistics.win_rate(outcomes(n, 0, 0), own(n)).interval
    assert low == pytest.approx(n / (n + Z * Z), abs=1e-9)
    assert high == 1.0


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_all_ties_keep_a_width(n: int) -> None:
    low, high = statistics.win_rate(outcomes(0, n, 0), own(n)).interval
    assert high - 0.5 == pytest.approx(Z * Z / (n + Z * Z) / 2, abs=1e-9)
    assert low + high == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("win", "tie", "loss"), [(12, 36, 2), (5, 0, 5), (1, 0, 9), (0, 7, 3), (300, 50, 150)])
def test_limits_satisfy_the_score_equation(win: int, tie: int, loss: int) -> None:
    """At each limit the score statistic, with the restricted likelihood maximised numerically, is plus or minus z."""
    n = win + tie + loss
    for limit in statistics.win_rate(outcomes(win, tie, loss), own(n)).interval:
        difference = 2 * limit - 1

        def surprise(p_loss: float, d: float = difference) -> float:
            shares = np.maximum([p_loss + d, 1 - 2 * p_loss - d, p_loss], 1e-300)
            return -float(np.dot([win, tie, loss], np.log(shares)))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        p_loss = minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = n * (2 * p_loss + difference - difference**2)
        assert abs(win - loss - n * difference) / np.sqrt(variance) == pytest.approx(Z, rel=1e-5)


def test_swapping_sides_mirrors_the_interval() -> None:
    low, high = statistics.win_rate(outcomes(7, 2, 3), own(12)).interval
    assert statistics.win_rate(outcomes(3, 2, 7), own(12)).interval == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_repeated_rows_of_a_prompt_are_no_new_evidence() -> None:
    once, names = outcomes(14, 2, 4), own(20)
    repeated = statistics.win_rate(once * 5, names * 5)
    single = statistics.win_rate(once, names)
    assert (repeated.n, repeated.prompts) == (100, 20)
    assert repeated.interval[1] - repeated.interval[0] > single.interval[1] - single.interval[0]


def test_one_prompt_says_nothing() -> None:
    assert statistics.win_rate(outcomes(3, 0, 0), ["same"] * 3).interval == (0.0, 1.0)


@pytest.mark.parametrize("bad", [([], []), ([1.0], ["a", "b"]), ([0.7], ["a"]), ([1.0, 0.7], ["a", "b"])])
def test_what_is_no_outcome_is_refused(bad: tuple[list[float], list[str]]) -> None:
    with pytest.raises(ValueError, match="outcome"):
        statistics.win_rate(*bad)


def test_won_one_way_and_lost_the_other_is_a_tie() -> None:
    """A judge who always takes the first says what one does who always ties, as surely as so many prompts."""
    names = [str(i // 2) for i in range(60)]
    biased = statistics.win_rate([1.0, 0.0] * 30, names)
    tied = statistics.win_rate([0.5, 0.5] * 30, names)
    assert biased.interval == tied.interval
    t = student.ppf(0.975, 29)
    assert biased.interval[1] - 0.5 == pytest.approx(t * t / (30 + t * t) / 2, abs=1e-9)


def test_net_by_hand() -> None:
    """Of three prompts one is won, one lost by half, one tied: 1, -1/2 and 0."""
    values, names = np.array([1.0, 1.0, 0.0, 0.5, 1.0, 0.0]), list("aabbcc")
    netted = win_rates.net(values, names, np.ones(6))
    assert (netted.prompts, netted.won, netted.degrees) == (3, pytest.approx(1 / 3), pytest.approx(2))
    assert netted.lost == pytest.approx(1 / 6)
    mean, variance = 1 / 6, 1 / 2 - 1 / 36
    spread = ((1 - mean) ** 2 + (-0.5 - mean) ** 2 + mean**2) / 9
    assert netted.effective == pytest.approx(variance / spread)
    single = win_rates.net(np.array([1.0, 0.0, 0.5]), list("abc"), np.ones(3))
    assert (single.effective, single.degrees) == (pytest.approx(3), np.inf)


def test_prompts_that_say_half_count_as_no_more_than_there_are_verdicts() -> None:
    """All net 1/2: nothing varies, so what is told is told by 40 verdicts, and not without end."""
    netted = win_rates.net(np.array([1.0, 0.5] * 20), [str(i // 2) for i in range(40)], np.ones(40))
    assert (netted.won, netted.lost, netted.effective) == (0.5, 0.0, 40.0)
    almost = [1.0, 1.0, 0.5, 0.5] * 9 + [1.0, 0.5, 0.5, 0.5]
    assert win_rates.net(np.array(almost), [str(i // 4) for i in range(40)], np.ones(40)).effective == 40.0


def test_asking_again_for_the_same_answer_changes_no_share_and_no_worth() -> None:
    once = np.array(outcomes(14, 2, 4))
    again = win_rates.net(np.tile(once, 5), own(20) * 5, np.ones(100))
    single = win_rates.net(once, own(20), np.ones(20))
    assert (again.won, again.lost, again.effective) == pytest.approx((single.won, single.lost, single.effective))
    assert (single.degrees, again.degrees) == (np.inf, pytest.approx(19))


def test_the_p_value_and_the_interval_are_one() -> None:
    """Below .05 where and only where one half is outside."""
    for case in range(300):
        uniform = randomness.uniforms(2, "dual", case, np.arange(46))
        values = np.where(uniform[:20] < uniform[40], 1.0, np.where(uniform[:20] < uniform[41] + 0.4, 0.5, 0.0))
        names = np.arange(20) if case % 3 == 0 else np.floor(uniform[20:40] * (2 + 18 * uniform[42]))
        weights = None if uniform[43] < 0.5 else 0.2 + uniform[20:40]
        low, high = statistics.win_rate(values, names, weights=weights).interval
        assert (statistics.p_value(values, names, weights) < 0.05) == (not low <= 0.5 <= high)
    assert statistics.p_value(outcomes(0, 5, 0), own(5)) == statistics.p_value([1.0] * 3, ["same"] * 3) == 1.0


def test_weights_are_hajeks() -> None:
    rate = statistics.win_rate([1.0, 0.5, 0.0], own(3), weights=[4.0, 2.0, 2.0])
    assert (rate.win, rate.tie, rate.loss, rate.win_rate) == (1, 1, 1, 0.625)
    assert rate.interval[0] < 0.625 < rate.interval[1]
    assert rate == statistics.win_rate([1.0, 0.5, 0.0], own(3), weights=[2.0, 1.0, 1.0])
    values, names = outcomes(6, 2, 5), [str(i // 2) for i in range(13)]
    same = statistics.win_rate(values, names, weights=[3.0] * 13)
    assert same.interval == pytest.approx(statistics.win_rate(values, names).interval, abs=1e-12)


def test_one_heavy_prompt_says_next_to_nothing() -> None:
    low, high = statistics.win_rate(outcomes(6, 0, 6), own(12), weights=[1e6] + [1.0] * 11).interval
    assert (low, high) == (0.0, 1.0)
    low, high = statistics.win_rate([1.0, 0.0], own(2), weights=[3.0, 1.0]).interval
    assert 0 < low < high < 1
    low, high = statistics.win_rate(outcomes(6, 0, 6), own(12), weights=[4.0] + [1.0] * 11).interval
    plain = statistics.win_rate(outcomes(6, 0, 6), own(12)).interval
    assert high - low > plain[1] - plain[0]


def test_a_rate_of_selected_pairs_is_that_of_all_where_they_are_weighted() -> None:
    """Pairs that are likely lost are asked about four times as often: the plain rate sinks, the weighted one stays, and
    its interval holds the truth as often as it says."""
    count = 200
    uniform = randomness.uniforms(9, "selection", np.arange(600)[:, None], np.arange(3 * count)).reshape(600, 3, count)
    hard = uniform[:, 0] < 0.5
    won = (uniform[:, 1] < np.where(hard, 0.3, 0.9)) * 1.0
    probability = np.where(hard, 0.8, 0.2)
    selected = uniform[:, 2] < probability
    names, truth = np.arange(count), 0.6
    rates = [
        statistics.win_rate(won[i][selected[i]], names[selected[i]], weights=1 / probability[i][selected[i]])
        for i in range(600)
    ]
    assert np.mean([won[i][selected[i]].mean() for i in range(600)]) < 0.45
    assert np.mean([rate.win_rate for rate in rates]) == pytest.approx(truth, abs=0.01)
    assert 0.93 <= np.mean([rate.interval[0] <= truth <= rate.interval[1] for rate in rates]) <= 0.98


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_is_no_weight_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        statistics.win_rate([1.0, 0.0], own(2), weights=weights)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert statistics.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_statsmodels_and_the_win_rate_without_ties() -> None:
    for successes, n in [(0, 1), (1, 1), (3, 10), (500, 1000), (7, 8)]:
        ours = statistics.wilson(successes, n)
        assert ours == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)
        assert ours == pytest.approx(
            statistics.win_rate(outcomes(successes, 0, n - successes), own(n)).interval, abs=1e-9
        )
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    assert all(statistics.wilson(n, n)[1] <= 1 and statistics.wilson(0, n)[0] >= 0 for n in range(1, 200))
    narrow, wide = statistics.wilson(3, 10, 0.8), statistics.wilson(3, 10, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_method_says_its_level() -> None:
    assert statistics.win_rate([1.0], ["a"]).method == f"{statistics.METHOD}, 95 %"
    assert statistics.win_rate([1.0], ["a"], 0.9).method == f"{statistics.METHOD}, 90 %"


def value_mean(values: np.ndarray) -> resampling.Statistic:
    return lambda rows: float(values[rows].mean())


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = randomness.uniforms(2, "jackknife", np.arange(24), 0)
    error = statistics.mean(values, own(24)).standard_error
    assert error is not None
    half = student.ppf(0.975, 23) * error
    assert resampling.jackknife(value_mean(values), own(24)) == pytest.approx(
        (values.mean() - half, values.mean() + half)
    )
    names = [str(i // 2) for i in range(24)]
    error = statistics.mean(values, names).standard_error
    assert error is not None
    half = student.ppf(0.975, 11) * error
    assert resampling.interval(value_mean(values), names) == pytest.approx((values.mean() - half, values.mean() + half))


def test_the_bootstrap_of_a_mean_is_its_standard_error_too_and_the_same_each_time() -> None:
    values = randomness.uniforms(2, "bootstrap", np.arange(800), 0)
    names = [str(i // 2) for i in range(800)]
    error = statistics.mean(values, names).standard_error
    limits = resampling.interval(value_mean(values), names)
    assert limits is not None and error is not None
    assert limits[1] - limits[0] == pytest.approx(2 * Z * error, rel=0.1)
    assert limits == resampling.bootstrap(value_mean(values), names)
    assert limits != resampling.bootstrap(value_mean(values), names, seed=1)
    wide, narrow = (resampling.bootstrap(value_mean(values), names, level) for level in (0.99, 0.5))
    assert wide is not None and narrow is not None
    assert wide[0] < limits[0] < narrow[0] < narrow[1] < limits[1] < wide[1]


def test_the_bootstrap_is_not_offered_below_100_prompts() -> None:
    with pytest.raises(ValueError, match="a bootstrap of 99 prompts: needs at least 100"):
        resampling.bootstrap(value_mean(np.ones(200)), [str(i % 99) for i in range(200)])


def test_what_does_not_vary_or_is_not_defined_has_no_interval() -> None:
    assert resampling.interval(value_mean(np.ones(120)), own(120)) is None
    assert resampling.interval(value_mean(np.ones(12)), own(12)) is None
    assert resampling.jackknife(value_mean(np.arange(3.0)), ["one"] * 3) is None
    rare = np.arange(120.0)
    assert resampling.bootstrap(lambda rows: None if 0 in rows else float(rare[rows].mean()), own(120)) is None
    assert resampling.jackknife(lambda rows: float(rows.sum()) if 0 in rows else None, own(5)) is None
    assert resampling.bootstrap(lambda rows: float(rare[rows].mean()) if len({*rows}) > 60 else None, own(120))


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
    uniform = randomness.uniforms(1, "coverage", np.arange(trials)[:, None], np.arange(2 * prompts * rows))
    uniform = uniform.reshape(trials, 2, prompts, rows)
    fresh = np.where(uniform[:, 0] < p_win, 1.0, np.where(uniform[:, 0] < p_win + p_tie, 0.5, 0.0))
    drawn = np.where(uniform[:, 1] < 0.7, fresh[:, :, :1], fresh).reshape(trials, -1)
    names = [name for name in own(prompts) for _ in range(rows)]
    intervals = np.array([statistics.win_rate(row, names).interval for row in drawn])
    covered = np.mean((intervals[:, 0] <= true) & (true <= intervals[:, 1]))
    assert within[0] <= covered <= within[1]


@pytest.mark.parametrize("prompts", [30, 100])
@pytest.mark.parametrize("judge", coverage.JUDGES, ids=lambda judge: judge.name)
def test_coverage_with_two_orders_and_repeats(judge: coverage.Judge, prompts: int) -> None:
    """A part of bench/coverage.py: .91 from 30 and .93 from 100 prompts on, less what 600 trials err by."""
    shares = [coverage.covered(judge, rate, prompts, 300)[0] for rate in (0.1, 0.4)]
    assert np.mean(shares) >= {30: 0.91, 100: 0.93}[prompts] - 0.01
    assert np.mean(shares) <= 0.985


def test_mean_is_over_prompts() -> None:
    average = statistics.mean([1.0, 3.0, 8.0], ["x", "x", "y"])
    assert (average.mean, average.n) == (5.0, 3)
    assert average.standard_error == pytest.approx(np.sqrt(18) / np.sqrt(2))
    assert statistics.mean([1.0], ["x"]).standard_error is None


def test_lengths() -> None:
    compared = statistics.lengths([10, 20, 30, 5], [12, 20, 10, 1], own(4))
    assert (compared.mean_a, compared.mean_b, compared.difference) == (16.25, 10.75, 5.5)
    assert (compared.share_longer, compared.share_shorter) == (0.5, 0.25)
    assert compared.standard_error == pytest.approx(np.std([-2, 0, 20, 4], ddof=1) / 2)


def test_agreement_counts_ties() -> None:
    assert agreement.percent(["A", "B", "tie", "A"], ["A", "A", "tie", "tie"]) == 0.5


def test_reliability_and_its_error() -> None:
    assert [b.count for b in statistics.reliability(np.arange(0.51, 1, 0.01), np.ones(49))] == [4, *[5] * 9]
    bins = statistics.reliability([0.5, 0.54, 0.97, 1.0], [0.5, 0, 1, 1])
    assert bins == [statistics.Bin(0.52, 0.25, 2), statistics.Bin(0.985, 1.0, 2)]
    assert statistics.calibration_error(bins) == pytest.approx((2 * 0.27 + 2 * 0.015) / 4)


def test_rank_correlation_is_spearmans() -> None:
    """Without ties 1 - 6 Σd² / (n (n² - 1)), d the differences of ranks; with ties the correlation of mean ranks."""
    for order in itertools.permutations(range(4)):
        apart = sum((a - b) ** 2 for a, b in zip(order, range(4), strict=True))
        assert statistics.rank_correlation(order, range(4)) == pytest.approx(1 - 6 * apart / (4 * 15), abs=1e-12)
    x, y = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0], [2.0, 7.0, 1.0, 8.0, 2.0, 8.0]
    ranks = [3, 1.5, 4, 1.5, 5, 6], [2.5, 4, 1, 5.5, 2.5, 5.5]
    assert statistics.rank_correlation(x, y) == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([1.0], [2.0]), ([1.0, 2.0, 3.0], [7.0] * 3), ([7.0] * 3, [1.0, 2.0, 3.0]), ([1.0] * 2, [2.0] * 2)],
)
def test_what_does_not_vary_has_no_rank_correlation(x: list[float], y: list[float]) -> None:
    assert statistics.rank_correlation(x, y) == statistics.rank_correlation(np.array(x), np.array(y)) == 0.0
