"""Hostile inputs to every verb that reads files: no traceback, no input without an answer, and counts that reconcile.

python bench/fuzz.py [--inputs COUNT] [--processes COUNT] [--seed SEED]

Valid files of every format and layout are changed at random: bytes flipped, cut or doubled, keys renamed or repeated,
values replaced by those of other types, texts by hostile ones; some are compressed. Each input goes to a verb in this
process, and `--processes` of them through the command line. An answer is an exit code of 0 to 5 within 20 s. What is
read must be what is kept, left out and dropped, and what is written is read again. Fails where one of that does not
hold, and prints the input.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pyarrow
import pyarrow.parquet

from preferent import files
from preferent.cli.arguments import parser
from preferent.commands.data_files import check, convert
from preferent.config import model_folder
from preferent.data import judgments, predictions
from preferent.errors import PreferentError
from preferent.labeling.sources import question_sources

SECONDS = 20
Make = Callable[[random.Random], bytes]
HOSTILE = (
    *("", " ", "\0", "\ud800", "\u202e", "a" * 5000, "[" * 3000, "{{ 7*7 }}", "\n\nHuman:", "../../etc/passwd", "NaN"),
    *("=1+1", "<script>", "\ufeff", "None", "0x1", "1e999"),
)
VALUES: tuple[Any, ...] = (None, True, 0, -1, 1e308, 10**400, [], {}, [None], {"a": {"b": []}}, *HOSTILE)
NINE = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi"))
OPENINGS = (b'{"id": 1, "id": 2, ', b'{"kl": 1e999, ', b'{"tokens": -1, ', b'{"x": {"y": NaN}, ', b'{"x": "\\ud800", ')
YAML = (
    "\nseed: 1\nseed: 2\n",
    "\n" + "[" * 5000,
    "\n" + "{a: " * 5000,
    f"\na: &a [x]\n{NINE}",
    "\nseed: " + "9" * 5000,
)
HEAD = "| verb | inputs | exit codes in this process | by the command line | tracebacks | no answer |"


def rows(place: random.Random, fitting: Sequence[int]) -> list[dict[str, Any]]:
    """Return rows of one of the formats that people bring, mostly of those with the numbers in `fitting`."""
    count, text = place.randrange(1, 6), place.choice(["tea", "What is tea?", "Tee ist heiß."])
    answer = place.choice(["a", "a", "a", "a\n\nHuman: why?", " b"])
    kinds: tuple[Callable[[int], dict[str, Any]], ...] = (
        lambda i: {"input_text": f"{text} {i}", "candidate_0": answer, "candidate_1": "b", "choice": i % 2},
        lambda i: {"input_text": f"{text} {i}", "output_text": "a"},
        lambda i: {"prompt": f"{text} {i}", "chosen": answer, "rejected": "no"},
        lambda i: {"chosen": f"\n\nHuman: {i}\n\nAssistant: a", "rejected": f"\n\nHuman: {i}\n\nAssistant: b"},
        lambda i: {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]},
        lambda i: {"instruction": f"{text} {i}", "input": "x", "output": "a", "generator": "m"},
        lambda i: {"instruction": f"{i}", "output_1": "a", "output_2": "b", "preference": 1.0 + i % 2},
        lambda i: {"inputs": {"inputs_pretokenized": f"{text} {i}"}, "prediction": answer, "id": str(i), "kl": 0.5},
        lambda i: {
            "id": str(i),
            "inference_instruction": "",
            "inference_context": text,
            "judge": "j",
            "choice": "A",
            "confidence": 1,
            "response_a": "a",
            "response_b": "b",
        },
        lambda i: {"id": str(i), "fields": {"prompt": text, "response_1": "a", "response_2": "b"}, "responses": {}},
        lambda i: {
            "id": i,
            "data": {"prompt": text, "text1": "a", "text2": "b"},
            "annotations": [{"lead_time": 4.2, "result": [{"type": "pairwise", "value": {"selected": "left"}}]}],
        },
    )
    make = kinds[place.choice(fitting) if place.random() < 0.8 else place.randrange(len(kinds))]
    return [make(i) for i in range(count)]


def worse(value: Any, place: random.Random) -> Any:
    """Return a JSON value with one part of it replaced, removed or renamed."""
    if isinstance(value, dict) and value and place.random() < 0.9:
        key = place.choice(list(value))
        changed = dict(value)
        action = place.randrange(4)
        if action == 0:
            changed.pop(key)
        elif action == 1:
            changed[place.choice([*HOSTILE, "label", "rank", "question", "score"])] = changed.pop(key)
        else:
            changed[key] = worse(changed[key], place)
        return changed
    if isinstance(value, list) and value and place.random() < 0.7:
        at = place.randrange(len(value))
        return [*value[:at], worse(value[at], place), *value[at + 1 :]]
    return place.choice(VALUES)


def file(fitting: Sequence[int], place: random.Random) -> bytes:
    """Return a file of fitting rows in one of the layouts, changed in up to three places."""
    changed = rows(place, fitting)
    for _ in range(place.randrange(3)):
        at = place.randrange(len(changed))
        row = worse(changed[at], place)
        changed[at] = row if isinstance(row, dict) else {"input_text": row}
    layout = place.randrange(5)
    if layout == 4 and (content := parquet(changed)):
        pass
    elif layout == 0:
        names = list(dict.fromkeys(key for row in changed for key in row))
        lines = [",".join(json.dumps(str(row.get(name, ""))) for name in names) for row in changed]
        content = "\n".join([",".join(names), *lines]).encode(errors="surrogatepass")
    elif layout == 1:
        content = json.dumps(changed, indent=place.choice([None, 1])).encode()
    else:
        content = "".join(json.dumps(row) + "\n" for row in changed).encode()
        if place.random() < 0.2:
            content = content.replace(b'{"', place.choice(OPENINGS) + b'"', 1)
    content = damaged(content, place) if place.random() < 0.5 else content
    return gzip.compress(content, mtime=0) if place.random() < 0.1 else content


def parquet(changed: list[dict[str, Any]]) -> bytes:
    """Return rows as a Parquet file; nothing where they are not a table."""
    whole = io.BytesIO()
    names = list(dict.fromkeys(key for row in changed for key in row))
    try:
        pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in changed] for name in names}), whole)
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return b""
    return whole.getvalue()


def damaged(content: bytes, place: random.Random) -> bytes:
    """Return bytes with some flipped, cut, doubled or put in."""
    data = bytearray(content)
    for _ in range(place.randrange(1, 4)):
        at, action = place.randrange(max(1, len(data))), place.randrange(6)
        if action == 0 and data:
            data[at % len(data)] ^= 1 << place.randrange(8)
        elif action == 1:
            del data[at:]
        elif action == 2:
            data[at:at] = data[: place.randrange(1, 40)]
        elif action == 3:
            data[at:at] = place.choice([b"\0", b"\xff\xfe", b"\r", b'"', b"{", b"[" * 200, b"\xef\xbb\xbf", b"\\ud800"])
        elif action == 4:
            data[:0] = place.choice([b"PAR1", b"\x1f\x8b", b"PK\x03\x04", b"version https://git-lfs", b"<html>"])
        else:
            del data[at : at + place.randrange(1, 20)]
    return bytes(data)


def recipe(place: random.Random) -> bytes:
    """Return a recipe, changed like a file."""
    values = {
        "large_model_reference": "model",
        "preference_dataset": "rows.jsonl",
        "kl_coeff": 0.1,
        "seed": 0,
        "ppo": {"epochs": 2, "batch_size": 8},
        "reward": {"members": 1},
        "data": {"test_share": 0.1},
        "compare": {"judges": [{"name": "a", "model": "model"}]},
    }
    for _ in range(place.randrange(3)):
        changed = worse(values, place)
        values = changed if isinstance(changed, dict) else values
    content = json.dumps(values, indent=1).encode()
    if place.random() < 0.1:
        content = place.choice(YAML).encode()
    return damaged(content, place) if place.random() < 0.6 else content


def configuration(place: random.Random) -> bytes:
    """Return a model's configuration, changed like a file."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    values: Any = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 2, **sizes}
    for _ in range(place.randrange(1, 3)):
        changed = worse(values, place)
        values = changed if isinstance(changed, dict) else values
    content = json.dumps(values).encode()
    return damaged(content, place) if place.random() < 0.3 else content


