"""All judgments as a CSV file that a spreadsheet can open: no cell of it is taken for a formula."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from preferent.data import judgment_outcomes
from preferent.data.types import Judgment
from preferent.evaluation.exports.finished_comparison import Comparison

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
"""What a spreadsheet takes for the beginning of a formula or a command, or reads past to one (OWASP, CSV injection)."""


def made(comparison: Comparison) -> str:
    """The text of the file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow([*COLUMNS, *EXTRA])
    for judgment in comparison.judgments:
        row = _row(judgment)
        writer.writerow([guarded(row[column]) for column in (*COLUMNS, *EXTRA)])
    return text.getvalue()


def _row(judgment: Judgment) -> Mapping[str, object]:
    cells = {column: getattr(judgment, name) for column, name in COLUMNS.items()}
    cells["choice"] = judgment.choice if judgment_outcomes.parsed(judgment) else ""
    return cells | {column: judgment.extra.get(column) for column in EXTRA}


def guarded(cell: object) -> object:
    """A cell that is shown as it is: a text that could be taken for a formula begins with an apostrophe.

    So does one that begins so already, and therefore `unguarded` gives back every text.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip("'").startswith(FORMULA) else cell


def unguarded(cell: str) -> str:
    """The text that `guarded` made a cell of."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell


def read(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the file by the names of a judgment's fields, its texts as they were."""
    texts = {column: unguarded(cell) if isinstance(cell, str) else cell for column, cell in cells.items()}
    return {COLUMNS.get(column, column): cell for column, cell in texts.items()}
