"""The data stage: `prepare` the parts of a run, `check` files, `convert` between formats."""

from preferent.data.prepare import main

__all__ = ["main"]
