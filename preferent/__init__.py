"""Tune language models from human feedback. `preferent.run(recipe, out)` is the door for notebooks.

`preferent.run` is also the module of the run directory: a module of a class of its own may be called
(https://docs.python.org/3/reference/datamodel.html#customizing-module-attribute-access).
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from preferent import run

if TYPE_CHECKING:
    from preferent.pipeline import Run

__all__ = ["run"]


class _Callable(ModuleType):
    def __call__(self, recipe: Mapping[str, Any], out: str | Path) -> "Run":
        """Do everything that a recipe (a dictionary) asks for in the run directory `out`, and open it for reading."""
        from preferent.pipeline import start

        return start(recipe, out)


run.__class__ = _Callable
