"""The exported files: others can read them, and their counts add up."""

from collections import Counter

import pytest
from hostile import HOSTILE

from preferent import files
from preferent.data import datasets, judgments
from preferent.data.formats import row_reader
from preferent.data.types import Prompt
from preferent.errors import UsageError
from preferent.labeling import database, label_exports, serving
from preferent.labeling.database import Store
from preferent.labeling.questions import Question
from preferent.labeling.service import LabelingService

SETTINGS = {"seed": 3, "annotators": ["ann", "bob"], "overlap": 1, "strengths": 3, "gold_share": 0.1}
CHOICES = ("left", "right", "tie", "both_bad", "skip")


def questions(count=40, **more):
    prompts = [Prompt(input_text=f"prompt {i}", id=f"r{i}", group=f"g{i % 5}") for i in range(count)]
    return [
        Question(prompt.id, prompt, f"a {prompt.id}", f"b {prompt.id}", "tuned", "base", **more) for prompt in prompts
    ]


def gold(count=10):
    return [Question(f"g{i}", Prompt(input_text=f"g {i}"), "good", "bad", gold="AB"[i % 2]) for i in range(count)]


def same(count=10):
    return [Question(f"s{i}", Prompt(input_text=f"s {i}"), "same", "same", "tuned", "base") for i in range(count)]


def answer(sat, name, pick, limit=1000):
    """Let somebody answer everything that is asked: `pick` of the item, and its number, to what is sent."""
    queue = sat.queue(name)
    while queue["item"] and queue["done"] < limit:
        sent = {"key": f"{name} {queue['done']}", "item": queue["item"]["item"]} | pick(queue["item"], queue["done"])
        queue = sat.vote(name, sent)


@pytest.fixture
def labelled(tmp_path):
    """A function that asks two people and gives the folder, its store closed."""

    def make(asked, pick, limit=1000, **settings):
        opened = Store(tmp_path)
        opened.create(SETTINGS | settings, asked)
        sat = LabelingService(opened)
        for name in sat.settings["annotators"]:
            answer(sat, name, pick, limit)
        opened.close()
        return tmp_path

    return make


def rows(folder, name):
    return files.read_jsonl(folder / f"{name}.jsonl")


def every_way(item, done):
    return {"choice": CHOICES[done % 5], "note": f"note {done}", "seconds": float(done)}


def test_counts_add_up_and_are_said(labelled):
    folder = labelled([*questions(), *gold(), *same()], every_way)
    said = serving.export(folder)
    count = {name: len(rows(folder, name)) for name in label_exports.NAMES}
    votes = count["preferences"] + count["ties"] + count["skips"] + count["gold"]
    assert votes == 40 + count["gold"] and count["gold"] > 0
    assert count["judgments"] == count["preferences"] + count["ties"] + 10
    assert f"{votes} votes: {count['preferences']} preferences, {count['ties']} ties" in said
    assert "10 of them ties of identical answers" in said


def test_judgments_are_read_and_say_what_was_meant(labelled):
    folder = labelled(questions(), lambda item, done: {"choice": "left" if item["left"].startswith("a") else "right"})
    serving.export(folder)
    found = judgments.read(folder / "judgments.jsonl")
    assert len(found) == 40
    assert {each.choice for each in found} == {"A"} and {each.judge for each in found} == {"people"}
    assert {each.confidence for each in found} == {1.0}
    assert all(each.response_a == f"a {each.id}" and each.extra["model_a"] == "tuned" for each in found)
    assert {each.extra["annotator"] for each in found} == {"ann", "bob"}
    assert set(Counter(each.extra["first"] for each in found)) == {"a", "b"}
    assert {each.extra["probability"] for each in found} == {1.0} and not any(each.extra["gold"] for each in found)


def test_preferences_are_read_as_rows_to_train_on(labelled):
    folder = labelled(
        questions(), lambda item, done: {"choice": "left" if item["left"].startswith("a") else "right", "strength": 2}
    )
    serving.export(folder)
    found = row_reader.kept(datasets.read([str(folder / "preferences.jsonl")], "preference"))
    assert {pair.chosen[0] for pair in found} == {"a"} and len(found) == 40
    assert {pair.choice for pair in found} == {0, 1}  # position is what was shown
    assert all(pair.prompt.group.startswith("g") and pair.strength == 2 for pair in found)
    assert {pair.extra["model_0"] for pair in found} == {"tuned", "base"}
    assert all(pair.extra["first"] == ("a" if pair.candidate_0[0] == "a" else "b") for pair in found)


def test_ties_and_skips_are_kept_apart(labelled):
    folder = labelled(questions(), every_way, annotators=["ann"])
    serving.export(folder)
    ties, skips = rows(folder, "ties"), rows(folder, "skips")
    assert {row["choice"] for row in ties} == {"tie"} and len(ties) == 16
    assert Counter(row["both_bad"] for row in ties) == {True: 8, False: 8}
    assert {row["choice"] for row in skips} == {None} and len(skips) == 8
    found = row_reader.kept(datasets.read([str(folder / "ties.jsonl")], "preference"))
    assert {pair.choice for pair in found} == {"tie"}
    judged = judgments.read(folder / "judgments.jsonl")
    assert [each.extra["both_bad"] for each in judged if each.choice == "tie"].count(True) == 8
    assert {each.confidence for each in judged if each.choice == "tie"} == {0.5}


