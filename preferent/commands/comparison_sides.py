"""The sides of a comparison, as a command line names them: runs, models and files of answers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preferent.config import recipe
from preferent.config.recipe import Recipe
from preferent.data.formats.file_opening import is_pipe
from preferent.errors import PlatformError, UsageError
from preferent.pipelines import finished_run
from preferent.runs.directory import RunDirectory, StageDirectory

FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")


@dataclass(frozen=True, slots=True)
class ComparisonSide:
    """A side; `place` is the folder of the run, the reference of the model, or the file."""

    name: str
    kind: Literal["run", "model", "file"]
    place: str

    @property
    def folder(self) -> Path:
        return Path(self.place)

    def recipe(self) -> Recipe:
        """Return the recipe of the run."""
        return recipe.load(RunDirectory(self.folder).recipe)[0]

    def model(self) -> str:
        """Return the reference of the model that answers; for a run, its tuned model."""
        return str(finished_run.of(self.folder).tuned) if self.kind == "run" else self.place

    def answers(self) -> Path:
        """Return the path of the answers that exist: the file, or those of the run to its test prompts."""
        if self.kind == "file":
            return self.folder
        path = RunDirectory(self.folder).predictions("tuned")
        if not path.exists():
            raise PlatformError(
                f"{path}: does not exist yet; finish the run, or name prompts to answer: --prompts FILE"
            )
        return path


def of(words: Sequence[str], names: Sequence[str] = ()) -> list[ComparisonSide]:
    """Return the sides that the words of a command line name; no two have the same name."""
    if names and len(names) != len(words):
        raise UsageError(f"--names {','.join(names)}: names {len(names)} sides; there are {len(words)}")
    kinds = [_kind(word) for word in words]
    wanted = list(names) or [_name(word, kind) for word, kind in zip(words, kinds, strict=True)]
    for name in wanted:
        if not re.fullmatch(r"[\w-]+", name):
            raise UsageError(f"--names {name}: a name is made of letters, digits, _ and -")
    if names and len(set(names)) < len(names):
        raise UsageError(f"--names {','.join(names)}: two sides have the same name")
    return [ComparisonSide(name, kind, word) for name, kind, word in zip(_distinct(wanted), kinds, words, strict=True)]


def _kind(word: str) -> Literal["run", "model", "file"]:
    path = Path(word)
    if RunDirectory(path).is_run():
        return "run"
    if path.is_file() or is_pipe(word) or StageDirectory(path).answers.is_file():
        return "file"
    if path.is_dir():
        if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
            return "model"
        raise UsageError(f"{word}: is neither a run (recipe.yaml) nor a model (config.json) nor answers (text.jsonl)")
    beside = "/" in word and path.parent.is_dir()  # a hub id has no folder of its owner here
    if path.suffix in FILES or word.startswith((".", "/")) or beside or word.count("/") > 1:
        raise PlatformError(f"{word}: no such file or folder")
    return "model"


def _name(word: str, kind: str) -> str:
    """Return the name of a side: that of its run, model or file."""
    path = Path(word)
    if kind == "file" and is_pipe(word):
        return re.sub(r"\W+", "", path.name) or "stdin"
    if kind == "file" and path.is_file():
        path = (
            path.parent if path.name == StageDirectory(Path()).answers.name else path.with_name(path.name.split(".")[0])
        )
    if kind == "model" and path.name == "model":
        path = path.parent
    return re.sub(r"[^\w-]+", "-", (path.resolve() if path.exists() else path).name).strip("-") or "side"


def _distinct(names: Iterable[str]) -> list[str]:
    """Return the names, with a number at the end of each one that occurred before."""
    taken: list[str] = []
    for name in names:
        number = 2
        free = name
        while free in taken:
            free, number = f"{name}-{number}", number + 1
        taken.append(free)
    return taken
