"""Rows of foreign files with their places: JSON lines, a JSON list, CSV or TSV."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from preferent.errors import DataError, PlatformError

Row = Mapping[str, Any]


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the objects in a JSON list, in JSON lines, or in a CSV file, with their places."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PlatformError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8: byte {error.object[error.start]:#04x} at {error.start}; save the file as UTF-8"
        ) from None
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from _table(path, text)
    elif text.lstrip().startswith("["):
        yield from _listed(path, text)
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _object(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: not a JSON object: {line[:40]}")
    return row


def _listed(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """Yield the objects of one JSON list, each with the line at which it begins."""
    decoder, at, line, start = json.JSONDecoder(), text.index("[") + 1, 1, 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        line, start = line + text.count("\n", start, at), at
        place = f"{path}:{line}"
        if text[at : at + 1] == "]":
            return
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not JSON: {error.msg} (line {error.lineno})") from None
        if not isinstance(row, dict):
            raise DataError(f"{place}: not a JSON object: {str(row)[:40]}")
        yield place, row


def _table(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a CSV or TSV file with a header; the place is the line at which a row ends."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    for values in reader:
        place = f"{path}:{reader.line_num}"
        if None in values:
            raise DataError(f"{place}: has more cells than the header has names; quote cells that hold a comma")
        if None in values.values():
            raise DataError(f"{place}: has fewer cells than the header has names: {', '.join(map(str, values))}")
        yield place, values
