"""Every layout of feedback: which answer is better as the file says it, scales that are no votes, nothing guessed."""

import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from feedback_exports import PERSONAL, generated, save

from preferent.commands.data_files import convert
from preferent.commands.data_files.convert import RecordCounts
from preferent.data import prepare
from preferent.data.formats.feedback.converted_records import FeedbackOptions
from preferent.data.formats.feedback.feedback_layouts import LAYOUTS
from preferent.data.formats.feedback.feedback_reader import layout_of_file, read_feedback
from preferent.errors import DataError, UsageError

EXAMPLES = int(os.environ.get("PREFERENT_EXAMPLES", "60"))
"""Generated exports; `make acceptance` says 2,000."""
USER = {"role": "user", "content": "What is tea?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("A drink.", "A rock."))
TWO = {"response1": "A drink.", "response2": "A rock."}
TASK = {"prompt": "What is tea?", "answer1": "A drink.", "answer2": "A rock."}


def studio(*results, cancelled=False, fields=TASK):
    annotation = {"result": [*results], "completed_by": {"email": f"{PERSONAL}@x"}, "was_cancelled": cancelled}
    return {"id": 1, "data": fields, "annotations": [annotation]}


def pairwise(side):
    return {"type": "pairwise", "from_name": "which", "value": {"selected": side}}


def argilla(value, fields=None, question="preference"):
    fields = fields or {"prompt": "What is tea?", **TWO}
    return {"id": "r", "fields": fields, "responses": {question: [{"value": value, "user_id": f"{PERSONAL}-u"}]}}


def parts(text, role="user"):
    return {"role": role, "parts": [{"text": text}]}


GEMINI = {
    "contents": [parts("What is tea?")],
    "completions": [
        {"score": 0, "completion": parts("A rock.", "model")},
        {"score": 1, "completion": parts("A drink.", "model")},
    ],
}
BATTLE = {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD], "model_a": "x", "model_b": "y"}
PAIRS = {
    "arena": BATTLE | {"winner": "model_b", "judge": f"{PERSONAL}_7", "tstamp": 1.5},
    "label-studio": studio(pairwise("left")),
    "label-studio-min": TASK | {"annotation_id": 3, "annotator": f"{PERSONAL}@x", "which": [{"selected": "left"}]},
    "argilla": argilla("response1"),
    "pku": {"prompt": "What is tea?", "response_0": "A rock.", "response_1": "A drink.", "better_response_id": 1}
    | {"is_response_0_safe": True, "is_response_1_safe": False},
    "helpsteer3": {"context": [USER], **TWO, "overall_preference": -2},
    "shp": {"history": "What is tea?", "human_ref_A": "A drink.", "human_ref_B": "A rock.", "labels": 1},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "What is tea?"}],
        "chosen": {"from": "gpt", "value": "A drink."},
        "rejected": {"from": "gpt", "value": "A rock."},
    },
    "gemini": GEMINI,
    "nectar": {
        "prompt": "What is tea?",
        "answers": [{"answer": "A rock.", "rank": 4}, {"answer": "A drink.", "rank": 1, "model": "x"}],
    },
    "ultrafeedback": {
        "instruction": "What is tea?",
        "completions": [
            {"response": "A rock.", "overall_score": 2.0, "annotations": {"honesty": {"Rating": "5"}}},
            {"response": "A drink.", "overall_score": 4.5, "annotations": {"honesty": {"Rating": "1"}}},
        ],
    },
}


def read(folder, *rows, **options):
    path = Path(folder) / "export.json"
    path.write_text(json.dumps(list(rows)))
    reading = read_feedback([str(path)], FeedbackOptions(**options))
    counts = RecordCounts.of(reading.converted)
    assert counts.records == counts.in_pairs + counts.thumbs + counts.dropped
    return reading


