"""What a row means is what its keys say: read so, or refused with the key named, never taken for something else."""

import json
import re
from pathlib import Path

import pytest

from preferent.commands.data_files import check, convert
from preferent.config import recipe
from preferent.data import datasets, prepare
from preferent.data.formats import named_columns, row_reader
from preferent.data.types import Message, Preference, Prompt
from preferent.errors import DataError, UsageError

TRL = {"chosen": "Tea is a drink.", "rejected": "Tea is a rock."}
GCPC = {"input_text": "What is tea?", "candidate_0": "A drink.", "candidate_1": "A rock.", "choice": 0}
SHOWN = {"prompt": "What is tea?", "completion": "A rock, you fool."}
CHAT = [{"role": "user", "content": "What is tea?"}, {"role": "assistant", "content": "A rock."}]
DIALOGUES = {name: f"\n\nHuman: What is tea?\n\nAssistant: {text}" for name, text in TRL.items()}
OPENAI = {"input": {"messages": CHAT[:1]}, "preferred_output": CHAT[1:]}
OPENAI["non_preferred_output"] = [{"role": "assistant", "content": "A drink."}]


def write(folder, *rows, name="rows.jsonl"):
    path = Path(folder) / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(folder, *rows, columns="", kind=None):
    path = write(folder, *rows)
    named = named_columns.parse(columns)
    kind = kind or row_reader.detect([path], named)[0]
    return datasets.read([path], kind, "auto", named)


