"""Files that are found whole or not at all, files that carry their own hash, and fingerprints of files and folders."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent import ranks
from preferent.errors import DataError, PlatformError

WRITTEN = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
TICK, SECOND = 100_000_000, 1_000_000_000
"""Nanoseconds: several ticks of the clock by which file systems date changes, and the step of a coarse one."""


def refusal(error: BaseException) -> str | None:
    """Why the disk refused, where that is what an error tells, in whichever library it was met; else None."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return os.strerror(error.errno)
    return next((os.strerror(number) for number in FULL if os.strerror(number) in str(error)), None)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal of the disk in the block into an error that names the path and the way out."""
    try:
        yield
    except Exception as error:
        if why := refusal(error):
            raise PlatformError(f"{path}: cannot be written: {why}; fix that, then run it again") from None
        raise


@ranks.first_only
def write_atomic(path: Path, content: bytes | str, private: bool = False) -> None:
    """Write a file so that it is found whole or not at all, even after a power cut.

    Only its owner may read a `private` one; others get the permissions that umask says.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            temporary.unlink(missing_ok=True)
        with open(os.open(temporary, WRITTEN, 0o600 if private else 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise PlatformError(
            f"{path}: cannot be written ({len(data)} bytes needed): {error.strerror}; "
            "make room, or choose another place; what is there is whole"
        ) from None


@ranks.first_only
def write_blocks(path: Path, blocks: Iterable[bytes]) -> None:
    """Write blocks of bytes, as they come, to a file that is found whole or not at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.writelines(blocks)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def share(path: Path) -> None:
    """Give a file the mode that the umask asks for; safetensors makes files that only their owner can read."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object that ends with the digest of its own text, for numbers that are computed with again."""
    write_atomic(path, _sealed(value))


def read_sealed(path: Path, way_out: str = "restore it") -> dict[str, Any]:
    """Read what `write_sealed` wrote; raise `DataError` if any byte differs."""
    data = path.read_bytes()
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    content = {key: kept for key, kept in value.items() if key != "sha256"} if isinstance(value, dict) else {}
    if data != _sealed(content).encode():
        raise DataError(f"{path}: damaged or changed by hand: its hash is not the one in it; {way_out}")
    return content


def _sealed(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    seal = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps({**value, **seal}, indent=1, ensure_ascii=False) + "\n"


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]], private: bool = False) -> None:
    """Write rows as JSON lines; only the owner may read a `private` file."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, text, private)


def read_json(path: Path) -> Any:
    """Return the value in a JSON file that this package wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8: the file was changed by hand or damaged; restore it") from None
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}"
        raise DataError(f"{place}: not JSON: {error.msg}; it was changed by hand or damaged: restore it") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON of ours: {error}; it was changed by hand or damaged: restore it") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file that this package wrote."""
    rows: list[dict[str, Any]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                place = f"{path}:{number}"
                raise DataError(f"{place}: not JSON: {error}; it was changed by hand or damaged: restore it") from None
    return rows


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: Path) -> str:
    """Return a digest of a file's bytes, or of the names and bytes of all files below a folder; a process reads them
    once."""
    if not path.exists():
        raise PlatformError(f"{path}: no such file or directory")
    return _hashed(path, stamp(path) or object())


def stamp(path: Path) -> str | None:
    """Return a digest of the names, sizes, times of change, inodes and devices of the files that `fingerprint` reads.

    While it stays the same, the bytes do. None: there is no file, or one changed so lately that its next change could
    bear the same time.
    """
    rows: list[list[Any]] = []
    for file in _files(path):
        stat = file.stat()
        step = 2 * SECOND if stat.st_ctime_ns % SECOND == 0 else TICK
        if time.time_ns() - stat.st_ctime_ns < step:
            return None
        sizes = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
        rows.append([file.relative_to(path).as_posix(), *sizes])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest() if rows else None


def _files(path: Path) -> list[Path]:
    """Return the file itself, or all files below a folder but hidden ones, in order."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))


@functools.cache
def _hashed(path: Path, _stamp: object) -> str:
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def kept(path: Path, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows that a stage makes once: read where it wrote them before it was interrupted, else made and written."""
    rows = ranks.agreed(lambda: _kept(path))
    if rows is None:
        rows = make()
        write_sealed(path, {"rows": rows})
    return rows


def _kept(path: Path) -> list[dict[str, Any]] | None:
    """Return the rows in a file; None if there is none, or it is damaged."""
    if path.exists():
        try:
            return list(read_sealed(path, "it is made again")["rows"])
        except DataError as damage:
            print(damage, file=sys.stderr)
    return None
