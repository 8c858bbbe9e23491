"""Answers whoever wrote them: every format read alike, joined by id or by prompt, and nothing dropped silently."""

import json
from pathlib import Path
from typing import Any

import pytest

from preferent import files
from preferent.data import predictions
from preferent.data.prediction_columns import Columns
from preferent.data.predictions import Answer
from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError, UsageError

PROMPTS = ["Why?", 'Who,\n"you"?', "Was soll das? \U0001f600"]
TEXTS = ["Because.", "Me.", ""]
OURS = [{"inputs": {"inputs_pretokenized": p}, "prediction": t} for p, t in zip(PROMPTS, TEXTS, strict=True)]
ALPACA = [{"instruction": p, "output": t, "generator": "m"} for p, t in zip(PROMPTS, TEXTS, strict=True)]


def texts_of(answers: list[Answer]) -> list[tuple[str, str]]:
    return [(answer.prompt, answer.text) for answer in answers]


def arena(prompt: str, content: Any, uid: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": content}]
    return {"uid": uid, "ans_id": "x", "model": "m", "messages": turns, "tstamp": 1.0, "metadata": {}}


def table(path: Path, header: list[str], separator: str = ",") -> Path:
    quoted = [header, *([p.replace('"', '""'), t] for p, t in zip(PROMPTS, TEXTS, strict=True))]
    path.write_text("\r\n".join(separator.join(f'"{cell}"' for cell in row) for row in quoted), encoding="utf-8-sig")
    return path


def test_every_format_says_the_same(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "ours.jsonl", OURS)
    (tmp_path / "alpaca.json").write_text(json.dumps(ALPACA, indent=2))
    files.write_jsonl(tmp_path / "alpaca.jsonl", ALPACA)
    rows = [arena(p, {"answer": t}, str(i)) for i, (p, t) in enumerate(zip(PROMPTS, TEXTS, strict=True))]
    files.write_jsonl(tmp_path / "arena.jsonl", rows)
    files.write_jsonl(
        tmp_path / "plain.jsonl", [arena(p, t, "") | {"uid": None} for p, t in zip(PROMPTS, TEXTS, strict=True)]
    )
    table(tmp_path / "table.csv", ["prompt", "response"])
    table(tmp_path / "table.tsv", ["question", "completion"], "\t")
    read = {path.name: texts_of(predictions.read(path)) for path in sorted(tmp_path.iterdir())}
    assert len(read) == 7
    assert all(rows == list(zip(PROMPTS, TEXTS, strict=True)) for rows in read.values()), read


def test_columns_are_named_by_flag(tmp_path: Path) -> None:
    rows = [{"n": 7, "q": "Why?", "prompt": "not this", "a1": "Because.", "gold": "So.", "topic": "law", "hard": True}]
    files.write_jsonl(tmp_path / "x.jsonl", rows)
    answers = predictions.read(tmp_path / "x.jsonl", Columns("n", "q", "a1", "gold", ("topic", "hard")))
    assert answers == [Answer("7", "Why?", "So.", "Because.", tags=("topic=law", "hard=True"))]
    with pytest.raises(UsageError, match="nobody, lang: no file of answers has such a column"):
        predictions.read_sides([tmp_path / "x.jsonl"], Columns(answer="a1", prompt="nobody", tags=("topic", "lang")))
    files.write_jsonl(tmp_path / "y.jsonl", [rows[0], rows[0] | {"n": 8, "a2": "x"}, {"n": 9, "q": "Who?"}])
    with pytest.raises(DataError, match=r"y\.jsonl:3: has no column a1; it has n, q"):
        predictions.read(tmp_path / "y.jsonl", Columns("n", "q", "a1", tags=("topic",)))


def test_a_name_holds_for_the_files_that_have_such_a_column(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "mine.jsonl", [{"prompt": "Why?", "said": "x", "answer": "no"}])
    files.write_jsonl(tmp_path / "theirs.jsonl", [{"prompt": "Why?", "output": "y"}])
    columns = Columns(answer="said")
    assert [predictions.read(tmp_path / f"{name}.jsonl", columns)[0].text for name in ("mine", "theirs")] == ["x", "y"]


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (["law", " hard "], ("law", "hard")),
        ("law, hard,", ("law", "hard")),
        ({"topic": "law", "none": None}, ("topic=law",)),
        (None, ()),
    ],
)
def test_tags_as_rows_give_them(value: Any, tags: tuple[str, ...]) -> None:
    assert predictions.tags_of(value) == tags


def test_tags_come_from_the_row_and_from_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Answer("1", "Why?", "", "x", tags=("row",)), Answer("2", "Who?", "", "y")]
    prompts = [Prompt("Why?", id="1", extra={"tags": ["data", "row"]}), Prompt("What?", id="3")]
    assert [answer.tags for answer in predictions.with_prompts(rows, prompts)] == [("row", "data"), ()]
    assert "1 of 2 answers match no row of the prompts file" in capsys.readouterr().err
    foreign = [Answer("x", "Why?", "", "x"), Answer("y", "Be kind.\n\n\nWhat?", "", "y")]
    assert [answer.prompt_record for answer in predictions.with_prompts(foreign, prompts)] == prompts
    assert capsys.readouterr().err == ""


