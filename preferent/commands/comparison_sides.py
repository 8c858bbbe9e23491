"""A side of a comparison as somebody names it: a run, a model, or a file of answers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preferent.config import recipe
from preferent.config.recipe import Recipe
from preferent.errors import PlatformError, UsageError
from preferent.pipelines import finished_run

FILES = (".json", ".jsonl", ".csv", ".tsv", ".gz")


@dataclass(frozen=True, slots=True)
class ComparisonSide:
    """What answers, or has answered: `place` is the run's folder, the model's reference, or the file."""

    name: str
    kind: Literal["run", "model", "file"]
    place: str

    @property
    def folder(self) -> Path:
        return Path(self.place)

    def recipe(self) -> Recipe:
        """Return the recipe of the run."""
        return recipe.load(self.folder / "recipe.yaml")[0]

    def model(self) -> str:
        """Return the model that answers; of a run the tuned one."""
        return str(finished_run.of(self.folder).tuned) if self.kind == "run" else self.place

    def answers(self) -> Path:
        """Return the answers of base and tuned model; `item` keys their randomness, which is the same for both."""
        if self.kind == "file":
            return self.folder
        path = self.folder / "predictions/tuned/text.jsonl"
        if not path.exists():
            raise PlatformError(
                f"{path}: no answers there yet; finish the run, or name prompts to be answered: --prompts FILE"
            )
        return path


def of(words: Sequence[str], names: Sequence[str] = ()) -> list[ComparisonSide]:
    """Return the sides that the words of a command line name, each with a name of its own."""
    if names and len(names) != len(words):
        raise UsageError(f"--names {','.join(names)}: names {len(names)} sides; there are {len(words)}")
    kinds = [_kind(word) for word in words]
    called = list(names) or [_name(word, kind) for word, kind in zip(words, kinds, strict=True)]
    for name in called:
        if not re.fullmatch(r"[\w-]+", name):
            raise UsageError(f"--names {name}: a name is made of letters, digits, _ and -")
    if names and len(set(names)) < len(names):
        raise UsageError(f"--names {','.join(names)}: two sides have the same name")
    return [
        ComparisonSide(name, kind, word) for name, kind, word in zip(_told_apart(called), kinds, words, strict=True)
    ]


def _kind(word: str) -> Literal["run", "model", "file"]:
    path = Path(word)
    if (path / "recipe.yaml").is_file():
        return "run"
    if path.is_file() or (path / "text.jsonl").is_file():
        return "file"
    if path.is_dir():
        if any((path / name).exists() for name in ("config.json", "adapter_config.json")):
            return "model"
        raise UsageError(f"{word}: is no run (recipe.yaml), no model (config.json) and no answers (text.jsonl)")
    if path.suffix in FILES or word.startswith((".", "/")):
        raise PlatformError(f"{word}: no such file or folder")
    return "model"


def _name(word: str, kind: str) -> str:
    """Return what to call a side: the run's, model's or file's own name."""
    path = Path(word)
    if kind == "file" and path.is_file():
        path = path.parent if path.name == "text.jsonl" else path.with_name(path.name.split(".")[0])
    if kind == "model" and path.name == "model":
        path = path.parent
    return re.sub(r"[^\w-]+", "-", (path.resolve() if path.exists() else path).name).strip("-") or "side"


def _told_apart(names: Iterable[str]) -> list[str]:
    """Return the names, the second of one name with its number."""
    found: list[str] = []
    for name in names:
        number = 2
        free = name
        while free in found:
            free, number = f"{name}-{number}", number + 1
        found.append(free)
    return found
