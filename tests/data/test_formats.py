"""Formats read and written: what a row becomes, every bad row named, nothing lost but what is declared."""

import contextlib
import dataclasses
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preferent.commands.data_files import check, convert
from preferent.commands.data_files.check import render
from preferent.data import datasets
from preferent.data.formats import row_reader, row_sources, row_writer
from preferent.data.types import Demonstration, Message, Preference, Prompt
from preferent.errors import DataError, PlatformError, UsageError

USER = {"role": "user", "content": "Q"}
SAID = {"role": "assistant", "content": "A"}
OTHER = {"role": "assistant", "content": "B"}
SYSTEM = {"role": "system", "content": "S"}
GCPC = {"input_text": "Q", "candidate_0": "A", "candidate_1": "B", "choice": 0}
CHAT = (Message("user", "Q"),)
KINDS = ("preference", "prompt", "demonstration", "text")
EXAMPLES = int(os.environ.get("PREFERENT_EXAMPLES", "100"))
"""Files that each property is tried on; `make acceptance` says 1,000."""


def write(folder, *rows, name="rows.jsonl"):
    path = Path(folder) / name
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return str(path)


def read_one(folder, kind, row, format="auto"):
    reading = datasets.read([write(folder, row)], kind, format)
    assert reading.read == len(reading.records) + len(reading.dropped) == 1
    return reading


