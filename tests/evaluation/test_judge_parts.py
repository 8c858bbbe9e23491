"""Verdicts from scores, and their file."""

import json
import math
from pathlib import Path

import pytest

from preferent.data import judgments
from preferent.errors import DataError, PlatformError

PAIRS = [
    judgments.AnswerPair("1", "Be brief.", "Why?", "Because.", "No."),
    judgments.AnswerPair("2", "Be brief.", "Who?", "Me.", "You."),
    judgments.AnswerPair("3", "Be brief.", "What?", "This.", "This."),
    judgments.AnswerPair("4", "", "When? \u2028 <b>", "Now.", "Then."),
]


def test_the_higher_score_wins_with_bradley_terrys_confidence() -> None:
    verdicts = judgments.from_scores(PAIRS, [2.0, -1.0, 1.0, 0.5], [1.0, 2.0, 1.5, 0.5], "judge")
    assert [v.choice for v in verdicts] == ["A", "B", "tie", "tie"]
    assert [v.confidence for v in verdicts] == [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3)), 0.5, 0.5]
    assert verdicts[1].inference_context == "Who?"
    assert verdicts[1].extra == {"score_a": -1.0, "score_b": 2.0}
    assert {v.judge for v in verdicts} == {"judge"}


def test_a_wide_margin_is_no_overflow() -> None:
    assert judgments.from_scores(PAIRS[:1], [-1e6], [1e6], "judge")[0].confidence == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="pair 2"):
        judgments.from_scores(PAIRS[:2], [0, bad], [0, 1], "judge")


def test_unequal_counts_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="zip"):
        judgments.from_scores(PAIRS, [1.0], [1.0], "judge")


def test_the_file_holds_autosxs_columns_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    verdicts = judgments.from_scores(PAIRS, [2.0, -1.0, 1.0, 0.5], [1.0, 2.0, 1.5, 0.5], "judge")
    judgments.write(verdicts, path)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 5
    assert tuple(json.loads(lines[0])) == (*judgments.COLUMNS, "score_a", "score_b")
    assert judgments.read(path) == verdicts


def test_autosxs_files_are_read_as_they_are(tmp_path: Path) -> None:
    row = dict.fromkeys(judgments.COLUMNS[:5], "x") | {"choice": "Model B", "confidence": 0.7}
    (tmp_path / "judgments.jsonl").write_text(json.dumps(row) + "\n")
    assert judgments.read(tmp_path / "judgments.jsonl")[0].choice == "B"


@pytest.mark.parametrize("change", [{"choice": "C"}, {"confidence": "high"}, {"choice": None}, {"choice": ["A"]}])
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    good = dict.fromkeys(judgments.COLUMNS[:5], "x") | {"choice": "A", "confidence": 0.7}
    path = tmp_path / "judgments.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
    with pytest.raises(DataError, match=r"judgments\.jsonl:2: "):
        judgments.read(path)
    path.write_text(f"{json.dumps(good)}\n{{\n")
    with pytest.raises(DataError, match=r"judgments\.jsonl:2: malformed JSON"):
        judgments.read(path)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    with pytest.raises(PlatformError, match=r"judgments\.jsonl: no such file"):
        judgments.read(path)
    good = dict.fromkeys(judgments.COLUMNS[:5], "x") | {"choice": "A", "confidence": 0.7}
    path.write_bytes(json.dumps(good).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"judgments\.jsonl:2: not UTF-8: byte 0xff at position 8"):
        judgments.read(path)
