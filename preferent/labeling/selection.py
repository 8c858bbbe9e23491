"""Select pairs to ask about: with equal probabilities, or preferring those that judges are unsure of.

Sampling with unequal probabilities, as in Särndal, Swensson and Wretman (1992), "Model assisted survey sampling". Each
vote keeps the probability with which its pair was selected. A rate that weights it by the inverse is unbiased, however
the pairs were selected. A rule that says when to stop draws one pair after the other, with known probabilities too.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq

from preferent import randomness
from preferent.data.judgment_outcomes import OUTCOMES
from preferent.data.types import Judgment
from preferent.errors import DataError, UsageError
from preferent.evaluation.statistics import confidence_sequence
from preferent.labeling.events import HumanVote
from preferent.labeling.questions import Question

Method = Literal["random", "informative"]
METHODS: tuple[Method, ...] = ("random", "informative")
FLOOR = 0.1
"""The weight of the least informative pair, where the most informative weighs 1. Every pair can be selected."""
LIGHTEST = 0.5
"""The weight of a pair of which the judges are sure, where one of which they know nothing weighs 1."""


def probability_a(judgment: Judgment) -> float:
    """Return one judge's probability that a is better: Bradley-Terry's of its scores, or else from its confidence."""
    scores = judgment.extra.get("score_a"), judgment.extra.get("score_b")
    if isinstance(scores[0], int | float) and isinstance(scores[1], int | float):
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, scores[0] - scores[1]))))
    return {"A": judgment.confidence, "B": 1 - judgment.confidence, "tie": 0.5}[judgment.choice]


def informativeness(probabilities: Sequence[float]) -> float:
    """Return how informative a pair is, in [0, 1], from the judges' probabilities that a is better.

    For one judge: 1 - 2 |p - 1/2|. For several: the largest p minus the smallest.
    """
    if len(probabilities) > 1:
        return max(probabilities) - min(probabilities)
    return 1 - 2 * abs(probabilities[0] - 0.5)


def inclusion(weights: np.ndarray, number: int) -> np.ndarray:
    """Return probabilities [n] proportional to the weights [n], at most 1, whose sum is `number` <= n."""
    certain = np.zeros(weights.size, dtype=bool)
    while True:
        rest = weights[~certain]
        probabilities = np.ones(weights.size)
        probabilities[~certain] = (number - int(certain.sum())) * rest / rest.sum() if rest.size else 1.0
        over = ~certain & (probabilities >= 1)
        if not over.any():
            return probabilities
        certain |= over


def systematic(probabilities: np.ndarray, order: np.ndarray, start: float) -> np.ndarray:
    """Return the selected places, sorted. Each is selected with exactly its probability; their number is the sum of
    the probabilities, rounded up or down.

    Madow's (1949) systematic sampling: the probabilities [n] are laid end to end in `order` [n], and the places at
    start, start + 1, … are selected; `start` is uniform in [0, 1).
    """
    ends = np.cumsum(probabilities[order])
    ends[-1] = round(ends[-1], 9)
    passed = np.ceil(np.concatenate([[0.0], ends]) - start)
    return np.sort(order[np.diff(passed) > 0])


def choose(
    questions: Sequence[Question], number: int | None, method: Method, judgments: Sequence[Judgment], seed: int
) -> list[Question]:
    """Return `number` of the questions, each with its probability of selection; all of them without a number.

    Pairs of identical answers are not asked and do not count. A share of them is kept that equals the share of the
    other pairs, so that the selection represents all pairs.
    """
    different = [question for question in questions if not question.identical]
    if number is None or number >= len(different):
        return list(questions)
    weights = np.ones(len(different))
    if method == "informative":
        weights = FLOOR + (1 - FLOOR) * _informativeness(different, judgments)
    chosen = _sample(different, inclusion(weights, number), seed, "label selection")
    same = [question for question in questions if question.identical]
    chosen |= _sample(same, np.full(len(same), number / len(different)), seed, "label identical")
    return [chosen[question.key] for question in questions if question.key in chosen]


def _informativeness(questions: Sequence[Question], judgments: Sequence[Judgment]) -> np.ndarray:
    """Return the informativeness [n] of the questions, from judgments of exactly these answers."""
    probabilities: dict[tuple[str, str, str], list[float]] = {}
    for judgment in judgments:
        id, a, b, p = judgment.id, judgment.response_a, judgment.response_b, probability_a(judgment)
        probabilities.setdefault((id, a, b), []).append(p)
        if a != b:
            probabilities.setdefault((id, b, a), []).append(1 - p)
    pairs = [(question.id, question.answer("a"), question.answer("b")) for question in questions]
    missing = [pair[0] for pair in pairs if pair not in probabilities]
    if missing:
        raise DataError(
            f"--judgments: {len(missing)} of {len(questions)} pairs have no judgment of their two answers (first: "
            f"{missing[0]}); give --judgments of the same answers, or use --select random"
        )
    return np.array([informativeness(probabilities[pair]) for pair in pairs])


def _sample(questions: Sequence[Question], probabilities: np.ndarray, seed: int, purpose: str) -> dict[str, Question]:
    """Return the selected questions by key. The selection depends on the set of questions, not on their order."""
    if not questions:
        return {}
    keys = np.array([int(question.pair_key, 16) for question in questions], dtype=np.uint64)
    order = np.argsort(randomness.uniforms(seed, purpose, keys, 0), kind="stable")
    places = systematic(probabilities, order, float(randomness.uniforms(seed, purpose, 0, 1)))
    drawn = [dataclasses.replace(questions[i], probability=float(probabilities[i])) for i in places]
    return {question.key: question for question in drawn}


@dataclasses.dataclass(frozen=True, slots=True)
class StoppingProgress:
    """How far the votes of one person are: about how many are `left`, and whether they are `enough`.

    `win_rate` is that of the model `side` over all `questions`; `interval` holds it however often one looked.
    """

    side: str
    votes: int
    questions: int
    left: int
    enough: bool
    win_rate: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        left = "enough" if self.enough else f"about {self.left} more are needed"
        return (
            f"{self.votes} votes, {left}: {self.side} wins {self.win_rate:.1%} over all {self.questions} pairs (95 % "
            f"interval {low:.1%} to {high:.1%}, however often one looked)"
        )


def rule(width: float | None, decided: bool) -> dict[str, Any] | None:
    """Return the rule as a setting: a width of the interval, or None for one that leaves out one half."""
    if width is not None and decided:
        raise UsageError("--until-width and --until-decided: choose one of them")
    if width is not None and not 0.02 <= width < 1:
        raise UsageError(f"--until-width {width}: must be the width of an interval of a rate, from 0.02 to below 1")
    return {"width": width} if width is not None or decided else None


def expected(questions: Sequence[Question], judgments: Sequence[Judgment]) -> dict[str, float]:
    """Return by key the probability that side a is better as the judges see it, of pairs that they judged."""
    seen: dict[tuple[str, str, str], list[float]] = {}
    for judgment in judgments:
        if judgment.judge != "people":
            pair = judgment.id, judgment.response_a, judgment.response_b
            seen.setdefault(pair, []).append(probability_a(judgment))
    by_key = {}
    for question in questions:
        a, b = question.answer("a"), question.answer("b")
        straight = seen.get((question.id, a, b), [])
        turned = [1 - share for share in seen.get((question.id, b, a), [])]
        if straight or turned:
            by_key[question.key] = float(np.mean(straight + turned))
    return by_key


def weight(chance: float) -> float:
    """Return how soon to ask about a pair: the standard deviation of a vote that prefers a with this probability."""
    return float(max(2 * np.sqrt(chance * (1 - chance)), LIGHTEST))


def weights(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of questions by key; a question that has none weighs 1."""
    if not settings.get("until") or settings.get("select") != "informative":
        return {}
    return {key: weight(chance) for key, chance in settings["expected"].items()}


