"""The database of votes under damage: any flipped bit is refused with the place, or changes nothing that is read."""

import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from preferent.data.types import Prompt
from preferent.errors import DataError
from preferent.labeling import access, database, serving
from preferent.labeling.database import Store
from preferent.labeling.events import Event
from preferent.labeling.questions import Question

FLIPS = 1000
SETTINGS = {"seed": 3, "annotators": ["ann"], "overlap": 1, "gold_share": 0.0, "strengths": 0}
KEPT = Path(__file__).parent.parent / "data" / "run-0.1.0" / "run" / "labels"


def vote(question: Question, number: int) -> Event:
    body = {"choice": "left", "first": "ab"[number % 2], "strength": None, "note": f"n{number}", "seconds": 1.5}
    return Event("ann", f"key {number}", "vote", question.key, body, 1000.0 + number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    asked = [Question(str(i), Prompt(f"Question {i}?"), f"answer {i}", f"reply {i}") for i in range(60)]
    store = Store(folder)
    store.create(SETTINGS, asked)
    for number, question in enumerate(asked[:50]):
        store.append(vote(question, number))
    store.close()
    return folder


def content(folder: Path, check: bool = True) -> tuple[object, ...]:
    store = Store(folder, check)
    try:
        return store.settings(), store.questions(), store.events()
    finally:
        store.close()


def test_a_flipped_bit_is_refused_or_harmless(whole: Path, tmp_path: Path) -> None:
    before, place, refused = content(whole), random.Random(FLIPS), 0
    data = (whole / database.NAMES["pairs"]).read_bytes()
    for _ in range(FLIPS):
        damaged = bytearray(data)
        damaged[place.randrange(len(data))] ^= 1 << place.randrange(8)
        (tmp_path / database.NAMES["pairs"]).write_bytes(damaged)
        try:
            assert content(tmp_path) == before
        except DataError as error:
            assert str(tmp_path / database.NAMES["pairs"]) in str(error)
            refused += 1
        for path in tmp_path.iterdir():
            path.unlink()
    assert refused > FLIPS / 4


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("update event set body = replace(body, 'n30', 'n31')", r"row 31 of the events is not what was written"),
        ("update event set annotator = 'bob' where number = 3", r"row 3 of the events"),
        ("update item set body = replace(body, 'answer 7', 'answer 8')", r"row 8 of the items"),
        ("delete from event where number = 20", r"row 21 of the events"),
        ("delete from event where number = 50", r"the last of the events are missing"),
        ("delete from item where number > 58", r"the last of the items are missing"),
        ("update setting set value = '4' where name = 'seed'", r"the setting 'seed'"),
        ("update event set number = -number", r"row -50 of the events"),
    ],
)
def test_a_changed_row_is_named(whole: Path, tmp_path: Path, statement: str, message: str) -> None:
    shutil.copy(whole / database.NAMES["pairs"], tmp_path)
    tamper(tmp_path, statement)
    with pytest.raises(DataError, match=rf"labels.sqlite: damaged: .*{message}.*--recover"):
        Store(tmp_path)


def tamper(folder: Path, *statements: str) -> None:
    base = sqlite3.connect(folder / database.NAMES["pairs"])
    for statement in ("drop trigger event_stays", "drop trigger event_is_kept", *statements):
        base.execute(statement)
    base.commit()
    base.close()


def test_votes_are_recovered_up_to_the_damage(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / database.NAMES["pairs"], tmp_path)
    tamper(tmp_path, "update event set body = replace(body, 'n30', 'n31')")
    text = serving.recover(tmp_path)
    assert "60 questions and 30 events; 30 votes" in text
    assert len((tmp_path / "recovered/judgments.jsonl").read_text().splitlines()) == 30


def test_a_database_without_its_schema_number_is_not_taken_for_a_new_one(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / database.NAMES["pairs"], tmp_path)
    tamper(tmp_path, "pragma user_version = 0")
    with pytest.raises(DataError, match="its schema number is gone"):
        Store(tmp_path)


def test_an_emptied_database_is_told(whole: Path, tmp_path: Path) -> None:
    (tmp_path / database.NAMES["pairs"]).touch()
    with pytest.raises(DataError, match="is empty"):
        serving.export(tmp_path)


@pytest.mark.parametrize("text", ["[1]", '{"ann": 5}', '{"ann": ""}', "null", "{"])
def test_tokens_of_another_shape_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / access.NAME).write_text(text)
    with pytest.raises(DataError, match=r"tokens\.json"):
        access.tokens(tmp_path, ["ann"])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_holds_sides_tokens_or_the_secret_is_for_its_owner_alone(whole: Path, tmp_path: Path) -> None:
    shutil.copy(whole / database.NAMES["pairs"], tmp_path)
    (tmp_path / database.NAMES["pairs"]).chmod(0o644)
    store = Store(tmp_path)
    store.set({"port": 1})
    access.tokens(tmp_path, ["ann"])
    paths = list(tmp_path.iterdir())
    assert len(paths) == 4, "the database, what SQLite writes beside it, the tokens"
    store.close()
    serving.export(tmp_path)
    assert {mode(path) for path in [*paths, *tmp_path.glob("*.jsonl")] if path.exists()} == {0o600}


def test_a_database_of_0_1_0_keeps_its_votes_and_sides_and_gets_a_secret(tmp_path: Path) -> None:
    shutil.copy(KEPT / database.NAMES["pairs"], tmp_path)
    base = sqlite3.connect(tmp_path / database.NAMES["pairs"])
    before = base.execute("select number, at, annotator, key, kind, item, body from event order by number").fetchall()
    settings = dict(base.execute("select name, value from setting"))
    base.close()
    assert before and "secret" not in settings
    first = Store(tmp_path)
    secret = first.settings()["secret"]
    first.close()
    base = sqlite3.connect(tmp_path / database.NAMES["pairs"])
    after = base.execute("select number, at, annotator, key, kind, item, body from event order by number").fetchall()
    assert after == before
    with pytest.raises(sqlite3.IntegrityError, match="only added"):
        base.execute("update event set body = '{}'")
    base.close()
    again = Store(tmp_path)
    assert again.settings()["secret"] == secret and len(bytes.fromhex(secret)) == 32
    assert {name: again.settings()[name] for name in ("seed", "overlap")} == {
        name: int(settings[name]) for name in ("seed", "overlap")
    }
    again.append(vote(again.questions()[0], 1))
    again.close()
    Store(tmp_path).close()
