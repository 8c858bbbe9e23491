"""What the cells of every lesson use: sizes, predictions, claims, intervals, a shell and a time budget.

`LESSON=ci` in the environment makes a lesson small. Claims about figures and the time are then printed, not asserted.
"""

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

SIZE = os.environ.get("LESSON", "full")
"""`ci` or `full`."""

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"blue": "#1f6fb4", "orange": "#d9731a", "green": "#2e8b57", "red": "#c23b3b", "grey": "#7a7a7a"}

Size = TypeVar("Size")
_lesson = {"minutes": 0.0, "began": 0.0, "busy": 0.0}


def at(*, ci: Size, full: Size) -> Size:
    """Return the one that fits the size of the lesson."""
    return ci if SIZE == "ci" else full


def begin(name: str, minutes: float = 5) -> None:
    """Start the clock, set how plots look, silence progress bars, and go to an empty folder for what the lesson writes.

    The folder is `runs/lessons/NAME`; at `ci` size it is a temporary one.
    """
    _lesson.update(minutes=minutes, began=time.monotonic(), busy=sum(os.times()[:4]))
    for folder in (str(ROOT), str(Path(__file__).parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    folder = Path(tempfile.mkdtemp()) if SIZE == "ci" else ROOT / "runs/lessons" / name
    if SIZE != "ci":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    os.chdir(folder)
    if "LESSON" in os.environ:
        sys.addaudithook(_stay_offline)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore", message="IProgress not found")
    np.random.seed(0)
    plt.rcParams.update(
        {"figure.figsize": (8, 3.2), "figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 10}
        | {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}
        | {"axes.prop_cycle": plt.cycler(color=list(COLORS.values())), "legend.frameon": False}
    )
    print(f"This lesson takes at most {minutes:g} minutes on two cores, and writes to runs/lessons/{name}.")


def finish() -> None:
    """Print the minutes since `begin`, by the clock and of processor time.

    At full size one of them must be within the budget: on a busy machine the clock says little about the lesson.
    """
    clock = (time.monotonic() - _lesson["began"]) / 60
    busy = (sum(os.times()[:4]) - _lesson["busy"]) / 60
    print(f"{clock:.1f} minutes, {busy:.1f} of processor time, of at most {_lesson['minutes']:g}.")
    if SIZE == "full":
        assert min(clock, busy) <= _lesson["minutes"], "the lesson took longer than it promised"


def _stay_offline(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        assert host.startswith("127.") or host in ("::1", "localhost"), f"a lesson asks the network for {host}"


@dataclass(frozen=True)
class Prediction:
    """A number that was said before it was measured."""

    question: str
    guess: float

    def compare(self, measured: float, unit: str = "", close: float = 0.1) -> None:
        """Print the guess beside what was measured; `close` is the distance, as a share, that counts as near."""
        unit = f" {unit}" if unit else ""
        said = f"{self.question}\n  you said {_plain(self.guess)}{unit}, it is {_plain(measured)}{unit}:"
        error = self.guess - measured
        if abs(error) <= close * max(abs(measured), 1e-12):
            print(said, "near enough.")
        else:
            share = f" ({error / measured:+.0%})" if abs(error) < 10 * abs(measured) else ""
            print(said, f"too {'high' if error > 0 else 'low'} by {_plain(abs(error))}{unit}{share}. Why?")


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def predict(question: str, guess: float) -> Prediction:
    """Keep a guess until its number is known; replace the guess in the cell by yours before you run on."""
    print(f"{question}\n  your guess: {guess:g}")
    return Prediction(question, guess)


def claim(sentence: str, measured: float, said: float, within: float) -> None:
    """Hold a figure of the text against what was measured. At `ci` size only print both."""
    print(f"{sentence}: said {said:g}, measured {measured:.4g}")
    if SIZE == "full":
        assert abs(measured - said) <= within, f"{sentence}: {measured} is further than {within} from {said}"


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(numbers: Sequence[float]) -> Interval:
    """Return the mean of at least two numbers, one a seed, with its 95 % interval."""
    mean = float(np.mean(numbers))
    half = float(stats.t.ppf(0.975, len(numbers) - 1) * np.std(numbers, ddof=1) / math.sqrt(len(numbers)))
    return Interval(mean, mean - half, mean + half)


class Wrong(Exception):
    """Raised by the check of an exercise: what is wrong with an answer, without the answer."""


def exercise(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make a function that raises `Wrong` into one that prints what it thinks of an answer; None is no answer yet."""

    @wraps(check)
    def checked(answer: Any) -> None:
        if answer is None:
            print("No answer yet.")
            return
        try:
            check(answer)
        except Wrong as wrong:
            print(f"Not yet: {wrong}")
        else:
            print("Right.")

    return checked


def preferent(*words: object, show: int = 0) -> str:
    """Run `preferent WORDS` as a command in the lesson's folder; return what it printed, and show the last lines."""
    command = [sys.executable, "-m", "preferent", *map(str, words)]
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": places, "NO_COLOR": "1", "COLUMNS": "110"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = done.stdout.replace(f"{Path.cwd()}/", "")
    assert done.returncode == 0, f"preferent {' '.join(map(str, words))} ended with {done.returncode}:\n{said}"
    if show:
        print("\n".join(said.rstrip().splitlines()[-show:]))
    return said
