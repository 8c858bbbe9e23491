"""Judgments on pairs of answers, and the file that holds them.

A judge turns pairs into judgments, one per pair, in order. Judgments are stored in the AutoSxS columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preferent import files
from preferent.data.formats import row_sources
from preferent.data.types import Judgment
from preferent.errors import DataError, PlatformError

COLUMNS = (
    "id",
    "inference_instruction",
    "inference_context",
    "response_a",
    "response_b",
    "choice",
    "confidence",
    "explanation",
    "judge",
)
CHOICES: Mapping[str, Literal["A", "B", "tie"]] = {
    "A": "A",
    "B": "B",
    "Model A": "A",
    "Model B": "B",
    "tie": "tie",
}


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers to one prompt; `instruction` and `context` are named as in AutoSxS."""

    id: str
    instruction: str
    context: str
    response_a: str
    response_b: str


def from_scores(
    pairs: Sequence[AnswerPair],
    scores_a: Sequence[float] | np.ndarray,
    scores_b: Sequence[float] | np.ndarray,
    judge: str,
) -> list[Judgment]:
    """Return the verdicts of a reward model, given its scores of both answers, [n] each.

    The higher score wins. The confidence is that of the Bradley-Terry model, sigma(|score_a - score_b|). Equal answers
    are a tie, whatever rounding did to their scores.
    """
    return [_judgment(pair, float(a), float(b), judge) for pair, a, b in zip(pairs, scores_a, scores_b, strict=True)]


def _judgment(pair: AnswerPair, score_a: float, score_b: float, judge: str) -> Judgment:
    if not (math.isfinite(score_a) and math.isfinite(score_b)):
        raise DataError(
            f"{judge}: the scores of pair {pair.id} are not finite: {score_a} and {score_b}; "
            "use another checkpoint of the reward model"
        )
    margin = 0.0 if pair.response_a == pair.response_b else score_a - score_b
    return Judgment(
        id=pair.id,
        inference_instruction=pair.instruction,
        inference_context=pair.context,
        response_a=pair.response_a,
        response_b=pair.response_b,
        choice="A" if margin > 0 else "B" if margin < 0 else "tie",
        confidence=1 / (1 + math.exp(-abs(margin))),
        judge=judge,
        extra={"score_a": score_a, "score_b": score_b},
    )


def write(judgments: Sequence[Judgment], path: Path) -> None:
    """Write judgments as JSONL, one per line: the AutoSxS columns, the judge, and what is in `extra`."""
    rows = [{name: getattr(judgment, name) for name in COLUMNS} | dict(judgment.extra) for judgment in judgments]
    files.write_jsonl(path, rows)


def read(path: Path) -> list[Judgment]:
    """Read the judgments in a JSONL file with AutoSxS columns; `judge` and `explanation` may be missing."""
    if not path.exists():
        raise PlatformError(f"{path}: no such file; name a file of judgments (JSON lines)")
    return [_parse(row, place) for place, row in row_sources.objects(str(path))]


def _parse(row: Mapping[str, Any], place: str) -> Judgment:
    try:
        values = {name: str(row[name]) for name in COLUMNS[:5]}
        return Judgment(
            **values,
            choice=CHOICES[row["choice"]],
            confidence=_confidence(row["confidence"]),
            judge=str(row.get("judge", "")),
            explanation=str(row.get("explanation", "")),
            extra={name: value for name, value in row.items() if name not in COLUMNS},
        )
    except (KeyError, TypeError, ValueError) as error:
        wanted = ", ".join(COLUMNS[:7])
        raise DataError(
            f"{place}: not a judgment ({error!r}); it needs {wanted}, and a choice of A, B or tie"
        ) from None


def _confidence(value: Any) -> float:
    confidence = float(value)
    if not 0 <= confidence <= 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    return confidence