def test_our_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    full = Answer("1", "Why?", "So.", "x", 3, True, 0.5, 0.25, [1.0, 2.0], tags=("law",))
    bare = Answer("2", "Who?", "", "y")
    files.write_jsonl(tmp_path / "x.jsonl", [predictions.row(full), predictions.row(bare)])
    assert predictions.read(tmp_path / "x.jsonl") == [full, bare]


@pytest.mark.parametrize(
    "more",
    [
        {"tokens": 1.5},
        {"tokens": True},
        {"tokens": -1},
        {"kl": 1e300},
        {"scores": [-1e300]},
        {"ended": 1},
        {"kl": "0.5"},
        {"kl_k1": [1]},
        {"scores": 1},
        {"scores": ["1"]},
    ],
)
def test_what_our_rows_say_besides_has_its_type_and_is_no_word_of_others(tmp_path: Path, more: dict[str, Any]) -> None:
    files.write_jsonl(tmp_path / "ours.jsonl", [OURS[0] | more])
    with pytest.raises(DataError, match=rf"ours\.jsonl:1: {next(iter(more))} is .*, not "):
        predictions.read(tmp_path / "ours.jsonl")
    files.write_jsonl(tmp_path / "theirs.jsonl", [{"id": "1", "prompt": "Why?", "answer": "x"} | more | {"kl": 1.0}])
    assert predictions.read(tmp_path / "theirs.jsonl") == [Answer("1", "Why?", "", "x")]


def test_rows_are_joined_by_id_in_the_order_of_a() -> None:
    a = [Answer(str(i), f"p{i}", "", f"a{i}") for i in range(3)]
    b = [Answer(str(i), f"Be kind.\n\n\np{i}", "", f"b{i}") for i in range(3)]
    joined = predictions.join({"a": a, "b": b[::-1]})
    assert [(x.text, y.text) for x, y in zip(joined["a"], joined["b"], strict=True)] == [
        ("a0", "b0"), ("a1", "b1"), ("a2", "b2"),
    ]  # fmt: skip


def test_ids_that_contradict_the_prompts_are_refused_or_left_for_the_prompts() -> None:
    a = [Answer(str(i), f"p{i}", "", f"a{i}") for i in range(3)]
    one_off = [a[0], Answer("1", "other", "", "b1"), Answer("2", "another", "", "b2")]
    with pytest.raises(DataError, match=r"1: a and b have different prompts .* 2 of the 3 ids[\s\S]*--prompt-column"):
        predictions.join({"a": a, "b": one_off})
    turned = [Answer(str((i + 1) % 3), f"p{i}", "", f"b{i}") for i in range(3)]
    joined = predictions.join({"a": a, "b": turned})
    assert [(x.text, y.text) for x, y in zip(joined["a"], joined["b"], strict=True)] == [
        ("a0", "b0"), ("a1", "b1"), ("a2", "b2"),
    ]  # fmt: skip
    kind = [Answer(answer.id, f"Be kind.\n\n\n{answer.prompt}", "", answer.text) for answer in a]
    terse = [Answer(answer.id, f"Be terse.\n\n\n{answer.prompt}", "", answer.text) for answer in a]
    assert len(predictions.join({"a": kind, "b": terse})["b"]) == 3


def test_chat_templates_may_differ_around_what_the_prompts_file_asks() -> None:
    a, b = [Answer("1", "<s>Why? </s>", "", "x")], [Answer("1", "[INST] Why? [/INST]", "", "y")]
    with pytest.raises(DataError, match="different prompts"):
        predictions.join({"a": a, "b": b})
    prompts = [Prompt(messages=(Message("user", "Why? "),), id="1")]
    assert predictions.join({"a": a, "b": b}, prompts=prompts)["b"] == b


def test_rows_of_other_ids_are_joined_by_prompt_each_turn_with_its_like() -> None:
    a = [Answer(id, prompt, "", f"a-{id}") for id, prompt in [("1", "p"), ("2", "q"), ("3", "p")]]
    b = [Answer(id, prompt, "", f"b-{id}") for id, prompt in [("x", "q"), ("y", "p"), ("z", "p")]]
    joined = predictions.join({"a": a, "b": b})
    assert [(x.id, x.text, y.id, y.text) for x, y in zip(joined["a"], joined["b"], strict=True)] == [
        ("1", "a-1", "1", "b-y"), ("2", "a-2", "2", "b-x"), ("3", "a-3", "3", "b-z"),
    ]  # fmt: skip


def test_rows_without_ids_of_one_prompt_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        files.write_jsonl(tmp_path / name, [{"prompt": "same", "answer": f"{name}{i}"} for i in range(3)])
    joined = predictions.join({name: predictions.read(tmp_path / name) for name in ("a", "b")})
    assert [(x.text, y.text) for x, y in zip(joined["a"], joined["b"], strict=True)] == [
        ("a0", "b0"), ("a1", "b1"), ("a2", "b2"),
    ]  # fmt: skip


