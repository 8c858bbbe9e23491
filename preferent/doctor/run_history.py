"""The files of a run, read once; a missing file is empty."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files
from preferent.config import run_schema, stage_graph
from preferent.data.tokenizer import tokenizer_files as tokenizer_folder
from preferent.doctor.findings import RELATIVE, Evidence
from preferent.errors import UsageError
from preferent.evaluation.comparison_types import ComparisonMetrics
from preferent.evaluation.quality_types import PartFigures, QualityFigures
from preferent.runs import metrics
from preferent.runs.directory import RunDirectory

LONG = 10
"""Steps from which on the beginning and the end of a curve can be told apart."""

OF_REWARDS = (RELATIVE.stage("reward").folder, RELATIVE.policy.score, RELATIVE.policy.rollouts)
"""Folders and files that a policy that learns directly from the preferences does not need."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """A figure of a `metrics.jsonl` by step; rows without it are left out."""

    file: str
    figure: str
    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    @property
    def long(self) -> bool:
        return len(self) >= LONG

    def at(self, place: int) -> Evidence:
        """Return the figure at one place."""
        step = int(self.steps[place])
        return Evidence(self.file, self.figure, float(self.values[place]), (step, step))

    def mean(self, part: slice) -> Evidence:
        """Return the mean over a part."""
        steps = self.steps[part]
        return Evidence(
            self.file, f"mean {self.figure}", float(self.values[part].mean()), (int(steps[0]), int(steps[-1]))
        )

    @property
    def first(self) -> slice:
        """The first tenth; it is short because the curve changes most there."""
        return slice(0, max(1, len(self) // 10))

    @property
    def last(self) -> slice:
        """The last quarter."""
        return slice(-max(1, len(self) // 4), None)

    @property
    def early(self) -> float:
        return float(self.values[self.first].mean())

    @property
    def late(self) -> float:
        return float(self.values[self.last].mean())


@dataclass(frozen=True)
class RunHistory:
    """The files of a run.

    `stages`, `curves` and `qualities` are `stage.json`, `metrics.jsonl` and `quality.json` by folder; `qualities` has
    every reward model that the run may have. `counts`, `score`, `verdict` and `samples` are the counts of the data, the
    normaliser of the scores, the figures of the comparison, and the decoded rollouts. `tokenizers` are those of policy
    and reward model. `chat` says whether the prompts are conversations, `missing` names the files that do not exist.
    """

    counts: Row
    stages: Mapping[str, Row]
    curves: Mapping[str, Sequence[Row]]
    qualities: Mapping[str, QualityFigures]
    score: Row
    verdict: ComparisonMetrics
    samples: Sequence[Row]
    tokenizers: Mapping[str, tokenizer_folder.TokenizerFiles]
    chat: bool
    missing: tuple[str, ...]

    def fields(self, folder: str) -> Row:
        """Return the recipe fields of a stage."""
        fields: Row = self.stages.get(folder, {}).get("fields", {})
        return fields

    def facts(self, folder: str) -> Row:
        """Return the facts that a stage recorded while it ran."""
        facts: Row = self.stages.get(folder, {}).get("facts", {})
        return facts

    def curve(self, folder: str, figure: str) -> Curve:
        """Return a figure of a folder's metrics by step."""
        rows = [row for row in self.curves[folder] if row.get(figure) is not None]
        steps, values = [row["step"] for row in rows], [float(row[figure]) for row in rows]
        file = RELATIVE.stage(folder).metrics.as_posix()
        return Curve(file, figure, np.array(steps, np.int64), np.array(values, np.float64))

    @property
    def direct(self) -> bool:
        """Whether the policy learned directly from the preferences."""
        return self.stages.get("policy", {}).get("stage") == "dpo"

    def held_out(self, folder: str) -> tuple[str, PartFigures | None]:
        """Return the part with the least used pairs, test or else validation, and the quality of a scorer on it."""
        quality = self.qualities.get(folder, {})
        if "test" in quality:
            return "test", quality["test"]
        return ("validation", quality["validation"]) if "validation" in quality else ("", None)


def read(root: Path) -> RunHistory:
    """Return the history of a run directory, finished or not."""
    if not root.is_dir():
        raise UsageError(f"{root}: no such run directory; make one with `preferent run RECIPE`")
    run = RunDirectory(root)
    scorers = (*stage_graph.members(["reward", *(path.name for path in run.entries())]), "judge")
    trained = {name: run.stage(name) for name in ("sft", *scorers, "policy")}
    history = RunHistory(
        counts=_object(run.counts),
        stages={name: run_schema.translated(_object(stage.description)) for name, stage in trained.items()},
        curves={name: metrics.read(stage.metrics) for name, stage in trained.items()},
        qualities={name: _object(trained[name].quality) for name in scorers},
        score=_object(run.policy.score),
        verdict=_object(run.comparison.metrics),
        samples=_lines(run.policy.samples),
        tokenizers=_tokenizers(run),
        chat=_chat(run.prompts("train")),
        missing=(),
    )
    expected = [run.counts, run.policy.score, run.comparison.metrics]
    expected += [stage.description for stage in trained.values()] + [stage.metrics for stage in trained.values()]
    expected += [*(trained[name].quality for name in scorers), run.policy.samples]
    missing = [path.relative_to(root) for path in expected if not path.exists()]
    if len(missing) == len(expected):
        raise UsageError(
            f"{root}: is not a run directory: it contains no file of a run; name the folder with policy/ and reward/"
        )
    if history.direct:
        missing = [path for path in missing if not any(path.is_relative_to(unused) for unused in OF_REWARDS)]
    return replace(history, missing=tuple(path.as_posix() for path in missing))


def _object(path: Path) -> Any:
    return files.read_json(path) if path.exists() else {}


def _lines(path: Path) -> Sequence[Row]:
    """Return the rows of a file to which a running stage may be appending."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("}\n")]


def _tokenizers(run: RunDirectory) -> dict[str, tokenizer_folder.TokenizerFiles]:
    """Return the tokenizers of the models that the run has made."""
    models = {name: run.stage(name).model for name in ("policy", "reward")}
    return {name: tokenizer_folder.read(model) for name, model in models.items() if (model / "tokenizer.json").exists()}


def _chat(path: Path) -> bool:
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as file:
        return '"messages"' in file.readline()
