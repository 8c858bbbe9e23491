"""Which charts the report has: each drawn from one file of the run, or left out where the file is not there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent.report import charts
from preferent.report.charts import Chart, Point, Series
from preferent.runs import metrics

Rows = Sequence[Mapping[str, Any]]
STEP = "step"
SCORERS = {"Reward model": "reward", "Independent judge": "judge"}
"""The run's reward models: what the page calls them, and their folders."""


def points(rows: Rows, y: str, x: str = STEP) -> list[Point]:
    """The rows that have both numbers, as points."""
    return [(float(row[x]), float(row[y])) for row in rows if row.get(x) is not None and row.get(y) is not None]


def told(what: str, series: Sequence[Point], best: str = "") -> str:
    """A line in words: its first and last value, and its least or greatest where that is what counts."""
    if not series:
        return ""
    text = f"{what}: {series[0][1]:.3g} at step {series[0][0]:.0f}, {series[-1][1]:.3g} at step {series[-1][0]:.0f}"
    if best:
        x, y = (min if best == "lowest" else max)(series, key=lambda point: point[1])
        text += f", {best} {y:.3g} at step {x:.0f}"
    return text.replace("-", "−") + "."


def supervised(root: Path) -> list[Chart]:
    """The loss of supervised fine-tuning."""
    rows = metrics.read(root / "sft" / "metrics.jsonl")
    return _pair(rows, "Supervised fine-tuning loss", "loss", "validation/loss", "nats a token", "lowest", None)


def reward(root: Path, folder: str, name: str, best_step: int | None) -> list[Chart]:
    """Rank loss and accuracy of a reward model."""
    rows = metrics.read(root / folder / "metrics.jsonl")
    loss = _pair(rows, f"{name}: rank loss", "rank_loss", "validation/loss", "nats a pair", "lowest", best_step)
    return loss + _pair(rows, f"{name}: accuracy", "accuracy", "validation/accuracy", "share", "highest", best_step)


def policy(root: Path, best_step: int | None) -> list[Chart]:
    """Reward, KL and loss of PPO, and what the answers were like."""
    rows = metrics.read(root / "policy" / "metrics.jsonl")
    if any("rejection/kept" in row for row in rows):
        return rejection(rows, best_step)
    wanted: list[tuple[str, str, str | None, str, str]] = [
        ("PPO: reward", "reward", "validation/score", "score", "highest"),
        ("PPO: kl_loss", "kl_loss", "validation/kl", "nats an answer", ""),
        ("PPO: rl_loss", "rl_loss", None, "loss", ""),
        ("PPO: answer length", "tokens/length", "validation/length", "tokens", ""),
        ("PPO: entropy", "objective/entropy", None, "nats a token", ""),
        ("PPO: answers that ended", "tokens/ended", "validation/ended", "share", ""),
    ]
    drawn = [_pair(rows, *one, best_step) for one in wanted]
    return [chart for charts in drawn for chart in charts]


def direct(root: Path, best_step: int | None) -> list[Chart]:
    """What a policy that learns from the preferences themselves makes of the pairs."""
    rows = metrics.read(root / "policy" / "metrics.jsonl")
    wanted: list[tuple[str, str, str | None, str, str]] = [
        ("Policy: loss on preferences", "loss", "validation/loss", "nats a pair", "lowest"),
        ("Policy: accuracy on preferences", "accuracy", "validation/accuracy", "share", "highest"),
        ("Policy: margin of implicit rewards", "margin", "validation/margin", "score", ""),
    ]
    drawn = [chart for one in wanted for chart in _pair(rows, *one, best_step)]
    return (
        drawn
        + _sides(rows, "Policy: implicit rewards", "rewards", "score")
        + _sides(rows, "Policy: log-probability of the answers", "log_probs", "nats an answer")
    )


