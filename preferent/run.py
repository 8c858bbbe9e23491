"""The run directory: atomic files, fingerprints, locks, stage folders, and leaving when asked to.

A stage folder holds `stage.json` (what was asked and of what) from the first moment and `DONE` at the end. Paths inside
a run are relative to it, so a moved run still loads.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from preferent.error import DataError, Interrupted, PlatformError, UsageError

SECONDS_TO_LEAVE = 4.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def refusal(error: BaseException) -> str | None:
    """Why the disk refused, where that is what an error tells, in whichever library it was met; else None."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return os.strerror(error.errno)
    return next((os.strerror(number) for number in FULL if os.strerror(number) in str(error)), None)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where the disk refuses what is written in the block: an error that names the path and the way out."""
    try:
        yield
    except Exception as error:
        if why := refusal(error):
            raise PlatformError(f"{path}: cannot be written: {why}; mend that, then the same command goes on") from None
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that it is found whole or not at all, even after a power cut."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
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
    """What `write_sealed` wrote; `DataError` where any byte of it is another."""
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


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """The value in a JSON file that this package wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8: the file was changed by hand or damaged; restore it") from None
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}"
        raise DataError(f"{place}: not JSON: {error.msg}; it was changed by hand or damaged: restore it") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that this package wrote."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: Path) -> str:
    """A digest of a file's bytes, or of the names and bytes of all files below a folder."""
    if not path.exists():
        raise PlatformError(f"{path}: no such file or directory")
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second process; the lock dies with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - held until the end of the block
    except OSError as error:
        raise PlatformError(
            f"{folder}: cannot be used as a run directory: {error.strerror}; use another --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process is working here; wait for it, or use another --out") from None
        yield


