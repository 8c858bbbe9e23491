"""Counts of a set of preferences and thumbs, and numbers of each row."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preferent.data.types import Preference, Thumb, digest
from preferent.errors import DataError


@dataclass(frozen=True, slots=True)
class PreferenceCounts:
    """The numbers of ties, of rows that repeat an earlier row, and of pairs of answers of which both were chosen."""

    ties: int
    duplicates: int
    contradictory: int


def count_preferences(pairs: Sequence[Preference]) -> PreferenceCounts:
    """Count ties, duplicates and contradictions, whatever the order of the candidates."""
    choices_of: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
    for pair in pairs:
        key = digest(pair.prompt.key, *sorted((pair.candidate_0, pair.candidate_1)))
        choices_of[key][None if pair.choice == "tie" else pair.chosen] += 1
    repeated = sum(count - 1 for choices in choices_of.values() for count in choices.values())
    contradictory = sum(len(set(choices) - {None}) > 1 for choices in choices_of.values())
    return PreferenceCounts(sum(pair.choice == "tie" for pair in pairs), repeated, contradictory)


def kto_weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """Return weights of desirable and undesirable answers, by their numbers: one of the two is raised until the ratio
    of the weighted numbers is between 1 and 4/3 (Ethayarajh et al. 2024)."""
    ratio = desirable / undesirable
    return max(1.0, 1 / ratio), max(1.0, 0.75 * ratio)


def strengths(feedback: Sequence[Preference | Thumb]) -> np.ndarray:
    """Return the strength of each row, 0 where it has none; raise `DataError` for one below 0."""
    given = [0.0 if isinstance(row, Thumb) else row.strength or 0.0 for row in feedback]
    for row, strength in zip(feedback, given, strict=True):
        if strength < 0:
            raise DataError(
                f"{row.source}: strength is {strength:g}, but a margin is at least 0; name the "
                "chosen answer in `choice`, not by the sign of the strength"
            )
    return np.array(given)


def without_ties(preferences: Sequence[Preference]) -> list[Preference]:
    """Return the preferences that are not ties, from which the held-out pairs are made."""
    return [preference for preference in preferences if preference.choice != "tie"]
