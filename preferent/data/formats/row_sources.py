"""Sources of rows, the one reader of files that people bring: JSON lines, a JSON list, CSV, TSV, Parquet, each plain or
compressed by gzip; pipes; copies of remote files; and hub data sets."""

import glob
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from preferent.config.remote_names import HUB, is_remote
from preferent.data.formats import json_rows, table_rows
from preferent.data.formats.file_opening import STDIN, is_pipe, opened
from preferent.data.formats.file_recognition import HEAD, layout_of
from preferent.data.formats.json_rows import JsonList, Row, Rows, parse
from preferent.errors import DataError, PlatformError, UsageError
from preferent.runs import remote_files

__all__ = ["Row", "expand", "local_files", "objects", "parse", "rows"]


def local_files(paths: Sequence[str]) -> list[str]:
    """Return the files on this machine that paths and globs name; hub data sets and remote files are left out."""
    return expand([path for path in paths if not path.startswith(HUB) and not is_remote(path)])


def expand(paths: Sequence[str]) -> list[str]:
    """Return the files that paths and globs name, sorted within each glob, without repeats; keep `hf://` names.

    `-` is standard input. Remote files must have been copied (`remote_files.copied`).
    """
    files: list[str] = []
    for path in paths:
        name = STDIN if path == "-" else path
        if name.startswith(HUB) or os.path.isfile(name) or is_pipe(name):
            files.append(name)
        elif is_remote(name):
            files.extend(remote_files.matches(name))
        elif os.path.isdir(name):
            raise UsageError(f"{path}: is a directory; name the files in it, for example {path.rstrip('/')}/*.jsonl")
        else:
            files.extend(_matches(name))
    return list(dict.fromkeys(files))


def _matches(path: str) -> list[str]:
    """Return the files that a glob names. The folders at its beginning that exist are no pattern."""
    parts = Path(path).parts
    existing = next((depth for depth in range(len(parts) - 1, 0, -1) if os.path.isdir(Path(*parts[:depth]))), 0)
    folder = str(Path(*parts[:existing])) if existing else ""
    escaped = glob.escape(folder)
    pattern = path if escaped == folder else str(Path(escaped, *parts[existing:]))
    try:
        matches = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    except ValueError:  # a NUL character
        matches = []
    if not matches:
        bracket = re.search(r"\[[^]]*\]", path)
        hint = f"; {bracket[0]} is read as a pattern, in which [[] stands for the letter [" if bracket else ""
        raise PlatformError(
            f"{path[:300]}: no such file (looked in {Path.cwd()}); "
            f"give a path, a glob in quotes, or a hub data set as hf://OWNER/NAME{hint}"
        )
    return matches


def rows(file: str, nul: bool = False) -> Rows:
    """Iterate over the rows of a file with their line numbers: the object, or the reason why it is not one.

    The texts of JSON may hold U+0000 if `nul`.
    """
    if file.startswith(HUB):
        yield from _hub(file)
        return
    number = 0
    try:
        with opened(STDIN if file == "-" else file) as stream:
            for number, row in _rows(stream, file, nul):
                yield number, row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}:{number + 1}: the compressed data is damaged ({error}); copy the file again") from None
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x}"
        raise DataError(f"{file}:{number + 1}: not UTF-8: {byte} here or below; save the file as UTF-8") from None
    except OSError as error:
        raise PlatformError(f"{file}: cannot be read: {error.strerror}; check the path and its permissions") from None


def _rows(stream: IO[bytes], file: str, nul: bool) -> Rows:
    """Return the rows of an open file, by its layout."""
    head = stream.read(HEAD)
    stream.seek(0)
    layout = layout_of(head, file)
    if layout == "lines":
        return json_rows.lines(stream, nul)
    if layout == "parquet":
        return table_rows.parquet(stream, file, seekable=not isinstance(stream, gzip.GzipFile))
    text = io.TextIOWrapper(cast(io.BufferedReader, stream), encoding="utf-8-sig", newline="")
    return JsonList(text, file, nul).rows() if layout == "list" else table_rows.delimited(text, file)


def objects(file: str) -> Iterator[tuple[str, Row]]:
    """Iterate over the rows of a file with their places; a row that is not an object raises `DataError`.

    Answers of models may hold U+0000.
    """
    for number, row in rows(file, nul=True):
        if isinstance(row, str):
            raise DataError(f"{file}:{number}: {row}")
        yield f"{file}:{number}", row


def _hub(name: str) -> Rows:
    """Yield the rows of `hf://OWNER/NAME[@REVISION][:CONFIG][/SPLIT]`; the default split is `train`."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?::([\w.-]+))?(?:/([\w.\[\]:%-]+))?", name)
    if match is None:
        raise UsageError(f"{name}: write a hub data set as hf://OWNER/NAME[@REVISION][:CONFIG][/SPLIT]")
    repository, revision, config, split = match.groups()
    datasets = table_rows.package("datasets", f"{name}: a hub data set")
    try:
        table = datasets.load_dataset(repository, config, revision=revision, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise PlatformError(
            f"{name}: the data set cannot be loaded: {error}\n"
            "Check the name, the split and the network; for a gated data set, accept its terms and log in to the hub."
        ) from None
    for number, row in enumerate(table, start=1):
        yield number, table_rows.columns(row)
