"""What a judge makes of the sides: its judgments, by pair of sides.

A reward model scores every answer once, and with that has judged every pair of sides; language models are asked about a
and b alone, as each call costs; people have judged what they were asked.
"""

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
    """One judge's judgments by pair of sides; a reward model's scores, a language model's account of the two orders,
    and what else there is to tell of the judge."""

    name: str
    kind: Kind
    said: Mapping[Sides, Sequence[Judgment]]
    scores: Scores | None = None
    independent: bool = True
    facts: Mapping[str, Any] | None = None


def by_scores(
    name: str, scores: Scores, answers: Answers, instruction: str | None, names: Mapping[str, str]
) -> JudgeResults:
    """A reward model's opinion of every pair of sides."""
    said = {}
    for a, b in pairs_of(answers):
        pairs = paired(answers, a, b, instruction)
        said[a, b] = called(judgments.from_scores(pairs, scores[a], scores[b], name), names[a], names[b])
    return JudgeResults(name, "reward_model", said, scores, independent=name != "reward")


def pairs_of(sides: Mapping[str, object]) -> list[Sides]:
    """Every pair of sides, a and b first."""
    keys = list(sides)
    return [(one, other) for place, one in enumerate(keys) for other in keys[place + 1 :]]


def paired(answers: Mapping[str, Sequence[Answer]], a: str, b: str, instruction: str | None) -> list[AnswerPair]:
    """Two sides' pairs as a judge sees them; an instruction that opens the prompt is told apart from its context."""
    opening = f"{instruction}\n\n\n" if instruction else ""
    first = next(iter(answers))
    pairs = []
    for asked, one, other in zip(answers[first], answers[a], answers[b], strict=True):
        split = bool(opening) and asked.prompt.startswith(opening)
        context = asked.prompt.removeprefix(opening) if split else asked.prompt
        pairs.append(AnswerPair(asked.id, instruction or "" if split else "", context, one.text, other.text))
    return pairs


def called(judgments: Sequence[Judgment], a: str, b: str) -> list[Judgment]:
    """The judgments with the names of their sides."""
    return [replace(one, extra={"model_a": a, "model_b": b} | dict(one.extra)) for one in judgments]
