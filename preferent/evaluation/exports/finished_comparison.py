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
        """Whose verdict stands first."""
        name: str | None = self.metrics["headline"]
        return name

    def name(self, side: str) -> str:
        """What a side is called."""
        return next(str(each["name"]) for each in self.metrics["sides"] if each["key"] == side)

    def by(self, judge: str | None) -> dict[str, list[Judgment]]:
        """What one judge said, by the pair's id; of people all who voted."""
        judgments: dict[str, list[Judgment]] = {}
        for judgment in self.judgments:
            if judgment.judge == judge:
                judgments.setdefault(judgment.id, []).append(judgment)
        return judgments

    def prompt(self, id: str, text: str) -> Prompt:
        """What was asked, as the data have it where that is known, else the text that the models were given."""
        recorded = self.rows[id]["asked"]
        prompt = None if recorded is None else row_reader.prompt_in(json.dumps(recorded))
        return Prompt(input_text=text, id=id) if prompt is None else prompt


def read(folder: Path) -> Comparison:
    """The comparison in a folder."""
    names = ("metrics.json", "judgments.jsonl", "answers.jsonl")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise PlatformError(f"{folder}: holds no finished comparison: there is no {' and no '.join(missing)} in it")
    metrics = files.read_json(folder / names[0])
    a_b = tuple(each["name"] for each in metrics["sides"][:2])
    judged = [judgment for judgment in judgments.read(folder / names[1]) if models(judgment) == a_b]
    rows = {row["id"]: row for row in files.read_jsonl(folder / names[2])}
    return Comparison(folder.resolve().name, metrics, rows, judged)


def models(judgment: Judgment) -> tuple[str, str]:
    """The names of the sides that a judgment is about."""
    return str(judgment.extra.get("model_a", "")), str(judgment.extra.get("model_b", ""))
