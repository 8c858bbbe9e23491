"""A headline is in colour only if its judge is shown to tell better answers from worse."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from bench import headlines
from preferent.data.predictions import Answer
from preferent.data.types import Judgment
from preferent.evaluation import comparison_summary, judge_accuracy, judge_quality, verdict_sentence
from preferent.evaluation.judge_accuracy import VotedPair
from preferent.evaluation.judge_results import JudgeResults, by_scores
from preferent.evaluation.statistics.win_rates import lower_limit, win_rate

NAMES = {"a": "tuned", "b": "base"}


def limit(right: int, n: int) -> float:
    return lower_limit([1.0] * right + [0.0] * (n - right), list(map(str, range(n))))


def accuracy(right: int, n: int, **rules: tuple[float, float]) -> dict[str, Any]:
    """The accuracy of a judge, with the share of each rule and the lower limit of the lead over it."""
    interval = win_rate([1.0] * right + [0.0] * (n - right), list(map(str, range(n)))).interval
    figures = {"by": "held_out", "share": right / n, "interval": interval, "count": n, "lower_99": limit(right, n)}
    leads = {name: {"share": share, "lead_interval": [lead, 0.5]} for name, (share, lead) in rules.items()}
    return figures | {"rules": leads}


@pytest.mark.parametrize(("right", "n"), [(14, 34), (24, 34), (60, 100), (265, 384), (7, 7), (0, 5)])
def test_the_lower_limit_is_clopper_and_pearsons(right: int, n: int) -> None:
    """At that accuracy, as many right or more have probability .005; the limit of 0 is 0."""
    assert binom.sf(right - 1, n, limit(right, n)) == pytest.approx(0.005 if right else 1.0, abs=1e-9)


def test_worked_limits() -> None:
    assert limit(265, 384) == pytest.approx(0.62590, abs=5e-6)
    assert limit(24, 34) == pytest.approx(0.47218, abs=5e-6)
    assert limit(8, 8) == pytest.approx(0.005 ** (1 / 8)) and limit(7, 7) < 0.5 < limit(8, 8)


def test_pairs_of_one_prompt_and_ties_lower_the_limit() -> None:
    right = [1.0] * 70 + [0.0] * 30
    prompts = [str(pair // 5) for pair in range(100)]
    assert lower_limit(right, prompts) == win_rate(right, prompts, 0.99).interval[0] < limit(70, 100) - 0.1
    half = lower_limit([0.5] * 3 + [1.0] * 60 + [0.0] * 20, list(map(str, range(83))))
    assert half == limit(61, 83), "half a pair is none"


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        (accuracy(265, 384, longer=(0.474, 0.13), shorter=(0.526, 0.07), first=(0.503, 0.1), words=(0.58, 0.02)), ""),
        (accuracy(14, 34, longer=(0.53, -0.3)), "that may be chance"),
        (accuracy(60, 100, longer=(0.5, 0.01)), "that may be chance"),
        (accuracy(275, 400, longer=(0.65, -0.01)), "“the longer wins”, right on 65 %, may be as good"),
        (accuracy(275, 400, shorter=(0.6875, -0.05)), "“the shorter wins”, right on 69 %, is as good or better"),
        (accuracy(275, 400, first=(0.7, -0.05), second=(0.3, 0.2)), "“the first wins”, right on 70 %, is as good"),
        (accuracy(275, 400, words=(0.6875, -0.05)), "“bag of words”, right on 69 %, is as good or better"),
        (accuracy(275, 400, words=(0.6874, -0.05)), ""),
        (accuracy(275, 400, longer=(0.6, 0.0), words=(0.7, -0.1)), "“bag of words”, right on 70 %"),
    ],
)
def test_who_can_tell(figures: dict[str, Any], why: str) -> None:
    ability = judge_quality.can_tell(figures)
    assert ability.tells == (not why) and ability.measured
    assert ability.why.replace("\u00a0", " ").startswith(why)


def test_only_test_pairs_measure_a_reward_model() -> None:
    figures = {key: value for key, value in accuracy(265, 384).items() if key in ("share", "interval", "count")}
    quality: dict[str, Any] = {"reported": "test", "accuracy": figures | {"lower_99": 0.6}}
    lead = {"share": 0.5, "lead_interval": [0.05, 0.15]}
    quality["rules"] = {"longer": lead | {"lead": 0.1, "count": 384, "interval": [0.4, 0.6]}}
    measured = judge_accuracy.held_out(quality)
    assert measured is not None and measured["rules"] == {"longer": lead}
    assert judge_accuracy.held_out(quality | {"reported": "validation"}) is None, "they selected the model"
    assert judge_accuracy.held_out(quality | {"accuracy": figures}) is None, "of an earlier version"
    assert judge_accuracy.held_out({}) is None


def metrics(**judge: Any) -> dict[str, Any]:
    figures = {"kind": "reward_model", "independent": True, "win_rate": 0.63, "interval": [0.58, 0.68], "n": 400}
    figures |= {"accuracy": accuracy(265, 384, longer=(0.474, 0.13), words=(0.58, 0.02))}
    sides = [{"key": key, "name": name} for key, name in NAMES.items()]
    return {"headline": "it", "judges": {"it": figures | judge}, "kl": None, "sides": sides}


@pytest.mark.parametrize(
    ("found", "trusted"),
    [
        (metrics(), True),
        (metrics(interval=[0.3, 0.45]), True),
        (metrics(interval=[0.5, 0.6]), False),
        (metrics(independent=False), False),
        (metrics(accuracy=None), False),
        (metrics(accuracy=accuracy(14, 34)), False),
        (metrics(kind="language_model", accuracy=None), False),
        (metrics(kind="people", accuracy=None), True),
        (metrics(kind="people", accuracy=None, interval=[0.45, 0.6]), False),
        (metrics() | {"headline": None}, False),
        (metrics() | {"against_people": {"it": {"intervals": {"accuracy": [0.2, 0.49]}}}}, False),
        (metrics() | {"against_people": {"it": {"intervals": {"accuracy": [0.2, 0.51]}}}}, True),
        ({}, False),
    ],
)
def test_which_headline_is_in_colour(found: dict[str, Any], trusted: bool) -> None:
    assert judge_quality.trusted(found) is trusted


def test_the_sentence_says_how_good_the_judge_is() -> None:
    told = verdict_sentence.verdict_sentence
    base = (
        "an independent judge prefers the tuned model to the base in 63.0% of 400 pairs (95 % interval 58.0% to 68.0%)"
    )
    assert told(metrics()) == (f"{base}, and it is right on 69.0% of 384 held-out pairs (95 % interval 64.2% to 73.4%)")
    chance = accuracy(14, 34)
    assert told(metrics(accuracy=chance)) == (
        f"no judge here can tell which is better: {base}, but it is right on 41.2% of 34 held-out pairs "
        "(95 % interval 26.4% to 57.8%), and that may be chance"
    )
    assert told(metrics(accuracy=None)) == f"{base}, accuracy not measured"
    people = metrics(accuracy=chance)
    people["judges"]["people"] = metrics(kind="people")["judges"]["it"]
    assert told(people).startswith("the headline judge cannot tell (but people can) which is better: an independent")
    assert "of 400 pairs on 300 prompts (" in told(metrics(prompts=300))


def test_the_winner_is_named_first() -> None:
    found = metrics(win_rate=0.346, interval=[0.2, 0.531], n=26)
    found["sides"] = [{"key": "a", "name": "qa"}, {"key": "b", "name": "qa2"}]
    assert "prefers qa2 to qa in 65.4% of 26 pairs (95 % interval 46.9% to 80.0%)" in verdict_sentence.verdict_sentence(
        found
    )


def test_people_measure_a_judge_on_what_they_voted_on() -> None:
    pairs = [VotedPair(f"p{i}", float(i % 5 > 0), float(i % 2), 1 if i % 4 else -1, "a b", "c d") for i in range(40)]
    measured = judge_accuracy.by_votes(pairs)
    assert measured is not None and measured["by"] == "people"
    assert (measured["share"], measured["count"]) == (0.8, 40)
    shares = {name: rule["share"] for name, rule in measured["rules"].items()}
    assert shares == {"longer": 0.75, "shorter": 0.25, "words": 1.0, "first": 0.5, "second": 0.5}
    assert "bag of words" in judge_quality.can_tell(measured).why
    unknown = [VotedPair("p", 1.0, None, 0, "a", "b")]
    alone = judge_accuracy.by_votes(unknown)
    assert alone is not None and set(alone["rules"]) == {"longer", "shorter", "words"}
    assert judge_accuracy.by_votes([]) is None


def test_votes_measure_every_judge_that_has_no_accuracy() -> None:
    """People prefer the tuned answer on the first 30 of 40 pairs and see a first on every other; the judge agrees on
    all but three of those on which people chose."""
    ids = [str(i) for i in range(40)]
    a = [Answer(id, f"prompt {id}", "", f"tuned {id}", tokens=3, ended=True) for id in ids]
    b = [Answer(id, f"prompt {id}", "", f"base {id}", tokens=2, ended=True) for id in ids]
    answers = {"a": a, "b": b}
    choices = ["A"] * 30 + ["B"] * 9 + ["tie"]
    votes = [
        Judgment(id, "", a[i].prompt, a[i].text, b[i].text, choices[i], 1.0, "people", extra={"first": "ab"[i % 2]})
        for i, id in enumerate(ids)
    ]
    scores = {"a": np.array([1.0] * 27 + [0.0] * 13), "b": np.full(40, 0.5)}
    people = JudgeResults("people", "people", {("a", "b"): votes})
    judge = by_scores("judge", scores, answers, None, NAMES)
    found = comparison_summary.verdict(answers, [judge, people], "judge", NAMES)[1]
    measured = found["judges"]["judge"]["accuracy"]
    assert (measured["share"], measured["count"], measured["by"]) == (pytest.approx(36 / 39), 39, "people")
    assert measured["rules"]["longer"]["share"] == pytest.approx(30 / 39)
    assert measured["rules"]["first"]["share"] == pytest.approx((15 + 4) / 39)
    assert "accuracy" not in found["judges"]["people"]
    known = by_scores("judge", scores, answers, None, NAMES, {"accuracy": accuracy(265, 384)})
    found = comparison_summary.verdict(answers, [known, people], "judge", NAMES)[1]
    assert found["judges"]["judge"]["accuracy"]["count"] == 384


def test_rows_of_one_prompt_are_one_question() -> None:
    """The prompt that was answered nine times, and lost, counts as much as each of the three that were won."""
    prompts = ["same"] * 9 + ["x", "y", "z"]
    a, b = (
        [Answer(str(i), prompt, "", f"{side} {i}", tokens=3, ended=True) for i, prompt in enumerate(prompts)]
        for side in "ab"
    )
    scores = {"a": np.array([0.0] * 9 + [1.0] * 3), "b": np.full(12, 0.5)}
    answers = {"a": a, "b": b}
    judge = by_scores("judge", scores, answers, None, NAMES)
    found = comparison_summary.verdict(answers, [judge], "judge", NAMES)[1]
    figures = found["judges"]["judge"]
    assert (found["rows"], found["prompts"], figures["n"], figures["prompts"]) == (12, 4, 12, 4)
    assert figures["win_rate"] == pytest.approx(0.75)
    assert figures["interval"][0] < 0.75 < figures["interval"][1]


def test_judges_that_cannot_judge_get_no_colour() -> None:
    """A part of bench/headlines.py: eight such judges in each world."""
    rows = headlines.simulate(30, seed=5, good=False)
    shown = np.concatenate([figures[:, 2] for figures in rows.values()])
    assert len(shown) == 240 and shown.sum() <= 1
    assert np.mean([figures[:, 1].mean() for figures in rows.values()]) > 0.4, (
        "many of their verdicts are beyond chance"
    )
