"""Tune language models from human feedback: preferences, reward model, reinforcement learning, side-by-side verdict.

`run` does everything that a recipe asks for, `load_recipe` reads a recipe to plan or run it, `Run` opens a run
directory. docs/python.md is the guide, docs/api.md the reference.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preferent.commands.python_api import LoadedRecipe, Run

    __version__: str

__all__ = ["Run", "__version__", "load_recipe", "run"]


def run(recipe: Mapping[str, Any] | str | Path, out: str | Path) -> "Run":
    """Do everything that a recipe asks for in the run directory `out`, and return the run; the same call resumes.

    `recipe` is a dictionary or the path of a YAML file. Raises `preferent.errors.PreferentError` with the exit code of
    the stage that failed; `__cause__` is the error of that stage.
    """
    return load_recipe(recipe).run(out)


def load_recipe(source: Mapping[str, Any] | str | Path, settings: Sequence[str] = ()) -> "LoadedRecipe":
    """Read a recipe from a YAML file, with `KEY=VALUE` settings, or from a dictionary; return it checked.

    The recipe has the methods `plan`, `run` and `with_labels`. Raises `preferent.errors.UsageError` with the key if it
    is wrong.
    """
    from preferent.commands import python_api

    return python_api.load_recipe(source, settings)


def __getattr__(name: str) -> Any:
    """Import `Run`, or read the version, at the first use."""
    if name == "Run":
        from preferent.commands.python_api import Run

        return Run
    if name == "__version__":
        from importlib import metadata

        return metadata.version("preferent")
    raise AttributeError(f"module 'preferent' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the module, with those that `__getattr__` provides, for completion in a notebook."""
    return sorted({*globals(), *__all__})
