"""What a judge makes of the sides: its judgments, by pair of sides, and how they are counted.

An outcome is one verdict: of a reward model one a pair, of a language model one for each order and vote, of people one
for each who voted. Those about one prompt are one cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from preferent import judge
from preferent.answer import Answer, Answers
from preferent.compare.scoring import Scores
from preferent.judge import Pair
from preferent.record import Judgment

Kind = Literal["reward_model", "language_model", "people"]
Sides = tuple[str, str]
OUTCOMES: Mapping[str, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True, slots=True)
class Opinion:
    """One judge's judgments by pair of sides, and the scores they came from, where it is a reward model."""

    name: str
    kind: Kind
    said: Mapping[Sides, Sequence[Judgment]]
    scores: Scores | None = None
    independent: bool = True


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Verdicts as 1, 1/2 or 0 for the first side, the ids of their pairs, and the weights of those."""

    values: Sequence[float]
    ids: Sequence[str]
    weights: Sequence[float]


def by_scores(
    name: str, scores: Scores, answers: Answers, instruction: str | None, names: Mapping[str, str]
) -> Opinion:
    """A reward model's opinion of every pair of sides."""
    said = {}
    for a, b in pairs_of(answers):
        pairs = paired(answers, a, b, instruction)
        said[a, b] = called(judge.from_scores(pairs, scores[a], scores[b], name), names[a], names[b])
    return Opinion(name, "reward_model", said, scores, independent=name != "reward")


def pairs_of(sides: Mapping[str, object]) -> list[Sides]:
    """Every pair of sides, a and b first."""
    keys = list(sides)
    return [(one, other) for place, one in enumerate(keys) for other in keys[place + 1 :]]


def paired(answers: Mapping[str, Sequence[Answer]], a: str, b: str, instruction: str | None) -> list[Pair]:
    """Two sides' pairs as a judge sees them; an instruction that opens the prompt is told apart from its context."""
    opening = f"{instruction}\n\n\n" if instruction else ""
    first = next(iter(answers))
    pairs = []
    for asked, one, other in zip(answers[first], answers[a], answers[b], strict=True):
        split = bool(opening) and asked.prompt.startswith(opening)
        context = asked.prompt.removeprefix(opening) if split else asked.prompt
        pairs.append(Pair(asked.id, instruction or "" if split else "", context, one.text, other.text))
    return pairs


def called(judgments: Sequence[Judgment], a: str, b: str) -> list[Judgment]:
    """The judgments with the names of their sides."""
    return [replace(one, extra={"model_a": a, "model_b": b} | dict(one.extra)) for one in judgments]


def outcomes(judgments: Sequence[Judgment], unparsable: float | None = None) -> Outcomes:
    """Every verdict in judgments; those that could not be parsed are left out, or taken for `unparsable`.

    A pair that was drawn with probability p to be asked about weighs 1 / p.
    """
    values: list[float] = []
    ids: list[str] = []
    weights: list[float] = []
    for one in judgments:
        for choice in verdicts(one):
            value = unparsable if choice is None else OUTCOMES[choice]
            if value is not None:
                values.append(value)
                ids.append(one.id)
                weights.append(1 / float(one.extra.get("probability") or 1.0))
    return Outcomes(values, ids, weights)


def verdicts(judgment: Judgment) -> list[str | None]:
    """The verdicts that a judgment holds, None where a reply could not be parsed."""
    several = judgment.extra.get("verdicts")
    return [judgment.choice] if several is None else [verdict["choice"] for verdict in several]


def choices(judgments: Sequence[Judgment]) -> dict[str, str]:
    """One choice for each pair that a judge saw and whose answers differ: of several judgments that of the larger
    number, a tie where none is."""
    totals: dict[str, float] = {}
    for one in judgments:
        if one.response_a != one.response_b and any(choice is not None for choice in verdicts(one)):
            totals[one.id] = totals.get(one.id, 0.0) + OUTCOMES[one.choice] - 0.5
    return {id: "A" if total > 0 else "B" if total < 0 else "tie" for id, total in totals.items()}