PREFERENCES = {
    "gcpc text": (GCPC, "gcpc", Prompt("Q")),
    "gcpc without prompt": (GCPC | {"input_text": ""}, "gcpc", Prompt()),
    "gcpc chat": (
        {"context": "S", "messages": [{"author": "user", "content": "Q"}], **{k: GCPC[k] for k in list(GCPC)[1:]}},
        "gcpc",
        Prompt(messages=CHAT, context="S"),
    ),
    "trl": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "trl", Prompt("Q")),
    "trl conversational": (
        {"prompt": [SYSTEM, USER], "chosen": [SAID], "rejected": [OTHER]},
        "trl",
        Prompt(messages=CHAT, context="S"),
    ),
    "trl conversational implicit": (
        {"chosen": [USER, SAID], "rejected": [USER, OTHER]},
        "trl",
        Prompt(messages=CHAT),
    ),
    "ultrafeedback": (
        {"prompt": "Q", "chosen": [USER, SAID], "rejected": [USER, OTHER]},
        "trl",
        Prompt(messages=CHAT),
    ),
    "openai": (
        {
            "input": {"messages": [SYSTEM, USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [SAID],
            "non_preferred_output": [OTHER],
        },
        "openai",
        Prompt(messages=CHAT, context="S"),
    ),
    "openai text parts": (
        {
            "input": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]},
            "preferred_output": [SAID],
            "non_preferred_output": [OTHER],
        },
        "openai",
        Prompt(messages=CHAT),
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_is_read_from_every_format(name, tmp_path):
    row, format, prompt = PREFERENCES[name]
    reading = read_one(tmp_path, "preference", row)
    assert reading.dropped == []
    pair = reading.records[0]
    assert (reading.format, pair.prompt) == (format, prompt)
    assert (pair.chosen, {pair.candidate_0, pair.candidate_1}) == ("A", {"A", "B"})
    assert pair.source.endswith("rows.jsonl:1")
    assert row_reader.detect([write(tmp_path, row)]) == ("preference", format)


def test_hh_keeps_its_dialogue_and_cuts_it_after_the_shared_mark(tmp_path):
    opening = "\n\nHuman: Q\n\nAssistant: x\n\nHuman: R\n\nAssistant:"
    reading = read_one(tmp_path, "preference", {"chosen": opening + " A", "rejected": opening + " A B"})
    (pair,) = reading.records
    assert (reading.format, pair.prompt, pair.chosen) == ("hh", Prompt(opening), " A")
    assert {pair.candidate_0, pair.candidate_1} == {" A", " A B"}


def test_trl_without_a_prompt_cuts_where_a_word_begins(tmp_path):
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    (pair,) = read_one(tmp_path, "preference", row).records
    assert (pair.prompt.input_text, pair.chosen) == ("The sky is", " blue.")
    (pair,) = read_one(tmp_path, "preference", {"chosen": "One.", "rejected": "Two."}).records
    assert (pair.prompt.input_text, pair.chosen) == ("", "One.")


OTHER_RECORDS = [
    ("prompt", {"input_text": "Q"}, Prompt("Q")),
    ("prompt", {"prompt": "Q", "reference": "A", "id": 7}, Prompt("Q", reference="A", id="7")),
    ("prompt", {"prompt": [SYSTEM, USER]}, Prompt(messages=CHAT, context="S")),
    ("prompt", {"messages": [USER], "context": "S", "group": "g"}, Prompt(messages=CHAT, context="S", group="g")),
    ("prompt", {"input_text": "Q", "prompt": "x", "n": [1]}, Prompt("Q", extra={"prompt": "x", "n": [1]})),
    ("demonstration", {"input_text": "Q", "output_text": "A"}, Demonstration(Prompt("Q"), "A")),
    ("demonstration", {"prompt": "Q", "completion": "A"}, Demonstration(Prompt("Q"), "A")),
    ("demonstration", {"prompt": [USER], "completion": [SAID]}, Demonstration(Prompt(messages=CHAT), "A")),
    ("demonstration", {"messages": [SYSTEM, USER, SAID]}, Demonstration(Prompt(messages=CHAT, context="S"), "A")),
    ("text", {"text": "A", "source": "book"}, Demonstration(Prompt(), "A", extra={"source": "book"})),
]


@pytest.mark.parametrize(("kind", "row", "record"), OTHER_RECORDS)
def test_prompts_demonstrations_and_texts_are_read(kind, row, record, tmp_path):
    reading = read_one(tmp_path, kind, row)
    assert [dataclasses.replace(each, source="") for each in reading.records] == [record]
    assert row_reader.detect([write(tmp_path, row)]) == (kind, "")


BAD_MESSAGES = [[], None, "Q", [SAID], [USER, SAID], [USER | {"content": ""}], [{"role": "user"}], [3]]
BAD_MESSAGES += [[USER | {"role": "robot"}], [USER, SYSTEM, USER], [SYSTEM]]
BAD = [
    ("preference", b'{"input_text": ', "malformed JSON"),
    ("preference", b"[1]", "not an object"),
    ("preference", b"null", "not an object"),
    ("preference", b'{"input_text": NaN}', "bad number"),
    ("preference", b'{"input_text": 1e999}', "bad number"),
    ("preference", b'{"a": ' + b"9" * 5000 + b"}", "bad number"),
    ("preference", b'{"choice": 0, "x": {"a": 1, "a": 2}}', "repeated key"),
    ("preference", b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ("preference", b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested too deeply"),
    ("preference", b'{"input_text": "\xff"}', "not UTF-8"),
    ("preference", b'{"input_text": "a\0b"}', "NUL character"),
    ("preference", b'{"input_text": "a\\u0000b"}', "NUL character"),
    ("preference", b'{"input_text": "a\\ud800b"}', "not Unicode"),
    ("preference", b'{"\\uDC00": 1}', "not Unicode"),
    ("preference", {}, "missing key"),
    ("preference", {k: v for k, v in GCPC.items() if k != "input_text"}, "missing key"),
    ("preference", {k: v for k, v in GCPC.items() if k != "choice"}, "missing key"),
    *(("preference", GCPC | {"choice": bad}, "bad choice") for bad in (2, -1, "A", "0", None, 0.5, 1.0, True, [0], {})),
    ("preference", GCPC | {"candidate_1": "A"}, "equal candidates"),
    ("preference", GCPC | {"candidate_1": None}, "wrong type"),
    ("preference", GCPC | {"input_text": 3}, "wrong type"),
    ("preference", GCPC | {"strength": "strong"}, "wrong type"),
    ("preference", GCPC | {"id": 1.5}, "wrong type"),
    ("preference", GCPC | {"group": True}, "wrong type"),
    ("preference", GCPC | {"messages": [USER]}, "two prompts"),
    *(
        ("preference", {k: v for k, v in GCPC.items() if k != "input_text"} | {"messages": bad}, "bad messages")
        for bad in BAD_MESSAGES
    ),
    (
        "preference",
        {"messages": [SYSTEM, USER], "context": "S", **{k: GCPC[k] for k in list(GCPC)[1:]}},
        "bad messages",
    ),
    ("preference", {"prompt": "Q", "chosen": "A", "rejected": None}, "missing key"),
    ("preference", {"prompt": "Q", "chosen": "A", "rejected": "A"}, "equal candidates"),
    ("preference", {"prompt": [USER], "chosen": [SAID, SAID], "rejected": [OTHER]}, "bad answer"),
    ("preference", {"chosen": [USER, SAID], "rejected": [USER | {"content": "x"}, OTHER]}, "bad answer"),
    ("preference", {"prompt": "X", "chosen": [USER, SAID], "rejected": [USER, OTHER]}, "two prompts"),
    ("preference", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "bad dialogue"),
    (
        "preference",
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: e",
        },
        "bad dialogue",
    ),
    ("preference", {"input": {}, "preferred_output": [SAID], "non_preferred_output": [OTHER]}, "missing key"),
    (
        "preference",
        {"input": {"messages": [USER]}, "preferred_output": [], "non_preferred_output": [OTHER]},
        "bad messages",
    ),
    ("prompt", {"input_text": " \n"}, "empty prompt"),
    ("prompt", {"prompt": ""}, "empty prompt"),
    ("prompt", {"input_text": None}, "wrong type"),
    ("prompt", {"messages": [USER, SAID]}, "bad messages"),
    ("demonstration", {"input_text": "Q"}, "missing key"),
    ("demonstration", {"input_text": "Q", "output_text": ""}, "empty answer"),
    ("demonstration", {"messages": [USER]}, "bad messages"),
    ("demonstration", {"completion": "A"}, "missing key"),
    ("demonstration", {"input_text": " ", "output_text": "A"}, "empty prompt"),
    ("text", {"text": " "}, "empty text"),
    ("text", {"text": 1}, "wrong type"),
]


@pytest.mark.parametrize(("kind", "row", "category"), BAD)
def test_a_bad_row_is_dropped_and_says_why(kind, row, category, tmp_path):
    good = {"preference": GCPC, "prompt": {"input_text": "Q"}, "text": {"text": "x"}}
    path = write(tmp_path, row, good.get(kind, {"input_text": "Q", "output_text": "A"}))
    format = "gcpc" if isinstance(row, bytes) or not row else "auto"
    reading = datasets.read([path], kind, format)
    bad = reading.dropped[0]
    assert (bad.file, bad.line, bad.category) == (path, 1, category)
    assert str(bad).startswith(f"{path}:1: {category}")
    assert len(str(bad)) < len(path) + 200
    assert reading.read == len(reading.records) + len(reading.dropped) == 2
    assert reading.reasons[category] >= 1


def test_a_row_of_another_format_is_called_so(tmp_path):
    trl = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    hint = "the row looks like trl, but the file is read as gcpc: a file holds one format"
    reading = datasets.read([write(tmp_path, GCPC, GCPC, trl, {"candidate_0": "A"}, b"{")], "preference")
    assert [hint in row.reason for row in reading.dropped] == [True, False, False]


def test_a_tie_a_name_and_a_strength_are_kept(tmp_path):
    row = GCPC | {
        "choice": "tie",
        "id": 5,
        "strength": 2,
        "annotator": "ann",
        "reference": "R",
        "group": "g",
        "x": {"y": 1},
    }
    (pair,) = read_one(tmp_path, "preference", row).records
    assert (pair.choice, pair.id, pair.strength, pair.annotator) == ("tie", "5", 2.0, "ann")
    assert (pair.prompt.reference, pair.prompt.group, pair.extra) == ("R", "g", {"x": {"y": 1}})


def test_an_extra_key_that_means_something_here_is_renamed(tmp_path):
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "messages": [USER], "score_chosen": 9.5}
    (pair,) = read_one(tmp_path, "preference", row).records
    assert pair.extra == {"trl.messages": [USER], "score_chosen": 9.5}
    path = tmp_path / "out.jsonl"
    row_writer.write([dataclasses.replace(pair, extra={"prompt": "mine"})], path, "trl")
    assert json.loads(path.read_text())["prompt"] == "Q"
    assert json.loads(path.read_text())["extra.prompt"] == "mine"


def test_marks_line_ends_blank_lines_and_separators_are_no_trouble(tmp_path):
    line = json.dumps(GCPC | {"input_text": "a\u2028b\x0bc"}, ensure_ascii=False).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    reading = datasets.read([str(path)], "preference")
    assert [pair.source for pair in reading.records] == [f"{path}:1", f"{path}:4"]
    assert (reading.read, reading.records[1].prompt.input_text) == (2, "a\u2028b\x0bc")


def test_a_row_of_ten_megabytes_is_a_row(tmp_path):
    (pair,) = read_one(tmp_path, "preference", GCPC | {"input_text": "long " * 2_000_000}).records
    assert len(pair.prompt.input_text) == 10_000_000


def test_gzip_parquet_and_plain_files_say_the_same(tmp_path):
    rows = [GCPC | {"id": str(i), "choice": i % 2} for i in range(5)]
    plain = write(tmp_path, *rows)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    table = tmp_path / "rows.parquet"
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns | {"context": [None] * 5, "score": [float("nan")] * 5}), table)
    readings = [datasets.read([str(path)], "preference").records for path in (plain, packed, table)]
    bare = [[dataclasses.replace(pair, source="", extra={}) for pair in records] for records in readings]
    assert bare[0] == bare[1] == bare[2]
    assert readings[2][0].extra == {"score": None}
    assert readings[2][4].source == f"{table}:5"


