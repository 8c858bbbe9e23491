"""A win rate from few votes and a judge's verdicts: against ppi-python, by enumeration, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy.special import ndtri

from preferent.config.recipe import parse
from preferent.data.types import Judgment
from preferent.evaluation import statistics, verdict_sentence
from preferent.evaluation.comparison_summary import verdict
from preferent.evaluation.comparison_types import ComparisonMetrics
from preferent.evaluation.judge_results import JudgeResults, by_scores, paired
from preferent.evaluation.statistics import confidence_sequence, prediction_powered
from preferent.report import interval_tables, judge_names, verdict_section
from tests import compared

VOTES = np.array([(7 * i % 10 < 6) - 0.5 * (i % 9 == 0 and 7 * i % 10 < 6) for i in range(40)])
JUDGED = np.where(np.arange(40) % 5 == 0, 1 - VOTES, VOTES)
OTHERS = np.array([(3 * i % 7 < 4) - 0.5 * (i % 21 == 0) for i in range(160)])
PPI_PYTHON = {
    0.0: (0.5625, 0.41473907368935625, 0.7102609263106437),
    0.37: (0.622625, 0.5011175135724348, 0.7441324864275651),
    1.0: (0.7250000000000001, 0.5853310769217528, 0.8646689230782474),
    -0.5: (0.48124999999999996, 0.2739517387147544, 0.6885482612852455),
}
"""By λ: the point estimate and the 95 % interval that ppi-python 0.2.3 gives of VOTES, JUDGED and OTHERS."""


def normal(factor: float) -> tuple[float, float, float]:
    """The rate with a fixed λ, and its normal interval."""
    powered = prediction_powered.estimate(VOTES, JUDGED, OTHERS, factor, np.ones(VOTES.size))
    half = ndtri(0.975) * np.sqrt(powered.variance)
    return float(powered.rate), float(powered.rate - half), float(powered.rate + half)


@pytest.mark.parametrize("factor", PPI_PYTHON)
def test_a_fixed_factor_gives_what_ppi_python_gives(factor: float) -> None:
    assert normal(factor) == pytest.approx(PPI_PYTHON[factor], abs=1e-10)


@pytest.mark.parametrize("factor", [*PPI_PYTHON, 0.8, 1.3])
def test_ppi_python_itself_agrees(factor: float) -> None:
    package = pytest.importorskip("ppi_py")
    estimate = np.ravel(package.ppi_mean_pointestimate(VOTES, JUDGED, OTHERS, lam=factor))
    interval = np.ravel(package.ppi_mean_ci(VOTES, JUDGED, OTHERS, alpha=0.05, lam=factor))
    assert normal(factor) == pytest.approx([*estimate, *interval], abs=1e-10)


def test_without_votes_to_learn_from_the_factor_is_zero_and_else_the_papers() -> None:
    weights, rows = np.ones(VOTES.size), np.arange(VOTES.size)
    factors = prediction_powered.tuned(VOTES, JUDGED, OTHERS, weights)
    for row in (0, 7, 39):
        y, f = VOTES[rows != row], JUDGED[rows != row]
        best = np.cov(y, f, ddof=0)[0, 1] / f.var() / (1 + VOTES.size / OTHERS.size)
        assert factors[row] == pytest.approx(best * (1 - 160 / VOTES.size**2))
    assert not prediction_powered.tuned(VOTES, np.ones(40), OTHERS, weights).any()
    assert not prediction_powered.tuned(VOTES[:12], JUDGED[:12], OTHERS, weights[:12]).any()


def test_the_rate_is_unbiased_by_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """All samples of three votes and one other prompt, of people and a judge who is too kind to side a."""
    monkeypatch.setattr(prediction_powered, "FEW", 0)
    kinds = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    chance = np.array([0.2, 0.3, 0.1, 0.4])
    samples = np.array(list(itertools.product(range(4), repeat=4)))
    votes, judged = kinds[samples[:, :3], 0], kinds[samples[:, :3], 1]
    others, weights = kinds[samples[:, 3:], 1], np.ones((len(samples), 3))
    factors = prediction_powered.tuned(votes, judged, others, weights)
    powered = prediction_powered.estimate(votes, judged, others, factors, weights)
    assert np.ptp(factors) == 0.5
    assert float(chance[samples].prod(1) @ powered.rate) == pytest.approx(0.5, abs=1e-12)


def named(values: np.ndarray, start: int = 0) -> dict[str, float]:
    return {str(start + place): float(value) for place, value in enumerate(values)}


def test_a_judge_that_says_nothing_leaves_peoples_own_interval() -> None:
    names = [str(place) for place in range(VOTES.size)]
    told = prediction_powered.win_rate(VOTES.tolist(), names, named(np.full(200, 0.5)))
    alone = statistics.win_rate(VOTES, names)
    assert told is not None
    assert (told.win_rate, told.factor, told.voted, told.prompts) == (pytest.approx(alone.win_rate), 0.0, 40, 200)
    assert told.interval == pytest.approx(alone.interval, abs=1e-9)


def test_a_judge_that_is_always_right_is_worth_votes_on_all_prompts() -> None:
    votes = np.tile([1.0, 0.0, 1.0, 1.0, 0.0], 20)
    others = np.tile([1.0, 0.0], 100)
    told = prediction_powered.win_rate(votes.tolist(), list(named(votes)), named(np.concatenate([votes, others])))
    assert told is not None
    assert told.effective == pytest.approx(300, rel=0.02)
    assert told.win_rate == pytest.approx(160 / 300, abs=0.002)
    whole = statistics.win_rate(np.concatenate([votes, others]), range(300)).interval
    assert told.interval == pytest.approx(whole, abs=0.003)


def test_several_votes_on_a_prompt_are_averaged_and_count_once() -> None:
    judged = named(np.concatenate([JUDGED, OTHERS]))
    names = [name for name in list(judged)[:40] for _ in range(3)]
    thrice = prediction_powered.win_rate(np.repeat(VOTES, 3).tolist(), names, judged)
    once = prediction_powered.win_rate(VOTES.tolist(), list(judged)[:40], judged)
    assert thrice is not None and once is not None
    assert (thrice.win_rate, thrice.voted) == (pytest.approx(once.win_rate), 40)
    assert thrice.interval[0] <= once.interval[0] < once.interval[1] <= thrice.interval[1]  # Student's quantile


def test_votes_on_selected_prompts_weigh_by_their_probability() -> None:
    """A judge that is right: its mean over all prompts corrects a selection, and so do the weights without it."""
    votes = np.repeat([1.0, 0.0], [60, 20])
    judged = named(np.concatenate([votes, np.repeat([1.0, 0.0], [60, 180])]))
    weights = np.repeat([2.0, 10.0], [60, 20]).tolist()
    told = prediction_powered.win_rate(votes.tolist(), list(judged)[:80], judged, weights)
    blind = prediction_powered.win_rate(votes.tolist(), list(judged)[:80], dict.fromkeys(judged, 0.5), weights)
    assert told is not None and blind is not None
    assert told.win_rate == pytest.approx(120 / 320, abs=1e-3)
    assert blind.win_rate == pytest.approx(120 / 320)
    assert told.interval[1] - told.interval[0] < 0.8 * (blind.interval[1] - blind.interval[0])


def test_nothing_is_gained_without_votes_or_without_other_prompts() -> None:
    judged = {"p": 1.0, "q": 0.0}
    assert prediction_powered.win_rate([], [], judged) is None
    assert prediction_powered.win_rate([1.0], ["elsewhere"], judged) is None
    assert prediction_powered.win_rate([1.0, 0.0], ["p", "q"], judged) is None


def test_one_vote_says_next_to_nothing() -> None:
    told = prediction_powered.win_rate([1.0], ["p"], {"p": 1.0, "q": 0.0, "r": 1.0})
    assert told is not None
    assert told.interval == pytest.approx(statistics.win_rate([1.0], ["p"]).interval)


def compared_by(voted: int) -> ComparisonMetrics:
    """A comparison of 120 prompts, where people voted on the first so many."""
    prompts = compared.sentences(120, 9, 1)
    texts = {"a": compared.sentences(120, 8, 2), "b": compared.sentences(120, 8, 3)}
    answers = {
        side: [compared.answer(i, prompts[i], text) for i, text in enumerate(found)] for side, found in texts.items()
    }
    names = {"a": "tuned", "b": "base"}
    right = np.array([1.0 if i % 3 else -1.0 for i in range(120)])
    wrong = np.where(np.arange(120) % 10 == 0, -right, right)
    judge = by_scores("judge", {"a": wrong, "b": np.zeros(120)}, answers, None, names)
    votes = [
        Judgment(pair.id, "", pair.context, pair.response_a, pair.response_b, "A" if lead > 0 else "B", 1.0, "people")
        for pair, lead in list(zip(paired(answers, "a", "b", None), right, strict=True))[:voted]
    ]
    people = JudgeResults("people", "people", {("a", "b"): votes}, facts={"annotators": 1})
    return verdict(answers, [judge, people], "judge", names)[1]


def reported(metrics: ComparisonMetrics) -> dict[str, judge_names.ReportedJudge]:
    return judge_names.reported_judges(metrics, parse({"large_model_reference": "x"})[0])


def test_a_comparison_tells_people_with_the_judge_beside_both_alone() -> None:
    metrics = compared_by(60)
    assert set(metrics["prediction_powered"]) == {"judge"}
    figures = metrics["prediction_powered"]["judge"]
    assert (figures["voted"], figures["prompts"]) == (60, 120)
    assert figures["effective"] > 60
    low, high = figures["interval"]
    assert low < 2 / 3 < high
    assert high - low < np.subtract(*metrics["judges"]["people"]["interval"][::-1])
    lines = verdict_sentence.summary(metrics)
    assert lines[1].startswith("people's votes on 60 prompts and judge on all 120: tuned wins 6")
    assert "; people alone 66.7% (" in lines[1] and ", judge alone 63.3% (" in lines[1]


@pytest.mark.parametrize("voted", [0, 120])
def test_it_tells_nothing_more_where_nothing_is_gained(voted: int) -> None:
    metrics = compared_by(voted)
    assert not metrics["prediction_powered"]
    assert not [line for line in verdict_sentence.summary(metrics) if line.startswith("people's votes")]
    assert not verdict_section.with_votes(metrics, reported(metrics)).rows


def test_the_report_puts_three_rates_below_each_other() -> None:
    metrics = compared_by(60)
    table = verdict_section.with_votes(metrics, reported(metrics))
    figures = metrics["prediction_powered"]["judge"]
    assert [row.name for row in table.rows] == [
        "People alone",
        "People with independent judge",
        "Independent judge alone",
    ]
    assert [row.cells[2] for row in table.rows] == ["60", f"{figures['effective']:.0f}", "–"]
    assert table.rows[1].cells[0] == interval_tables.percent(figures["win_rate"], 1)
    assert table.rows[1].note == "votes on 60 of 120 prompts"


def asked_in_turn(seed: int, sequences: int, questions: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Votes, a judge's expectations and weights in the order of asking, of a judge that is too fond of side a."""
    generator = np.random.default_rng(seed)
    judged = generator.uniform(0.2, 0.98, (sequences, questions))
    votes = (generator.random(judged.shape) < 0.8 * judged) * 1.0
    weights = np.maximum(2 * np.sqrt(judged * (1 - judged)), 0.5)
    order = np.argsort(generator.exponential(size=judged.shape) / weights, -1)
    return tuple(np.take_along_axis(each, order, -1) for each in (votes, judged, weights))  # type: ignore[return-value]


