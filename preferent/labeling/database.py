"""The database of a label folder: questions, settings, and events that are only ever added.

SQLite in WAL mode with `synchronous=FULL`: what `append` returned from is on the disk, whatever happens next.
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
    """The type of the file system that a folder is on, from the text of `/proc/mounts`; empty if it does not say."""
    found = "", ""
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")  # a space in a path is written \\040
        if Path(point) in (folder, *folder.parents) and len(point) >= len(found[0]):
            found = point, kind
    return found[1]


def _require_local(folder: Path) -> None:
    """Refuse a network file system: SQLite's locks and its shared memory do not hold there."""
    mounts = Path("/proc/mounts")
    kind = file_system(folder.resolve(), mounts.read_text()) if mounts.exists() else ""
    if kind.startswith(NETWORK + REMOTE):
        raise PlatformError(
            f"{folder}: is on a network file system ({kind}, says /proc/mounts), where the database of votes could be "
            "damaged; keep it on a local disk with --out DIR, and copy the exported files from there"
        )


class Store:
    """An open database; one process writes it, its threads one after the other."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._lock = threading.Lock()
        _require_local(folder)
        with self._told():
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._database.execute("pragma busy_timeout = 5000")
            mode = self._database.execute("pragma journal_mode = wal").fetchone()[0]
            self._database.execute("pragma synchronous = full")
            version = self._database.execute("pragma user_version").fetchone()[0]
        if mode != "wal":
            raise PlatformError(f"{self._path}: this file system allows no write-ahead log; keep it elsewhere: --out")
        if version not in (0, SCHEMA):
            raise DataError(
                f"{self._path}: has schema {version}, and this version of preferent reads {SCHEMA}; "
                "use the version that wrote it"
            )
        self.is_new = version == 0

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            why = f"{self._path}: cannot be used: {error}"
            raise (PlatformError if isinstance(error, sqlite3.OperationalError) else DataError)(
                f"{why}; make room or restore it, then the same command goes on"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            self._database.execute("begin immediate")
            try:
                yield self._database
                self._database.execute("commit")
            finally:
                if self._database.in_transaction:
                    self._database.execute("rollback")

    def create(self, settings: Mapping[str, Any], questions: Sequence[Question], events: Sequence[Event] = ()) -> None:
        """Make a new database, whole or not at all; `events` are votes that came with the questions."""
        with self._transaction() as database:
            for statement in TABLES:
                database.execute(statement)
            rows = [(each.key, json.dumps(row(each))) for each in questions]
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
        with self._lock, self._told():
            rows = self._database.execute("select name, value from setting").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def questions(self) -> list[Question]:
        """The questions, in the order they came in."""
        with self._lock, self._told():
            rows = self._database.execute("select body from item order by number").fetchall()
        return [questions.from_row(json.loads(body)) for (body,) in rows]

    def events(self) -> list[Event]:
        """Everything that happened, in order."""
        columns = "annotator, key, kind, item, body, at"
        with self._lock, self._told():
            rows = self._database.execute(f"select {columns} from event order by number").fetchall()
        return [Event(who, key, kind, item, json.loads(body), at) for who, key, kind, item, body, at in rows]

    def append(self, event: Event) -> None:
        """Add an event; when this returns, it is on the disk."""
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