def test_globs_are_sorted_and_no_file_is_read_twice(tmp_path):
    names = [write(tmp_path, GCPC, name=name) for name in ("b.jsonl", "a.jsonl")]
    assert row_sources.expand([f"{tmp_path}/*.jsonl", names[0]]) == sorted(names)


def test_each_file_may_have_its_own_format(tmp_path):
    first = write(tmp_path, GCPC, name="1.jsonl")
    second = write(tmp_path, {"prompt": "Q", "chosen": "A", "rejected": "B"}, name="2.jsonl")
    reading = datasets.read([first, second], "preference")
    assert (reading.format, len(reading.records)) == ("gcpc, trl", 2)


def test_the_format_is_what_most_rows_look_like_unless_it_is_given(tmp_path):
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    reading = datasets.read([write(tmp_path, GCPC, row, row)], "preference")
    assert (reading.format, [bad.line for bad in reading.dropped]) == ("trl", [1])
    reading = datasets.read([write(tmp_path, GCPC, row, row)], "preference", "gcpc")
    assert (reading.format, [bad.line for bad in reading.dropped]) == ("gcpc", [2, 3])


def test_missing_empty_and_damaged_files_say_what_to_do(tmp_path):
    with pytest.raises(PlatformError, match="no such file"):
        datasets.read([f"{tmp_path}/none*.jsonl"], "prompt")
    with pytest.raises(UsageError, match=r"is a directory; name the files in it"):
        datasets.read([str(tmp_path)], "prompt")
    with pytest.raises(DataError, match="no rows"):
        datasets.read([write(tmp_path, b"")], "prompt")
    with pytest.raises(DataError, match="no row is a preference"):
        row_reader.detect([write(tmp_path, {"question": "Q"})])
    whole = gzip.compress(b'{"input_text": "Q"}\n' * 10_000)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.jsonl.gz:\d+: the compressed data is damaged"):
        datasets.read([str(cut)], "prompt")
    broken = tmp_path / "rows.parquet"
    broken.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="not a complete Parquet file"):
        datasets.read([str(broken)], "prompt")


