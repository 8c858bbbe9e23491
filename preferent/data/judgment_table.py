"""All judgments as a CSV file in which no spreadsheet takes a cell for a formula."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from preferent.data import judgment_outcomes
from preferent.data.types import Judgment

COLUMNS = {
    "id": "id",
    "instruction": "inference_instruction",
    "context": "inference_context",
    "response_a": "response_a",
    "response_b": "response_b",
    "choice": "choice",
    "confidence": "confidence",
    "explanation": "explanation",
    "judge": "judge",
}
EXTRA = ("model_a", "model_b", "score_a", "score_b", "annotator", "both_bad", "strength", "note")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that begin a formula or a command in spreadsheets, or that they skip before one (OWASP, CSV injection)."""


def convert(judgments: Sequence[Judgment]) -> str:
    """Return the text of the file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow([*COLUMNS, *EXTRA])
    for judgment in judgments:
        row = _row(judgment)
        writer.writerow([guarded(row[column]) for column in (*COLUMNS, *EXTRA)])
    return text.getvalue()


def _row(judgment: Judgment) -> Mapping[str, object]:
    cells = {column: getattr(judgment, name) for column, name in COLUMNS.items()}
    cells["choice"] = judgment.choice if judgment_outcomes.parsed(judgment) else ""
    return cells | {column: judgment.extra.get(column) for column in EXTRA}


def guarded(cell: object) -> object:
    """Return a cell with an apostrophe before a text that a spreadsheet would take for a formula.

    A text of apostrophes followed by a formula gets one more, so `unguarded` restores every text.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip("'").startswith(FORMULA) else cell


def unguarded(cell: str) -> str:
    """Return the text from which `guarded` made a cell."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def read(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the file by the names of a judgment's fields, with its original texts."""
    texts = {column: unguarded(cell) if isinstance(cell, str) else cell for column, cell in cells.items()}
    return {COLUMNS.get(column, column): cell for column, cell in texts.items()}
