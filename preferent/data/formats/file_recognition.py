"""The layout of a file, told by its first bytes and its name; what is none of the layouts is named in one sentence."""

import csv
import json
import re
from pathlib import PurePath
from typing import Literal

from preferent.data.formats.table_rows import delimiter_of
from preferent.errors import DataError

HEAD = 1 << 16
"""The bytes that are looked at."""
Layout = Literal["lines", "list", "table", "parquet"]
JSON_NAMES = (".json", ".jsonl", ".ndjson", ".jsonlines")
SIGNATURES = (
    (b"PK\x03\x04", "a zip archive or an office document; unpack it, or save its sheet as CSV"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "compressed twice by gzip; unpack it once"),
    (b"BZh", "compressed by bzip2; unpack it, or compress it by gzip"),
    (b"\xfd7zXZ", "compressed by xz; unpack it, or compress it by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it, or compress it by gzip"),
    (b"7z\xbc\xaf", "a 7-zip archive; unpack it"),
    (b"\x80", "a Python pickle or another binary file, which is not read; save the rows as JSON lines or Parquet"),
    (b"ARROW1", "an Arrow file; save the table as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream or another binary file; save the table as Parquet"),
    (b"Obj\x01", "an Avro file; save the table as Parquet"),
    (b"\x89HDF", "an HDF5 file; save the rows as JSON lines or Parquet"),
    (b"\x93NUMPY", "a NumPy array; save the rows as JSON lines or Parquet"),
    (b"SQLite format 3", "an SQLite database; export the table as CSV"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
)
"""First bytes, and what a file that begins with them is."""


def layout_of(head: bytes, file: str) -> Layout:
    """Return the layout of a file; raise `DataError` with one sentence if it has none that is read here."""
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if what := _signed(head) or _encoded(head) or _page(text):
        raise DataError(f"{file}: is {what}")
    names = PurePath(file.lower().removesuffix(".gz"))
    if names.suffix in (".csv", ".tsv"):
        return "table"
    lines = [line for line in text.split(b"\n") if line.strip()]
    if text.startswith(b"["):
        return "lines" if len(lines) > 1 and _is_json(lines[0]) else "list"
    if not lines or _is_json(lines[0]):
        return "lines"
    if names.suffix not in JSON_NAMES and _is_header(lines[0]):
        return "table"
    if what := _not_lines(text, lines):
        raise DataError(f"{file}: is {what}")
    return "lines"


def _encoded(head: bytes) -> str:
    """Say if a text is not UTF-8: by its mark, or because at least a quarter of its bytes are zero."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    if marked or head[:256].count(0) * 4 >= len(head[:256]) > 7:
        return "text in UTF-16 or UTF-32, or a binary file; save it as UTF-8"
    return ""


def _signed(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    return next((what for signature, what in SIGNATURES if head.startswith(signature)), "")


def _page(text: bytes) -> str:
    opening = text[:200].lower()
    if opening.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "an HTML or XML page, perhaps that of a login or of an error; download the file again"
    return ""


def _not_lines(text: bytes, lines: list[bytes]) -> str:
    """Say what a text is whose first line is not JSON, if that is plain: then no line can be blamed."""
    if b"\n" not in text.strip() and re.search(rb"\r[ \t\r]*[^\s]", text):
        return "text whose lines end with CR alone, as on old Macs; convert it: tr '\\r' '\\n' < FILE > NEW"
    if re.match(rb"\{\s*\n\s*[\"}]|\{[^\n]*[,{\[]\s*\n\s+[\"{\[]", text):
        return "JSON that is spread over several lines; write each object on one line (jq -c . FILE > NEW)"
    if len(lines) > 1 and _is_header(lines[0]):
        return "a table by its first line, not JSON lines; give it a name that ends with .csv or .tsv"
    if len(lines) > 1 and not any(line.lstrip().startswith((b"{", b"[")) for line in lines):
        first = ascii(lines[0][:40].decode(errors="replace"))
        return f"not JSON lines, a JSON list, CSV or Parquet: no line begins with {{, the first is {first}"
    return ""


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _is_header(line: bytes) -> bool:
    """Return whether a line can be the header of a table: two or more different short names without spaces."""
    text = line.decode(errors="replace").strip()
    try:
        names = next(csv.reader([text], delimiter=delimiter_of(text), strict=True), [])
    except csv.Error:
        return False
    named = all(re.fullmatch(r"[\w.:/#-]{1,64}", name) for name in names)
    return len(names) > 1 and len(set(names)) == len(names) and named
