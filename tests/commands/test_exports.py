"""A comparison in the formats of others: read back as those others read it, and opened in LLM Comparator itself."""

import csv
import functools
import json
import random
import re
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from browser import chromium, visit  # noqa: F401 - a fixture
from hostile import HOSTILE

from preferent import files
from preferent.commands import exports
from preferent.commands.exports import alpaca_eval, judged_preferences, llm_comparator
from preferent.data import datasets, judgment_table
from preferent.data.judgments import write
from preferent.data.predictions import Answer
from preferent.data.types import Judgment, Message, Prompt
from preferent.errors import PlatformError, UsageError
from preferent.evaluation.comparison_summary import verdict
from preferent.evaluation.inference import compare
from preferent.evaluation.judge_results import A_B, JudgeResults, by_scores, called, paired

BUNDLE = Path(__file__).resolve().parent.parent.parent / ".venv/llm_comparator/llm_comparator/data"
TUNED = ["The cat.", "=1+1", "", "same", "tuned 5"]
BASE = ["A dog.", "base", "x", "same", "base 5"]
PROMPTS = ["Why?", "Who?", "What?", "When?", "Where?"]
SCORES = {"a": np.array([1.0, 0.0, -1.0, 2.0, 0.5]), "b": np.array([0.0, 1.0, -1.0, 2.0, 0.5])}