def versions() -> dict[str, str]:
    """The versions that decide whether two runs can be equal to the last bit."""
    from importlib import metadata  # slow to import, and help does not need it

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("preferent", "numpy", "torch", "transformers", "peft", "tokenizers", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


@dataclass
class Stage:
    """One stage's folder while the stage works in it."""

    name: str
    folder: Path
    asked: dict[str, Any]
    inputs: dict[str, Path]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return (self.folder / "DONE").exists()

    def record(self, **facts: Any) -> None:
        """Add what was found out (device, threads, counts) to `stage.json`."""
        self.facts.update(facts)
        write_sealed(self.folder / "stage.json", self.asked | {"facts": self.facts})

    def place(self, **facts: Any) -> None:
        """Record where the stage computes (device, threads, precision), and say so when it is not where it began."""
        moved = [f"{k} was {self.facts[k]}, is {v}" for k, v in facts.items() if self.facts.get(k, v) != v]
        if moved:
            print(f"{self.folder}: {'; '.join(moved)}: the result may differ in the last bits", file=sys.stderr)
        self.record(**facts)

    def finish(self, outputs: Sequence[str] = ()) -> None:
        """Mark the stage done, with the fingerprints of its outputs; the marker is the last thing written."""
        self.record(outputs={name: fingerprint(self.folder / name) for name in outputs})
        write_atomic(self.folder / "DONE", "")


def stage(
    name: str,
    folder: Path,
    fields: Mapping[str, Any],
    inputs: Mapping[str, Path],
    extendable: Sequence[str] = (),
    rerun: bool = False,
) -> Stage:
    """Open a stage's folder: start it, resume it, find it done, or refuse.

    `fields` are the recipe's fields that this stage depends on, `inputs` the files and folders it reads. Both are
    compared with what the folder was made from. A larger value of an `extendable` field reopens a finished stage.
    A stage with `rerun` (cheap, nothing to lose), or one that has made nothing yet, starts afresh on any change; any
    other refuses it.
    """
    previous = folder / "stage.json"
    asked: dict[str, Any] = {
        "schema": 1,
        "stage": name,
        "argv": sys.argv[1:],
        "versions": versions(),
        "fields": flatten(fields),
        "inputs": {key: fingerprint(path) for key, path in inputs.items()},
    }
    facts: dict[str, Any] = {}
    for unfinished in list(folder.rglob(".*.tmp-*")):  # by a process that was killed
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink(missing_ok=True)
    if not previous.exists():
        (folder / "DONE").unlink(missing_ok=True)
    else:
        old = read_stage(folder)
        changes = _changes(old, asked, extendable, inputs)
        made = any(path.name not in (".lock", "stage.json") for path in folder.iterdir())
        if changes and made and not rerun:
            lines = "\n".join(f"  {change}" for change in changes)
            raise UsageError(
                f"{folder}: was made from something else:\n{lines}\n"
                f"Go back to the old values; or start again from here in a new directory, with the earlier stages of "
                f"this run: preferent run RECIPE --out NEW_RUN --from {folder.name} --of {folder.parent}"
            )
        extended = any(asked["fields"].get(key) != old["fields"].get(key) for key in extendable)
        if changes:
            _empty(folder)
        elif extended:
            (folder / "DONE").unlink(missing_ok=True)
        if not changes:
            facts = old.get("facts", {})
            if old.get("versions") != asked["versions"] and not (folder / "DONE").exists():
                print(f"{folder}: resumed with other versions; the result may differ in the last bits", file=sys.stderr)
    opened = Stage(name, folder, asked, dict(inputs), facts)
    if not opened.done:
        opened.record()
    return opened


def read_stage(folder: Path) -> dict[str, Any]:
    """The `stage.json` of a folder."""
    return read_sealed(folder / "stage.json", f"restore it, or remove {folder} to do this stage again")


def _empty(folder: Path) -> None:
    (folder / "DONE").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], extendable: Sequence[str], inputs: Mapping[str, Path]
) -> list[str]:
    """What differs between two `stage.json`, one line each."""
    lines = []
    for key in sorted({*old["fields"], *new["fields"]}):
        before, after = old["fields"].get(key), new["fields"].get(key)
        if before != after and not (key in extendable and before is not None and after is not None and after > before):
            lines.append(f"{key}: was {before!r}, is now {after!r}")
    for key in sorted({*old["inputs"], *new["inputs"]}):
        if old["inputs"].get(key) != new["inputs"].get(key):
            path = inputs.get(key)
            what = " (weights, tokenizer or chat template)" if path is not None and path.is_dir() else ""
            lines.append(f"input {key}: its content changed{what}" + (f": {path}" if path is not None else ""))
    return lines


@dataclass
class Stop:
    """Whether a signal asked the program to leave, and which."""

    signal_number: int = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0

    def check(self, save: Callable[[], None] | None = None) -> None:
        """At a step boundary: if asked to leave, save and raise `Interrupted`."""
        if self:
            if save is not None:
                save()
            raise Interrupted("stopped; the same command goes on from here", self.signal_number)


_stop: ContextVar[Stop] = ContextVar("stop", default=Stop())  # noqa: B039 - nobody writes to the default


def stop() -> Stop:
    """The wish to leave that the enclosing `stoppable` looks after; outside of one, a wish that nobody makes."""
    return _stop.get()


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a wish that loops look at; leave anyway after 4 seconds, or at a second signal.

    Leaving at once is safe: whatever is on disk is whole, and the unfinished step is done again.
    """
    wish = Stop()

    def leave() -> None:
        os._exit(128 + wish.signal_number)

    def handle(number: int, _frame: FrameType | None) -> None:
        if wish:
            leave()
        wish.signal_number = number
        print("\nstopping; the same command goes on from here (again: leave at once)", file=sys.stderr, flush=True)
        timer = threading.Timer(SECONDS_TO_LEAVE, leave)
        timer.daemon = True
        timer.start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    token = _stop.set(wish)
    try:
        yield wish
    finally:
        _stop.reset(token)
        for number, handler in before.items():
            signal.signal(number, handler)
