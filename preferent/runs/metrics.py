"""What a stage logs at each step: numbers, times, and both as a TensorBoard event file; all three rewound on resume.

A line of `metrics.jsonl` is `{"step": 12, "reward": 0.31, ...}`: derived numbers only, never a time, so that equal runs
have equal files. A number that is not finite is written as null. `timings.jsonl` says when each step was over and how
long its phases took.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from preferent import files, ranks
from preferent.errors import DataError
from preferent.runs import event_file
from preferent.runs.directory import StageDirectory

EVENT_FILE = "events.out.tfevents.0.preferent"


class Metrics:
    """A file with a line of numbers for each step, of the stage that writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @ranks.first_only
    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line; it has left the process when this returns."""
        line = {"step": int(step)} | {name: _finite(value) for name, value in values.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    @ranks.first_only
    def rewind(self, step: int) -> None:
        """Drop the lines of `step` and later, and a line that a kill left unfinished; says which are missing before."""
        rows = [row for row in read(self.path) if row["step"] < step]
        last = rows[-1]["step"] if rows else 0
        if last < step - 1:
            lost = f"the lines of steps {last + 1} to {step - 1} are missing"
            print(f"{self.path}: {lost}; nothing is learnt from them, and the run goes on", file=sys.stderr)
        if self.path.exists():
            files.write_jsonl(self.path, rows)


class Log:
    """The files that a stage's loop logs to: `metrics.jsonl`, `timings.jsonl` and TensorBoard's event file.

    The event file follows from the other two, byte for byte. `is_new` says that nothing has been logged yet.
    """

    def __init__(self, folder: Path) -> None:
        self.metrics = Metrics(StageDirectory(folder).metrics)
        self.timings = Metrics(StageDirectory(folder).timings)
        self.events = folder / "tensorboard" / EVENT_FILE
        self.is_new = True
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note the seconds that the block takes, for the next line of `timings.jsonl`."""
        started = time.perf_counter()
        yield
        self.seconds[phase] = round(time.perf_counter() - started, 4)

    @ranks.first_only
    def append(self, step: int, values: Mapping[str, float], **speeds: float) -> None:
        """Log a step that is over; its numbers have left the process when this returns."""
        now = round(time.time(), 3)
        self.metrics.append(step, values)
        self.timings.append(step, {"time": now} | self.seconds | speeds)
        self.seconds = {}
        with files.writing(self.events), open(self.events, "ab") as file:
            begin = b"" if file.tell() else event_file.start(now)
            file.write(begin + event_file.scalars(now, step, _known(values)))

    def rewind(self, step: int) -> None:
        """Forget `step`, what follows it, and what a kill left unfinished.

        The event file is cut where that is enough, because a TensorBoard that has it open then reads on.
        """
        self.is_new = step == 0
        self._rewind(step)

    @ranks.first_only
    def _rewind(self, step: int) -> None:
        self.metrics.rewind(step)
        self.timings.rewind(step)
        content = self._rebuilt()
        with files.writing(self.events):
            if self.events.exists() and self.events.read_bytes().startswith(content):
                os.truncate(self.events, len(content))
            else:
                files.write_atomic(self.events, content)

    def _rebuilt(self) -> bytes:
        """Return the event file of the two others. A step whose time is lost has that of the step before it."""
        times = {row["step"]: row.get("time") for row in read(self.timings.path)}
        now = 0.0
        records: list[bytes] = []
        for row in read(self.metrics.path):
            now = times.get(row["step"]) or now
            records += [] if records else [event_file.start(now)]
            values = {name: value for name, value in row.items() if name != "step" and value is not None}
            records.append(event_file.scalars(now, row["step"], values))
        return b"".join(records)


def _known(values: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers that are finite."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file as dictionaries; none if there is no file. An unfinished last line is left
    out."""
    if not path.exists():
        return []
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not JSON: {error.msg}; the line was changed by hand or damaged: restore or remove it"
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f'{path}:{number}: a metrics line is an object with a whole "step", not {line[:80]!r}')
        rows.append(row)
    return rows