def test_a_package_that_is_missing_is_named_with_its_install_line(tmp_path, monkeypatch):
    table = tmp_path / "rows.parquet"
    table.write_bytes(b"PAR1")
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    for path in (str(table), "hf://owner/name"):
        with pytest.raises(PlatformError, match=r"needs a missing package: pip install (pyarrow|datasets)$"):
            datasets.read([path], "prompt")


def hub(monkeypatch, load_dataset):
    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    module.exceptions = SimpleNamespace(DatasetsError=RuntimeError)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_data_set_is_asked_for_by_its_name_revision_config_and_split(monkeypatch):
    calls = []
    hub(monkeypatch, lambda *args, **kwargs: calls.append((args, kwargs)) or [{"input_text": "Q"}, {"input_text": ""}])
    reading = datasets.read(["hf://owner/name@v1:config/test"], "prompt")
    datasets.read(["hf://owner/name"], "prompt")
    assert calls[0] == (("owner/name", "config"), {"revision": "v1", "split": "test"})
    assert calls[1] == (("owner/name", None), {"revision": None, "split": "train"})
    assert (reading.records[0].source, reading.dropped[0].line) == ("hf://owner/name@v1:config/test:1", 2)
    with pytest.raises(UsageError, match="write a hub data set as"):
        datasets.read(["hf://name"], "prompt")


