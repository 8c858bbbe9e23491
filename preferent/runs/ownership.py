"""What is ours in a folder: nothing else in it is removed, and a folder of something else is not written to.

A stage names the files that it writes in its `stage.json` before they exist, as patterns relative to its folder.
"""

import fnmatch
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from preferent import files, ranks
from preferent.config import run_schema
from preferent.errors import PreferentError, UsageError
from preferent.runs.directory import ComparisonDirectory, DataDirectory, LabelDirectory, RunDirectory, StageDirectory

Kind = Literal["stage", "run", "labels"]

HERE = StageDirectory(Path())
MODEL = (
    *("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "README.md"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*"),
)
"""The files of a model folder, without regard to case."""

BASE = (HERE.description.name, HERE.done.name)
TRAINING = (
    *(HERE.metrics.name, HERE.timings.name, f"{HERE.tensorboard}/events.out.tfevents.*"),
    *(f"{folder}/step-*/{name}" for folder in (HERE.checkpoints, HERE.best) for name in ("*.safetensors", "*.json")),
    *(f"{HERE.model}/{name}" for name in MODEL),
)
SAMPLING = (f"{HERE.rollouts}/*.safetensors", str(HERE.samples), HERE.score.name)
OF_DATA, OF_COMPARISON = DataDirectory(Path()), ComparisonDirectory(Path())
PATTERNS: dict[str, tuple[str, ...]] = {
    "scratch": MODEL,
    "data": (
        *(f"{kind}/*.jsonl" for kind in ("prompt", "preference")),
        *(OF_DATA.counts.name, OF_DATA.dropped.name, str(OF_DATA.remote_index)),
        f"{OF_DATA.remote}/{'[0-9a-f]' * 12}-*",
    ),
    "sft": TRAINING,
    "reward": (*TRAINING, HERE.quality.name, HERE.mistakes.name, HERE.initial_answers.name),
    "ppo": (*TRAINING, *SAMPLING),
    "dpo": TRAINING,
    "rejection": (*TRAINING, *SAMPLING),
    "infer": (HERE.answers.name, f"{HERE.parts}/*.json"),
    "compare": tuple(
        path.name
        for path in (OF_COMPARISON.judgments, OF_COMPARISON.metrics, OF_COMPARISON.answers, OF_COMPARISON.gold)
    ),
}
"""The files that each stage writes besides `stage.json` and `DONE`: also what a stage of 0.1.0 owns, whose `stage.json`
has no list."""

FIRST = {HERE.description.name, RunDirectory(Path()).index.name, RunDirectory(Path()).recipe.name}
"""The files that are written first."""

MARKS: dict[Kind, str] = {
    "stage": HERE.description.name,
    "run": f"{RunDirectory(Path()).recipe} or {RunDirectory(Path()).index} of ours",
    "labels": f"{LabelDirectory(Path()).database} or {LabelDirectory(Path()).thumbs_database}",
}
"""What tells each kind of folder."""

TRAINING_LABELS = RunDirectory(Path()).training_labels.name

WHOLE = (str(HERE.model), f"{HERE.checkpoints}/step-*", f"{HERE.best}/step-*")
"""The folders that are written under a temporary name and renamed."""

TEMPORARY = re.compile(r"\.(.+)\.tmp-\d+")


def owned(stage: str) -> list[str]:
    """Return the patterns of the files that a stage writes."""
    return [*BASE, *PATTERNS[stage]]


def present(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Yield the files in a folder that match the patterns, links among them; never what lies behind a linked folder."""
    for parent, name in map(_split, patterns):
        for path in folder.glob(f"{parent}/*"):
            behind_a_link = any(above.is_symlink() for above in path.parents if folder in above.parents)
            is_file = path.is_symlink() or path.is_file()
            if is_file and not behind_a_link and fnmatch.fnmatchcase(path.name.lower(), name.lower()):
                yield path


@ranks.first_only
def remove(folder: Path, patterns: Sequence[str]) -> None:
    """Remove the files that match the patterns, and the sub-folders that are empty without them."""
    paths = list(present(folder, patterns))
    for path in paths:
        path.unlink(missing_ok=True)
    parents = {parent for path in paths for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        if not any(parent.iterdir()):
            parent.rmdir()


@ranks.first_only
def sweep(folder: Path, patterns: Sequence[str]) -> None:
    """Remove what a killed process left unfinished: temporary files and folders of exactly the names that we give."""
    for parent, name in map(_split, patterns):
        for path in folder.glob(f"{parent}/.{name}.tmp-*"):
            if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)
    for parent, name in map(_split, WHOLE):
        for path in folder.glob(f"{parent}/.{name}.tmp-*"):
            if TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


def _split(pattern: str) -> tuple[str, str]:
    """Return the folder and the name of a pattern."""
    return Path(pattern).parent.as_posix(), Path(pattern).name


def check(folder: Path, kind: Kind) -> None:
    """Refuse a folder that holds something else than a stage, a run, or labels, whichever is to be written there."""
    others = sorted(path.name for path in folder.iterdir() if not _passing(path)) if folder.is_dir() else []
    if others and not _is(folder, kind):
        raise UsageError(
            f"{folder}: is not empty and holds no {kind} of preferent (there is {_listed(others)}, but no "
            f"{MARKS[kind]}); nothing there was touched. Name a new folder with --out"
        )


def _is(folder: Path, kind: Kind) -> bool:
    """Return whether a folder holds what the kind says; labels lie in a run of their own answers, too."""
    if kind == "stage":
        return (folder / MARKS[kind]).is_file()
    return holds_run(folder) or (kind == "labels" and _holds_labels(folder))


def _holds_labels(folder: Path) -> bool:
    directory = LabelDirectory(folder)
    return directory.database.is_file() or directory.thumbs_database.is_file()


def _passing(path: Path) -> bool:
    """Return whether an entry does not count: our lock, something unfinished, the mark of a fresh volume, labels on
    training prompts."""
    temporary = TEMPORARY.fullmatch(path.name)
    if path.name in (".lock", "lost+found"):
        return path.is_dir() == (path.name == "lost+found")
    if temporary is not None:
        return temporary[1] in FIRST
    return path.name == TRAINING_LABELS and _holds_labels(path)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def holds_run(root: Path) -> bool:
    """Return whether a folder is a run's root: it has a `run.json` or a `recipe.yaml` that this package wrote."""
    from preferent.config import recipe  # slow to import, and help does not need it

    directory = RunDirectory(root)
    try:
        index = files.read_json(directory.index) if directory.index.is_file() else None
        if isinstance(index, dict) and {"schema", "stages"} <= set(index):
            return True
        values = recipe.read(directory.recipe) if directory.recipe.is_file() else None
    except PreferentError:
        return False
    return isinstance(values, dict) and run_schema.is_written(values)


def patterns_in(description: dict[str, Any]) -> list[str]:
    """Return the patterns that a `stage.json` lists; those of its stage where 0.1.0 wrote it."""
    listed = description.get("owns")
    return list(listed) if listed is not None else owned(description["stage"])
