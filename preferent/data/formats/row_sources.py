"""Sources of rows: JSON lines (plain or gzip), Parquet, and hub data sets, as (line, row or reason)."""

import glob
import gzip
import importlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from preferent.errors import DataError, PlatformError, UsageError

HUB = "hf://"
DEPTH = 64
Row = dict[str, Any]


def expand(paths: Sequence[str]) -> list[str]:
    """Return the files that paths and globs name, sorted within each glob, without repeats; keep `hf://` names."""
    files: list[str] = []
    for path in paths:
        if path.startswith(HUB) or Path(path).is_file():
            files.append(path)
        elif Path(path).is_dir():
            raise UsageError(f"{path}: is a directory; name the files in it, for example {path.rstrip('/')}/*.jsonl")
        else:
            matches = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
            if not matches:
                raise PlatformError(
                    f"{path}: no such file (looked in {Path.cwd()}); "
                    "give a path, a glob in quotes, or a hub data set as hf://OWNER/NAME"
                )
            files.extend(matches)
    return list(dict.fromkeys(files))


def rows(file: str) -> Iterator[tuple[int, Row | str]]:
    """Iterate over the rows of a file with their line numbers: the object, or the reason why it is not one."""
    if file.startswith(HUB):
        return _hub(file)
    return _parquet(file) if _starts(file, b"PAR1") else _json_lines(file)


def _starts(file: str, magic: bytes) -> bool:
    try:
        with open(file, "rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError as error:
        raise PlatformError(f"{file}: cannot be read: {error.strerror}; check the path and its permissions") from None


def _json_lines(file: str) -> Iterator[tuple[int, Row | str]]:
    """Yield the rows of JSON lines. Blank lines are skipped; a byte order mark and CRLF are accepted."""
    number = 0
    try:
        with gzip.open(file, "rb") if _starts(file, b"\x1f\x8b") else open(file, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if line.strip():
                    yield number, parse(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}:{number + 1}: the compressed data is damaged ({error}); copy the file again") from None
    except OSError as error:
        raise PlatformError(f"{file}: cannot be read: {error.strerror}") from None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def parse(line: bytes) -> Row | str:
    """Return the object in a line, or the reason why it is not one."""
    if b"\0" in line:
        return f"NUL character: a byte 0x00 at position {line.index(0)}; if the file is UTF-16, save it as UTF-8"
    try:
        value = json.loads(line.rstrip(b"\r\n").decode(), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}; save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"malformed JSON: {error.msg.removesuffix(' at')} at column {error.colno}; each line is one JSON object"
    except ValueError as error:
        return f"malformed JSON: {error}"
    except RecursionError:
        return f"nested too deeply: more than {DEPTH} levels"
    if not isinstance(value, dict):
        return f"not an object: a JSON {_json_name(value)}, where each line should be one object"
    suspect = b"\\u" in line or line.count(b"{") + line.count(b"[") > DEPTH
    return (fault(value) if suspect else "") or value


def _json_name(value: object) -> str:
    names = {list: "array", str: "string", bool: "truth value", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), "value")


def fault(value: object, depth: int = 0) -> str:
    """Return why a JSON value cannot be kept (text that is not Unicode, NUL, deep nesting), or an empty text."""
    if depth > DEPTH:
        return f"nested too deeply: more than {DEPTH} levels"
    if isinstance(value, str):
        if "\0" in value:
            return "NUL character: a text holds U+0000"
        return "not Unicode: a text holds half of a surrogate pair" if re.search("[\ud800-\udfff]", value) else ""
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((reason for part in inner if (reason := fault(part, depth + 1))), "")


def _package(name: str, extra: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise PlatformError(f"{purpose} needs a missing package: pip install {name.partition('.')[0]}") from None


def _plain(value: object) -> object:
    """Return a cell in a form that JSON can hold: None for a number that is not finite, dates and decimals as text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _columns(row: dict[str, object]) -> Row | str:
    """Return a table's row as an object; a null cell becomes an absent key, since tables cannot leave out a key."""
    plain = {key: _plain(value) for key, value in row.items() if value is not None}
    return fault(plain) or plain


def _parquet(file: str) -> Iterator[tuple[int, Row | str]]:
    parquet = _package("pyarrow.parquet", "hub", f"{file}: Parquet")
    arrow = _package("pyarrow", "hub", f"{file}: Parquet")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, _columns(row)
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}:{number + 1}: not a complete Parquet file: {error}; copy the file again") from None


def _hub(name: str) -> Iterator[tuple[int, Row | str]]:
    """Yield the rows of `hf://OWNER/NAME[@REVISION][:CONFIG][/SPLIT]`; the default split is `train`."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?::([\w.-]+))?(?:/([\w.\[\]:%-]+))?", name)
    if match is None:
        raise UsageError(f"{name}: write a hub data set as hf://OWNER/NAME[@REVISION][:CONFIG][/SPLIT]")
    repository, revision, config, split = match.groups()
    datasets = _package("datasets", "hub", f"{name}: a hub data set")
    try:
        table = datasets.load_dataset(repository, config, revision=revision, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PlatformError(
            f"{name}: the data set cannot be loaded: {error}\n"
            "Check the name, the split and the network; for a gated data set, accept its terms and log in to the hub."
        ) from None
    for number, row in enumerate(table, start=1):
        yield number, _columns(row)
