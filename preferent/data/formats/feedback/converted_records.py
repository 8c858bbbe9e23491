"""What the records of an export become: pairs, a thumb, or nothing; each record counts once, with its reason."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from preferent.data.types import Preference, Thumb

Row = dict[str, Any]
Kind = Literal["pair", "thumb", "dropped"]
PlacedRows = Iterator[tuple[str, Row | str]]
"""The rows of files, each with its place, `FILE:LINE`: the object, or the reason why it is not one."""


@dataclass(frozen=True, slots=True)
class FeedbackOptions:
    """What to keep of an export, and how ratings and rankings are cut into pairs."""

    personal: bool = False
    """Keep who answered, titles and comments."""
    context: bool = True
    """Keep texts that were retrieved for a question in front of it."""
    reasoning: bool = True
    """Keep blocks of reasoning in answers."""
    neighbours: bool = False
    """Pair each answer of a ranking only with the next one, not with all below it."""
    rating: str | None = None
    """Key of the rating that decides, where answers have several."""


AS_THEY_ARE = FeedbackOptions()


@dataclass(frozen=True, slots=True)
class ConvertedRecord:
    """What one record of an export became.

    `rows` are its pairs or its thumb. `joined`: it has no rows of its own, because it is part of another record's pair.
    `reason`, as `category: detail`, says why it became nothing, and `is_fault` that it is not what its layout should
    be. `note` says what the record does not tell.
    """

    place: str
    rows: tuple[Preference | Thumb, ...] = ()
    reason: str = ""
    is_fault: bool = False
    joined: bool = False
    note: str = ""

    @property
    def kind(self) -> Kind:
        if self.joined or any(isinstance(row, Preference) for row in self.rows):
            return "pair"
        return "thumb" if self.rows else "dropped"


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """The records of an export by what they became: `records` = `in_pairs` + `thumbs` + `dropped`, always.

    `pairs` counts the pairs, `reasons` the dropped records by category, and `notes` what records do not tell.
    """

    records: int
    in_pairs: int
    thumbs: int
    dropped: int
    pairs: int
    good: int
    reasons: dict[str, int]
    notes: dict[str, int]

    @classmethod
    def of(cls, converted: Sequence[ConvertedRecord]) -> "RecordCounts":
        kinds = Counter(record.kind for record in converted)
        rows = [row for record in converted for row in record.rows]
        reasons = Counter(record.reason.partition(":")[0] for record in converted if record.kind == "dropped")
        return cls(
            len(converted),
            kinds["pair"],
            kinds["thumb"],
            kinds["dropped"],
            sum(isinstance(row, Preference) for row in rows),
            sum(isinstance(row, Thumb) and row.is_good for row in rows),
            dict(reasons.most_common()),
            dict(Counter(record.note for record in converted if record.note).most_common()),
        )


def with_equal_weights(pairs: Sequence[Preference]) -> tuple[Preference, ...]:
    """Return pairs that one judgment was cut into, each with an equal share of the weight 1."""
    return tuple(pairs) if len(pairs) == 1 else tuple(replace(pair, weight=1 / len(pairs)) for pair in pairs)
