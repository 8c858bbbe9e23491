"""Win rates in slices, and at equal length: where the verdict comes from."""

from collections.abc import Mapping
from typing import Any

from preferent.report import charts, interval_tables
from preferent.report.interval_tables import IntervalRow, IntervalTable, row
from preferent.report.judge_names import ReportedJudge

CLEAR = 0.05
"""The p value, corrected for their number, below which a slice stands out."""

Figures = Mapping[str, Any]


def slices(metrics: Figures, jury: Mapping[str, ReportedJudge]) -> list[IntervalTable]:
    """A table for each judge whose verdicts were looked at in slices: all of them first, then by tag and length."""
    return [_slices(jury[name], found) for name, found in metrics.get("judges", {}).items() if found.get("slices")]


def _slices(juror: ReportedJudge, found: Figures) -> IntervalTable:
    heads = ("Prompts", "Win rate", "95 % interval", "Verdicts", "Prompts", "p", "p, Holm")
    rows = [row("all", found["win_rate"], found["interval"], str(found["n"]), str(found["prompts"]), "", "")]
    rows += [_slice(one, juror.colour) for one in found["slices"]]
    return IntervalTable(f"Judged by {juror.name}", heads, rows)


def _slice(found: Figures, colour: int) -> IntervalRow:
    """One slice, marked where it stands out of all that were looked at."""
    p, holm = found.get("p"), found.get("p_holm")
    side = "tuned better" if found["win_rate"] > 0.5 else "tuned worse"
    return row(
        *(found["name"], found["win_rate"], found["interval"], str(found["n"]), str(found["prompts"])),
        *("" if value is None else interval_tables.probability(value) for value in (p, holm)),
        colour=colour,
        tag=side if holm is not None and holm < CLEAR else "",
        warns=found["win_rate"] < 0.5,
    )


def lengths(metrics: Figures, jury: Mapping[str, ReportedJudge]) -> IntervalTable | None:
    """Win rates beside what they would be at equal length."""
    rows = []
    for name, found in metrics.get("judges", {}).items():
        if controlled := found.get("length_controlled"):
            juror, extreme = jury[name], bool(controlled.get("extreme"))
            if controlled["win_rate"] is None:
                rows.append(IntervalRow(juror.title, ("–", "–", interval_tables.told(found)), charts.no_interval()))
                continue
            rows.append(
                row(
                    *(juror.title, controlled["win_rate"], controlled.get("interval"), interval_tables.told(found)),
                    colour=juror.colour,
                    tag="length explains much" if extreme else "",
                    warns=extreme,
                )
            )
    heads = ("Who judged", "At equal length", "95 % interval", "As judged")
    remark = (
        "Judges, people among them, lean to the longer answer. The rate at equal length is what a regression on the "
        "difference in length makes of it where both answers are equally long."
    )
    return IntervalTable("Length: would it win at equal length?", heads, rows, remark) if rows else None