def test_a_hub_out_of_reach_is_a_platform_error(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    hub(monkeypatch, fail)
    with pytest.raises(PlatformError, match="no network"):
        datasets.read(["hf://owner/name"], "prompt")


def test_the_chosen_answer_stands_first_in_half_of_the_rows_whatever_their_order(tmp_path):
    rows = [{"prompt": f"Q{i}", "chosen": "A", "rejected": "B"} for i in range(400)]
    forward = datasets.read([write(tmp_path, *rows)], "preference").records
    backward = datasets.read([write(tmp_path, *rows[::-1])], "preference").records
    assert 160 < sum(pair.choice for pair in forward) < 240
    assert {pair.prompt.input_text: pair.choice for pair in forward} == {
        p.prompt.input_text: p.choice for p in backward
    }
    assert all(pair.chosen == "A" for pair in forward)


def test_too_many_bad_rows_are_an_error_that_names_the_first(tmp_path):
    path = write(tmp_path, *[GCPC] * 98, b"{", GCPC | {"choice": 3})
    reading = datasets.read([path], "preference")
    assert len(row_reader.kept(reading, 0.02)) == 98
    with pytest.raises(DataError, match=rf"2 of 100 rows.*\n  {path}:99: malformed JSON"):
        row_reader.kept(reading, 0.01)


def test_canonical_files_are_read_strictly(tmp_path):
    path = tmp_path / "rows.jsonl"
    row_writer.write([], path)
    assert datasets.load_preferences(path) == []
    with pytest.raises(DataError, match=r"rows.jsonl:2: bad choice"):
        datasets.load_preferences(Path(write(tmp_path, GCPC, GCPC | {"choice": 4})))
    with pytest.raises(PlatformError, match="no such file"):
        datasets.load_prompts(tmp_path / "none.jsonl")


def test_a_format_says_what_it_cannot_hold(tmp_path):
    pairs = [Preference(Prompt("Q"), "A", "B", choice) for choice in (0, 1, "tie")] + [
        Preference(Prompt(), "A", "B", 0)
    ]
    written = {format: row_writer.write(pairs, tmp_path / "out.jsonl", format) for format in row_writer.FORMATS}
    counts = {format: (each.rows, each.ties, each.without_prompt) for format, each in written.items()}
    assert counts == {
        "gcpc": (4, 0, 0),
        "trl": (3, 1, 0),
        "trl-conversational": (2, 1, 1),
        "hh": (2, 1, 1),
        "openai": (2, 1, 1),
    }
    with pytest.raises(UsageError, match="the formats are"):
        row_writer.write(pairs, tmp_path / "out.jsonl", "csv")
    with pytest.raises(UsageError, match="holds only preferences"):
        row_writer.write([Prompt("Q")], tmp_path / "out.jsonl", "trl")


def test_a_compressed_file_has_the_same_bytes_every_time(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        row_writer.write([Prompt("Q")], tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4), "the time is in the file"
    assert datasets.load_prompts(tmp_path / "a.jsonl.gz")[0].input_text == "Q"


# Round trips

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
SOME = TEXT.filter(str.strip)
TURNS = st.lists(SOME, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1)
CONVERSATIONS = TURNS.map(lambda texts: tuple(Message(("user", "assistant")[i % 2], t) for i, t in enumerate(texts)))
NAMES = st.dictionaries(
    st.text("xyz", min_size=1, max_size=3), st.one_of(st.integers(), TEXT, st.lists(TEXT)), max_size=2
)
ABOUT = {"reference": st.none() | TEXT.filter(bool), "group": TEXT}
TEXTS = st.builds(Prompt, input_text=SOME, **ABOUT)
CHATS = st.builds(Prompt, messages=CONVERSATIONS, context=st.none() | TEXT, **ABOUT)
PAIRS = st.builds(
    Preference,
    prompt=st.one_of(TEXTS, CHATS, st.builds(Prompt, **ABOUT)),
    candidate_0=TEXT,
    candidate_1=TEXT,
    choice=st.sampled_from([0, 1, "tie"]),
    id=TEXT,
    strength=st.none() | st.floats(-10, 10),
    annotator=st.none() | TEXT.filter(bool),
    extra=NAMES,
).filter(lambda pair: pair.candidate_0 != pair.candidate_1)


def round_trip(records, kind, format, name="rows.jsonl"):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        written = row_writer.write(records, path, format)
        if not written.rows:
            return []
        reading = datasets.read([str(path)], kind, format)
        assert reading.dropped == []
        return [dataclasses.replace(record, source="") for record in reading.records]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(PAIRS, min_size=1, max_size=4))
def test_gcpc_rows_lose_nothing(pairs):
    assert round_trip(pairs, "preference", "gcpc") == pairs


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.one_of(TEXTS, CHATS), min_size=1, max_size=4), NAMES, TEXT)
def test_prompt_and_demonstration_rows_lose_nothing(prompts, extra, id):
    prompts = [dataclasses.replace(prompt, extra=extra, id=id) for prompt in prompts]
    assert round_trip(prompts, "prompt", "gcpc") == prompts
    bare = [Prompt(prompt.input_text, prompt.messages, prompt.context, group=prompt.group) for prompt in prompts]
    shown = [Demonstration(prompt, "A", id, extra) for prompt in bare]
    assert round_trip(shown, "demonstration", "gcpc") == shown


