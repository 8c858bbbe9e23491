"""The database of a label folder: questions, settings, and events that are only ever added.

SQLite in WAL mode with `synchronous=FULL`: an event is on the disk when `append` returns. Votes cannot be made again,
so every row carries a digest: of itself, and for questions and events of all rows before it. Only the owner may read
the file: it holds the sides, and the secret that they come from.
"""

import contextlib
import hashlib
import json
import os
import secrets
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
from preferent.labeling.questions import Asks, Question, row
from preferent.runs.directory import LabelDirectory

NAMES: Mapping[Asks, str] = {
    "pairs": LabelDirectory(Path()).database.name,
    "thumbs": LabelDirectory(Path()).thumbs_database.name,
}
"""The name of the database in a label folder, by what is asked."""
SCHEMA = 2
NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "gluster", "lustre", "beegfs", "gpfs", "ncpfs", "9p", "virtiofs")
REMOTE = ("fuse.sshfs", "fuse.rclone", "fuse.gcsfuse", "fuse.s3fs", "fuse.ceph", "fuse.gluster", "fuse.juicefs")
STAYS = "create trigger event_stays before update on event begin select raise(abort, 'events are only added'); end"
TABLES = (
    "create table setting (name text primary key, value text not null, digest text not null)",
    """create table item (
        number integer primary key, key text not null unique, body text not null, digest text not null
    )""",
    """create table event (
        number integer primary key, at real not null, annotator text not null, key text not null,
        kind text not null check (kind in ('vote', 'undo', 'flag')), item text not null, body text not null,
        digest text not null, unique (annotator, key)
    )""",
    STAYS,
    "create trigger event_is_kept before delete on event begin select raise(abort, 'events are only added'); end",
)

PASSING = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
    *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM, sqlite3.SQLITE_PROTOCOL),
)
"""SQLite's errors that say nothing against the file."""

