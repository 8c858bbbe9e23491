"""What judgments count for: the verdicts in them as outcomes, and one choice a pair."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from preferent.data.types import Judgment

OUTCOMES: Mapping[str, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}
SWAPPED: Mapping[str, Literal["A", "B", "tie"]] = {"A": "B", "B": "A", "tie": "tie"}
"""What a choice is where the two answers have changed places."""


@dataclass(frozen=True, slots=True)
class JudgmentOutcomes:
    """Verdicts as 1, 1/2 or 0 for side a, the ids of their pairs, and the weights of those."""

    values: Sequence[float]
    ids: Sequence[str]
    weights: Sequence[float]


def outcomes(judgments: Iterable[Judgment], unparsable: float | None = None) -> JudgmentOutcomes:
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
                weights.append(1 / probability(one))
    return JudgmentOutcomes(values, ids, weights)


def verdicts(judgment: Judgment) -> list[str | None]:
    """The verdicts that a judgment holds, None where a reply could not be parsed."""
    several = judgment.extra.get("verdicts")
    return [judgment.choice] if several is None else [verdict["choice"] for verdict in several]


def parsed(judgment: Judgment) -> bool:
    """Whether the judge said anything of this pair."""
    return any(choice is not None for choice in verdicts(judgment))


def probability(judgment: Judgment) -> float:
    """With what probability the pair was selected to be asked about."""
    return float(judgment.extra.get("probability") or 1.0)


def outcome(judgments: Sequence[Judgment]) -> float | None:
    """The mean outcome of all verdicts of one pair; None where none could be parsed."""
    found = outcomes(judgments).values
    return sum(found) / len(found) if found else None


def expectation(judgment: Judgment) -> float | None:
    """The outcome that a judge expects of a pair, in [0, 1]: by its own probabilities where it gives them."""
    if "score_a" in judgment.extra:
        return 1 - judgment.confidence if judgment.choice == "B" else judgment.confidence
    said = judgment.extra.get("verdicts")
    if said is None:
        return OUTCOMES[judgment.choice]
    values = [_expected(verdict) for verdict in said if verdict["choice"] is not None]
    return sum(values) / len(values) if values else None


def _expected(verdict: Mapping[str, object]) -> float:
    probability, choice = verdict.get("probability"), str(verdict["choice"])
    return float(probability) if isinstance(probability, int | float) else OUTCOMES[choice]


def choices(judgments: Iterable[Judgment]) -> dict[str, str]:
    """One choice for each pair that was judged and whose answers differ: of several judgments that of the larger
    number, a tie where none is."""
    totals: dict[str, float] = {}
    for one in judgments:
        if one.response_a != one.response_b and parsed(one):
            totals[one.id] = totals.get(one.id, 0.0) + OUTCOMES[one.choice] - 0.5
    return {id: "A" if total > 0 else "B" if total < 0 else "tie" for id, total in totals.items()}
