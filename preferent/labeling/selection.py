"""Select pairs to ask about: with equal probabilities, or preferring those that judges are unsure of.

Sampling with unequal probabilities, as in Särndal, Swensson and Wretman (1992), "Model assisted survey sampling". Each
vote keeps the probability with which its pair was selected. A rate that weights it by the inverse is unbiased, however
the pairs were selected.
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

Method = Literal["random", "informative"]
METHODS: tuple[Method, ...] = ("random", "informative")
FLOOR = 0.1
"""The weight of the least informative pair, where the most informative weighs 1. Every pair can be selected."""


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
    pairs = [(question.id, question.a, question.b) for question in questions]
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
