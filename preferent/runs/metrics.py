"""Metrics: one JSON line a step in `metrics.jsonl`, rewound on resume; TensorBoard files are made from it.

A line is `{"step": 12, "reward": 0.31, ...}`: derived numbers only, never a time, so that equal runs have equal files.
A number that is not finite is written as null.
"""

import io
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preferent import files
from preferent.errors import DataError

EVENT_FILE = "events.out.tfevents.0.preferent"


class Metrics:
    """The metrics file of one stage, open for the stage that writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line; it has left the process when this returns."""
        line = {"step": int(step)} | {name: _finite(value) for name, value in values.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines of `step` and later, and a line that a kill left unfinished; says which are missing before."""
        rows = [row for row in read(self.path) if row["step"] < step]
        last = rows[-1]["step"] if rows else 0
        if last < step - 1:
            lost = f"the lines of steps {last + 1} to {step - 1} are missing"
            print(f"{self.path}: {lost}; nothing is learnt from them, and the run goes on", file=sys.stderr)
        if self.path.exists():
            files.write_jsonl(self.path, rows)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file as dictionaries; none if there is no file. An unfinished last line is left out."""
    if not path.exists():
        return []
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: not JSON: {error.msg}; the file was changed by hand or damaged"
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f'{path}:{number}: a metrics line is an object with a whole "step", not {line[:80]!r}')
        rows.append(row)
    return rows


def tensorboard(metrics: Path, folder: Path) -> None:
    """Write `folder`'s one TensorBoard event file anew from a metrics file, names as tags.

    The format is TFRecord: length, its masked CRC32C, a serialized `Event`, its masked CRC32C. Times are kept out of
    metrics, so an event's wall time is its step in seconds: the file depends on the metrics alone. Nulls are left out.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    for row in read(metrics):
        scalars = [(name, value) for name, value in row.items() if name != "step" and value is not None]
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in scalars])
        writer.write(Event(wall_time=float(row["step"]), step=row["step"], summary=summary).SerializeToString())
    files.write_atomic(folder / EVENT_FILE, buffer.getvalue())
