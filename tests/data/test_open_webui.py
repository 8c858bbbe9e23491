"""Exports of Open WebUI: what each record becomes, and that none is lost or invented."""

import json
from pathlib import Path

import pytest
from feedback_exports import PERSONAL, answer, chat, question, record, save

from preferent.commands.data_files import convert
from preferent.commands.data_files.convert import RecordCounts
from preferent.data.formats.feedback.converted_records import FeedbackOptions
from preferent.data.formats.feedback.feedback_reader import read_feedback
from preferent.data.types import Message
from preferent.errors import DataError, UsageError

Q, A, B = question("q", "What is tea?"), answer("a", "A drink.", "q"), answer("b", "A rock.", "q", "qwen")


def read(folder, *rows, **options):
    reading = read_feedback([save(folder, list(rows))], FeedbackOptions(**options))
    counts = RecordCounts.of(reading.converted)
    assert counts.records == counts.in_pairs + counts.thumbs + counts.dropped
    return reading


def only_reason(reading) -> str:
    assert not reading.pairs and not reading.thumbs
    (name,) = RecordCounts.of(reading.converted).reasons
    return name


@pytest.mark.parametrize(("rating", "is_good"), [(1, True), (-1, False), ("1", True), ("-1", False), (1.0, True)])
def test_one_thumb_is_a_thumb(tmp_path, rating, is_good):
    reading = read(tmp_path, record(chat(Q, A, system="Be brief."), "a", rating))
    (thumb,) = reading.thumbs
    assert (thumb.prompt.messages, thumb.prompt.context) == ((Message("user", "What is tea?"),), "Be brief.")
    assert (thumb.output_text, thumb.is_good, thumb.annotator) == ("A drink.", is_good, None)
    assert reading.pairs == [] and thumb.extra == {"model": "llama"}


def test_siblings_with_opposite_thumbs_are_one_pair_of_two_records(tmp_path):
    stored = chat(Q, A, B)
    reading = read(tmp_path, record(stored, "b", -1, siblings=["llama"]), record(stored, "a", 1, siblings=["qwen"]))
    (pair,) = reading.pairs
    assert (pair.chosen, pair.rejected) == ("A drink.", "A rock.")
    assert pair.extra == {"model_of_chosen": "llama", "model_of_rejected": "qwen"}
    counts = RecordCounts.of(reading.converted)
    assert (counts.in_pairs, counts.thumbs, counts.dropped) == (2, 0, 0)


def test_the_thumb_that_the_chat_itself_holds_makes_the_pair_too(tmp_path):
    down = B | {"annotation": {"rating": -1}}
    (pair,) = read(tmp_path, record(chat(Q, A, down), "a", 1)).pairs
    assert (pair.chosen, pair.rejected) == ("A drink.", "A rock.")


def test_a_thumb_beside_an_unrated_model_that_was_named_is_no_vote_against_it(tmp_path):
    reading = read(tmp_path, record(chat(Q, A, B), "a", 1, siblings=["qwen"]))
    assert reading.pairs == [] and len(reading.thumbs) == 1


def test_the_later_rating_of_a_message_counts(tmp_path):
    stored = chat(Q, A)
    reading = read(tmp_path, record(stored, "a", -1, at=30), record(stored, "a", 1, at=20))
    assert [thumb.is_good for thumb in reading.thumbs] == [False]
    assert RecordCounts.of(reading.converted).reasons == {"rated again": 1}


@pytest.mark.parametrize(("rating", "chosen"), [(1, "A drink."), (-1, "A rock.")])
def test_an_arena_vote_is_a_pair(tmp_path, rating, chosen):
    (pair,) = read(tmp_path, record(chat(Q, A, B), "a", rating, siblings=["qwen"], arena=True)).pairs
    assert (pair.chosen, pair.weight) == (chosen, None)


def test_an_arena_vote_against_several_models_is_several_pairs_with_the_weight_of_one(tmp_path):
    stored = chat(Q, A, B, answer("c", "A leaf.", "q", "phi"))
    reading = read(tmp_path, record(stored, "a", 1, siblings=["qwen", "phi"], arena=True))
    assert {(pair.chosen, pair.rejected, pair.weight) for pair in reading.pairs} == {
        ("A drink.", "A rock.", 0.5),
        ("A drink.", "A leaf.", 0.5),
    }
    counts = RecordCounts.of(reading.converted)
    assert (counts.records, counts.in_pairs, counts.pairs) == (1, 1, 2)