def command(*words: object) -> None:
    arguments = parser().parse_args([str(word) for word in words])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        arguments.do(arguments)


def checked(path: Path) -> None:
    for part in check.check_files([str(path)]).files:
        assert part.read == part.kept + len(part.dropped), "counts do not add up"


def converted(path: Path) -> None:
    for to in ("gcpc", "trl", "hh", "openai"):
        out = path.with_name(f"out-{to}.jsonl")
        done = convert.convert_files([str(path)], out, to)
        left_out = done.ties + done.without_prompt + done.misread + len(done.dropped)
        assert done.read == done.written + left_out, f"{to}: counts do not add up"
        again = check.check_files([str(out)]).files[0].kept if done.written else 0
        assert again == done.written, f"{to}: {done.written} rows written, {again} of them read again"


def compared(path: Path) -> None:
    answers = predictions.read(path)
    joined = predictions.join({"a": answers, "b": answers})
    files.write_jsonl(path.with_name("side.jsonl"), [predictions.row(answer) for answer in joined["b"]])
    assert len(predictions.read(path.with_name("side.jsonl"))) == len(answers), "rows on disk"


def labelled(path: Path) -> None:
    material = question_sources.from_file(path)
    json.dumps([vote.body for vote in material.votes], allow_nan=False)
    assert material.fingerprint


