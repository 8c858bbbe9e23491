"""The data stage: `prepare` the parts of a run, `check` files, `convert` between formats."""

from preferent.data.check import Check, check, render
from preferent.data.convert import Conversion, convert
from preferent.data.prepare import main

__all__ = ["Check", "Conversion", "check", "convert", "main", "render"]