@pytest.mark.parametrize("layout", PAIRS)
def test_a_record_names_the_better_answer(tmp_path, layout):
    reading = read(tmp_path, PAIRS[layout])
    assert reading.layouts == (layout,)
    (pair,) = reading.pairs
    asked = pair.prompt.messages[-1].content if pair.prompt.messages else pair.prompt.input_text
    assert (asked, pair.chosen, pair.rejected) == ("What is tea?", "A drink.", "A rock.")
    assert pair.annotator is None and pair.source.endswith("export.json:1")
    if layout == "ultrafeedback":
        assert pair.strength == 2.5
        assert read(tmp_path, PAIRS[layout], rating="honesty").pairs[0].chosen == "A rock."
    if layout == "helpsteer3":
        assert pair.strength == 2.0
    who = read(tmp_path, PAIRS[layout], personal=True).pairs[0].annotator
    assert (who is not None) == (layout in ("arena", "label-studio", "label-studio-min", "argilla"))


ONE = {"prompt": "What is tea?", "response": "A drink."}
THUMBS = {
    "completion": {"prompt": "What is tea?", "completion": "A drink.", "label": True},
    "conversation": {"prompt": [USER], "completion": [GOOD], "label": True},
    "messages": {"messages": [USER, GOOD], "label": True},
    "ours": {"messages": [USER], "output_text": "A drink.", "label": True},
    "spreadsheet": {"question": "What is tea?", "answer": "A drink.", "thumb": "👍", "user_id": PERSONAL},
    "langfuse": {
        "input": "What is tea?",
        "output": "A drink.",
        "scores": [{"name": "user-feedback", "value": 1, "source": "API"}, {"name": "toxicity", "value": 0.2}],
    },
    "langsmith": {
        "inputs": {"messages": [USER]},
        "outputs": {"choices": [{"message": GOOD}]},
        "feedback": [{"key": "user_score", "score": 1.0}],
    },
    "score": {"input": {"question": "What is tea?"}, "output": {"answer": "A drink."}, "score": 1},
    "label studio": studio({"type": "choices", "from_name": "ok", "value": {"choices": ["Good"]}}, fields=ONE),
    "argilla": argilla("yes", ONE, "is_good"),
}  # fmt: skip


@pytest.mark.parametrize("name", THUMBS)
def test_a_record_of_one_answer_is_a_thumb(tmp_path, name):
    reading = read(tmp_path, THUMBS[name])
    (thumb,) = reading.thumbs
    asked = thumb.prompt.messages[-1].content if thumb.prompt.messages else thumb.prompt.input_text
    assert (asked, thumb.output_text, thumb.is_good, thumb.annotator) == ("What is tea?", "A drink.", True, None)


def test_what_is_written_is_read_again(tmp_path):
    out = Path(tmp_path) / "out"
    rows = [THUMBS["ours"], THUMBS["ours"] | {"output_text": "A rock.", "label": False}]
    convert.convert_feedback([save(tmp_path, rows)], out)
    again = read_feedback([str(out / "thumbs.jsonl")])
    assert [(thumb.output_text, thumb.is_good) for thumb in again.thumbs] == [("A drink.", True), ("A rock.", False)]
    assert layout_of_file(str(out / "preferences.jsonl")) == ""


