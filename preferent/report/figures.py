"""The charts of the report: each is drawn from one file of the run, or left out if the file does not exist."""

from collections.abc import Mapping, Sequence
from typing import Any

from preferent.report import charts
from preferent.report.charts import Chart, Point, Series
from preferent.runs import metrics
from preferent.runs.directory import StageDirectory

Rows = Sequence[Mapping[str, Any]]
Curve = tuple[str, str, str | None, str, str]
"""A title, the figure in training and on validation data, a unit, and which end of it counts."""
STEP = "step"
SCORERS = {"Reward model": "reward", "Independent judge": "judge"}
"""The run's reward models: their names on the page, and their folders."""


def points(rows: Rows, y: str, x: str = STEP) -> list[Point]:
    """Return the rows that have both numbers as points."""
    return [(float(row[x]), float(row[y])) for row in rows if row.get(x) is not None and row.get(y) is not None]


def summary(name: str, series: Sequence[Point], best: str = "") -> str:
    """Return a line in words: its first and last value, and its `lowest` or `highest` if that is what counts."""
    if not series:
        return ""
    text = f"{name}: {series[0][1]:.3g} at step {series[0][0]:.0f}, {series[-1][1]:.3g} at step {series[-1][0]:.0f}"
    if best:
        x, y = (min if best == "lowest" else max)(series, key=lambda point: point[1])
        text += f", {best} {y:.3g} at step {x:.0f}"
    return text.replace("-", "−") + "."


def supervised(stage: StageDirectory) -> list[Chart]:
    """Return the loss of supervised fine-tuning."""
    rows = metrics.read(stage.metrics)
    return _pair(rows, "Supervised fine-tuning loss", "loss", "validation/loss", "nats per token", "lowest", None)


def reward(stage: StageDirectory, name: str, best_step: int | None) -> list[Chart]:
    """Return rank loss and accuracy of a reward model."""
    rows = metrics.read(stage.metrics)
    loss = _pair(rows, f"{name}: rank loss", "rank_loss", "validation/loss", "nats per pair", "lowest", best_step)
    return loss + _pair(rows, f"{name}: accuracy", "accuracy", "validation/accuracy", "share", "highest", best_step)


def policy(stage: StageDirectory, best_step: int | None) -> list[Chart]:
    """Return reward, KL and loss of PPO, and properties of the answers."""
    rows = metrics.read(stage.metrics)
    if any("rejection/kept" in row for row in rows):
        return rejection(rows, best_step)
    curves: list[Curve] = [
        ("PPO: reward", "reward", "validation/score", "score", "highest"),
        ("PPO: kl_loss", "kl_loss", "validation/kl", "nats per answer", ""),
        ("PPO: rl_loss", "rl_loss", None, "loss", ""),
        ("PPO: answer length", "tokens/length", "validation/length", "tokens", ""),
        ("PPO: entropy", "objective/entropy", None, "nats per token", ""),
        ("PPO: answers that ended", "tokens/ended", "validation/ended", "share", ""),
    ]
    return [chart for curve in curves for chart in _pair(rows, *curve, best_step)]


def direct(stage: StageDirectory, best_step: int | None) -> list[Chart]:
    """Return how a policy that learns directly from the preferences scores the pairs."""
    rows = metrics.read(stage.metrics)
    curves: list[Curve] = [
        ("Policy: loss on preferences", "loss", "validation/loss", "nats per pair", "lowest"),
        ("Policy: accuracy on preferences", "accuracy", "validation/accuracy", "share", "highest"),
        ("Policy: margin of implicit rewards", "margin", "validation/margin", "score", ""),
    ]
    drawn = [chart for curve in curves for chart in _pair(rows, *curve, best_step)]
    return (
        drawn
        + _sides(rows, "Policy: implicit rewards", "rewards", "score")
        + _sides(rows, "Policy: log-probability of the answers", "log_probs", "nats per answer")
    )


def _sides(rows: Rows, title: str, figure: str, unit: str) -> list[Chart]:
    """Return a figure of the chosen and of the rejected answers."""
    sides = {side: points(rows, f"{figure}/{side}") for side in ("chosen", "rejected")}
    series = [Series(side, curve, colour) for colour, (side, curve) in enumerate(sides.items(), start=1)]
    caption = " ".join(summary(side.capitalize(), curve) for side, curve in sides.items() if curve)
    drawn = charts.draw(title, series, "step", unit, caption)
    return [drawn] if drawn else []