def test_a_sequence_of_intervals_holds_at_every_vote() -> None:
    votes, judged, weights = asked_in_turn(1, 600)
    true = votes.mean(-1, keepdims=True)
    limits = confidence_sequence.follow(votes, judged, weights)
    assert np.mean(np.all((limits.low <= true + 1e-12) & (true <= limits.high + 1e-12), -1)) >= 0.95
    assert np.all(np.diff(limits.high - limits.low, axis=-1) <= 1e-12), "it never grows"
    assert limits.high[:, -1] == pytest.approx(true[:, 0]) and limits.low[:, -1] == pytest.approx(true[:, 0])
    assert float(np.mean(limits.mean[:, 12] - true[:, 0])) == pytest.approx(0, abs=0.015)
    assert np.mean(limits.high[:, 40] - limits.low[:, 40]) < 0.4


def test_each_vote_is_unbiased_whatever_was_asked_before() -> None:
    """By enumeration: the next of four questions, drawn by weight, and what it adds for each vote it may get."""
    votes, judged = np.array([1.0, 0.0, 1.0, 0.5]), np.array([0.9, 0.2, 0.4, 0.5])
    weights = np.array([1.0, 2.0, 0.5, 1.0])
    mean = 0.0
    for order in itertools.permutations(range(4)):
        left, chance = weights.sum(), 1.0
        for place in order:
            chance *= weights[place] / left
            left -= weights[place]
        rows = list(order)
        limits = confidence_sequence.follow(votes[rows][:2], judged[rows], weights[rows], ties=1)
        mean += chance * float(limits.mean[2])
    assert mean == pytest.approx((votes.sum() + 0.5) / 5, abs=1e-12)


def test_votes_left_come_down_to_none_when_it_is_enough() -> None:
    votes, judged, weights = (each[0] for each in asked_in_turn(3, 1, 400))
    left = []
    for n in (0, 40, 80, 120, 200):
        limits = confidence_sequence.follow(votes[:n], judged, weights, 0.1)
        left.append(confidence_sequence.votes_left(limits, 0.1, 400))
        assert confidence_sequence.enough(limits, 0.1) == (left[-1] == 0)
    assert left[0] > 60 and left[-1] == 0
    assert sorted(left, reverse=True) == left
    whole = confidence_sequence.follow(np.ones(40), np.full(60, 0.5), np.ones(60))
    assert confidence_sequence.enough(whole, None)
    assert not confidence_sequence.enough(confidence_sequence.follow(np.ones(4), np.full(60, 0.5), np.ones(60)), None)