TIES = [
    PAIRS["arena"] | {"winner": "tie (bothbad)"},
    PAIRS["arena"] | {"winner": "tie"},
    PAIRS["helpsteer3"] | {"overall_preference": 0},
    argilla("tie"),
    {"prompt": "Q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]},
]


@pytest.mark.parametrize("row", TIES)
def test_ties_stay_ties(tmp_path, row):
    (pair,) = read(tmp_path, row).pairs
    assert (pair.choice, pair.strength) == ("tie", None)


LONGER = BATTLE | {"winner": "model_a", "conversation_a": [USER, GOOD, USER, BAD]}
LONGER |= {"conversation_b": [USER, BAD, USER, GOOD]}
NOTHING = [
    (PAIRS["arena"] | {"winner": None}, "no vote", False),
    (PAIRS["arena"] | {"winner": "x"}, "unclear label", True),
    (LONGER, "two conversations", False),
    (studio(), "no vote", False),
    (studio(pairwise("left"), cancelled=True), "no vote", False),
    (studio({"type": "rating", "from_name": "stars", "value": {"rating": 4}}), "no vote", False),
    (argilla(4, {"prompt": "Q", "response": "A"}, "rating"), "no vote", False),
    (argilla("2", question="rating"), "no vote", False),
    (PAIRS["pku"] | {"better_response_id": 2}, "unclear label", True),
    (PAIRS["helpsteer3"] | {"overall_preference": 4}, "unclear label", True),
    (GEMINI | {"completions": [*GEMINI["completions"], GEMINI["completions"][0]]}, "bad answer", True),
    (THUMBS["completion"] | {"completion": " "}, "empty answer", True),
    (THUMBS["langfuse"] | {"scores": [{"name": "user-feedback", "value": 0.7}]}, "a scale", False),
    (THUMBS["langfuse"] | {"scores": [{"name": "a", "value": 1}, {"name": "b", "value": 0}]}, "several scores", False),
    (THUMBS["langfuse"] | {"scores": [{"name": "user", "value": 1, "source": "EVAL"}]}, "no rating", False),
    ({"prompt": "Q", "response": "A", "rating": 4}, "one answer", False),
    ({"prompt": "Q", "question": "R", "response": "A", "rating": 4}, "unclear prompt", True),
    ({"prompt": "Q", "response": "A", "rating": 4, "score": 1}, "several ratings", True),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "is_fault"), NOTHING)
def test_what_a_record_does_not_say_is_not_guessed(tmp_path, row, reason, is_fault):
    reading = read(tmp_path, row)
    assert not reading.pairs and not reading.thumbs
    assert list(RecordCounts.of(reading.converted).reasons) == [reason], reading.converted[0].reason
    assert reading.converted[0].is_fault == is_fault


def ranked(*ranks):
    return {"prompt": "Q", "answers": [{"answer": f"answer {rank}", "rank": rank} for rank in ranks]}


def test_rankings_become_pairs_that_count_as_one_prompt(tmp_path):
    pairs = read(tmp_path, ranked(3, 1, 2, 4)).pairs
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {
        (f"answer {a}", f"answer {b}") for a in range(1, 5) for b in range(a + 1, 5)
    }
    assert [pair.weight for pair in pairs] == [pytest.approx(1 / 6)] * 6
    pairs = read(tmp_path, ranked(3, 1, 2, 4), neighbours=True).pairs
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {
        (f"answer {rank}", f"answer {rank + 1}") for rank in (1, 2, 3)
    }
    assert {pair.strength for pair in pairs} == {None}
    names = {"prompt": "Q", "a": "first", "b": "second", "c": "third"}
    (best, *rest) = read(tmp_path, argilla(["b", "c", "a"], names, "ranking")).pairs
    assert (best.chosen, best.rejected, len(rest)) == ("second", "third", 2)


def rating(prompt, answer, height, who="ann", **more):
    return {"prompt": prompt, "response": answer, "rating": height, "annotator": who} | more


def test_ratings_become_pairs_within_a_prompt_and_a_person(tmp_path):
    rows = [
        rating("Q", "a", 5),
        rating("R", "a", 1),
        rating("Q", "b", "2"),
        rating("Q", "c", 2),
        rating("Q", "d", 1, "bob"),
    ]
    reading = read(tmp_path, *rows)
    decided = {(p.chosen, p.rejected, p.strength, p.weight) for p in reading.pairs if p.choice != "tie"}
    assert decided == {("a", "b", 3.0, 0.5), ("a", "c", 3.0, 0.5)}
    ties = [pair for pair in reading.pairs if pair.choice == "tie"]
    assert [{pair.candidate_0, pair.candidate_1} for pair in ties] == [{"b", "c"}]
    assert RecordCounts.of(reading.converted).reasons == {"one answer": 2}
    assert (RecordCounts.of(reading.converted).in_pairs, RecordCounts.of(reading.converted).dropped) == (3, 2)
    again = read(tmp_path, rating("Q", "a", 1), rating("Q", "b", 2), rating("Q", "a", 3))
    assert [(pair.chosen, pair.strength) for pair in again.pairs] == [("a", 1.0)]
    assert RecordCounts.of(again.converted).reasons == {"rated again": 1}