def test_the_input_of_an_instruction_is_part_of_the_prompt(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate", "input": word, "output": f"{word}!"} for word in ("cat", "dog", "")]
    files.write_jsonl(tmp_path / "a", rows)
    files.write_jsonl(tmp_path / "b", rows[::-1])
    joined = predictions.join({name: predictions.read(tmp_path / name) for name in ("a", "b")})
    assert [(x.prompt, x.text, y.text) for x, y in zip(joined["a"], joined["b"], strict=True)] == [
        ("Translate\ncat", "cat!", "cat!"), ("Translate\ndog", "dog!", "dog!"), ("Translate", "!", "!"),
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["context", "document", "what the reader sees"])
def test_rows_of_one_prompt_that_differ_in_what_else_was_asked_are_refused(tmp_path: Path, key: str) -> None:
    texts = ("", "A cat sat there.", "A dog sat there.")
    rows = [{"question": "What is it?", key: text, "answer": "x"} for text in texts]
    for first, second in ((0, 1), (1, 2), (1, 0)):
        files.write_jsonl(tmp_path / "a", [rows[first], rows[second]])
        with pytest.raises(DataError, match=rf"a:2: has the prompt of an earlier row, but another {key}"):
            predictions.read(tmp_path / "a")
    files.write_jsonl(tmp_path / "a", [{"id": i, **row} for i, row in enumerate(rows)])
    assert len(predictions.read(tmp_path / "a")) == 3
    same = [{"prompt": "Why?", key: "It is so.", "answer": text, "score": i} for i, text in enumerate("xyz")]
    files.write_jsonl(tmp_path / "a", same)
    assert len(predictions.read(tmp_path / "a")) == 3


def test_rows_that_one_side_lacks_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    a = [Answer(str(i), f"p{i}", "", "x") for i in range(4)]
    with pytest.raises(DataError, match=r"1 of 4 are only in a, 0 of 3 only in b[\s\S]*--shared"):
        predictions.join({"a": a, "b": a[:3]})
    with pytest.raises(DataError, match=r"0 of 3 are only in a, 1 of 4 only in b"):
        predictions.join({"a": a[:3], "b": a})
    joined = predictions.join({"a": a, "b": a[1:], "side.c": a[:3]}, shared=True)
    assert [[answer.id for answer in rows] for rows in joined.values()] == [["1", "2"]] * 3
    errors = capsys.readouterr().err
    assert "1 of 4 are only in a, 0 of 3 only in b" in errors
    assert "1 of 4 are only in a, 0 of 3 only in c" in errors
    assert "comparing the 2 prompts that all answer" in errors
    with pytest.raises(DataError, match="no prompt is answered by all"):
        predictions.join({"a": a[:2], "b": a[2:]}, shared=True)


def test_what_was_asked_may_stand_in_another_file() -> None:
    a = [Answer("1", "", "", "x")]
    joined = predictions.join({"a": a, "b": [Answer("1", "Why?", "So.", "y", tags=("law",))]})
    assert (joined["a"][0].prompt, joined["a"][0].reference, joined["a"][0].tags) == ("Why?", "So.", ("law",))
    with pytest.raises(DataError, match="1: no file has the prompt"):
        predictions.join({"a": a, "b": a})
    assert predictions.join({"a": a, "b": a}, prompts=[Prompt("Who?", id="1")])["a"][0].prompt == "Who?"


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "a.jsonl", [OURS[0] | {"id": "same"}, OURS[1] | {"id": "same"}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: has the id same, as the row at .*a\.jsonl:1"):
        predictions.read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"inputs": {}}',
        '{"inputs": {"inputs_pretokenized": 1}, "prediction": "x"}',
        '{"prediction": "x"}',
        '{"prompt": "x"}',
        '{"prompt": "x", "answer": 1}',
        '{"prompt": ["x"], "answer": "y"}',
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": {}}]}',
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in OURS) + f"\n\n{line}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:5: "):
        predictions.read(path)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("x.json", '[\n{"prompt": "p", "answer": "a"},\n{"prompt": "p"}\n]', 3),
        ("x.json", '[\n{"prompt": "p", "answer": "a"},\n3\n]', 3),
        ("x.json", '[{"prompt": "p", "answer": "a"},\n\n{"prompt": }]', 3),
        ("x.csv", 'prompt,answer\n"a\nb",x\nonly\n', 4),
        ("x.csv", "prompt,answer\na,b\nc,d,e\n", 3),
    ],
)
def test_a_bad_row_of_a_list_or_a_table_is_named(tmp_path: Path, name: str, text: str, line: int) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}:{line}: "):
        predictions.read(tmp_path / name)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=r"text\.jsonl: no such prediction file"):
        predictions.prediction_file(tmp_path)
    for name, text in {"text.jsonl": "\n", "x.json": "[]", "x.csv": "prompt,answer\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="holds no predictions"):
            predictions.read(tmp_path / name)
    assert predictions.prediction_file(tmp_path) == tmp_path / "text.jsonl"
