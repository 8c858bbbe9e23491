"""What there is in a set of preferences, in numbers."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from preferent.data.types import Preference, digest


@dataclass(frozen=True, slots=True)
class PreferenceCounts:
    """Ties; rows that say what an earlier row says; pairs of answers to one prompt of which both were chosen."""

    ties: int
    duplicates: int
    contradictory: int


def count_preferences(pairs: Sequence[Preference]) -> PreferenceCounts:
    """Count ties, duplicates and contradictions; which candidate stood first makes no difference."""
    said: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
    for pair in pairs:
        key = digest(pair.prompt.key, *sorted((pair.candidate_0, pair.candidate_1)))
        said[key][None if pair.choice == "tie" else pair.chosen] += 1
    repeated = sum(count - 1 for choices in said.values() for count in choices.values())
    contradictory = sum(len(set(choices) - {None}) > 1 for choices in said.values())
    return PreferenceCounts(sum(pair.choice == "tie" for pair in pairs), repeated, contradictory)
