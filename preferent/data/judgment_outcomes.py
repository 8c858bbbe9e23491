"""Outcomes of judgments: each verdict as a number, and one choice per pair."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from preferent.data.types import Judgment

OUTCOMES: Mapping[str, float] = {"A": 1.0, "tie": 0.5, "B": 0.0}
SWAPPED: Mapping[str, Literal["A", "B", "tie"]] = {"A": "B", "B": "A", "tie": "tie"}
"""A choice after the two answers are swapped."""


@dataclass(frozen=True, slots=True)
class JudgmentOutcomes:
    """Verdicts as 1, 1/2 or 0 for side a, with the ids and the weights of their pairs."""

    values: Sequence[float]
    ids: Sequence[str]
    weights: Sequence[float]


def outcomes(judgments: Iterable[Judgment], unparsable: float | None = None) -> JudgmentOutcomes:
    """Return the outcome of every verdict; one that could not be parsed is left out, or counts as `unparsable`.

    A pair that was selected with probability p has the weight 1 / p.
    """
    values: list[float] = []
    ids: list[str] = []
    weights: list[float] = []
    for judgment in judgments:
        for choice in verdicts(judgment):
            value = unparsable if choice is None else OUTCOMES[choice]
            if value is not None:
                values.append(value)
                ids.append(judgment.id)
                weights.append(1 / probability(judgment))
    return JudgmentOutcomes(values, ids, weights)


def verdicts(judgment: Judgment) -> list[str | None]:
    """Return the verdicts of a judgment, None for a reply that could not be parsed."""
    several = judgment.extra.get("verdicts")
    return [judgment.choice] if several is None else [verdict["choice"] for verdict in several]


def parsed(judgment: Judgment) -> bool:
    """Return whether any verdict of a judgment could be parsed."""
    return any(choice is not None for choice in verdicts(judgment))


def probability(judgment: Judgment) -> float:
    """Return the probability with which the pair was selected for judging."""
    return float(judgment.extra.get("probability") or 1.0)


def outcome(judgments: Sequence[Judgment]) -> float | None:
    """Return the mean outcome of all verdicts on one pair, or None if none could be parsed."""
    values = outcomes(judgments).values
    return sum(values) / len(values) if values else None


def expectation(judgment: Judgment) -> float | None:
    """Return the expected outcome of a pair in [0, 1], from the judge's own probabilities if it gives them."""
    if "score_a" in judgment.extra:
        return 1 - judgment.confidence if judgment.choice == "B" else judgment.confidence
    several = judgment.extra.get("verdicts")
    if several is None:
        return OUTCOMES[judgment.choice]
    values = [_expected(verdict) for verdict in several if verdict["choice"] is not None]
    return sum(values) / len(values) if values else None


def _expected(verdict: Mapping[str, object]) -> float:
    probability, choice = verdict.get("probability"), str(verdict["choice"])
    return float(probability) if isinstance(probability, int | float) else OUTCOMES[choice]


def choices(judgments: Iterable[Judgment]) -> dict[str, str]:
    """Return one choice for each judged pair whose answers differ: that of the majority of its judgments, or a tie."""
    totals: dict[str, float] = {}
    for judgment in judgments:
        if judgment.response_a != judgment.response_b and parsed(judgment):
            totals[judgment.id] = totals.get(judgment.id, 0.0) + OUTCOMES[judgment.choice] - 0.5
    return {id: "A" if total > 0 else "B" if total < 0 else "tie" for id, total in totals.items()}
