"""Counts of a set of preferences."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from preferent.data.types import Preference, digest


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