def test_two_arena_votes_for_the_same_pair_are_one_pair(tmp_path):
    stored = chat(Q, A, B)
    votes = [
        record(stored, id, rating, siblings=[other], arena=True)
        for id, rating, other in (("a", 1, "qwen"), ("b", -1, "llama"))
    ]
    reading = read(tmp_path, *votes)
    assert (len(reading.pairs), RecordCounts.of(reading.converted).in_pairs) == (1, 2)


def test_an_arena_vote_without_the_other_answer_is_a_thumb_and_says_so(tmp_path):
    reading = read(tmp_path, record(chat(Q, A), "a", 1, siblings=["qwen"], arena=True))
    assert len(reading.thumbs) == 1
    assert "without the other answer" in next(iter(RecordCounts.of(reading.converted).notes))
    twice = chat(Q, A, B, answer("b2", "A river.", "q", "qwen"))
    reading = read(tmp_path, record(twice, "a", 1, siblings=["qwen"], arena=True))
    assert len(reading.thumbs) == 1
    assert "several answers" in next(iter(RecordCounts.of(reading.converted).notes))


def test_arena_votes_that_rate_both_answers_up_are_thumbs(tmp_path):
    stored = chat(Q, A, B)
    votes = [record(stored, id, 1, siblings=[other], arena=True) for id, other in (("a", "qwen"), ("b", "llama"))]
    reading = read(tmp_path, *votes)
    assert (len(reading.pairs), len(reading.thumbs)) == (0, 2)
    assert "both rated up" in next(iter(RecordCounts.of(reading.converted).notes))


def test_a_regenerated_answer_that_nobody_rated_is_no_vote(tmp_path):
    again = answer("a2", "A hot drink.", "q")
    stored = chat(Q, A, again, current="a2")
    assert only_reason(read_chats(tmp_path, stored)) == "no rating"
    reading = read(tmp_path, record(stored, "a2", 1, siblings=[]))
    assert reading.pairs == [] and [thumb.output_text for thumb in reading.thumbs] == ["A hot drink."]


def read_chats(folder, *chats, **options):
    return read(folder, *chats, **options)


def test_a_branch_that_is_not_shown_keeps_its_own_prompt(tmp_path):
    edited = question("q2", "What is green tea?")
    stored = chat(
        Q,
        A,
        question("r", "And coffee?", "a"),
        answer("x", "Beans.", "r"),
        edited,
        answer("y", "A leaf.", "q2"),
        current="y",
    )
    reading = read(tmp_path, record(stored, "x", 1), record(stored, "y", -1))
    assert [[turn.content for turn in thumb.prompt.messages] for thumb in reading.thumbs] == [
        ["What is tea?", "A drink.", "And coffee?"],
        ["What is green tea?"],
    ]
    assert len({thumb.prompt.group for thumb in reading.thumbs}) == 1, "rows of one chat stay in one part"


WRONG = {
    "no snapshot": record(chat(Q, A), "a", 1, snapshot=None),
    "no rating": record(chat(Q, A), "a", None),
    "unknown rating": record(chat(Q, A), "a", 5),
    "no answer": record(chat(Q, A), "gone", 1),
    "no conversation": record(chat(Q, A), "a", 1, snapshot={"chat": {"id": "x", "chat": {}}}),
    "failed answer": record(chat(Q, A | {"error": {"content": "out of memory"}}), "a", 1),
    "unfinished answer": record(chat(Q, A | {"done": False}), "a", 1),
    "empty answer": record(chat(Q, A | {"content": " "}), "a", 1),
    "edited answer": record(chat(Q, A | {"originalContent": "A rock."}), "a", 1),
    "picture": record(chat(Q | {"files": [{"type": "image", "url": "data:"}]}, A), "a", 1),
    "empty prompt": record(chat(Q | {"content": ""}, A), "a", 1),
    "bad messages": record(chat(Q | {"role": "tool"}, A), "a", 1),
    "broken conversation": record(chat(Q | {"parentId": "a"}, A), "a", 1),
}


@pytest.mark.parametrize("reason", WRONG)
def test_what_cannot_be_learned_from_is_dropped_with_the_reason(tmp_path, reason):
    reading = read(tmp_path, WRONG[reason])
    assert only_reason(reading).startswith(reason)
    assert not reading.converted[0].is_fault


@pytest.mark.parametrize("shape", ["map", "list"])
@pytest.mark.parametrize("level", ["chat", "top"])
def test_every_version_of_a_chat_is_read(tmp_path, level, shape):
    stored = chat(Q, A | {"annotation": {"rating": 1}}, B | {"annotation": {"rating": -1}}, level=level, shape=shape)
    (pair,) = read(tmp_path, record(stored, "a", 1)).pairs
    reading = read_chats(tmp_path, stored)
    assert reading.layouts == ("open-webui-chat",)
    assert [(each.chosen, each.rejected) for each in reading.pairs] == [(pair.chosen, pair.rejected)]
    assert (RecordCounts.of(reading.converted).records, RecordCounts.of(reading.converted).in_pairs) == (2, 2)


