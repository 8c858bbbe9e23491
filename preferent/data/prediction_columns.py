"""The columns of prediction files: their usual names, and the names that the caller gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
COLUMN_NAMES = {
    "id": ("id", "uid", "question_id"),
    "prompt": ("prompt", "input_text", "instruction", "question"),
    "answer": ("answer", "prediction", "output", "response", "completion", "output_text"),
    "reference": ("reference", "target", "ground_truth"),
}
"""Usual names of the columns; the first that a row has is taken."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns where they are not as in `COLUMN_NAMES`; each of `tags` is a column to slice by.

    A name is used for the files whose first row has it.
    """

    id: str | None = None
    prompt: str | None = None
    answer: str | None = None
    reference: str | None = None
    tags: tuple[str, ...] = ()

    def among(self, row: Row) -> "Columns":
        """Return the names that a row has."""
        names = {name: column for name in COLUMN_NAMES if (column := getattr(self, name)) in row}
        return Columns(**names, tags=tuple(column for column in self.tags if column in row))

    def missing(self, rows: Sequence[Row]) -> list[str]:
        """Return the names that no row has."""
        columns = [*(getattr(self, name) for name in COLUMN_NAMES), *self.tags]
        return [column for column in columns if column is not None and not any(column in row for row in rows)]
