"""`data convert`: from any format to any other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preferent.data.formats import row_reader, row_sources, row_writer
from preferent.data.formats.named_columns import NONE, NamedColumns
from preferent.data.formats.row_reader import Dropped
from preferent.errors import UsageError


@dataclass(frozen=True, slots=True)
class Conversion:
    """The number of rows by outcome: `read` = `written` + `ties` + `without_prompt` + `misread` + bad rows."""

    read: int
    written: int
    ties: int
    without_prompt: int
    misread: int
    dropped: list[Dropped]


def convert_files(
    paths: Sequence[str], out: Path, to: str = "gcpc", format: str = "auto", columns: NamedColumns = NONE
) -> Conversion:
    """Read files of any format, with keys named by `columns`, and write one file of the format `to`.

    A format that names the chosen answer cannot hold ties. A format of conversations cannot hold answers without a
    prompt, and one that marks turns inside texts cannot hold texts with such marks. All are left out and counted, as
    are bad rows.
    """
    files = row_sources.expand(paths)
    if out.exists() and any(Path(file).exists() and out.samefile(file) for file in files):
        raise UsageError(f"{out}: is one of the files to read; write to another file")
    if to not in row_writer.FORMATS:
        raise UsageError(f"format {to}: unknown; the formats are {', '.join(row_writer.FORMATS)}")
    row_reader.require_columns(files, columns)
    reading = row_reader.read_rows(files, row_reader.detect(files, columns)[0], format, columns)
    written = row_writer.write(reading.records, out, to)
    left_out = written.ties, written.without_prompt, written.misread
    return Conversion(reading.read, written.rows, *left_out, reading.dropped)
