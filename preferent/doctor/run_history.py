"""What the files of a run say, read once; a file that is not there says nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files
from preferent.config import run_schema, stage_graph
from preferent.data.tokenizer import tokenizer_files as tokenizer_folder
from preferent.doctor.findings import Evidence
from preferent.errors import DataError, PlatformError
from preferent.runs import metrics

LONG = 10
"""Steps from which on a curve has a beginning and an end that can be told apart."""

OF_REWARDS = ("reward/", "policy/score.json", "policy/rollouts/")
"""What a policy that learned from the preferences themselves does without."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """One number of a `metrics.jsonl` by step; rows without it are left out."""

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
        step = int(self.steps[place])
        return Evidence(self.file, self.figure, float(self.values[place]), (step, step))

    def mean(self, part: slice) -> Evidence:
        steps = self.steps[part]
        return Evidence(
            self.file, f"mean {self.figure}", float(self.values[part].mean()), (int(steps[0]), int(steps[-1]))
        )

    @property
    def first(self) -> slice:
        """The first tenth, short because most changes there."""
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
    """`stages`, `curves` and `qualities` are `stage.json`, `metrics.jsonl` and `quality.json` by folder, `qualities` of
    every reward model that the run may have; `counts`,
    `score`, `verdict` and `samples` the data's counts, the score's normaliser, the comparison's metrics, and the
    decoded rollouts; `tokenizers` those of policy and reward model; `chat` whether the prompts are conversations."""

    counts: Row
    stages: Mapping[str, Row]
    curves: Mapping[str, Sequence[Row]]
    qualities: Mapping[str, Row]
    score: Row
    verdict: Row
    samples: Sequence[Row]
    tokenizers: Mapping[str, tokenizer_folder.TokenizerFiles]
    chat: bool
    missing: tuple[str, ...]

    def fields(self, folder: str) -> Row:
        """The recipe fields that a stage was made with."""
        found: Row = self.stages.get(folder, {}).get("fields", {})
        return found

    def facts(self, folder: str) -> Row:
        """What a stage found out while it ran."""
        found: Row = self.stages.get(folder, {}).get("facts", {})
        return found

    def curve(self, folder: str, figure: str) -> Curve:
        rows = [row for row in self.curves[folder] if row.get(figure) is not None]
        steps, values = [row["step"] for row in rows], [float(row[figure]) for row in rows]
        return Curve(f"{folder}/metrics.jsonl", figure, np.array(steps, np.int64), np.array(values, np.float64))

    @property
    def direct(self) -> bool:
        """Whether the policy learned from the preferences themselves."""
        return self.stages.get("policy", {}).get("stage") == "dpo"

    def held_out(self, folder: str) -> tuple[str, Row]:
        """The quality of a scorer on the pairs least used before: test, else validation; and which these are."""
        quality = self.qualities.get(folder, {})
        part = next((name for name in ("test", "validation") if name in quality), "")
        return part, quality.get(part, {})


def read(root: Path) -> RunHistory:
    """The history of a run directory, finished or not."""
    if not root.is_dir():
        raise PlatformError(f"{root}: no such run directory; make one with `preferent run RECIPE`")
    files = {name: root / name for name in ("data/counts.json", "policy/score.json", "comparison/metrics.json")}
    scorers = (*stage_graph.members(["reward", *(path.name for path in root.iterdir())]), "judge")
    trained = ("sft", *scorers, "policy")
    stages = {name: root / name / "stage.json" for name in trained}
    qualities = {name: root / name / "quality.json" for name in scorers}
    samples = root / "policy" / "rollouts" / "samples.jsonl"
    curves = {name: root / name / "metrics.jsonl" for name in trained}
    expected = [*files.values(), *stages.values(), *curves.values(), *qualities.values(), samples]
    there = {path.relative_to(root).as_posix(): path.exists() for path in expected}
    if not any(there.values()):
        raise DataError(f"{root}: holds nothing that a run writes; name the folder that has policy/ and reward/ in it")
    counts, score, verdict = (_object(path) for path in files.values())
    found = RunHistory(
        counts=counts,
        stages={name: run_schema.translated(_object(path)) for name, path in stages.items()},
        curves={name: metrics.read(path) for name, path in curves.items()},
        qualities={name: _object(path) for name, path in qualities.items()},
        score=score,
        verdict=verdict,
        samples=_lines(samples),
        tokenizers={name: found for name in ("policy", "reward") if (found := _tokenizer(root, name)) is not None},
        chat=_chat(root / "data" / "prompt" / "train.jsonl"),
        missing=tuple(name for name, found in there.items() if not found),
    )
    expected_of_it = [name for name in found.missing if not (found.direct and name.startswith(OF_REWARDS))]
    return replace(found, missing=tuple(expected_of_it))


def _object(path: Path) -> Row:
    return files.read_json(path) if path.exists() else {}


def _lines(path: Path) -> Sequence[Row]:
    """The rows of a file to which a running stage may be appending."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("}\n")]


def _tokenizer(root: Path, name: str) -> tokenizer_folder.TokenizerFiles | None:
    """The tokenizer beside a model that the run made; None where there is no model yet."""
    folder = root / name / "model"
    return tokenizer_folder.read(folder) if (folder / "tokenizer.json").exists() else None


def _chat(path: Path) -> bool:
    if not path.exists():
        return False
    with open(path, encoding="utf-8") as file:
        return '"messages"' in file.readline()
