"""From exports to pairs and thumbs: the layout of each file, and the records of one layout converted together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from preferent.data.formats import answer_positions, named_columns, row_sources
from preferent.data.formats.feedback.converted_records import (
    AS_THEY_ARE,
    ConvertedRecord,
    FeedbackOptions,
    Row,
)
from preferent.data.formats.feedback.feedback_layouts import LAYOUTS, layout_of
from preferent.data.formats.named_columns import NONE, NamedColumns
from preferent.data.formats.row_reader import Dropped, RecordsRead
from preferent.data.types import Preference, Thumb
from preferent.errors import DataError

HEAD_ROWS = 100


@dataclass(frozen=True, slots=True)
class FeedbackRead:
    """The records of some exports, converted, and their layouts."""

    converted: list[ConvertedRecord]
    layouts: tuple[str, ...]

    @property
    def pairs(self) -> list[Preference]:
        return [row for record in self.converted for row in record.rows if isinstance(row, Preference)]

    @property
    def thumbs(self) -> list[Thumb]:
        return [row for record in self.converted for row in record.rows if isinstance(row, Thumb)]

    @property
    def as_rows(self) -> RecordsRead[Preference | Thumb]:
        """Return the rows as those of other files; the records without rows are left out of them with the reason."""
        rows = [row for record in self.converted for row in record.rows]
        dropped = [_left_out(record) for record in self.converted if record.kind == "dropped"]
        return RecordsRead(rows, dropped, len(self.converted), ", ".join(self.layouts))


def _left_out(record: ConvertedRecord) -> Dropped:
    file, _, line = record.place.rpartition(":")
    return Dropped(file, int(line), record.reason, record.is_fault)


def layout_of_file(file: str, columns: NamedColumns = NONE) -> str:
    """Return the layout of an export by its first rows; an empty text for a file of another format."""
    return layout_of([row for _, row in islice(_placed(file, columns), HEAD_ROWS)])


def exports(paths: Sequence[str], columns: NamedColumns = NONE) -> list[str]:
    """Return those of the files that have the layout of an export."""
    return [file for file in row_sources.expand(paths) if layout_of_file(file, columns)]


def read_feedback(
    files: Sequence[str], options: FeedbackOptions = AS_THEY_ARE, columns: NamedColumns = NONE
) -> FeedbackRead:
    """Read exports, each of which has one of the layouts. Files of one layout are read together, so that a record in a
    later export replaces that in an earlier one."""
    by_layout: dict[str, list[str]] = {}
    for file in files:
        name = layout_of_file(file, columns)
        if not name:
            raise DataError(f"{file}: has no layout of an export of feedback; docs/feedback.md has those that are read")
        by_layout.setdefault(name, []).append(file)
    converted: list[ConvertedRecord] = []
    for name, group in by_layout.items():
        rows = (row for file in group for row in _placed(file, columns))
        records = LAYOUTS[name].convert(rows, options)
        converted += records if LAYOUTS[name].has_positions else map(_with_random_positions, records)
    return FeedbackRead(converted, tuple(by_layout))


def _with_random_positions(record: ConvertedRecord) -> ConvertedRecord:
    pairs = iter(answer_positions.randomized([row for row in record.rows if isinstance(row, Preference)]))
    return replace(record, rows=tuple(next(pairs) if isinstance(row, Preference) else row for row in record.rows))


def _placed(file: str, columns: NamedColumns) -> Iterator[tuple[str, Row | str]]:
    """Iterate over the rows of a file with their places, their keys renamed as `columns` says."""
    for number, row in row_sources.rows(file):
        yield f"{file}:{number}", row if isinstance(row, str) else named_columns.renamed(row, columns)