def judgment_of(pair):
    return {"chosen": pair.chosen, "rejected": pair.rejected, "id": pair.id, "extra": pair.extra}


@settings(max_examples=EXAMPLES, deadline=None)
@given(PAIRS.filter(lambda pair: pair.choice != "tie"))
def test_trl_rows_lose_only_the_position(pair):
    (read,) = round_trip([pair], "preference", "trl")
    assert judgment_of(read) == judgment_of(pair)
    assert dataclasses.replace(read.prompt, context=read.prompt.context or None) == dataclasses.replace(
        pair.prompt, context=pair.prompt.context or None
    )
    assert (read.strength, read.annotator) == (pair.strength, pair.annotator)


@settings(max_examples=EXAMPLES, deadline=None)
@given(PAIRS.filter(lambda pair: pair.choice != "tie" and not pair.prompt.is_empty), st.booleans())
def test_conversational_rows_turn_a_text_into_a_message(pair, openai):
    (read,) = round_trip([pair], "preference", "openai" if openai else "trl-conversational")
    turns = pair.prompt.messages or (Message("user", pair.prompt.input_text),)
    assert (read.prompt.messages, read.prompt.context) == (turns, pair.prompt.context)
    assert (read.chosen, read.rejected) == (pair.chosen, pair.rejected)


