"""Tune language models from human feedback. `preferent.run(recipe, out)` is the door for notebooks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preferent.pipelines.run import Run

__all__ = ["run"]


def run(recipe: Mapping[str, Any], out: str | Path) -> "Run":
    """Do everything that a recipe (a dictionary) asks for in the run directory `out`, and open it for reading."""
    from preferent.pipelines.executor import start

    return start(recipe, out)
