"""Verdicts in both orders, ties, and how sure a win rate is."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from preferent import randomness
from preferent.data import judgments, types
from preferent.data.judgment_outcomes import OUTCOMES
from preferent.evaluation import statistics

COUNT = 200


def scores(purpose: str) -> np.ndarray:
    return randomness.uniforms(0, purpose, np.arange(COUNT), 0) * 4 - 2


def pairs() -> list[judgments.AnswerPair]:
    return [judgments.AnswerPair(str(i), "", f"question {i}", f"one {i}", f"other {i}") for i in range(COUNT)]


def swapped() -> list[judgments.AnswerPair]:
    return [judgments.AnswerPair(p.id, p.instruction, p.context, p.response_b, p.response_a) for p in pairs()]


def outcomes(judgments: list[types.Judgment]) -> list[float]:
    return [OUTCOMES[judgment.choice] for judgment in judgments]


def test_in_the_other_order_every_verdict_is_the_other() -> None:
    a, b = scores("a"), scores("b")
    a[:20] = b[:20]
    first, second = judgments.from_scores(pairs(), a, b, "j"), judgments.from_scores(swapped(), b, a, "j")
    assert [one + other for one, other in zip(outcomes(first), outcomes(second), strict=True)] == [1.0] * COUNT
    assert [v.confidence for v in first] == [v.confidence for v in second]
    assert sum(v.choice == "tie" for v in first) == 20


@pytest.mark.parametrize("bias", [0.0, 0.3, 50.0])
def test_a_judge_with_a_liking_for_the_first_place_is_even_over_both_orders_where_answers_are(bias: float) -> None:
    """At no difference it says the first one both times: half a win each, to the last digit, and an even interval."""
    same = scores("a")
    both = outcomes(judgments.from_scores(pairs(), same + bias, same, "j"))
    both += [1 - value for value in outcomes(judgments.from_scores(swapped(), same + bias, same, "j"))]
    rate = statistics.win_rate(both, [str(i % COUNT) for i in range(2 * COUNT)])
    assert rate.win_rate == 0.5 and rate.win == rate.loss
    assert rate.interval[0] + rate.interval[1] == pytest.approx(1, abs=1e-9)


def test_a_tie_is_half_a_win_of_both_sides() -> None:
    same = scores("a")
    for judged in (judgments.from_scores(pairs(), same, same, "j"), judgments.from_scores(swapped(), same, same, "j")):
        rate = statistics.win_rate(outcomes(judged), [str(i) for i in range(COUNT)])
        assert (rate.win, rate.tie, rate.loss, rate.win_rate) == (0, COUNT, 0, 0.5)
        assert {v.confidence for v in judged} == {0.5}


def test_confidence_is_bradley_terrys() -> None:
    a, b = scores("a"), scores("b")
    judged = judgments.from_scores(pairs(), a, b, "j")
    chance = 1 / (1 + np.exp(b - a))
    assert [v.confidence for v in judged] == pytest.approx(np.maximum(chance, 1 - chance), abs=1e-15)
    assert [v.choice for v in judged] == ["A" if p > 0.5 else "B" for p in chance]


def test_the_standard_error_is_that_of_the_mean_and_the_interval_becomes_walds() -> None:
    uniform = randomness.uniforms(0, "outcomes", np.arange(40_000), 0)
    drawn = np.where(uniform < 0.45, 1.0, np.where(uniform < 0.75, 0.5, 0.0))
    names = [str(i) for i in range(len(drawn))]
    error = statistics.mean(drawn, names).standard_error
    assert error == pytest.approx(drawn.std(ddof=1) / 200, rel=1e-12)
    low, high = statistics.win_rate(drawn, names).interval
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * error, rel=1e-3)


@pytest.mark.parametrize(("prompts", "rows"), [(2, 3), (5, 4), (20, 2)])
@pytest.mark.parametrize("won", [True, False])
def test_when_all_is_won_or_lost_the_other_limit_is_wilsons_at_as_many_rows_as_prompts(
    prompts: int, rows: int, won: bool
) -> None:
    """n / (n + t^2), n prompts and t Student's quantile with n - 1 degrees of freedom, however often each was asked."""
    names = [str(i % prompts) for i in range(prompts * rows)]
    low, high = statistics.win_rate([float(won)] * len(names), names).interval
    limit = prompts / (prompts + student.ppf(0.975, prompts - 1) ** 2)
    assert (low, high) == pytest.approx((limit, 1) if won else (0, 1 - limit), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 40])
def test_when_all_is_lost_the_upper_limit_is_wilsons(n: int) -> None:
    low, high = statistics.win_rate([0.0] * n, [str(i) for i in range(n)]).interval
    assert (low, 1 - high) == pytest.approx((0, n / (n + 1.959963984540054**2)), abs=1e-9)


def test_shares_and_ranks_at_their_smallest() -> None:
    found = statistics.lengths([2, 5, 5, 7], [1, 6, 5, 9], ["a", "b", "c", "d"])
    assert (found.share_longer, found.share_shorter) == (0.25, 0.5)
    assert statistics.rank_correlation([1, 2], [5, 9]) == pytest.approx(1)
    assert statistics.rank_correlation([1, 2], [9, 5]) == pytest.approx(-1)
    assert not math.isnan(statistics.rank_correlation([1, 1], [9, 5]))


def test_the_standard_error_is_what_repeating_the_experiment_would_give() -> None:
    """Means of 400 fresh experiments deviate by the standard error that each of them reports on average."""
    uniform = randomness.uniforms(0, "repeated", np.arange(400)[:, None], np.arange(100))
    drawn = np.where(uniform < 0.6, 1.0, 0.0)
    found = [statistics.mean(row, [str(i) for i in range(100)]) for row in drawn]
    reported = np.mean([m.standard_error for m in found])
    assert np.std([m.mean for m in found], ddof=1) == pytest.approx(reported, rel=4 / np.sqrt(800))
