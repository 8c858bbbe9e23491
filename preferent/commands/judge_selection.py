"""The judges, as a command line names them: a reward model, people, language models here or at an endpoint."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferent.config.comparison_sections import RESERVED_JUDGES
from preferent.data.formats import file_opening
from preferent.errors import PlatformError, UsageError
from preferent.runs.directory import ComparisonDirectory

ENDPOINT = re.compile(r"(https?://[^#\s]+)#(\S+)")
FORMS = "a reward model's folder, people=FILE, URL#MODEL or local:MODEL"


@dataclass(frozen=True, slots=True)
class JudgeSelection:
    """The inputs of the stage (`judge`, `people`), and the entries of the recipe's `compare.judges`."""

    inputs: dict[str, Path] = field(default_factory=dict)
    judges: list[dict[str, Any]] = field(default_factory=list)


def of(words: Sequence[str], how: dict[str, Any]) -> JudgeSelection:
    """Return the judges that words name; `how` are the fields of every language model among them."""
    selection = JudgeSelection()
    for word in words:
        if endpoint := ENDPOINT.fullmatch(word):
            _add(selection, {"url": endpoint[1], "model": endpoint[2]} | how)
        elif word.startswith("local:") and word.removeprefix("local:"):
            _add(selection, {"model": word.removeprefix("local:")} | how)
        else:
            name, path = ("people", word.removeprefix("people=")) if word.startswith("people=") else ("judge", word)
            if name in selection.inputs:
                raise UsageError(f"--judge {word}: there can be one {'reward model' if name == 'judge' else name}")
            selection.inputs[name] = _existing(name, Path(path), word)
    if how and not selection.judges:
        raise UsageError(
            f"{', '.join(sorted(how))}: is for language models; name one: --judge URL#MODEL or local:MODEL"
        )
    return selection


def _existing(name: str, path: Path, word: str) -> Path:
    """Return the folder of a reward model, or the file of people's judgments, which may be in a folder."""
    if file_opening.is_pipe(str(path)):
        raise UsageError(f"--judge {word}: is a pipe, which can be read only once; write it to a file and name that")
    if not path.exists():
        raise PlatformError(f"--judge {word}: no such file or folder; a judge is {FORMS}")
    if name == "people" and path.is_dir():
        path = ComparisonDirectory(path).judgments
        if not path.is_file():
            raise PlatformError(f"--judge {word}: the folder has no judgments.jsonl; a judge is {FORMS}")
    return path


def _add(selection: JudgeSelection, judge: dict[str, Any]) -> None:
    """Add a language model under a name that no other judge has."""
    last = re.split(r"[/\\]", judge["model"].rstrip("/\\"))[-1]
    name = re.sub(r"[^\w-]+", "-", last).strip("-_") or "model"
    taken = [*RESERVED_JUDGES, *(other["name"] for other in selection.judges)]
    free = next(
        name if n == 1 else f"{name}-{n}" for n in range(1, 99) if (name if n == 1 else f"{name}-{n}") not in taken
    )
    selection.judges.append({"name": free} | judge)