PLAIN = st.text("abc .", min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=EXAMPLES, deadline=None)
@given(PLAIN, PLAIN, PLAIN, st.sampled_from([0, 1]))
def test_hh_rows_turn_a_prompt_into_a_dialogue_and_then_lose_nothing(question, first, second, choice):
    if first.strip() == second.strip():
        return
    (read,) = round_trip([Preference(Prompt(question), first, second, choice)], "preference", "hh")
    assert read.prompt.input_text == f"\n\nHuman: {question}\n\nAssistant:"
    assert read.chosen.strip() == (first, second)[choice].strip()
    assert round_trip([read], "preference", "hh") == [read]


@settings(max_examples=EXAMPLES, deadline=None)
@given(PAIRS, st.permutations(row_writer.FORMATS), st.booleans())
def test_from_format_to_format_only_what_is_declared_is_lost(pair, formats, packed):
    """Whatever the way from format to format, the judgment and its answers arrive, or the writer says what it left."""
    prompt, answers = pair.prompt, {pair.candidate_0.strip(), pair.candidate_1.strip()}
    marked = any(mark in text for mark in ("Human:", "Assistant:") for text in (repr(prompt), *answers))
    if len(answers) < 2 or marked or prompt.is_empty:
        formats = [format for format in formats if format != "hh"]
    for format in formats:
        records = round_trip([pair], "preference", format, "rows.jsonl.gz" if packed else "rows.jsonl")
        if not records:
            assert pair.choice == "tie" or pair.prompt.is_empty
            continue
        (read,) = records
        assert (read.choice == "tie") == (pair.choice == "tie")
        if pair.choice != "tie":
            assert (read.chosen.strip(), read.rejected.strip()) == (pair.chosen.strip(), pair.rejected.strip())
        if format != "openai":
            assert (read.id, read.prompt.group, read.strength) == (pair.id, pair.prompt.group, pair.strength)
        texts = (prompt.input_text, *(turn.content for turn in prompt.messages))
        read_texts = (read.prompt.input_text, *(turn.content for turn in read.prompt.messages))
        assert all(text.strip() in "".join(read_texts) for text in texts)
        pair = read


# Hostile files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = [*GCPC, "messages", "context", "prompt", "chosen", "rejected", "completion", "output_text", "text", "input"]
KEYS += ["preferred_output", "non_preferred_output", "id", "group", "strength", "annotator", "reference", "extra"]
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": JSON})
VALUES = JSON | st.lists(TURN, max_size=3) | st.text(max_size=5) | st.just({"messages": [USER]})
HOSTILE = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6).map(lambda row: json.dumps(row).encode())
LINE = st.one_of(st.binary(max_size=20), HOSTILE, st.just(json.dumps(GCPC).encode())).map(
    lambda b: b.replace(b"\n", b"")
)


ROWS_OF_ALL_KINDS = [row for row, *_ in PREFERENCES.values()] + [row for _, row, _ in OTHER_RECORDS]
FORMATS_READ = ("auto", "gcpc", "trl", "hh", "openai")


@st.composite
def nearly_right(draw):
    """A good row of some format in which one value is another, or is gone, or one key too many."""
    row = dict(draw(st.sampled_from(ROWS_OF_ALL_KINDS)))
    key = draw(st.sampled_from([*row, *KEYS]))
    if draw(st.booleans()):
        row[key] = draw(VALUES)
    else:
        row.pop(key, None)
    return json.dumps(row).encode()


LINES = st.lists(st.one_of(LINE, nearly_right()), max_size=6)