def verdicts(*choices: str | None, probability: float | None = None) -> list[dict[str, Any]]:
    return [
        {"first": "ab"[place % 2], "vote": place // 2, "choice": choice, "probability": probability}
        for place, choice in enumerate(choices)
    ]


SAID = [verdicts("A", "A"), verdicts("A", "B"), verdicts(None, None), verdicts("tie", "tie"), verdicts("B", None)]
CHOSEN = ["A", "tie", "tie", "tie", "B"]
VOTES = [(0, "A", "ann", "b"), (0, "B", "bob", "a"), (1, "B", "ann", "a"), (4, "tie", "ann", "b")]


def made(folder: Path, headline: str | None = "judge", kl: bool = True, people: bool = True) -> Path:
    """A comparison folder as the stage leaves it: a reward model, a language model and people on five pairs."""
    prompts = [Prompt(messages=(Message("user", text),), group="g", extra={"tags": ["short"]}) for text in PROMPTS]
    rows = zip(PROMPTS, TUNED, prompts, strict=True)
    a = [
        Answer(str(i), f"Be brief.\n\n\n{p}", "", t, 3, True, 0.5 if kl else None, prompt_record=q, tags=("short",))
        for i, (p, t, q) in enumerate(rows)
    ]
    b = [Answer(str(i), answer.prompt, "", BASE[i]) for i, answer in enumerate(a)]
    answers = {"a": a, "b": b}
    pairs = paired(answers, "a", "b", "Be brief.")
    columns = {p.id: (p.id, p.instruction, p.context, p.response_a, p.response_b) for p in pairs}
    heard = [
        Judgment(*columns[str(i)], choice, 1.0, "gpt", "Because +1.", {"verdicts": listed})
        for i, (choice, listed) in enumerate(zip(CHOSEN, SAID, strict=True))
    ]
    voted = [
        Judgment(*columns[str(i)], choice, 1.0, "people", "", {"annotator": who, "first": first, "strength": 2})
        for i, choice, who, first in VOTES
    ]
    opinions = [by_scores("judge", SCORES, answers, "Be brief.", compare.SIDES)]
    opinions.append(JudgeResults("gpt", "language_model", {A_B: called(heard, "tuned", "base")}))
    if people:
        opinions.append(JudgeResults("people", "people", {A_B: called(voted, "tuned", "base")}))
    if headline is None:
        opinions = []
    judgments, metrics = verdict(answers, opinions, headline, compare.SIDES)
    write(judgments, folder / "judgments.jsonl")
    files.write_json(folder / "metrics.json", metrics)
    files.write_jsonl(folder / "answers.jsonl", compare.rows(answers))
    return folder


def test_comparator_by_hand(tmp_path: Path) -> None:
    document = llm_comparator.convert(exports.read(made(tmp_path)))
    assert [model["name"] for model in document["models"]] == ["tuned", "base"]
    assert document["metadata"]["custom_fields_schema"] == [
        {"name": "id", "type": "string"},
        {"name": "length", "type": "per_model_number"},
        {"name": "kl", "type": "number"},
        {"name": "choice of judge", "type": "category"},
        {"name": "choice of gpt", "type": "category"},
        {"name": "choice of people", "type": "category"},
        {"name": "judge", "type": "per_rating_string"},
        {"name": "annotator", "type": "per_rating_string"},
    ]
    first, second, third, _, last = document["examples"]
    sigma = 1 / (1 + np.exp(-1))
    assert first["score"] == pytest.approx(3 * (sigma - 0.5))
    assert second["score"] == pytest.approx(-first["score"])
    assert third["score"] == 0
    assert (first["tags"], first["custom_fields"]["length"]) == (["short"], [2, 2])  # words: b has no tokens
    ratings = last["individual_rater_scores"]
    assert [(r["custom_fields"]["judge"], r["score"], r["rating_label"], r["is_flipped"]) for r in ratings] == [
        ("judge", 0.0, "same", False),
        ("gpt", -1.5, "B is better", False),
        ("gpt", None, "unparsable", True),
        ("people", 0.0, "same", True),
    ]  # fmt: skip
    assert first["custom_fields"]["choice of people"] == "divided"
    assert third["custom_fields"]["choice of people"] == "not asked"
    assert third["custom_fields"]["choice of gpt"] == "unparsable"
    assert second["individual_rater_scores"][1]["rationale"] == ""  # says A, the judgment is a tie
    assert first["individual_rater_scores"][1]["rationale"] == "Because +1."


def test_comparator_scores_by_the_headline_judge(tmp_path: Path) -> None:
    document = llm_comparator.convert(exports.read(made(tmp_path, "gpt")))
    assert [example["score"] for example in document["examples"]] == [1.5, 0.0, None, 0.0, -1.5]
    document = llm_comparator.convert(exports.read(made(tmp_path, "people")))
    assert [example["score"] for example in document["examples"]] == [0.0, -1.5, None, None, 0.0]
    document = llm_comparator.convert(exports.read(made(tmp_path, None, kl=False)))
    assert [example["score"] for example in document["examples"]] == [None] * 5
    assert "kl" not in [field["name"] for field in document["metadata"]["custom_fields_schema"]]


def test_comparator_scores_each_verdict_for_a(tmp_path: Path) -> None:
    """Whichever answer stood first; the application itself turns nothing."""
    second = llm_comparator.convert(exports.read(made(tmp_path)))["examples"][1]
    by = [(rating["custom_fields"]["judge"], rating) for rating in second["individual_rater_scores"]]
    assert [(r["score"], r["rating_label"], r["is_flipped"]) for name, r in by if name == "gpt"] == [
        (1.5, "A is better", False),
        (-1.5, "B is better", True),
    ]


def test_where_a_won_everything_the_application_keeps_its_scale(tmp_path: Path) -> None:
    comparison = exports.read(made(tmp_path, "gpt", people=False))
    for judgment in comparison.judgments:
        judgment.extra["verdicts"] = verdicts("A", "A")  # type: ignore[index]
        judgment.extra.pop("score_a", None)  # type: ignore[attr-defined]
    document = llm_comparator.convert(comparison)
    assert [example["score"] for example in document["examples"]] == [1.5] * 5
    assert {rating["score"] for example in document["examples"] for rating in example["individual_rater_scores"]} == {
        0.99
    }


def test_every_declared_field_is_in_every_example(tmp_path: Path) -> None:
    document = llm_comparator.convert(exports.read(made(tmp_path)))
    schema = document["metadata"]["custom_fields_schema"]
    rating = {field["name"] for field in schema if field["type"].startswith("per_rating")}
    for example in document["examples"]:
        assert example["custom_fields"].keys() == {field["name"] for field in schema} - rating
        assert all(row["custom_fields"].keys() == rating for row in example["individual_rater_scores"])


def test_alpaca_evals_win_rate_is_that_of_metrics(tmp_path: Path) -> None:
    comparison = exports.read(made(tmp_path))
    rows = alpaca_eval.convert(comparison)
    for name in ("judge", "people"):
        preferences = [row["preference"] for row in rows if row["annotator"] == name]
        assert np.mean(preferences) - 1 == pytest.approx(
            {"judge": comparison.metrics["judges"]["judge"]["win_rate"], "people": (0.5 + 0 + 0.5) / 3}[name]
        )
    assert [row["preference"] for row in rows if row["annotator"] == "gpt"] == [2, 1.5, None, 1.5, 1]
    assert (rows[0]["generator_1"], rows[0]["output_1"]) == ("base", "A dog.")
    assert (rows[0]["generator_2"], rows[0]["output_2"]) == ("tuned", "The cat.")
    assert rows[0]["instruction"] == "Be brief.\n\n\nWhy?"


def test_judged_pairs_are_preferences_to_train_on(tmp_path: Path) -> None:
    preferences = judged_preferences.convert(exports.read(made(tmp_path, "gpt")))
    assert (len(preferences.rows), preferences.identical, preferences.unparsable) == (3, 1, 1)  # of five judgments
    files.write_jsonl(tmp_path / "p.jsonl", preferences.rows)
    pairs = datasets.load_preferences(tmp_path / "p.jsonl")
    chosen = [None if pair.choice == "tie" else pair.chosen for pair in pairs]
    assert chosen == ["The cat.", None, "base 5"]
    assert pairs[0].prompt.messages == (Message("user", "Why?"),)
    assert (pairs[0].prompt.group, pairs[0].annotator, pairs[0].id) == ("g", "gpt", "0")
    for pair in pairs:
        assert pair.extra["model_0"] == ("tuned" if pair.candidate_0 in TUNED else "base")


def test_position_says_nothing_and_is_where_people_saw_it(tmp_path: Path) -> None:
    preferences = judged_preferences.convert(exports.read(made(tmp_path, "people")))
    assert [(row["candidate_0"], row["choice"], row["annotator"], row["strength"]) for row in preferences.rows] == [
        ("A dog.", 1, "ann", 2.0),
        ("The cat.", 1, "bob", 2.0),
        ("=1+1", 1, "ann", 2.0),
        ("base 5", "tie", "ann", 2.0),
    ]
    a = [Answer(str(i), f"p{i}", "", f"a{i}") for i in range(2000)]
    b = [Answer(str(i), f"p{i}", "", f"b{i}") for i in range(2000)]
    opinion = by_scores("judge", {"a": np.ones(2000), "b": np.zeros(2000)}, {"a": a, "b": b}, None, compare.SIDES)
    rows = {row["id"]: row for row in compare.rows({"a": a, "b": b})}
    metrics = {
        "headline": "judge",
        "sides": [{"key": "a", "name": "tuned"}, {"key": "b", "name": "base"}],
        "judges": {},
    }
    many = judged_preferences.convert(exports.Comparison("x", metrics, rows, opinion.judgments[A_B])).rows
    assert sum(row["choice"] == 0 for row in many) == pytest.approx(1000, abs=90)


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "\0=1", "\uff1d1"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert judgment_table.guarded(text) == f"'{text}"
    assert judgment_table.guarded(f"a{text}") == f"a{text}"
    assert [judgment_table.unguarded(str(judgment_table.guarded(cell))) for cell in (text, f"'{text}", "'x")] == [
        text,
        f"'{text}",
        "'x",
    ]
    assert judgment_table.guarded(-1.5) == -1.5


def test_hostile_texts_in_a_table_are_whole_and_no_formulas(tmp_path: Path) -> None:
    """Every cell begins with nothing that a spreadsheet runs, and is the text itself, or that after an apostrophe."""
    texts = [*HOSTILE, '=HYPERLINK("https://evil.example")', "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", 'a,\n"b"\r\n=c']
    rows = [
        Judgment(str(i), text, text, text, text, "A", 1.0, text, text, {"note": text}) for i, text in enumerate(texts)
    ]
    (tmp_path / "x.csv").write_bytes(judgment_table.convert(rows).encode())
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(texts)
    for row, text in zip(read, texts, strict=True):
        for column in ("context", "response_a", "explanation", "judge", "note"):
            assert row[column] in (text, f"'{text}")
            assert not row[column].startswith(judgment_table.FORMULA)


def test_a_table_holds_what_the_judgments_hold(tmp_path: Path) -> None:
    comparison = exports.read(made(tmp_path))
    rows = list(csv.DictReader(judgment_table.convert(comparison.judgments).splitlines(keepends=True)))
    assert len(rows) == len(comparison.judgments) == 5 + 5 + 4
    assert rows[1]["response_a"] == "'=1+1"
    assert [row["choice"] for row in rows if row["judge"] == "gpt"] == ["A", "tie", "", "tie", "B"]  # none parsed
    assert float(rows[0]["score_a"]) == 1.0


def test_written_beside_the_comparison_without_judging_again(tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in made(tmp_path).iterdir()}
    lines = exports.write(tmp_path, list(exports.FORMATS))
    assert {path.name for path in tmp_path.iterdir()} - before.keys() == {
        "comparator.json", "annotations.json", "preferences.jsonl", "judgments.csv",
    }  # fmt: skip
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    assert lines[2].endswith(
        "4 preferences by judge, 2 of them ties; left out: 1 pairs of equal answers, 0 verdicts that could not be "
        "parsed"
    )


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--write excel: is not a format; the formats are comparator, alpaca"):
        exports.write(made(tmp_path), ["excel"])
    with pytest.raises(
        PlatformError,
        match=r"is not a finished comparison: metrics\.json and judgments\.jsonl and answers\.jsonl missing",
    ):
        exports.write(tmp_path / "nothing", ["csv"])


FONTS = re.compile(rb"<link href=\"https://fonts\.googleapis\.com[^>]*>")
"""The only thing that the application fetches from elsewhere; the tests leave it out."""
WORDS = [
    *HOSTILE,
    "",
    " ",
    "plain words",
    "\U0001f468‍\U0001f469‍\U0001f467",
    "مرحبا",
    "\ud7ff\ue000",
    "x" * 3000,
    "a\0b",
]


def generated(seed: int, folder: Path) -> tuple[int, Path]:
    """A comparison of a few random rows: ties, nulls, empty, hostile and foreign texts; how many rows it has."""
    chance = random.Random(seed)
    rows = chance.choice([0, 1, 2, 3, 7])
    texts = {side: [chance.choice(WORDS) for _ in range(rows)] for side in ("a", "b", "p", "tag", "why")}
    kl = chance.random() < 0.5
    answers: dict[str, list[Answer]] = {
        side: [
            Answer(f"{i}{chance.choice(WORDS)}", texts["p"][i], "", texts[side][i], kl=0.5 if kl else None,
                   tags=(texts["tag"][i],) * (i % 3))
            for i in range(rows)
        ]
        for side in ("a", "b")
    }  # fmt: skip
    judgments = []
    judges = chance.sample(["judge", "gpt", "people"], chance.choice([0, 1, 3]))
    for name in judges:
        for i, answer in enumerate(answers["a"]):
            choice = chance.choice(["A", "B", "tie"]) if seed % 5 else "A"
            extra: dict[str, Any] = {"model_a": "tuned", "model_b": "base"}
            if name == "gpt":
                choices = [chance.choice(["A", "B", "tie", None]) if seed % 5 else "A" for _ in range(4)]
                extra["verdicts"] = verdicts(*choices, probability=chance.choice([None, 0.25]) if seed % 5 else None)
            if name == "people":
                extra |= {"annotator": chance.choice(WORDS), "first": chance.choice("ab")}
            if name == "judge":
                extra |= {"score_a": 1.0, "score_b": 0.0}
            text = (answer.id, "", answer.prompt, answer.text, answers["b"][i].text)
            judgments.append(Judgment(*text, choice, 1.0, name, texts["why"][i], extra))  # type: ignore[arg-type]
    metrics = {
        "headline": judges[0] if judges else None,
        "judges": dict.fromkeys(judges),
        "sides": [{"key": "a", "name": "tuned"}, {"key": "b", "name": "base"}],
        "length": {"unit": "words"},
    }
    joined = {"a": answers["a"], "b": answers["b"]}
    rows_by_id = {row["id"]: row for row in compare.rows(joined)}
    path = folder / f"{seed}.json"
    files.write_json(path, llm_comparator.convert(exports.Comparison(f"set {seed}", metrics, rows_by_id, judgments)))
    return rows, path


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The application and a folder of result sets, at one address of this computer."""
    if not BUNDLE.exists():
        pytest.skip("the page of LLM Comparator is not there: make acceptance sets it up in .venv/llm_comparator")
    for file in BUNDLE.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(BUNDLE)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(FONTS.sub(b"", file.read_bytes()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()
    server.server_close()


def opened(page: Any, origin: str, path: Path, rows: int) -> None:
    """Open a result set in the application, and see its table."""
    page.goto(f"{origin}/index.html?results_path={origin}/{path.name}")
    page.get_by_text(f"Loaded the dataset of {rows} examples.").wait_for()
    shown = page.locator("comparator-example-table tbody tr").count()
    assert shown >= rows, (path, shown)


@pytest.mark.acceptance
@pytest.mark.parametrize("seeds", [range(50), pytest.param(range(50, 200), marks=pytest.mark.slow)], ids=str)
def test_llm_comparator_opens_every_result_set(
    served: tuple[str, Path],
    chromium: Any,  # noqa: F811
    seeds: range,
) -> None:
    origin, folder = served
    with visit(chromium, origin) as page:
        for seed in seeds:
            rows, path = generated(seed, folder)
            opened(page, origin, path, rows)
            assert page.evaluate("window.hostile") is None, path


def test_llm_comparator_opens_a_real_comparison(served: tuple[str, Path], chromium: Any) -> None:  # noqa: F811
    origin, folder = served
    exports.write(made(folder / "comparison"), ["comparator"])
    (folder / "one.json").write_bytes((folder / "comparison/comparator.json").read_bytes())
    with visit(chromium, origin) as page:
        opened(page, origin, folder / "one.json", 5)
    assert json.loads((folder / "one.json").read_text())["metadata"]["source_path"] == "comparison"
