"""What TensorBoard shows of a stage, and what its metrics say that it should show."""

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from preferent.runs import metrics

Curves = dict[str, list[tuple[int, float]]]


def shown(stage: Path, events: EventAccumulator | None = None) -> Curves:
    """Every tag's points in the order in which TensorBoard read them; `events` may have read a part before."""
    if not (stage / "tensorboard").exists():
        return {}
    events = (events or EventAccumulator(str(stage / "tensorboard"))).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged(stage: Path) -> Curves:
    """The same from `metrics.jsonl`."""
    curves: Curves = {}
    for row in metrics.read(stage / "metrics.jsonl"):
        for tag, value in row.items():
            if tag != "step" and value is not None:
                curves.setdefault(tag, []).append((row["step"], float(np.float32(value))))
    return curves