def rejection(rows: Rows, best_step: int | None) -> list[Chart]:
    """Return the scores of sampled and kept answers in rejection sampling, and its curves."""
    name = "Rejection sampling"
    mean, best, kept = (points(rows, key) for key in ("reward", "rejection/best", "rejection/kept"))
    series = [
        Series("sampled", mean, 1, "dots"),
        Series("best of a prompt", best, 2, "dots"),
        Series("kept of all rounds", kept, 3, "dots"),
    ]
    caption = " ".join([summary("Sampled", mean), summary("Best", best), summary("Kept", kept)])
    drawn = charts.draw(f"{name}: sampled and kept answers", series, "step", "score", caption)
    return ([drawn] if drawn else []) + [
        *_pair(rows, f"{name}: score", "reward", "validation/score", "score", "highest", best_step),
        *_pair(rows, f"{name}: KL", "kl_loss", "validation/kl", "nats per answer", "", best_step),
        *_pair(rows, f"{name}: loss", "loss/imitation", None, "nats per token", "lowest", best_step),
        *_pair(rows, f"{name}: answer length", "tokens/length", "validation/length", "tokens", "", best_step),
        *_pair(rows, f"{name}: answers that ended", "tokens/ended", "validation/ended", "share", "", best_step),
    ]


def _pair(
    rows: Rows, title: str, train: str, validation: str | None, unit: str, best: str, best_step: int | None
) -> list[Chart]:
    """Return a training series with its validation series, the selected step ringed; empty if there is neither."""
    seen = points(rows, train)
    held_out = points(rows, validation) if validation else []
    series = [Series("training", seen, 1), Series("validation", held_out, 2, "dots")]
    series.append(Series("selected", [point for point in held_out if point[0] == best_step], 2, "ring"))
    caption = " ".join(filter(None, [summary("Training", seen), summary("Validation", held_out, best)]))
    drawn = charts.draw(title, series, "step", unit, caption)
    return [drawn] if drawn else []


def against_kl(stage: StageDirectory, best_step: int | None) -> list[Chart]:
    """Return reward over KL: every training step, every validation, and the selected checkpoint."""
    rows = metrics.read(stage.metrics)
    held_out = points(rows, "validation/score", "validation/kl")
    selected = points([row for row in rows if row[STEP] == best_step], "validation/score", "validation/kl")
    series = [
        Series("training steps", points(rows, "reward", "kl_loss"), 1, "scatter"),
        Series("validation", held_out, 2, "dots"),
        Series("selected", selected, 2, "ring"),
    ]
    caption = ""
    for x, y in selected:
        caption = f"The selected checkpoint, step {best_step}: score {y:.3g} at {x:.3g} nats.".replace("-", "−")
    drawn = charts.draw("Reward against KL", series, "KL, nats per answer", "score", caption)
    return [drawn] if drawn else []


def truth(curve: Rows) -> list[Chart]:
    """Return the true preference beside the reward model's score, over KL, where the true preference is known."""
    series = [
        Series("reward model", points(curve, "proxy", "kl"), 1, "dots"),
        Series("true preference", points(curve, "gold", "kl"), 3, "dots"),
    ]
    caption = "Where the score rises and the true preference does not, the policy exploits the reward model."
    drawn = charts.draw("Score and true preference", series, "KL, nats per answer", "score", caption)
    return [drawn] if drawn else []


def reliability(bins: Rows, name: str) -> list[Chart]:
    """Return confidence against accuracy; a calibrated judge lies on the dashed line."""
    shown = points(bins, "accuracy", "confidence")
    low = min([0.5, *(y for _, y in shown)])
    series = [
        Series("perfect calibration", [(0.5, 0.5), (1.0, 1.0)] if shown else [], 4, "guide"),
        Series(name, shown, 1, "dots"),
    ]
    counts = ", ".join(str(row.get("count")) for row in bins)
    axes = charts.Axes((0.48, 1.02), (low - 0.02, 1.02))
    caption = f"Pairs in each bin, from the least confident: {counts}."
    drawn = charts.draw(f"{name}: confidence and accuracy", series, "confidence", "share right", caption, axes)
    return [drawn] if drawn else []