def progress(
    settings: Mapping[str, Any], queue: Sequence[str], questions: Mapping[str, Question], votes: Mapping[str, HumanVote]
) -> StoppingProgress | None:
    """Return how far a person's votes on a `queue` are; None without a rule. A skip counts as a tie."""
    if not settings.get("until"):
        return None
    keys = [key for key in queue if questions[key].gold is None and not questions[key].identical]
    voted = next((place for place, key in enumerate(keys) if key not in votes), len(keys))
    outcomes = np.array([OUTCOMES[votes[key].verdict or "tie"] for key in keys[:voted]])
    judged = np.array([settings["expected"].get(key, 0.5) for key in keys])
    weighed = weights(settings)
    heavy = np.array([weighed.get(key, 1.0) for key in keys])
    ties = sum(question.identical for question in questions.values())
    width = settings["until"]["width"]
    half = None if width is None else width / 2
    limits = confidence_sequence.follow(outcomes, judged, heavy, half or confidence_sequence.ALWAYS, ties)
    interval = float(limits.low[-1]), float(limits.high[-1])
    left = confidence_sequence.votes_left(limits, half, len(keys))
    enough = confidence_sequence.enough(limits, half)
    side = questions[keys[0]].model_a
    return StoppingProgress(
        side,
        voted,
        len(keys) + ties,
        left,
        enough,
        min(max(float(limits.mean[-1]), interval[0]), interval[1]),
        interval,
    )


def with_probabilities(settings: Mapping[str, Any], questions: Sequence[Question], answered: int) -> list[Question]:
    """Return the questions with the probability that each is among the first `answered`, where some come sooner.

    A question of weight w comes at an exponential time of rate w, so it is among them with about 1 - exp(-w τ), where
    the probabilities sum to their number (Rosén 1997).
    """
    weighed = weights(settings)
    asked = [question for question in questions if question.gold is None and not question.identical]
    if not weighed or not 0 < answered < len(asked):
        return list(questions)
    heavy = {question.key: weighed.get(question.key, 1.0) for question in asked}
    rates = np.array(list(heavy.values()))
    time = brentq(lambda log: -np.expm1(-rates * np.exp(log)).sum() - answered, -50, 50)
    return [
        dataclasses.replace(question, probability=float(-np.expm1(-heavy[question.key] * np.exp(time))))
        if question.key in heavy
        else dataclasses.replace(question, probability=answered / len(asked))
        for question in questions
    ]