SETTINGS = "select name, value from setting"
CHAINS = {"item": "number, key, body", "event": "number, at, annotator, key, kind, item, body"}
"""The columns that the digests of a table cover, in order; a row's digest continues that of the row before it."""


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
    """An open database. One process writes to it, its threads one at a time.

    Opening checks every row: a damaged database raises `DataError` with the place, unless `check` is off.
    """

    def __init__(self, folder: Path, check: bool = True, asks: Asks = "pairs") -> None:
        self._path = folder / NAMES[asks]
        self._verb = f"preferent label {folder}{' --thumbs' if asks == 'thumbs' else ''}"
        self._lock = threading.Lock()
        _require_local(folder)
        self._make_private()
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
        if version not in range(SCHEMA + 1):
            raise DataError(
                f"{self._path}: has schema {version}, but this version of preferent reads schema {SCHEMA}; "
                "use the version that wrote it"
            )
        self.is_new = version == 0
        if version == 0 and self._path.stat().st_size:
            self._refuse_emptied()
        if version == 1:
            self._upgrade()
        elif version and check:
            self._verify()

    def _make_private(self) -> None:
        """Create the file, or take it away from others; what SQLite writes beside it gets the same permissions."""
        with files.writing(self._path):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            for path in (self._path, *(self._path.with_name(f"{self._path.name}-{end}") for end in ("wal", "shm"))):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if path.stat().st_mode & 0o077:
                        path.chmod(0o600)

    def _refuse_emptied(self) -> None:
        with self._errors_named():
            if self._database.execute("select count(*) from sqlite_master").fetchone()[0]:
                raise self._damage("its schema number is gone")

    def _damage(self, what: str) -> DataError:
        return DataError(
            f"{self._path}: damaged: {what}. Restore the file from a copy; or write the votes before the damage to "
            f"files: {self._verb} --recover"
        )

    def _verify(self) -> None:
        """Raise `DataError` where a row is not what was written, or is missing."""
        with self._errors_named():
            report = [line for (line,) in self._database.execute("pragma integrity_check(3)")]
            if report != ["ok"]:
                raise self._damage("; ".join(report))
            for name, value, digest in self._database.execute("select name, value, digest from setting"):
                if digest != _digest(name, value):
                    raise self._damage(f"the setting {name!r} is not what was written")
            for table in CHAINS:
                last = ""
                for cells in self._rows(table):
                    last = _digest(last, *cells[:-1])
                    if cells[-1] != last:
                        raise self._damage(f"row {cells[0]!r} of the {table}s is not what was written")
                if self._end(table) != last:
                    raise self._damage(f"the last of the {table}s are missing")

    def _rows(self, table: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table in order; the last column is the digest."""
        yield from self._database.execute(f"select {CHAINS[table]}, digest from {table} order by number")

    def _end(self, table: str) -> str:
        """Return the digest of a table's last row, as it is noted apart."""
        return str(_read(self._database).get(f"end of {table}s", ""))

    def _upgrade(self) -> None:
        """Give a database of 0.1.0 its digests and a secret; votes and the sides that they record stay as they are."""
        with self._transaction() as database:
            if (report := database.execute("pragma integrity_check(3)").fetchone()[0]) != "ok":
                raise self._damage(report)
            database.execute("drop trigger event_stays")
            for table in ("setting", *CHAINS):
                database.execute(f"alter table {table} add column digest text not null default ''")
            for table in CHAINS:
                last = ""
                for cells in list(self._rows(table)):
                    last = _digest(last, *cells[:-1])
                    database.execute(f"update {table} set digest = ? where number = ?", (last, cells[0]))
                _set(database, {f"end of {table}s": last})
            database.execute(STAYS)
            _set(database, {name: json.loads(value) for name, value in database.execute(SETTINGS).fetchall()})
            _set(database, {"secret": secrets.token_hex(32)})
            database.execute(f"pragma user_version = {SCHEMA}")

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Raise an error of SQLite as one that names the file and the way out."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise self._damage(str(error)) from None
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise DataError(f"{self._path}: {error}; this is not stored") from None
            if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF not in PASSING:
                raise self._damage(str(error)) from None
            raise PlatformError(
                f"{self._path}: cannot be used: {error}; free disk space, or let nobody else use the file, then run "
                "the same command again"
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
            last = ""
            for number, question in enumerate(questions, start=1):
                cells = number, question.key, json.dumps(row(question))
                last = _digest(last, *cells)
                database.execute("insert into item (number, key, body, digest) values (?, ?, ?, ?)", (*cells, last))
            _set(database, {"end of items": last, "end of events": "", "secret": secrets.token_hex(32)})
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
            return _read(self._database)

    def questions(self) -> list[Question]:
        """Return the questions, in the order in which they were added."""
        with self._lock, self._errors_named():
            return [_question(cells) for cells in self._rows("item")]

    def events(self) -> list[Event]:
        """Return all events, in order."""
        with self._lock, self._errors_named():
            return [_event(cells) for cells in self._rows("event")]

    def recovered(self) -> tuple[dict[str, Any], list[Question], list[Event]]:
        """Return the settings, questions and events that are what was written, up to the first that is not."""
        settings: dict[str, Any] = {}
        with self._lock, contextlib.suppress(sqlite3.DatabaseError, ValueError):
            for name, value, digest in self._database.execute("select name, value, digest from setting"):
                if digest == _digest(name, value):
                    settings[name] = json.loads(value)
        questions = [_question(cells) for cells in self._whole("item")]
        known = {question.key for question in questions}
        return settings, questions, [_event(cells) for cells in self._whole("event") if cells[5] in known]

    def _whole(self, table: str) -> list[tuple[Any, ...]]:
        """Return the rows of a table before the first damage."""
        kept: list[tuple[Any, ...]] = []
        last = ""
        with self._lock, contextlib.suppress(sqlite3.DatabaseError):
            for cells in self._rows(table):
                last = _digest(last, *cells[:-1])
                if cells[-1] != last:
                    break
                kept.append(cells)
        return kept

    def append(self, event: Event) -> None:
        """Add an event. It is on the disk when this returns."""
        with self._transaction() as database:
            _insert(database, event)

    def close(self) -> None:
        self._database.close()


def _digest(*cells: object) -> str:
    """Return the digest of a row's cells."""
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _question(cells: Sequence[Any]) -> Question:
    return questions.from_row(json.loads(cells[2]))


def _event(cells: Sequence[Any]) -> Event:
    _, at, annotator, key, kind, item, body, _ = cells
    return Event(annotator, key, kind, item, json.loads(body), at)


def _read(database: sqlite3.Connection) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in database.execute(SETTINGS)}


def _set(database: sqlite3.Connection, settings: Mapping[str, Any]) -> None:
    pairs = [(name, json.dumps(value)) for name, value in settings.items()]
    rows = [(name, value, _digest(name, value)) for name, value in pairs]
    database.executemany("insert or replace into setting values (?, ?, ?)", rows)


def _insert(database: sqlite3.Connection, event: Event) -> None:
    """Add an event behind the last one, and note that it is the last."""
    number = database.execute("select coalesce(max(number), 0) + 1 from event").fetchone()[0]
    cells = (number, event.at, event.annotator, event.key, event.kind, event.item, json.dumps(dict(event.body)))
    digest = _digest(_read(database)["end of events"], *cells)
    columns = f"({CHAINS['event']}, digest) values (?, ?, ?, ?, ?, ?, ?, ?)"
    database.execute(f"insert into event {columns}", (*cells, digest))
    _set(database, {"end of events": digest})