def account(path, kind, format):
    """What was read is what was kept and what was dropped, each with a place and a reason; returns the number read."""
    reading = datasets.read([str(path)], kind, format)
    assert reading.read == len(reading.records) + len(reading.dropped)
    places = [record.source for record in reading.records] + [f"{bad.file}:{bad.line}" for bad in reading.dropped]
    assert len(set(places)) == reading.read
    assert all(bad.category and len(bad.reason) < 500 for bad in reading.dropped)
    out = path.with_name("out.jsonl")
    row_writer.write(reading.records, out)
    if reading.records:
        again = datasets.read([str(out)], kind, "gcpc")
        assert (len(again.records), again.dropped) == (len(reading.records), [])
    return reading.read


def is_json(line):
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return False
    return True


@settings(max_examples=EXAMPLES, deadline=None)
@given(LINES, st.sampled_from(KINDS), st.sampled_from(FORMATS_READ), st.booleans(), st.booleans())
def test_no_file_breaks_the_reader_and_every_row_is_accounted_for(lines, kind, format, packed, marked):
    with tempfile.TemporaryDirectory() as folder:
        data = b"\xef\xbb\xbf" * marked + b"\n".join(lines)
        path = Path(folder) / "rows"
        path.write_bytes(gzip.compress(data) if packed else data)
        first = data.split(b"\n")[0].removeprefix(b"\xef\xbb\xbf")
        rows = sum(bool(line.strip()) for line in (first, *data.split(b"\n")[1:]))
        if not rows:
            with pytest.raises(DataError, match="no rows"):
                datasets.read([str(path)], kind, format)
        elif is_json(first) and not first.lstrip().startswith(b"["):
            assert account(path, kind, format) == rows
        else:
            with contextlib.suppress(DataError):
                account(path, kind, format)


@settings(max_examples=EXAMPLES, deadline=None)
@given(LINES)
def test_any_file_is_checked_and_converted_or_refused_with_a_reason(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"\n".join(lines))
        try:
            result = check.check_files([str(path)])
            assert render(result).startswith(f"{path}: ")
            assert result.ok == (result.files[0].kept == result.files[0].read)
            done = convert.convert_files([str(path)], Path(folder) / "out.jsonl")
            assert done.read == done.written + done.ties + done.without_prompt + done.misread + len(done.dropped)
        except DataError as error:
            assert str(path) in str(error)


COLUMNS = st.dictionaries(st.sampled_from(KEYS), st.lists(VALUES, min_size=3, max_size=3), max_size=5)


@settings(max_examples=EXAMPLES, deadline=None)
@given(COLUMNS, st.sampled_from(KINDS), st.sampled_from(FORMATS_READ), st.lists(st.integers(0, 10**6), max_size=3))
def test_no_table_breaks_the_reader_and_every_row_is_accounted_for(columns, kind, format, harmed):
    tables = {}
    for name, values in columns.items():
        with contextlib.suppress(pyarrow.ArrowException, OverflowError):
            tables[name] = pyarrow.array(values)
    table = pyarrow.table({"n": [1, 2, 3]} | tables)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        try:
            pyarrow.parquet.write_table(table, path)
        except pyarrow.ArrowException:
            return
        data = bytearray(path.read_bytes())
        for place in harmed:
            data[place % len(data)] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            rows = account(path, kind, format)
            assert harmed or rows == 3
        except DataError as error:
            assert harmed
            assert str(path) in str(error)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=3), st.floats(0, 1))
def test_damaged_compression_is_an_error_with_a_place_or_changes_no_row(harmed, share):
    rows = [GCPC | {"id": str(i)} for i in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl.gz"
        data = bytearray(gzip.compress(Path(write(folder, *rows)).read_bytes(), mtime=0))
        for place in harmed:
            data[place % len(data)] ^= 1 << place % 8
        path.write_bytes(data[: int(len(data) * share) + 3])
        with contextlib.suppress(DataError):
            account(path, "preference", "gcpc")


DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data beside the repository")
def test_real_files_hold_no_bad_row():
    for file in sorted(DATA.rglob("*.validation.jsonl*")):
        kind, _ = row_reader.detect([str(file)])
        reading = datasets.read([str(file)], kind)
        assert (len(reading.dropped), len(reading.records) > 10) == (0, True), file
