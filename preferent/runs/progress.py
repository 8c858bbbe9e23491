"""How far a long step is: a bar with the time left in a terminal, one line in a notebook, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
MANY_EPOCHS = 50
NOTEBOOK = "JPY_PARENT_PID"
"""What Jupyter sets in the environment of a kernel."""


def epochs(field: str, steps: int, batch: int, rows: int, stage: str = "") -> float:
    """Return how often a stage sees each row; warn, with the name `stage`, where that is so often that it memorises
    them."""
    count = steps * batch / max(rows, 1)
    if count > MANY_EPOCHS:
        where = f"{stage}: {field}" if stage else field
        print(
            f"{where}: {steps:,} steps of {batch:,} are {count:,.0f} epochs of {rows:,} rows, which are then learnt by "
            f"heart; 3 epochs would be --set {field}={max(1, 3 * rows // batch)}",
            file=sys.stderr,
        )
    return count


class ProgressBar(Protocol):
    """What a loop tells its progress."""

    def update(self, done: int, **values: float) -> None:
        """`done` of the total are finished; `values` are shown beside it."""


def shown(values: dict[str, float]) -> str:
    """Numbers as people read them: `loss 0.531  kl 1.2`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def clock(seconds: float) -> str:
    """Return a duration as `1:02:03` or `4:05`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PrintedProgress:
    """Progress as plain lines: the first and the last update, and between them one every ten seconds.

    In a notebook it is one line, which each update overwrites.
    """

    def __init__(self, name: str, total: int, start: int, file: TextIO) -> None:
        self._name, self._total, self._start, self._file = name, total, start, file
        self._began = time.monotonic()
        self._printed = float("-inf")
        self._overwrites, self._width = NOTEBOOK in os.environ, 0
        self._pause = 1.0 if self._overwrites else SECONDS_BETWEEN_LINES

    def update(self, done: int, **values: float) -> None:
        now = time.monotonic()
        if done < self._total and now - self._printed < self._pause:
            return
        self._printed = now
        elapsed = now - self._began
        left = elapsed / max(1, done - self._start) * (self._total - done)
        times = f"{clock(elapsed)} gone, {clock(left)} left"
        line = f"{self._name} {done}/{self._total}  {times}  {shown(values)}".rstrip()
        if self._overwrites:
            print(f"\r{line:<{self._width}}", end="", file=self._file, flush=True)
            self._width = len(line)
        else:
            print(line, file=self._file, flush=True)

    def close(self) -> None:
        """End the line that updates overwrite."""
        if self._width:
            print(file=self._file, flush=True)


class DrawnBar:
    """Progress as a bar that rich draws."""

    def __init__(self, name: str, total: int, start: int, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total, completed=start, values="")

    def update(self, done: int, **values: float) -> None:
        self._progress.update(self._task, completed=done, values=shown(values))


@contextmanager
def bar(name: str, total: int, start: int = 0, file: TextIO | None = None) -> Iterator[ProgressBar]:
    """Return a progress bar on standard error for a loop of `total` steps of which `start` are already done.

    `update(done, loss=…)` after each step. In a terminal a bar with the time left (without colour under `NO_COLOR`);
    elsewhere plain lines, whatever `FORCE_COLOR` says; in a notebook one line that is overwritten.
    """
    stream = file or sys.stderr
    if not stream.isatty() or NOTEBOOK in os.environ:
        printed = PrintedProgress(name, total, start, stream)
        try:
            yield printed
        finally:
            printed.close()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield DrawnBar(name, total, start, progress)
