"""Rows of tables: CSV and TSV with a header, and Parquet."""

import csv
import importlib
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import IO, TextIO

from preferent.data.formats.json_rows import LONGEST, Row, Rows, fault
from preferent.errors import DataError, PlatformError

DELIMITERS = ",;\t"
NUMBERS = ("choice", "strength")
"""Columns whose cells are numbers where they look like whole numbers, and nothing where they are empty."""


def delimited(stream: TextIO, file: str) -> Rows:
    """Yield the rows of a table with a header."""
    csv.field_size_limit(LONGEST)
    began = 1
    head = stream.readline(LONGEST)
    delimiter = delimiter_of(head)
    cells = csv.reader(_lines(head, stream), delimiter=delimiter, strict=True)
    try:
        names = next(cells, [])
        _check_header(names, file)
        began = cells.line_num + 1
        for row in cells:
            if row:
                yield began, _row(names, row, delimiter)
            began = cells.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}:{began}: the row that begins here cannot be read: {error}; check its quotes") from None


def _lines(head: str, rest: TextIO) -> Iterator[str]:
    yield head
    while line := rest.readline(LONGEST):
        yield line


def delimiter_of(head: str) -> str:
    """Return the delimiter that occurs most often in a header; a comma if none does."""
    return max(DELIMITERS, key=head.count)


def _check_header(names: Sequence[str], file: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            places = [str(place) for place, other in enumerate(names, start=1) if other == name]
            raise DataError(
                f"{file}:1: the columns {' and '.join(places)} have the same name, {name[:40]!r}; rename one of them"
            )


def _row(names: Sequence[str], cells: Sequence[str], delimiter: str) -> Row | str:
    if len(cells) != len(names):
        more = "more" if len(cells) > len(names) else "fewer"
        return (
            f"bad table: the row has {more} cells than the header has names, {len(cells)} and {len(names)}; "
            f"quote cells that hold a {delimiter!r}"
        )
    row: Row = dict(zip(names, cells, strict=True))
    for name in NUMBERS:
        if name in row:
            row[name] = _number(row[name])
    return fault(row) or row


def _number(cell: str) -> int | str | None:
    text = cell.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text or None


def package(name: str, purpose: str) -> ModuleType:
    """Return an optional package; raise `PlatformError` with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise PlatformError(f"{purpose} needs a missing package: pip install {name.partition('.')[0]}") from None


def _plain(cell: object) -> object:
    """Return a cell in a form that JSON can hold: None for NaN, dates and decimals as text."""
    if isinstance(cell, dict):
        return {str(key): _plain(part) for key, part in cell.items()}
    if isinstance(cell, list | tuple):
        return [_plain(part) for part in cell]
    if isinstance(cell, float):
        return None if math.isnan(cell) else cell
    return cell if cell is None or isinstance(cell, str | int) else str(cell)


def columns(row: dict[str, object]) -> Row | str:
    """Return a table's row as an object; a null cell becomes an absent key, since tables cannot leave out a key."""
    plain = {key: _plain(cell) for key, cell in row.items() if cell is not None}
    return fault(plain) or plain


def parquet(stream: IO[bytes], file: str, seekable: bool) -> Rows:
    """Yield the rows of a Parquet file; one that is compressed again is unpacked to a temporary file."""
    reader = package("pyarrow.parquet", f"{file}: Parquet")
    arrow = package("pyarrow", f"{file}: Parquet")
    number = 0
    with tempfile.TemporaryFile() as whole:
        if not seekable:
            shutil.copyfileobj(stream, whole)
        try:
            with reader.ParquetFile(stream if seekable else whole) as table:
                _check_header(table.schema_arrow.names, file)
                for batch in table.iter_batches():
                    for row in batch.to_pylist():
                        number += 1
                        yield number, columns(row)
        except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{file}:{number + 1}: not a complete Parquet file: {reason}; copy the file again"
            ) from None
