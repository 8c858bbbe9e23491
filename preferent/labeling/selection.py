"""Which of many pairs are asked about: a fair draw, or rather those that a judge is unsure of; with the probability.

Sampling with unequal probabilities, as in Särndal, Swensson and Wretman (1992), "Model assisted survey sampling":
each vote keeps the probability that its pair had, and a rate in which it weighs one over that is unbiased, however the
pairs were chosen.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from preferent import randomness
from preferent.data.types import Judgment
from preferent.errors import DataError
from preferent.labeling.questions import Question

Way = Literal["random", "informative"]
WAYS: tuple[Way, ...] = ("random", "informative")
FLOOR = 0.1
"""The weight of a pair that would tell nothing, where one that tells most weighs 1: none is out of reach."""


def probability_a(judgment: Judgment) -> float:
    """The probability that a is better, by one judge: Bradley-Terry's of its scores, or else what it is sure of."""
    scores = judgment.extra.get("score_a"), judgment.extra.get("score_b")
    if isinstance(scores[0], int | float) and isinstance(scores[1], int | float):
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, scores[0] - scores[1]))))
    return {"A": judgment.confidence, "B": 1 - judgment.confidence, "tie": 0.5}[judgment.choice]


def informativeness(probabilities: Sequence[float]) -> float:
    """How much there is to learn from a pair, in [0, 1], from the probabilities that judges give to a being better.

    Of one judge: 1 - 2 |p - 1/2|. Of several: how far apart they are, the largest p less the smallest.
    """
    if len(probabilities) > 1:
        return max(probabilities) - min(probabilities)
    return 1 - 2 * abs(probabilities[0] - 0.5)


def inclusion(weights: np.ndarray, number: int) -> np.ndarray:
    """Probabilities [n] proportional to the weights [n], none above 1, that add up to `number` <= n."""
    certain = np.zeros(weights.size, dtype=bool)
    while True:
        rest = weights[~certain]
        found = np.ones(weights.size)
        found[~certain] = (number - int(certain.sum())) * rest / rest.sum() if rest.size else 1.0
        over = ~certain & (found >= 1)
        if not over.any():
            return found
        certain |= over


def systematic(probabilities: np.ndarray, order: np.ndarray, start: float) -> np.ndarray:
    """The chosen places, sorted: each with exactly its probability, and as many as those add up to, rounded either way.

    Madow's (1949) systematic sampling: the probabilities [n] are laid end to end in `order` [n], and what lies at
    start, start + 1, … is chosen; `start` is uniform in [0, 1).
    """
    ends = np.cumsum(probabilities[order])
    ends[-1] = round(ends[-1], 9)
    passed = np.ceil(np.concatenate([[0.0], ends]) - start)
    return np.sort(order[np.diff(passed) > 0])


def choose(
    questions: Sequence[Question], number: int | None, way: Way, judgments: Sequence[Judgment], seed: int
) -> list[Question]:
    """`number` of the questions, each with the probability that it had; all of them where no number is given.

    Pairs of identical answers are not asked and do not count, but enough of them are kept for the rest to be a fair
    picture: each with the share of the others that are asked.
    """
    open_ones = [question for question in questions if not question.identical]
    if number is None or number >= len(open_ones):
        return list(questions)
    weights = np.ones(len(open_ones))
    if way == "informative":
        weights = FLOOR + (1 - FLOOR) * _told(open_ones, judgments)
    chosen = _drawn(open_ones, inclusion(weights, number), seed, "label selection")
    same = [question for question in questions if question.identical]
    chosen |= _drawn(same, np.full(len(same), number / len(open_ones)), seed, "label identical")
    return [chosen[question.key] for question in questions if question.key in chosen]


def _told(questions: Sequence[Question], judgments: Sequence[Judgment]) -> np.ndarray:
    """The informativeness [n] of the questions, by judgments of these very answers."""
    told: dict[tuple[str, str, str], list[float]] = {}
    for judgment in judgments:
        id, a, b, p = judgment.id, judgment.response_a, judgment.response_b, probability_a(judgment)
        told.setdefault((id, a, b), []).append(p)
        if a != b:
            told.setdefault((id, b, a), []).append(1 - p)
    pairs = [(question.id, question.a, question.b) for question in questions]
    missing = [pair[0] for pair in pairs if pair not in told]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(questions)} pairs have no judgment of their two answers (the first is "
            f"{missing[0]}); give --judgments of the same answers, or take --select random"
        )
    return np.array([informativeness(told[pair]) for pair in pairs])


def _drawn(questions: Sequence[Question], probabilities: np.ndarray, seed: int, purpose: str) -> dict[str, Question]:
    """The questions that were drawn, by key; the draw depends on which there are, not on their order."""
    if not questions:
        return {}
    keys = np.array([int(question.key, 16) for question in questions], dtype=np.uint64)
    order = np.argsort(randomness.uniforms(seed, purpose, keys, 0), kind="stable")
    places = systematic(probabilities, order, float(randomness.uniforms(seed, purpose, 0, 1)))
    drawn = [dataclasses.replace(questions[i], probability=float(probabilities[i])) for i in places]
    return {question.key: question for question in drawn}