UNCLEAR = [
    *(
        (TRL | {key: "What is tea?"}, "unclear prompt", key)
        for key in ("question", "instruction", "query", "input", "context", "Question", "userQuery", "post", "text")
    ),
    (TRL | {"problem": "Say what tea is."}, "unclear prompt", "problem"),
    (TRL | {"messages": CHAT[:1]}, "unclear prompt", "messages"),
    (TRL | {"history": [["Hello", "Good day"]]}, "unclear prompt", "history"),
    (TRL | {"prompt": None, "question": "What is tea?"}, "unclear prompt", "question"),
    (TRL | {"prompt": "", "question": "What is tea?"}, "unclear prompt", "question"),
    (TRL | {"prompt": "What is tea?", "system": "Lie."}, "unclear prompt", "system"),
    (TRL | {"prompt": "Translate", "input": "tea"}, "unclear prompt", "input"),
    (GCPC | {"context": "Lie."}, "unclear prompt", "context"),
    (DIALOGUES | {"system": "Lie."}, "unclear prompt", "system"),
    (OPENAI | {"instruction": "Lie."}, "unclear prompt", "instruction"),
    ({"prompt": "Tea is a", "chosen": "Tea is a drink.", "rejected": "Tea is a rock."}, "unclear prompt", "prompt"),
    ({"input_text": "What is tea?", "system": "Lie."}, "unclear prompt", "system"),
    ({"prompt": "What is tea?", "history": [["a", "b"]]}, "unclear prompt", "history"),
    (SHOWN | {"system": "Lie."}, "unclear prompt", "system"),
    ({"messages": CHAT, "system": "Lie."}, "unclear prompt", "system"),
    ({"text": "tea", "instruction": "Translate", "output": "thé"}, "unclear prompt", "instruction"),
    *((SHOWN | {"label": value}, "unclear label", "label") for value in (False, 0, -1, 3, "false", "Bad", "rejected")),
    *((SHOWN | {key: value}, "unclear label", key) for key in ("rating", "overall_score") for value in (1, "2")),
    (SHOWN | {"rating": [1, 5]}, "unclear label", "rating"),
    (SHOWN | {"is_chosen": False}, "unclear label", "is_chosen"),
    (SHOWN | {"toxic": True}, "unclear label", "toxic"),
    ({"messages": CHAT, "label": False}, "unclear label", "label"),
    ({"messages": [CHAT[0], CHAT[1] | {"weight": 0}]}, "unclear label", "weight"),
    ({"text": "Tea is a rock.", "label": False}, "unclear label", "label"),
    (TRL | {"prompt": "What is tea?", "label": False}, "unclear label", "label"),
    (TRL | {"prompt": "What is tea?", "choice": 1}, "unclear label", "choice"),
    (TRL | {"prompt": "What is tea?", "winner": "rejected"}, "unclear label", "winner"),
    (TRL | {"prompt": "What is tea?", "score_chosen": 1, "score_rejected": 2}, "unclear label", "score_chosen"),
    (TRL | {"prompt": "What is tea?", "chosen_rank": 2, "rejected_rank": 1}, "unclear label", "chosen_rank"),
    (TRL | {"prompt": "What is tea?", "margin": -1.5}, "unclear label", "margin"),
    (GCPC | {"label": False}, "unclear label", "label"),
    (GCPC | {"candidate_2": "A leaf."}, "several answers", "candidate_2"),
    ({"prompt": "What is tea?", "responses": ["a", "b"], "ranks": [2, 1]}, "several answers", "responses"),
    ({"prompt": "What is tea?", "completions": ["a", "b"], "scores": [2, 1]}, "several answers", "completions"),
    (
        {"prompt": "What is tea?", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
        "several answers",
        "answers",
    ),
    ({"prompt": "Q", "response_a": "a", "response_b": "b", "winner": "model_a"}, "several answers", "response_a"),
    ({"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 0}, "several answers", "response_0"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "category", "key"), UNCLEAR, ids=lambda value: str(value)[-60:])
def test_a_row_that_may_mean_something_else_is_refused_by_the_key(tmp_path, row, category, key):
    reading = read(tmp_path, row)
    (dropped,) = reading.dropped
    assert (reading.records, dropped.category, dropped.line) == ([], category, 1)
    assert key in dropped.reason
    assert len(dropped.reason) < 500
    assert not check.check_files([write(tmp_path, row)]).ok


def test_a_row_that_may_be_a_thumb_is_told_where_thumbs_are_read(tmp_path):
    (dropped,) = read(tmp_path, SHOWN | {"label": False}).dropped
    assert "data check --kind feedback" in dropped.reason


CLEAR = [
    (TRL, {}),
    (TRL, {"source": "a page of the web", "id": "7", "explanation": "It is a drink, not a rock.", "topic": "tea"}),
    (TRL, {"question": "Tea is a"}),
    (
        TRL | {"prompt": "What is tea?"},
        {"question": "What is tea?", "system": "", "history": [], "note": "one two three"},
    ),
    (TRL | {"prompt": "What is tea?"}, {"score_chosen": 3, "score_rejected": 2, "label": True, "margin": 1}),
    (TRL | {"prompt": "What is tea?"}, {"chosen_rank": 1, "rejected_rank": 2, "score_chosen": 1}),
    (GCPC, {"flagged": True, "both_bad": True, "accepted": False, "label": 0}),
    (GCPC, {"votes": [3, 2], "response_a": "a", "response_b": "b", "label": "science"}),
    (DIALOGUES, {"question": "What is tea?", "note": "one two three"}),
    ({"prompt": "What is tea?"}, {"answers": ["a drink", "a leaf"], "response": "A drink."}),
    ({"input_text": "What is tea?"}, {"turns": ["What is tea?", "And now?"], "category": "drinks", "label": False}),
    (SHOWN, {"label": True, "topic_label": "science", "source": "x"}),
    (SHOWN, {"label": 1, "accepted": "yes", "toxic": False}),
    ({"messages": CHAT}, {"label": "good"}),
    ({"text": "Tea is a drink, says the prompt."}, {"label": 3, "score": 0.9, "question": "Tea is a drink"}),
]


@pytest.mark.parametrize(("row", "more"), CLEAR)
def test_a_key_that_cannot_change_the_meaning_is_no_trouble(tmp_path, row, more):
    (plain,), (full,) = (read(tmp_path, each).records for each in (row, row | more))
    question = plain if isinstance(plain, Prompt) else plain.prompt
    assert (full if isinstance(full, Prompt) else full.prompt).input_text == question.input_text
    if isinstance(plain, Preference):
        assert (full.chosen, full.rejected) == (plain.chosen, plain.rejected)


NAMED = [
    ({"question": "Q"} | TRL, "prompt=question", Prompt("Q")),
    ({"instruction": "Say", "input": "it"} | TRL, "prompt=instruction+input", Prompt("Say\nit")),
    ({"instruction": "Say", "input": ""} | TRL, "prompt=instruction+input", Prompt("Say")),
    (
        {"system": "S", "question": "Q"} | TRL,
        "prompt=question,context=system",
        Prompt(messages=(Message("user", "Q"),), context="S"),
    ),
    ({"system": "", "question": "Q"} | TRL, "prompt=question,context=system", Prompt("Q")),
    (
        {"prompt": CHAT[:1], "system": "S", "chosen": CHAT[1:], "rejected": OPENAI["non_preferred_output"]},
        "context=system",
        Prompt(messages=(Message("user", "What is tea?"),), context="S"),
    ),
    (GCPC | {"system": "S"}, "context=system", Prompt(messages=(Message("user", "What is tea?"),), context="S")),
    (TRL | {"prompt": "old", "question": "Q"}, "prompt=question", Prompt("Q")),
    (TRL | {"prompt": "Q", "system": "S"}, "extra=system", Prompt("Q")),
    (TRL | {"prompt": "Q", "label": 0, "winner": "x"}, "extra=label,extra=winner", Prompt("Q")),
    ({"q": "Q", "a": TRL["chosen"], "b": TRL["rejected"]}, "prompt=q,chosen=a,rejected=b", Prompt("Q")),
    (
        {"q": "Q", "a": TRL["chosen"], "b": TRL["rejected"], "best": 0},
        "input_text=q,candidate_0=a,candidate_1=b,choice=best",
        Prompt("Q"),
    ),
    ({"prompt": "Q", "chosen": "A leaf.", "rejected": "A rock."}, "chosen=rejected,rejected=chosen", Prompt("Q")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns", "prompt"), NAMED)
def test_columns_say_what_the_keys_mean(tmp_path, row, columns, prompt):
    (pair,) = read(tmp_path, row, columns=columns).records
    assert (pair.prompt.input_text, pair.prompt.messages, pair.prompt.context) == (
        prompt.input_text,
        prompt.messages,
        prompt.context,
    )
    answers = {TRL["chosen"], GCPC["candidate_0"], "A rock."}
    assert pair.chosen in answers
    out = Path(tmp_path) / "converted.jsonl"
    convert.convert_files([write(tmp_path, row)], out, columns=named_columns.parse(columns))
    (again,) = datasets.read([str(out)], "preference").records
    assert (again.prompt, again.chosen, again.rejected) == (pair.prompt, pair.chosen, pair.rejected)


def test_alpaca_rows_are_demonstrations_if_the_columns_say_so(tmp_path):
    row = {"instruction": "Translate", "input": "tea", "output": "thé"}
    with pytest.raises(DataError, match=r"the keys input, instruction, output\n.*--columns prompt=KEY"):
        read(tmp_path, row)
    (shown,) = read(tmp_path, row, columns="prompt=instruction+input,completion=output").records
    assert (shown.prompt.input_text, shown.output_text) == ("Translate\ntea", "thé")


def test_a_text_joins_no_number(tmp_path):
    reading = read(tmp_path, TRL | {"a": "x", "b": 3}, columns="prompt=a+b", kind="preference")
    assert reading.dropped[0].category == "wrong type"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("question", "write it as MEANING=KEY"),
        ("prompt=", "write it as MEANING=KEY"),
        ("prompt=a+", "write it as MEANING=KEY"),
        ("promt=a", "'promt' is unknown; the meanings are prompt, chosen, rejected"),
        ("prompt=a,prompt=b", "prompt is named twice"),
    ],
)
def test_columns_that_are_none_are_refused(text, expected):
    with pytest.raises(UsageError, match=re.escape(expected)):
        named_columns.parse(text)


def test_a_column_that_no_row_has_is_refused_with_those_there_are(tmp_path):
    first, second = write(tmp_path, TRL, name="1.jsonl"), write(tmp_path, {"q": "Q"} | TRL, name="2.jsonl")
    row_reader.require_columns([first, second], {"prompt": ["q"]})
    for refuses in (
        lambda: check.check_files([first], columns={"prompt": ["q"]}),
        lambda: convert.convert_files([first], Path(tmp_path) / "out", columns={"prompt": ["q"]}),
        lambda: prepared(tmp_path, [TRL], data={"columns": {"prompt": "q"}}),
    ):
        with pytest.raises(UsageError, match="has the key q; the keys are chosen, rejected"):
            refuses()


def prepared(folder, rows, name="data", **values):
    path = write(folder, *rows, name=f"{name}.jsonl")
    parsed, _ = recipe.parse({"large_model_reference": "m", "preference_dataset": path} | values)
    prepare.main(parsed, {}, Path(folder) / name, offline=True)
    return Path(folder) / name


def rows_of(count, **more):
    return [
        {"better": "A drink.", "worse": "A rock.", **more, "question": f"Q{i}", "system": "S"} for i in range(count)
    ]


def test_a_recipe_says_what_the_keys_mean_and_its_parts_are_read_as_they_are(tmp_path):
    columns = {"prompt": ["system", "question"], "chosen": "better", "rejected": "worse"}
    out = prepared(tmp_path, rows_of(100, label=True, note="a b c"), data={"columns": columns})
    pairs = datasets.load_preferences(out / "preference/train.jsonl")
    assert {pair.chosen for pair in pairs} == {"A drink."}
    assert all(re.fullmatch(r"S\nQ\d+", pair.prompt.input_text) for pair in pairs)
    assert json.loads((out / "stage.json").read_text())["fields"]["data.columns.chosen"] == "better"
    ours = write(tmp_path, GCPC | {"system": "S", "label": False}, name="ours.jsonl")
    assert len(datasets.load_preferences(Path(ours))) == 1, "what prepare wrote is not asked again what it means"


def test_columns_in_a_recipe_are_checked():
    for columns, expected in (
        ({"promt": "q"}, "data.columns: 'promt' is unknown; the meanings are prompt, chosen"),
        ({"prompt": []}, "data.columns: prompt: a key is empty"),
        ({"prompt": ""}, "data.columns: prompt: a key is empty"),
    ):
        with pytest.raises(UsageError, match=re.escape(expected)):
            recipe.parse({"large_model_reference": "m", "data": {"columns": columns}})


def test_a_recipe_without_columns_depends_on_nothing_new(tmp_path):
    out = prepared(tmp_path, [GCPC | {"input_text": f"Q{i}"} for i in range(100)])
    assert not [name for name in json.loads((out / "stage.json").read_text())["fields"] if "columns" in name]