def test_reasoning_is_taken_out_if_asked(tmp_path):
    thought = (
        '<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n> hm\n</details>\nA drink.'
    )
    stored = chat(Q, A | {"content": thought})
    assert read(tmp_path, record(stored, "a", 1)).thumbs[0].output_text == thought
    assert read(tmp_path, record(stored, "a", 1), reasoning=False).thumbs[0].output_text == "A drink."
    cut = chat(Q, A | {"content": "<think>hm"})
    assert only_reason(read(tmp_path, record(cut, "a", 1), reasoning=False)) == "unfinished reasoning"


def test_retrieved_texts_stand_before_the_question_unless_they_are_dropped(tmp_path):
    file = {"type": "file", "file": {"data": {"content": "Tea grows."}}}
    found = A | {"sources": [{"document": ["Tea is old."], "source": {}}]}
    stored = chat(Q | {"files": [file]}, found)
    (thumb,) = read(tmp_path, record(stored, "a", 1)).thumbs
    assert thumb.prompt.messages[-1].content == "Tea grows.\n\nTea is old.\n\nWhat is tea?"
    (thumb,) = read(tmp_path, record(stored, "a", 1), context=False).thumbs
    assert thumb.prompt.messages[-1].content == "What is tea?"
    searched = chat(Q, A | {"statusHistory": [{"action": "web_search", "done": True}]})
    assert "not in the export" in next(iter(RecordCounts.of(read(tmp_path, record(searched, "a", 1)).converted).notes))
    assert RecordCounts.of(read(tmp_path, record(searched, "a", 1), context=False).converted).notes == {}
    rated = [record(chat(Q, found, B), id, rating) for id, rating in (("a", 1), ("b", -1))]
    apart = read(tmp_path, *rated)
    assert (len(apart.pairs), len(apart.thumbs)) == (0, 2)
    assert "no prompt in common" in next(iter(RecordCounts.of(apart.converted).notes))
    assert len(read(tmp_path, *rated, context=False).pairs) == 1


def test_personal_fields_are_written_only_if_asked_for(tmp_path):
    stored, other = chat(Q, A, B), chat(question("p", "Why?"), answer("z", "So.", "p"), id="chat-2")
    path = save(tmp_path, [record(stored, "a", 1), record(stored, "b", -1), record(other, "z", 1)])
    for personal in (False, True):
        out = Path(tmp_path) / f"out-{personal}"
        convert.convert_feedback([path], out, FeedbackOptions(personal=personal))
        names = {"preferences.jsonl", "thumbs.jsonl", "prompts.jsonl", "summary.json"}
        assert {file.name for file in out.iterdir()} == names
        for name in names:
            text = (out / name).read_text()
            assert (PERSONAL in text) == (personal and name in ("preferences.jsonl", "thumbs.jsonl")), name
            assert "chat-1" not in text
    thumb = json.loads((Path(tmp_path) / "out-True" / "thumbs.jsonl").read_text())
    assert (thumb["annotator"], thumb["comment"]) == (f"{PERSONAL}-user", f"{PERSONAL} comment")
    assert (thumb["output_text"], thumb["label"]) == ("So.", True)


def test_a_later_export_replaces_what_an_earlier_one_says(tmp_path):
    stored = chat(Q, A)
    first = save(tmp_path, [record(stored, "a", 1, at=1)], "january.json")
    second = save(tmp_path, [record(stored, "a", -1, at=2)], "march.json")
    reading = read_feedback([second, first])
    assert [thumb.is_good for thumb in reading.thumbs] == [False]
    assert RecordCounts.of(reading.converted).reasons == {"rated again": 1}


def test_an_export_with_nothing_to_learn_is_refused_with_what_became_of_it(tmp_path):
    path = save(tmp_path, [record(chat(Q, A), "a", 1, snapshot=None)])
    with pytest.raises(DataError, match=r"1 records = 0 in pairs .* 1 dropped\n  dropped 1: no snapshot: "):
        convert.convert_feedback([path], Path(tmp_path) / "out")
    assert not (Path(tmp_path) / "out").exists()
    with pytest.raises(UsageError, match="name a folder"):
        convert.convert_feedback([path], Path(tmp_path) / "out.jsonl")
