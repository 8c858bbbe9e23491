"""The database of a label folder: questions, settings, and events that are only ever added.

SQLite in WAL mode with `synchronous=FULL`: an event is on the disk when `append` returns.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preferent import files
from preferent.errors import DataError, PlatformError
from preferent.labeling import questions
from preferent.labeling.events import Event
from preferent.labeling.questions import Question, row

NAME = "labels.sqlite"
SCHEMA = 1
NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "gluster", "lustre", "beegfs", "gpfs", "ncpfs", "9p", "virtiofs")
REMOTE = ("fuse.sshfs", "fuse.rclone", "fuse.gcsfuse", "fuse.s3fs", "fuse.ceph", "fuse.gluster", "fuse.juicefs")
TABLES = (
    "create table setting (name text primary key, value text not null)",
    "create table item (number integer primary key, key text not null unique, body text not null)",
    """create table event (
        number integer primary key, at real not null, annotator text not null, key text not null,
        kind text not null check (kind in ('vote', 'undo', 'flag')), item text not null, body text not null,
        unique (annotator, key)
    )""",
    "create trigger event_stays before update on event begin select raise(abort, 'events are only added'); end",
    "create trigger event_is_kept before delete on event begin select raise(abort, 'events are only added'); end",
)


def file_system(folder: Path, mounts: str) -> str:
    """Return the type of a folder's file system, from the text of `/proc/mounts`; empty if it is not listed."""
    mount, folder_type = "", ""
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")  # a space in a path is written \\040
        if Path(point) in (folder, *folder.parents) and len(point) >= len(mount):
            mount, folder_type = point, kind
    return folder_type


def _require_local(folder: Path) -> None:
    """Refuse a network file system, where SQLite's locks and shared memory do not work."""
    mounts = Path("/proc/mounts")
    kind = file_system(folder.resolve(), mounts.read_text()) if mounts.exists() else ""
    if kind.startswith(NETWORK + REMOTE):
        raise PlatformError(
            f"{folder}: is on a network file system ({kind} in /proc/mounts), which can corrupt the database of votes; "
            "keep it on a local disk with --out DIR, and copy the exported files from there"
        )


class Store:
    """An open database. One process writes to it, its threads one at a time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lock = threading.Lock()
        _require_local(folder)
        with self._errors_named():
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._database.execute("pragma busy_timeout = 5000")
            mode = self._database.execute("pragma journal_mode = wal").fetchone()[0]
            self._database.execute("pragma synchronous = full")
            version = self._database.execute("pragma user_version").fetchone()[0]
        if mode != "wal":
            raise PlatformError(
                f"{self._path}: the file system does not support a write-ahead log; use another with --out DIR"
            )
        if version not in (0, SCHEMA):
            raise DataError(
                f"{self._path}: has schema {version}, but this version of preferent reads schema {SCHEMA}; "
                "use the version that wrote it"
            )
        self.is_new = version == 0

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Raise an error of SQLite as one that names the file and the way out."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise (PlatformError if isinstance(error, sqlite3.OperationalError) else DataError)(
                f"{self._path}: cannot be used: {error}; free disk space or restore the file, then run the same "
                "command again"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors_named():
            self._database.execute("begin immediate")
            try:
                yield self._database
                self._database.execute("commit")
            finally:
                if self._database.in_transaction:
                    self._database.execute("rollback")

    def create(self, settings: Mapping[str, Any], questions: Sequence[Question], events: Sequence[Event] = ()) -> None:
        """Create the database, whole or not at all. `events` are votes that came with the questions."""
        with self._transaction() as database:
            for statement in TABLES:
                database.execute(statement)
            rows = [(question.key, json.dumps(row(question))) for question in questions]
            database.executemany("insert into item (key, body) values (?, ?)", rows)
            for event in events:
                _insert(database, event)
            _set(database, settings)
            database.execute(f"pragma user_version = {SCHEMA}")
        self.is_new = False
        files.sync_folder(self._path.parent)

    def set(self, settings: Mapping[str, Any]) -> None:
        """Replace settings."""
        with self._transaction() as database:
            _set(database, settings)

    def settings(self) -> dict[str, Any]:
        """Return all settings."""
        with self._lock, self._errors_named():
            rows = self._database.execute("select name, value from setting").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def questions(self) -> list[Question]:
        """Return the questions, in the order in which they were added."""
        with self._lock, self._errors_named():
            rows = self._database.execute("select body from item order by number").fetchall()
        return [questions.from_row(json.loads(body)) for (body,) in rows]

    def events(self) -> list[Event]:
        """Return all events, in order."""
        columns = "annotator, key, kind, item, body, at"
        with self._lock, self._errors_named():
            rows = self._database.execute(f"select {columns} from event order by number").fetchall()
        return [Event(who, key, kind, item, json.loads(body), at) for who, key, kind, item, body, at in rows]

    def append(self, event: Event) -> None:
        """Add an event. It is on the disk when this returns."""
        with self._transaction() as database:
            _insert(database, event)

    def close(self) -> None:
        self._database.close()


def _set(database: sqlite3.Connection, settings: Mapping[str, Any]) -> None:
    rows = [(name, json.dumps(value)) for name, value in settings.items()]
    database.executemany("insert or replace into setting values (?, ?)", rows)


def _insert(database: sqlite3.Connection, event: Event) -> None:
    values = (event.at, event.annotator, event.key, event.kind, event.item, json.dumps(dict(event.body)))
    database.execute("insert into event (at, annotator, key, kind, item, body) values (?, ?, ?, ?, ?, ?)", values)