def _sides(rows: Rows, title: str, figure: str, unit: str) -> list[Chart]:
    """A figure of the chosen and of the rejected answers."""
    sides = {side: points(rows, f"{figure}/{side}") for side in ("chosen", "rejected")}
    series = [Series(side, found, colour) for colour, (side, found) in enumerate(sides.items(), start=1)]
    caption = " ".join(told(side.capitalize(), found) for side, found in sides.items() if found)
    drawn = charts.draw(title, series, "step", unit, caption)
    return [drawn] if drawn else []


def rejection(rows: Rows, best_step: int | None) -> list[Chart]:
    """What rounds of rejection sampling found, kept and learnt."""
    name = "Rejection sampling"
    mean, best, kept = (points(rows, key) for key in ("reward", "rejection/best", "rejection/kept"))
    series = [
        Series("sampled", mean, 1, "dots"),
        Series("best of a prompt", best, 2, "dots"),
        Series("kept of all rounds", kept, 3, "dots"),
    ]
    caption = " ".join([told("Sampled", mean), told("Best", best), told("Kept", kept)])
    found = charts.draw(f"{name}: what is imitated", series, "step", "score", caption)
    return ([found] if found else []) + [
        *_pair(rows, f"{name}: score", "reward", "validation/score", "score", "highest", best_step),
        *_pair(rows, f"{name}: KL", "kl_loss", "validation/kl", "nats an answer", "", best_step),
        *_pair(rows, f"{name}: loss", "loss/imitation", None, "nats a token", "lowest", best_step),
        *_pair(rows, f"{name}: answer length", "tokens/length", "validation/length", "tokens", "", best_step),
        *_pair(rows, f"{name}: answers that ended", "tokens/ended", "validation/ended", "share", "", best_step),
    ]


def _pair(
    rows: Rows, title: str, train: str, validation: str | None, unit: str, best: str, best_step: int | None
) -> list[Chart]:
    """A training series with its validation series, the selected step ringed; empty where there is neither."""
    seen = points(rows, train)
    held_out = points(rows, validation) if validation else []
    series = [Series("training", seen, 1), Series("validation", held_out, 2, "dots")]
    series.append(Series("selected", [point for point in held_out if point[0] == best_step], 2, "ring"))
    caption = " ".join(filter(None, [told("Training", seen), told("Validation", held_out, best)]))
    drawn = charts.draw(title, series, "step", unit, caption)
    return [drawn] if drawn else []


def against_kl(root: Path, best_step: int | None) -> list[Chart]:
    """Reward over KL: every training step, every validation, the selected checkpoint, and the truth where known."""
    rows = metrics.read(root / "policy" / "metrics.jsonl")
    held_out = points(rows, "validation/score", "validation/kl")
    chosen = [row for row in rows if row[STEP] == best_step]
    series = [
        Series("training steps", points(rows, "reward", "kl_loss"), 1, "scatter"),
        Series("validation", held_out, 2, "dots"),
        Series("selected", points(chosen, "validation/score", "validation/kl"), 2, "ring"),
    ]
    caption = ""
    for x, y in points(chosen, "validation/score", "validation/kl"):
        caption = f"The selected checkpoint, step {best_step}: score {y:.3g} at {x:.3g} nats.".replace("-", "−")
    drawn = charts.draw("Reward against KL", series, "KL, nats an answer", "score", caption)
    return [drawn] if drawn else []


def truth(curve: Rows) -> list[Chart]:
    """The true preference beside the reward model's score, over KL, where a lesson knows it."""
    series = [
        Series("reward model", points(curve, "proxy", "kl"), 1, "dots"),
        Series("true preference", points(curve, "gold", "kl"), 3, "dots"),
    ]
    caption = "Where the score rises and the truth does not, the policy pleases the reward model and nobody else."
    drawn = charts.draw("Score and true preference", series, "KL, nats an answer", "score", caption)
    return [drawn] if drawn else []


def reliability(bins: Rows, name: str) -> list[Chart]:
    """Confidence against accuracy; a calibrated judge lies on the dashed line."""
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
