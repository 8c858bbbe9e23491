"""A finished comparison, read from its folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent import files
from preferent.data import judgments
from preferent.data.formats import row_reader
from preferent.data.types import Judgment, Prompt
from preferent.errors import PlatformError
from preferent.runs.directory import ComparisonDirectory

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of a comparison, its rows by id (`answers.jsonl`), and all judgments of a against b."""

    source: str
    metrics: Row
    rows: Mapping[str, Row]
    judgments: Sequence[Judgment]

    @property
    def headline(self) -> str | None:
        """The judge of the headline verdict."""
        name: str | None = self.metrics["headline"]
        return name

    def name(self, side: str) -> str:
        """Return the name of a side, given its key."""
        return next(str(entry["name"]) for entry in self.metrics["sides"] if entry["key"] == side)

    def judgments_of(self, judge: str | None) -> dict[str, list[Judgment]]:
        """Return the judgments of one judge by the pair's id; those of all voters for `people`."""
        judgments: dict[str, list[Judgment]] = {}
        for judgment in self.judgments:
            if judgment.judge == judge:
                judgments.setdefault(judgment.id, []).append(judgment)
        return judgments

    def prompt(self, id: str, text: str) -> Prompt:
        """Return the prompt as the data have it, or the text that the models read if the data are not known."""
        recorded = self.rows[id]["asked"]
        prompt = None if recorded is None else row_reader.prompt_in(json.dumps(recorded))
        return Prompt(input_text=text, id=id) if prompt is None else prompt


def read(folder: Path) -> Comparison:
    """Return the comparison in a folder; raise `PlatformError` if it is not finished."""
    paths = ComparisonDirectory(folder)
    missing = [path.name for path in (paths.metrics, paths.judgments, paths.answers) if not path.exists()]
    if missing:
        raise PlatformError(f"{folder}: is not a finished comparison: {' and '.join(missing)} missing")
    metrics = files.read_json(paths.metrics)
    a_b = tuple(side["name"] for side in metrics["sides"][:2])
    judged = [judgment for judgment in judgments.read(paths.judgments) if models(judgment) == a_b]
    rows = {row["id"]: row for row in files.read_jsonl(paths.answers)}
    return Comparison(folder.resolve().name, metrics, rows, judged)


def models(judgment: Judgment) -> tuple[str, str]:
    """Return the names of the sides that a judgment is about."""
    return str(judgment.extra.get("model_a", "")), str(judgment.extra.get("model_b", ""))