def test_control_questions_are_marked_and_in_no_other_file(labelled):
    pick = lambda item, done: {"choice": "left" if item["left"] in ("good",) or item["left"][0] == "a" else "right"}  # noqa: E731
    folder = labelled([*questions(), *gold()], pick)
    serving.export(folder)
    found = rows(folder, "gold")
    assert found and all(row["right"] is (row["gold"] == row["choice"]) for row in found)
    assert {row["right"] for row in found if row["id"] in ("g0", "g2", "g4", "g6", "g8")} <= {True}
    assert {row["right"] for row in found if row["id"] in ("g1", "g3", "g5", "g7", "g9")} <= {False}
    others = [row for name in ("preferences", "ties", "skips", "judgments") for row in rows(folder, name)]
    assert not any(row["id"].startswith("g") for row in others)


def test_identical_answers_count_as_far_as_people_got(labelled):
    """Whoever stops half-way has got past half of them, so the rate is as fair as if nobody had stopped."""
    folder = labelled([*questions(200), *same(200)], lambda *_: {"choice": "left"}, limit=50, annotators=["ann"])
    serving.export(folder)
    found = judgments.read(folder / "judgments.jsonl")
    identical = [each for each in found if each.extra["identical"]]
    assert len(found) - len(identical) == 50 and 25 < len(identical) < 90
    assert {(each.choice, each.response_a, each.response_b) for each in identical} == {("tie", "same", "same")}


def test_nobody_voted_nothing_is_judged(labelled):
    folder = labelled([*questions(), *same()], every_way, limit=0)
    serving.export(folder)
    assert all(rows(folder, name) == [] for name in label_exports.NAMES)


def test_flags_are_exported_with_and_without_a_vote(labelled, tmp_path):
    folder = labelled(questions(4), lambda *_: {"choice": "left"}, limit=2, annotators=["ann"])
    opened = Store(folder)
    sat = LabelingService(opened)
    voted = next(iter(sat.histories["ann"].votes))
    item = next(name for name, key in sat._keys.items() if key == voted)
    sat.flag("ann", {"key": "f1", "item": item, "note": "rude"})
    sat.flag("ann", {"key": "f2", "item": sat.queue("ann")["item"]["item"], "note": "broken"})
    opened.close()
    serving.export(folder)
    assert sorted(row["note"] for row in rows(folder, "flags")) == ["broken", "rude"]
    assert [row["flagged"] for row in rows(folder, "preferences")].count(True) == 1
    assert [each.extra["flagged"] for each in judgments.read(folder / "judgments.jsonl")].count(True) == 1


def test_a_vote_that_was_undone_is_nowhere(labelled):
    folder = labelled(questions(4), lambda *_: {"choice": "left"}, annotators=["ann"])
    opened = Store(folder)
    sat = LabelingService(opened)
    sat.undo("ann", {"key": "u"})
    opened.close()
    serving.export(folder)
    assert len(rows(folder, "preferences")) == len(rows(folder, "judgments")) == 3


def test_hostile_text_comes_out_exactly(labelled):
    asked = [
        Question(f"h{i}", Prompt(input_text=text or "-", group=text), text, text + "!", extra={"tag": text})
        for i, text in enumerate(HOSTILE)
    ]
    note = {f"h{i}": text for i, text in enumerate(HOSTILE)}
    folder = labelled(
        asked,
        lambda item, done: {"choice": "left", "note": min(item["left"], item["right"], key=len)},
        annotators=["ann"],
    )
    serving.export(folder)
    judged = judgments.read(folder / "judgments.jsonl")
    assert {each.id: each.extra["note"] for each in judged} == note
    assert {each.id: each.response_a for each in judged} == note
    found = {row["id"]: row for row in rows(folder, "preferences")}
    assert {id: row["tag"] for id, row in found.items()} == note
    assert {id: min(row["candidate_0"], row["candidate_1"], key=len) for id, row in found.items()} == note


def test_what_a_row_said_besides_is_kept(tmp_path, labelled):
    asked = questions(4, extra={"topic": "law", "note": "of the data"})
    folder = labelled(asked, lambda *_: {"choice": "left", "note": "mine"}, annotators=["ann"])
    serving.export(folder)
    found = rows(folder, "preferences")[0]
    assert (found["topic"], found["note"], found["source.note"]) == ("law", "mine", "of the data")


def test_an_export_can_be_asked_again(labelled, tmp_path):
    folder = labelled(questions(12), every_way, annotators=["ann"])
    serving.export(folder)
    from preferent.labeling.sources import question_sources

    again = question_sources.from_file(folder / "preferences.jsonl").questions
    before = {row["id"]: row for row in rows(folder, "preferences")}
    assert {each.id for each in again} == set(before)
    for each in again:
        row = before[each.id]
        assert (each.a, each.model_a) == (row["candidate_0"], row["model_0"])
        assert each.imported == ("A" if row["choice"] == 0 else "B") and each.extra == {}


def test_files_without_a_database_are_refused(tmp_path):
    with pytest.raises(UsageError, match=database.NAMES["pairs"]):
        serving.export(tmp_path)
