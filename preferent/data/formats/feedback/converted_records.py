"""What the records of an export become: pairs, a thumb, or nothing; each record counts once, with its reason."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from preferent.data.formats.layouts import Unusable
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


def with_equal_weights(pairs: Sequence[Preference]) -> tuple[Preference, ...]:
    """Return pairs that one judgment was cut into, each with an equal share of the weight 1."""
    return tuple(pairs) if len(pairs) == 1 else tuple(replace(pair, weight=1 / len(pairs)) for pair in pairs)


Converter = Callable[[PlacedRows, FeedbackOptions], list[ConvertedRecord]]


class NoFeedback(Unusable):
    """A record that is what its layout should be, and says nothing that can be learned from."""


RATED_AGAIN = "rated again: a later record on the same answer counts"


def left_out(place: str, reason: Unusable) -> ConvertedRecord:
    """Return a record that became nothing; it is a fault unless there is only nothing to learn from."""
    return ConvertedRecord(place, reason=str(reason), is_fault=not isinstance(reason, NoFeedback))


def by_record(parse: Callable[[Row, FeedbackOptions], Sequence[Preference | Thumb]]) -> Converter:
    """Return the converter of a layout in which each record stands alone: `parse` returns what it becomes."""

    def convert(rows: PlacedRows, options: FeedbackOptions) -> list[ConvertedRecord]:
        return [_converted(place, row, parse, options) for place, row in rows]

    return convert


def _converted(
    place: str,
    row: Row | str,
    parse: Callable[[Row, FeedbackOptions], Sequence[Preference | Thumb]],
    options: FeedbackOptions,
) -> ConvertedRecord:
    try:
        if isinstance(row, str):
            raise Unusable(row)
        return ConvertedRecord(place, tuple(replace(made, source=place) for made in parse(row, options)))
    except Unusable as reason:
        return left_out(place, reason)
