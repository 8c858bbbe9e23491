"""The database of votes: what is acknowledged is kept, once, and nothing is changed afterwards."""

import sqlite3
import subprocess
import sys

import pytest
from hostile import HOSTILE

from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError
from preferent.labeling import database
from preferent.labeling.database import Store
from preferent.labeling.events import Event, histories
from preferent.labeling.questions import Question

SETTINGS = {"seed": 1, "overlap": 1}


def questions(count=3):
    return [Question(f"r{i}", Prompt(input_text=f"prompt {i}"), f"a {i}", f"b {i}") for i in range(count)]


def vote(item, key, annotator="ann", choice="left", **more):
    body = {"choice": choice, "first": "a", "strength": None, "note": "", "seconds": 1.0} | more
    return Event(annotator, key, "vote", item, body, 10.0)


@pytest.fixture
def made(tmp_path):
    opened = Store(tmp_path)
    opened.create(SETTINGS, questions())
    yield opened
    opened.close()


def test_what_goes_in_comes_out(tmp_path):
    asked = [
        *questions(),
        Question(
            "talk",
            Prompt(messages=(Message("user", "hi"),), context="be kind", group="g", extra={"topic": "law"}),
            "yes",
            "no",
            gold="tie",
            probability=0.25,
            extra={"k": [1]},
        ),
    ]
    events = [vote(asked[0].key, "k1"), Event("ann", "k2", "undo", asked[0].key, {}, 11.0)]
    first = Store(tmp_path)
    assert first.is_new
    first.create(SETTINGS, asked, events[:1])
    first.append(events[1])
    first.close()
    again = Store(tmp_path)
    assert not again.is_new
    assert {name: again.settings()[name] for name in SETTINGS} == SETTINGS
    assert (again.questions(), again.events()) == (asked, events)


def test_hostile_text_is_kept_exactly(tmp_path):
    asked = [Question(str(i), Prompt(input_text=text), text, text + "!") for i, text in enumerate(HOSTILE)]
    first = Store(tmp_path)
    first.create(SETTINGS, asked)
    for i, (text, each) in enumerate(zip(HOSTILE, asked, strict=True)):
        first.append(vote(each.key, f"k{i}", note=text))
    first.close()
    again = Store(tmp_path)
    assert again.questions() == asked
    assert [event.body["note"] for event in again.events()] == HOSTILE


def test_an_event_is_on_the_disk_when_append_returns(made, tmp_path):
    made.append(vote("x", "k1"))
    code = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('select key from event').fetchall())"
    found = subprocess.check_output([sys.executable, "-c", code, tmp_path / database.NAMES["pairs"]], text=True)
    assert found == "[('k1',)]\n"


def test_it_waits_for_the_disk(made):
    assert made._database.execute("pragma synchronous").fetchone() == (2,)
    assert made._database.execute("pragma journal_mode").fetchone() == ("wal",)
    assert made._database.execute("pragma busy_timeout").fetchone() == (5000,)


@pytest.mark.parametrize("statement", ["update event set body = '{}'", "delete from event"])
def test_events_are_never_changed(made, statement):
    made.append(vote("x", "k1"))
    with pytest.raises(sqlite3.IntegrityError, match="only added"):
        made._database.execute(statement)


def test_a_key_is_used_once_by_each_annotator(made):
    made.append(vote("x", "k1"))
    made.append(vote("x", "k1", annotator="bob"))
    with pytest.raises(DataError, match="UNIQUE"):
        made.append(vote("y", "k1"))
    assert len(made.events()) == 2
    made.append(vote("y", "k2"))  # the failure left nothing locked


def test_a_full_disk_loses_nothing_and_passes(made):
    size = made._database.execute("pragma page_count").fetchone()[0]
    made._database.execute(f"pragma max_page_count = {size}")
    with pytest.raises(PlatformError, match="full"):
        made.append(vote("x", "k1", note="n" * 100_000))
    assert made.events() == []
    made._database.execute("pragma max_page_count = 1000000")
    made.append(vote("x", "k1"))
    assert len(made.events()) == 1


def test_a_database_is_made_whole_or_not_at_all(tmp_path):
    first = Store(tmp_path)
    with pytest.raises(DataError):
        first.create(SETTINGS, [*questions(), *questions()])  # the same key twice
    first.close()
    again = Store(tmp_path)
    assert again.is_new
    again.create(SETTINGS, questions())


def test_another_schema_is_refused(made, tmp_path):
    made._database.execute("pragma user_version = 7")
    with pytest.raises(DataError, match="schema 7"):
        Store(tmp_path)


def test_what_is_no_database_is_refused(tmp_path):
    (tmp_path / database.NAMES["pairs"]).write_bytes(b"not a database, by its first sixteen bytes" * 100)
    with pytest.raises(DataError, match=database.NAMES["pairs"]):
        Store(tmp_path)


MOUNTS = """/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/export /home nfs4 rw 0 0
/dev/sdb1 /home/local ext4 rw 0 0
/dev/sdc1 / xfs rw 0 0
share /mnt/with\\040space cifs rw 0 0
me@host: /mnt/far fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    "folder, kind",
    [
        ("/srv/labels", "xfs"),
        ("/tmp", "tmpfs"),
        ("/home/ann/labels", "nfs4"),
        ("/home/local/labels", "ext4"),
        ("/homework", "xfs"),
        ("/mnt/with space/x", "cifs"),
        ("/mnt/far/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_folder(tmp_path, folder, kind):
    assert database.file_system(type(tmp_path)(folder), MOUNTS) == kind


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "file_system", lambda *_: "nfs4")
    with pytest.raises(PlatformError, match=r"network file system \(nfs4.*--out"):
        Store(tmp_path)
    assert not (tmp_path / database.NAMES["pairs"]).exists()


def test_an_undo_puts_a_vote_aside_and_the_next_vote_replaces_it():
    events = [
        vote("x", "1"),
        vote("y", "2", choice="tie"),
        Event("ann", "3", "undo", "y"),
        Event("ann", "4", "undo", "x"),
        vote("x", "5", choice="right"),
        vote("z", "6", annotator="bob"),
    ]
    found = histories(events)
    assert [(item, said.choice) for item, said in found["ann"].votes.items()] == [("x", "right")]
    assert [(item, said.choice) for item, said in found["ann"].undone.items()] == [("y", "tie")]
    assert list(found["bob"].votes) == ["z"]
