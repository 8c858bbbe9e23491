"""Every data format, read and written: where rows come from, which format they are in, and what each row says.

A bad row never stops the reading: it is returned as `Dropped(file, line, reason)`, and what was read is always what was
kept plus what was dropped. A reason is `category: detail`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from preferent.data.formats.row_reader import Dropped, Kind, RecordsRead, detect, kept, load, prompt_in, read_rows
from preferent.data.formats.row_sources import expand
from preferent.data.formats.row_writer import FORMATS, Written, lines, row, write
from preferent.data.types import Demonstration, Preference, Prompt

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
    "load_preferences",
    "load_prompts",
    "prompt_in",
    "read",
    "read_rows",
    "row",
    "write",
]


@overload
def read(paths: Sequence[str], kind: Literal["preference"], format: str = "auto") -> RecordsRead[Preference]: ...
@overload
def read(paths: Sequence[str], kind: Literal["prompt"], format: str = "auto") -> RecordsRead[Prompt]: ...
@overload
def read(
    paths: Sequence[str], kind: Literal["demonstration", "text"], format: str = "auto"
) -> RecordsRead[Demonstration]: ...


def read(paths: Sequence[str], kind: Kind, format: str = "auto") -> RecordsRead:  # type: ignore[type-arg]
    """The records in files, globs or `hf://` data sets, and the rows that are none.

    `format` is a preference format (`gcpc`, `trl`, `hh`, `openai`) or `auto`: what most of the first rows look like.
    Files that are missing raise `PlatformError`, files without any row `DataError`.
    """
    return read_rows(paths, kind, format)


def load_preferences(path: Path) -> list[Preference]:
    """The preferences in a file that `data prepare` wrote; a bad row is a `DataError`."""
    return [record for record in load(path, "preference") if isinstance(record, Preference)]


def load_prompts(path: Path) -> list[Prompt]:
    """The prompts in a file that `data prepare` wrote; a bad row is a `DataError`."""
    return [record for record in load(path, "prompt") if isinstance(record, Prompt)]