def planned(path: Path) -> None:
    command("run", path, "--dry-run")


DATA = (0, 1, 2, 3, 4)
ANSWERS, JUDGMENTS, EXPORTS, AGREEMENT = (5, 7), (8,), (0, 2, 9, 10), (0, 6, 8)
VERBS: dict[str, tuple[Make, str, Callable[[Path], object], str, int]] = {
    "data check": (partial(file, DATA), "rows.jsonl", checked, "data check {}", 8),
    "data convert": (partial(file, DATA), "rows.jsonl", converted, "data convert {} --out {}.out", 6),
    "agree": (partial(file, AGREEMENT), "rows.jsonl", lambda path: command("agree", path, path), "agree {}", 4),
    "label --file": (partial(file, EXPORTS), "rows.json", labelled, "label --file {} --number 0", 4),
    "compare": (partial(file, ANSWERS), "rows.jsonl", compared, "compare {} {} --out c", 4),
    "compare: judgments": (
        partial(file, JUDGMENTS),
        "rows.jsonl",
        judgments.read,
        "compare {} {} --judge people={}",
        2,
    ),
    "run --dry-run": (recipe, "recipe.yaml", planned, "run {} --dry-run", 3),
    "model": (configuration, "model/config.json", lambda path: model_folder.check(path.parent), "plan {}", 2),
}
"""By verb: what makes an input, the file's name, the call, the command, and its weight."""


def late(_number: int, _frame: FrameType | None) -> NoReturn:
    raise TimeoutError


def attempt(call: Callable[[Path], object], path: Path) -> str:
    """Return how a call ended: `0`, an exit code, `traceback` or `no answer`."""
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            call(path)
        return "0"
    except PreferentError as error:
        return str(error.exit_code)
    except SystemExit as leave:
        return str(leave.code)
    except TimeoutError:
        return "no answer"
    except BaseException:  # noqa: BLE001 - whatever it is, it is told
        traceback.print_exc()
        return "traceback"
    finally:
        signal.alarm(0)


def by_process(words: str, path: Path) -> str:
    """Return how the command line ended with an input."""
    argv = [sys.executable, "-m", "preferent", *(word.replace("{}", str(path)) for word in words.split())]
    try:
        pipes: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
        done = subprocess.run(argv, cwd=path.parent, timeout=SECONDS, **pipes)
    except subprocess.TimeoutExpired:
        return "no answer"
    bad = "Traceback" in done.stderr or "bug in preferent" in done.stderr or done.returncode not in range(6)
    return "traceback" if bad else str(done.returncode)


def main() -> None:
    options = argparse.ArgumentParser(description="Hostile inputs to every verb that reads files.")
    options.add_argument("--inputs", type=int, default=20_000)
    options.add_argument("--processes", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    signal.signal(signal.SIGALRM, late)
    names = [name for name, (*_, weight) in VERBS.items() for _ in range(weight)]
    ends: dict[str, Counter[str]] = {name: Counter() for name in VERBS}
    slowest, bad = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in range(asked.inputs):
            place = random.Random(f"{asked.seed} {number}")
            name = place.choice(names)
            make, file_name, call, words, _ = VERBS[name]
            path = Path(folder, file_name)
            path.parent.mkdir(exist_ok=True)
            content = make(place)
            path.write_bytes(content)
            began = time.monotonic()
            ends_here = [attempt(call, path)]
            slowest = max(slowest, time.monotonic() - began)
            ends[name][ends_here[0]] += 1
            if number % max(1, asked.inputs // max(1, asked.processes)) == 0 and asked.processes:
                ends_here.append(by_process(words, path))
                ends[name][f"{ends_here[1]} (process)"] += 1
            if wrong_ends := {"traceback", "no answer"} & set(ends_here):
                bad += 1
                print(f"{name}, input {number}: {', '.join(wrong_ends)}: {content[:600]!r}", flush=True)
    print(f"{HEAD}\n|---|---|---|---|---|---|")
    for name, counts in ends.items():
        codes = {end: count for end, count in sorted(counts.items()) if end.isdigit()}
        outside = {end[0]: count for end, count in sorted(counts.items()) if end.endswith("(process)")}
        wrong = [sum(n for end, n in counts.items() if end.startswith(what)) for what in ("traceback", "no answer")]
        shown = [" ".join(f"{end}: {count}" for end, count in table.items()) for table in (codes, outside)]
        print(f"| `{name}` | {sum(codes.values()) + sum(wrong)} | {shown[0]} | {shown[1]} | {wrong[0]} | {wrong[1]} |")
    print(f"slowest answer {slowest:.1f} s; {bad} of {asked.inputs} inputs without a proper answer")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
