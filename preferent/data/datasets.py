"""Readers and writers of every data format: the sources of rows, their format, and the record in each row.

A bad row never stops the reading: it is returned as `Dropped(file, line, reason)`. The number of rows read is always
the number kept plus the number dropped. A reason is `category: detail`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from preferent.data.formats.named_columns import NONE, NamedColumns
from preferent.data.formats.row_reader import Dropped, Kind, RecordsRead, detect, kept, load, prompt_in, read_rows
from preferent.data.formats.row_sources import expand
from preferent.data.formats.row_writer import FORMATS, Written, lines, row, write
from preferent.data.types import Demonstration, Preference, Prompt, Thumb

__all__ = [
    "FORMATS",
    "Dropped",
    "Kind",
    "RecordsRead",
    "Written",
    "detect",
    "expand",
    "kept",
    "lines",
    "load_feedback",
    "load_preferences",
    "load_prompts",
    "prompt_in",
    "read",
    "read_rows",
    "row",
    "write",
]


@overload
def read(
    paths: Sequence[str], kind: Literal["preference"], format: str = "auto", columns: NamedColumns = NONE
) -> RecordsRead[Preference]: ...
@overload
def read(
    paths: Sequence[str], kind: Literal["prompt"], format: str = "auto", columns: NamedColumns = NONE
) -> RecordsRead[Prompt]: ...
@overload
def read(
    paths: Sequence[str], kind: Literal["demonstration", "text"], format: str = "auto", columns: NamedColumns = NONE
) -> RecordsRead[Demonstration]: ...


def read(paths: Sequence[str], kind: Kind, format: str = "auto", columns: NamedColumns = NONE) -> RecordsRead:  # type: ignore[type-arg]
    """Read the records in files, globs or `hf://` data sets, and collect the rows that are not records.

    `format` is a preference format (`gcpc`, `trl`, `hh`, `openai`) or `auto`, the format of most of the first rows.
    `columns` are the keys that have other names in the files. Missing files raise `PlatformError`; files without rows
    raise `DataError`.
    """
    return read_rows(paths, kind, format, columns)


def load_feedback(path: Path) -> list[Preference | Thumb]:
    """Load the preferences and the thumbs in a file that `data prepare` wrote; a bad row raises `DataError`."""
    return [record for record in load(path, "preference") if isinstance(record, Preference | Thumb)]


def load_preferences(path: Path) -> list[Preference]:
    """Load the preferences in a file that `data prepare` wrote; a bad row raises `DataError`."""
    return [record for record in load(path, "preference") if isinstance(record, Preference)]


def load_prompts(path: Path) -> list[Prompt]:
    """Load the prompts in a file that `data prepare` wrote; a bad row raises `DataError`."""
    return [record for record in load(path, "prompt") if isinstance(record, Prompt)]
