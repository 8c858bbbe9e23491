"""The one reader of files that people bring: every layout says the same, in linear time, bounded, and read once."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from preferent.commands.data_files import check, convert
from preferent.data import datasets, predictions
from preferent.data.formats import json_rows, row_sources
from preferent.errors import DataError, PlatformError, UsageError
from preferent.evaluation import judge_agreement, judgment_files
from preferent.labeling.sources import question_sources

PAIRS = [{"input_text": f"Q{i}\n", "candidate_0": "A, ü", "candidate_1": 'B "b"', "choice": i % 2} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()


def table(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows):
    whole = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({key: [row[key] for row in rows] for key in rows[0]}), whole)
    return whole.getvalue()


LAYOUTS = {
    "rows.jsonl": LINES,
    "list.json": json.dumps(PAIRS).encode(),
    "pretty.json": json.dumps(PAIRS, indent=4).encode(),
    "list.jsonl": b"\xef\xbb\xbf \n" + json.dumps(PAIRS, indent=1).encode() + b"\n",
    "rows.csv": table(PAIRS),
    "semicolons.csv": table(PAIRS, ";"),
    "rows.tsv": table(PAIRS, "\t"),
    "rows": table(PAIRS),
    "rows.parquet": parquet(PAIRS),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_says_the_same(tmp_path, name, packed):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(LAYOUTS[name]) if packed else LAYOUTS[name])
    assert [row for _, row in row_sources.objects(str(path))] == PAIRS
    reading = datasets.read([str(path)], "preference")
    assert (reading.read, reading.dropped) == (5, [])
    assert len(judgment_files.read(path)) == 5
    assert len(question_sources.from_file(path).questions) == 5
    assert check.check_files([str(path)]).ok


def test_a_row_has_the_line_on_which_it_begins(tmp_path):
    places = {}
    for name in ("pretty.json", "rows.csv", "rows.jsonl"):
        (tmp_path / name).write_bytes(LAYOUTS[name])
        places[name] = [line for line, _ in row_sources.rows(str(tmp_path / name))]
    assert places == {
        "pretty.json": [2, 8, 14, 20, 26],
        "rows.csv": [2, 4, 6, 8, 10],
        "rows.jsonl": [1, 2, 3, 4, 5],
    }


def zipped():
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("rows.jsonl", LINES)
    return whole.getvalue()


def database(tmp_path):
    connection = sqlite3.connect(tmp_path / "made.sqlite")
    connection.execute("create table rows (a)")
    connection.commit()
    connection.close()
    return (tmp_path / "made.sqlite").read_bytes()


FOREIGN = {
    "pointer.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12345\n", "a Git LFS pointer"),
    "rows.zip": (zipped(), "a zip archive"),
    "rows.csv": (zipped(), "a zip archive"),
    "mac.jsonl": (LINES.replace(b"\n", b"\r"), "lines end with CR alone"),
    "object.json": (json.dumps({"rows": PAIRS}, indent=2).encode(), "spread over several lines"),
    "objects.jsonl": (b"\n".join(json.dumps(row, indent=1).encode() for row in PAIRS), "spread over several lines"),
    "page.jsonl": (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>\n", "an HTML or XML page"),
    "utf16.jsonl": (LINES.decode().encode("utf-16"), "text in UTF-16"),
    "utf16-unmarked.jsonl": (LINES.decode().encode("utf-16-le"), "text in UTF-16"),
    "table.jsonl": (LAYOUTS["rows.csv"], "a table by its first line"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(LINES)), "compressed twice"),
    "rows.jsonl.bz2": (bz2.compress(LINES), "compressed by bzip2"),
    "rows.jsonl.xz": (lzma.compress(LINES), "compressed by xz"),
    "prose.txt": (b"The rows are in the other file.\nAsk Anna.\n", "not JSON lines.* no line begins with"),
    "rows.pkl": (b"\x80\x04\x95\x10", "a Python pickle"),
}


@pytest.mark.parametrize("name", [*FOREIGN, "rows.sqlite"])
def test_a_file_of_another_kind_is_named_in_one_sentence(tmp_path, name):
    content, what = FOREIGN.get(name) or (database(tmp_path), "an SQLite database")
    path = tmp_path / name
    path.write_bytes(content)
    out = tmp_path / "out.jsonl"
    for read in (
        lambda: datasets.read([str(path)], "preference"),
        lambda: check.check_files([str(path)]),
        lambda: convert.convert_files([str(path)], out),
        lambda: predictions.read(path),
        lambda: judgment_files.read(path),
        lambda: question_sources.from_file(path),
    ):
        with pytest.raises(DataError, match=rf"^{path}: is .*{what}[^\n]*$"):
            read()
    assert not out.exists()


def test_a_first_line_that_is_an_object_makes_json_lines_of_whatever_follows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES.splitlines()[0] + b"\n[1]\n\xff\nprompt,answer\n")
    reading = datasets.read([str(path)], "preference")
    assert (reading.read, [row.line for row in reading.dropped]) == (4, [2, 3, 4])


BAD = {
    "a number of 5,000 digits": ('"n": ' + "9" * 5000, r"bad number: n "),
    "3,000 nested lists": ('"n": ' + "[" * 3000 + "]" * 3000, "nested too deeply"),
    "half of a surrogate pair": (r'"said": {"a": ["bad \ud800 half"]}', r"not Unicode: said\.a\[0\] holds half"),
    "an infinite number": ('"annotations": [{"lead_time": 1e400}]', r"bad number: annotations\[0\]\.lead_time is"),
    "NaN": ('"kl": NaN', "bad number: kl is not finite"),
    "a key that stands twice": ('"x": {"b": 1, "b": 2}', 'repeated key: "b" stands twice'),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_no_reader_keeps_is_placed_by_line_and_key(tmp_path, fault):
    inside, says = BAD[fault]
    row = '{"input_text": "q", "prompt": "q", "answer": "a", "candidate_0": "a", "candidate_1": "b", "choice": 1'
    lines, listed = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text(f"{row}}}\n{row}, {inside}}}\n")
    listed.write_text(f"[{row}}},\n{row}, {inside}}}\n]")
    for path in (lines, listed):
        for read in (predictions.read, judgment_files.read, question_sources.from_file):
            with pytest.raises(DataError, match=rf"{path}:2: (malformed JSON: )?{says}"):
                read(path)
    assert datasets.read([str(lines)], "preference").dropped[0].line == 2


def test_an_answer_may_hold_nul_and_nothing_else_that_is_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "answer": "a\\u0000b"}\n')
    assert predictions.read(path)[0].text == "a\0b"
    path.write_text('{"prompt": "q\\u0000", "answer": "a \\ud800 b"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not Unicode: answer holds half of a surrogate pair"):
        predictions.read(path)


def test_a_bad_row_of_a_list_is_dropped_and_a_broken_list_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    good = json.dumps(PAIRS[0])
    path.write_text(f'[{good},\n3,\n{{"a": 1, "a": 2}},\n{good}]\n')
    reading = datasets.read([str(path)], "preference")
    assert (reading.read, [row.line for row in reading.dropped]) == (4, [2, 3])
    broken = {"[{}\n{}]": 2, "[{},\n]": 2, "[{},\n{}": 2, "[{},\n{}] {}": 2, "[": 1, "[{},\n[}]": 2}
    for text, line in broken.items():
        path.write_text(text)
        with pytest.raises(DataError, match=rf"{path}:{line}: malformed JSON"):
            list(row_sources.rows(str(path)))


def test_columns_and_quotes_of_a_table_are_checked(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer,prompt\na,b,c\n")
    with pytest.raises(DataError, match=r"rows\.csv:1: the columns 1 and 3 have the same name, 'prompt'"):
        predictions.read(path)
    path.write_text('prompt,answer\na,b\nc,"d\ne,f\n')
    with pytest.raises(DataError, match=r"rows\.csv:3: the row that begins here cannot be read"):
        predictions.read(path)
    path.write_bytes(b"prompt,answer\na,b\nc,\xff\n")
    with pytest.raises(DataError, match=r"rows\.csv:\d: not UTF-8: byte 0xff"):
        predictions.read(path)


def test_infinity_in_a_parquet_file_is_refused_and_nan_is_nothing(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet([{"input_text": "Q", "x": float("nan")}, {"input_text": "Q", "x": float("inf")}]))
    (good, bad) = [row for _, row in row_sources.rows(str(path))]
    assert good == {"input_text": "Q", "x": None}
    assert bad.startswith("bad number: x")


def test_lines_rows_and_cells_have_a_longest(tmp_path, monkeypatch):
    assert json_rows.LONGEST >= 64 << 20
    monkeypatch.setattr(json_rows, "LONGEST", 100)
    path = tmp_path / "rows.jsonl"
    row = json.dumps(PAIRS[0])
    path.write_text(row + "\n" + json.dumps({"a": "x" * 300}) + "\n" + row + "\n")
    reading = datasets.read([str(path)], "preference")
    assert [(bad.line, bad.category) for bad in reading.dropped] == [(2, "too long")]
    monkeypatch.setattr(json_rows, "CHUNK", 10)
    path.write_text(f"[{row},\n" + json.dumps({"a": "x" * 300}) + "]")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: malformed JSON: the row has more than 100 characters"):
        list(row_sources.rows(str(path)))


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_a_window_of_any_size_reads_the_same_list(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    values = [12345, {"a": 12345, "b": [1.5e3, 'x\\"y', None, True]}, "te\u2028xt", [], {"n": -0.25}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(values, indent=3))
    rows = [row for _, row in row_sources.rows(str(path))]
    assert [rows[1], rows[4]] == [values[1], values[4]]
    assert len(rows) == 5
    assert all(str(rows[place]).startswith("not an object") for place in (0, 2, 3))


def seconds(path):
    def once():
        began = time.process_time()
        assert sum(1 for _ in row_sources.rows(str(path)))
        return time.process_time() - began

    return min(once() for _ in range(7))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["list", "lines", "table"])
def test_twice_the_rows_take_twice_the_time(tmp_path, layout):
    row = {"instruction": "q" * 250, "output": "a" * 250, "generator": "m"}
    write = {
        "list": lambda rows: json.dumps(rows).encode(),
        "lines": lambda rows: "\n".join(map(json.dumps, rows)).encode(),
        "table": table,
    }[layout]
    times = []
    for number in (10_000, 20_000):
        path = tmp_path / str(number)
        path.write_bytes(write([row] * number))
        times.append(seconds(path))
    assert times[1] / times[0] <= 2.6


@pytest.fixture
def piped():
    """Return the path of a pipe that says a text once."""
    opened = []

    def pipe(text):
        reading, writing = os.pipe()
        opened.append(reading)

        def say():
            with open(writing, "wb") as end:
                end.write(text)

        threading.Thread(target=say, daemon=True).start()
        return f"/dev/fd/{reading}"

    yield pipe
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_pipe_is_read_once_and_says_what_the_file_says(tmp_path, piped, name):
    if name.endswith((".csv", ".tsv")) and name != "rows.csv":
        pytest.skip("a pipe has no name that ends with .tsv")
    content = LAYOUTS[name]
    assert check.check_files([piped(content)]).files[0].kept == 5
    done = convert.convert_files([piped(gzip.compress(content))], tmp_path / "out.jsonl")
    assert (done.read, done.written) == (5, 5)
    figures = judge_agreement.between_files([Path(piped(content)), Path(piped(content))])
    assert figures["shared"] == 5


def test_standard_input_is_read_by_the_command_line():
    for name in ("-", "/dev/stdin"):
        words = [sys.executable, "-m", "preferent", "data", "check", name]
        done = subprocess.run(words, input=gzip.compress(LINES), capture_output=True)
        assert (done.returncode, done.stdout.decode().splitlines()[0]) == (
            0,
            "/dev/stdin: preference (gcpc), 5 rows, 5 usable",
        )


def test_a_folder_with_brackets_is_a_folder_and_brackets_elsewhere_are_a_pattern(tmp_path):
    folder = tmp_path / "dir [v1]"
    folder.mkdir()
    for name in ("a.jsonl", "b[2].jsonl"):
        (folder / name).write_bytes(LINES)
    names = [str(folder / name) for name in ("a.jsonl", "b[2].jsonl")]
    assert row_sources.expand([f"{folder}/*.jsonl"]) == names
    assert row_sources.expand([f"{folder}/b[2].jsonl"]) == names[1:]
    assert row_sources.expand([f"{tmp_path}/**/[ab]*.jsonl"]) == names
    with pytest.raises(PlatformError, match=r"no such file .*; \[v2\] is read as a pattern"):
        row_sources.expand([f"{tmp_path}/dir [v2]/*.jsonl"])


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "none/" + "*" * 300, "[" * 300])
def test_a_path_that_cannot_be_is_no_such_file(path):
    with pytest.raises(PlatformError, match="no such file"):
        row_sources.expand([path])


HH = {"input_text": "Q", "candidate_0": "Yes.\n\nHuman: and?", "candidate_1": "No.", "choice": 0}


def test_what_a_format_would_misread_is_left_out_and_counted(tmp_path):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [*PAIRS, HH, PAIRS[0] | {"candidate_0": " B", "candidate_1": "B"}, PAIRS[0] | {"preferred_output": "x"}, {}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for to, misread in (("hh", 2), ("trl", 0), ("openai", 0), ("trl-conversational", 0), ("gcpc", 0)):
        done = convert.convert_files([str(path)], out, to)
        assert (done.read, done.misread, len(done.dropped)) == (9, misread, 1)
        assert done.read == done.written + done.ties + done.without_prompt + done.misread + len(done.dropped)
        reading = datasets.read([str(out)], "preference")
        assert (len(reading.records), reading.dropped) == (done.written, [])


def test_a_pipe_is_refused_where_rows_are_read_more_than_once():
    from preferent.config import recipe

    with pytest.raises(UsageError, match=r"preference_dataset.*: - is a pipe.*; write it to a file"):
        recipe.parse({"large_model_reference": "m", "preference_dataset": "-"})