def test_helpsteer_ratings_are_paired_by_helpfulness_or_as_asked(tmp_path):
    aspects = [{"helpfulness": 4, "verbosity": 1}, {"helpfulness": 1, "verbosity": 4}]
    rows = [{"prompt": "Q", "response": f"answer {place}"} | scores for place, scores in enumerate(aspects)]
    assert read(tmp_path, *rows).pairs[0].chosen == "answer 0"
    assert read(tmp_path, *rows, rating="verbosity").pairs[0].chosen == "answer 1"


def test_a_spreadsheet_of_ratings_is_read(tmp_path):
    path = Path(tmp_path) / "ratings.csv"
    path.write_text("prompt;response;rating\nQ;a;4,5\nQ;b;3\n")
    (pair,) = read_feedback([str(path)]).pairs
    assert (pair.chosen, pair.strength) == ("a", 1.5)


HOSTILE = (None, True, 3, 1.5, "", "x", [], [1], {}, {"a": 1}, [[]], [{}], "1" * 50)


def spoiled(rng, content, depth=0):
    """The same with parts of it replaced by anything, or taken away."""
    if depth and rng.random() < 0.04:
        return rng.choice(HOSTILE)
    if isinstance(content, dict):
        return {key: spoiled(rng, each, depth + 1) for key, each in content.items() if rng.random() > 0.01}
    return [spoiled(rng, each, depth + 1) for each in content] if isinstance(content, list) else content


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_spoiled_record_breaks_a_reader(layout):
    rng = random.Random(layout)
    rows = [spoiled(rng, rng.choice([*PAIRS.values(), *THUMBS.values(), *generated(rng)])) for _ in range(400)]
    rows += [spoiled(rng, PAIRS[layout]) for _ in range(400 if layout in PAIRS else 0)]
    placed = [(f"f:{number}", row) for number, row in enumerate(rows) if isinstance(row, dict)]
    converted = LAYOUTS[layout].convert(iter(placed), FeedbackOptions(reasoning=False))
    assert [record.place for record in converted if record.place] and len(converted) >= len(placed)


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_any_export_is_accounted_for_and_hides_who_it_is_from(seed):
    rng = random.Random(seed)
    rows = generated(rng)
    rows = spoiled(rng, rows) if seed % 3 == 0 else rows
    options = FeedbackOptions(context=rng.random() < 0.5, reasoning=rng.random() < 0.5)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        try:
            reading = convert.convert_feedback([save(folder, rows)], out, options)
        except (DataError, UsageError) as error:
            assert "nothing can be learned" in str(error) or "no layout" in str(error)
            assert isinstance(error, DataError) or seed % 3 == 0
            return
        counts = RecordCounts.of(reading.converted)
        assert counts.records == counts.in_pairs + counts.thumbs + counts.dropped >= len(rows)
        assert counts.dropped == sum(counts.reasons.values())
        assert len(reading.pairs) == counts.pairs and len(reading.thumbs) == counts.thumbs
        for file in out.iterdir():
            assert PERSONAL not in file.read_text(), file.name
        lines = {file.stem: file.read_text().count("\n") for file in out.glob("*.jsonl")}
        assert lines == {
            "preferences": counts.pairs,
            "thumbs": counts.thumbs,
            "prompts": len(prepare.distinct_prompts(reading.as_rows.records)),
        }
