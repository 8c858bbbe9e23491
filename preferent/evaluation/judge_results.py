"""The judgments of one judge, by pair of sides.

The scores of a reward model decide every pair of sides. Language models judge a and b alone, because each call costs.
People have judged the pairs that they were shown.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from preferent.data import judgments
from preferent.data.judgments import AnswerPair
from preferent.data.predictions import Answer, Answers
from preferent.data.types import Judgment

Kind = Literal["reward_model", "language_model", "people"]
Sides = tuple[str, str]
A_B: Sides = ("a", "b")
Scores = Mapping[str, np.ndarray]
"""The raw scores [n] of one judge, by side."""


@dataclass(frozen=True, slots=True)
class JudgeResults:
    """One judge's judgments by pair of sides, the scores of a reward model, and further figures about the judge."""

    name: str
    kind: Kind
    judgments: Mapping[Sides, Sequence[Judgment]]
    scores: Scores | None = None
    independent: bool = True
    facts: Mapping[str, Any] | None = None


def by_scores(
    name: str,
    scores: Scores,
    answers: Answers,
    instruction: str | None,
    names: Mapping[str, str],
    facts: Mapping[str, Any] | None = None,
) -> JudgeResults:
    """Return a reward model's judgments of every pair of sides; `facts` are further figures about the model."""
    by_sides = {}
    for a, b in pairs_of(answers):
        pairs = paired(answers, a, b, instruction)
        by_sides[a, b] = called(judgments.from_scores(pairs, scores[a], scores[b], name), names[a], names[b])
    return JudgeResults(name, "reward_model", by_sides, scores, name != "reward", facts)


def pairs_of(sides: Mapping[str, object]) -> list[Sides]:
    """Return every pair of sides, a and b first."""
    return list(itertools.combinations(sides, 2))


def paired(answers: Mapping[str, Sequence[Answer]], a: str, b: str, instruction: str | None) -> list[AnswerPair]:
    """Return two sides' pairs as a judge sees them, with an instruction that opens the prompt split off its context."""
    opening = f"{instruction}\n\n\n" if instruction else ""
    first = next(iter(answers))
    pairs = []
    for answer, answer_a, answer_b in zip(answers[first], answers[a], answers[b], strict=True):
        split = bool(opening) and answer.prompt.startswith(opening)
        context = answer.prompt.removeprefix(opening) if split else answer.prompt
        pairs.append(AnswerPair(answer.id, instruction or "" if split else "", context, answer_a.text, answer_b.text))
    return pairs


def called(judgments: Sequence[Judgment], a: str, b: str) -> list[Judgment]:
    """Return the judgments with the names of their sides."""
    return [replace(judgment, extra={"model_a": a, "model_b": b} | dict(judgment.extra)) for judgment in judgments]
