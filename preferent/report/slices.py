"""Win rates in slices, and at equal length: where the verdict comes from."""

from collections.abc import Mapping

from preferent.evaluation.comparison_types import ComparisonMetrics, JudgeFigures, LengthControlledFigures, SliceFigures
from preferent.report import charts, verdict_section
from preferent.report.interval_tables import IntervalRow, IntervalTable, probability, rate_text, row
from preferent.report.judge_names import ReportedJudge

CLEAR = 0.05
"""The p value, corrected for the number of slices, below which a slice is marked."""


def slices(metrics: ComparisonMetrics, judges: Mapping[str, ReportedJudge]) -> list[IntervalTable]:
    """Return a table for each judge whose verdicts are sliced: all of them first, then by tag and length."""
    by_judge = metrics.get("judges", {})
    a = verdict_section.sides(metrics)["a"]
    return [_slices(judges[name], figures, a) for name, figures in by_judge.items() if figures.get("slices")]


def _slices(judge: ReportedJudge, figures: JudgeFigures, a: str) -> IntervalTable:
    heads = ("Prompts", "Win rate", "95 % interval", "Verdicts", "Prompts", "p", "p, Holm")
    counts = str(figures["n"]), str(figures["prompts"])
    rows = [row("all", figures["win_rate"], figures["interval"], *counts, "", "")]
    rows += [_slice(part, judge.colour, a) for part in figures["slices"]]
    return IntervalTable(f"Judged by {judge.name}", heads, rows)


def _slice(part: SliceFigures, colour: int, a: str) -> IntervalRow:
    """Return one slice, marked if it differs from one half after correction for the number of slices."""
    p, holm = part.get("p"), part.get("p_holm")
    side = f"{a} better" if part["win_rate"] > 0.5 else f"{a} worse"
    return row(
        *(part["name"], part["win_rate"], part["interval"], str(part["n"]), str(part["prompts"])),
        *("" if level is None else probability(level) for level in (p, holm)),
        colour=colour,
        tag=side if holm is not None and holm < CLEAR else "",
        warns=part["win_rate"] < 0.5,
    )


def lengths(metrics: ComparisonMetrics, judges: Mapping[str, ReportedJudge]) -> IntervalTable | None:
    """Return the win rates at equal length beside the raw ones."""
    rows = [
        _length_row(controlled, figures, judges[name])
        for name, figures in metrics.get("judges", {}).items()
        if (controlled := figures.get("length_controlled"))
    ]
    heads = ("Judge", "At equal length", "95 % interval", "As judged")
    remark = (
        "Judges, including people, tend to prefer the longer answer. The rate at equal length is what a regression on "
        "the difference in length predicts for two answers of the same length."
    )
    return IntervalTable("Length: what is the win rate at equal length?", heads, rows, remark) if rows else None


def _length_row(controlled: LengthControlledFigures, figures: JudgeFigures, judge: ReportedJudge) -> IntervalRow:
    raw = rate_text(figures["win_rate"], figures["interval"])
    if controlled["win_rate"] is None:
        return IntervalRow(judge.title, ("–", "–", raw), charts.no_interval())
    extreme = bool(controlled.get("extreme"))
    return row(
        *(judge.title, controlled["win_rate"], controlled.get("interval"), raw),
        colour=judge.colour,
        tag="length explains much" if extreme else "",
        warns=extreme,
    )
