"""A cache of one judge's replies by question, so that no question is asked twice.

The file has one JSON object per line and is only appended to. A line counts once it is completely on disk. A line torn
by a kill is cut off when the file is next opened or written to. Several processes may write to one file.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from preferent import files, ranks
from preferent.evaluation.judges.protocol import Call, Reply

_FIELDS = ("text", "probabilities", "tokens", "cut", "seconds")


def key(call: Call, identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that a reply depends on: the judge's identity, the messages and the vote's number."""
    question = [dict(identity), [[message.role, message.content] for message in call.messages], call.vote]
    return hashlib.sha256(json.dumps(question, sort_keys=True, allow_nan=False).encode()).hexdigest()


class ReplyCache:
    """A file of replies; `ReplyCache.open(path, identity)` opens it."""

    def __init__(self, path: Path, identity: Mapping[str, Any], descriptor: int) -> None:
        self.path, self._identity, self._file = path, identity, descriptor
        self._replies = {name: _reply(row) for name, row in ranks.agreed(self._read).items()}

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, identity: Mapping[str, Any]) -> Iterator["ReplyCache"]:
        """Open the cache of a judge, or create it."""
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                files.sync_folder(path.parent)
                yield cls(path, identity, descriptor)
            finally:
                os.close(descriptor)

    def get(self, call: Call) -> Reply | None:
        """Return the cached reply to a call."""
        return self._replies.get(key(call, self._identity))

    def add(self, call: Call, reply: Reply) -> None:
        """Add a reply; it is on disk when this returns."""
        name = key(call, self._identity)
        row = {"key": name} | {field: getattr(reply, field) for field in _FIELDS}
        self._append(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._replies[name] = reply

    @ranks.first_only
    def _append(self, line: bytes) -> None:
        with files.writing(self.path), self._locked():
            self._cut_torn_line()
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)

    def __len__(self) -> int:
        return len(self._replies)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the file against other processes; the lock ends with the process."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _cut_torn_line(self) -> None:
        """Cut off an incomplete last line, which a process was writing when it was killed."""
        size = os.fstat(self._file).st_size
        if size == 0 or os.pread(self._file, 1, size - 1) == b"\n":
            return
        whole = self.path.read_bytes()
        end = whole.rfind(b"\n") + 1
        os.ftruncate(self._file, end)
        line = whole.count(b"\n") + 1
        print(f"{self.path}:{line}: the line is incomplete and was removed; its call is made again", file=sys.stderr)

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return the rows in the file, the first of equal keys; print a note for every line that is not a reply."""
        rows: dict[str, dict[str, Any]] = {}
        with self._locked(), open(self.path, "rb") as file:
            self._cut_torn_line()
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    _reply(row)
                    rows.setdefault(str(row["key"]), row)
                except (ValueError, KeyError, TypeError, RecursionError):
                    print(f"{self.path}:{number}: is not a reply; its call is made again", file=sys.stderr)
        return rows


def _reply(row: Mapping[str, Any]) -> Reply:
    stored = row["probabilities"]
    probabilities = None if stored is None else {str(label): float(value) for label, value in stored.items()}
    return Reply(str(row["text"]), probabilities, row["tokens"], bool(row["cut"]), float(row["seconds"]))
