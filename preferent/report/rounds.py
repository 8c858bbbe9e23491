"""Several rounds on one page: what a run and those that it continues made of the same base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from preferent import files
from preferent.report import charts, verdict_section
from preferent.report.charts import Chart, Series
from preferent.report.interval_tables import IntervalTable, number, percent, row, span
from preferent.report.judge_names import ReportedJudge

AT_BASE: Mapping[str, Any] = {"win_rate": 0.5, "interval": (0.5, 0.5)}
"""The base model against itself."""
BESIDE = 0.06
"""Of a round, between the points of two judges."""

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RoundsSection:
    """`heads` name the columns of `rows`, one a round; `steps` are rounds against the one before."""

    heads: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    charts: Sequence[Chart]
    steps: IntervalTable


def section(metrics: Figures, continues: Sequence[str], jurors: Mapping[str, ReportedJudge]) -> RoundsSection | None:
    """Every round of a run that continues others; None where it continues none."""
    earlier = [side["key"] for side in metrics.get("sides", []) if side["key"].startswith(verdict_section.ROUND)]
    if not earlier:
        return None
    sides = ["b", *sorted(earlier, key=lambda key: int(key.removeprefix(verdict_section.ROUND))), "a"]
    then = [*map(_read, continues), *[None] * len(earlier)][: len(earlier)]
    said = [None, *then, metrics]
    asked = dict.fromkeys([*metrics.get("judges", {}), "people"])
    against = {name: against_base(name, metrics, sides, said) for name in asked}
    against = {name: found for name, found in against.items() if any(found)}
    columns = [(jurors[name].title, [_rate(one) for one in found]) for name, found in against.items()]
    if any(one and one.get("kl") for one in said):
        columns.append(
            ("KL", ["0", *((number(one["kl"]["mean"]) if one and one.get("kl") else "") for one in said[1:])])
        )
    for name, found in list(metrics.get("rating", {}).items())[:1]:
        rated = {one["side"]: verdict_section.rated(one) for one in found}
        columns.append((f"Rating, {jurors[name].name}", [rated.get(side, "") for side in sides]))
    last = len(sides) - 1
    named = ["Round 0, the base model", *(f"Round {place}" for place in range(1, last)), f"Round {last}, this run"]
    rows = list(zip(named, *(cells for _, cells in columns), strict=True))
    return RoundsSection([head for head, _ in columns], rows, draw(against, jurors), steps(metrics, sides, jurors))


def against_base(name: str, metrics: Figures, sides: Sequence[str], said: Sequence[Figures | None]) -> list[Any]:
    """A judge's figures of every round against the base, None where it gave none.

    People judged earlier rounds when those were made: what they said is in the verdicts of those runs, `said`.
    """
    found = [None, *(between(metrics, name, side, "b") for side in sides[1:-1]), metrics["judges"].get(name)]
    if name != "people":
        return found
    return [here or (then or {}).get("judges", {}).get(name) for here, then in zip(found, said, strict=True)]


def between(metrics: Figures, name: str, side: str, other: str) -> Figures | None:
    """A judge's figures of one side against another, whichever way round the file has them."""
    for one in metrics.get("rates", []):
        if one["judge"] == name and {one["a"], one["b"]} == {side, other}:
            return one if one["a"] == side else swapped(one)
    return None


def swapped(found: Figures) -> Figures:
    """The same figures seen from the other side."""
    low, high = found["interval"]
    return {**found, "win_rate": 1 - found["win_rate"], "interval": [1 - high, 1 - low]} | (
        {"win": found["loss"], "loss": found["win"]} if "win" in found else {}
    )


def steps(metrics: Figures, sides: Sequence[str], jurors: Mapping[str, ReportedJudge]) -> IntervalTable:
    """Every round but the first against the one before it."""
    rows = []
    for place, (before, side) in enumerate(pairwise(sides[1:]), start=2):
        for name in metrics.get("judges", {}):
            if found := between(metrics, name, side, before):
                what, juror = f"Round {place} against round {place - 1}", jurors[name]
                rows.append(row(what, found["win_rate"], found["interval"], colour=juror.colour, note=juror.title))
    return IntervalTable(
        "Each round against the one before", ("Which, and who judged", "Win rate", "95 % interval"), rows
    )


def draw(against: Mapping[str, Sequence[Any]], jurors: Mapping[str, ReportedJudge]) -> list[Chart]:
    """Win rate against the base, round by round, a line a judge."""
    series = []
    last = max((len(found) for found in against.values()), default=1) - 1
    for place, (name, found) in enumerate(against.items()):
        aside = BESIDE * (place - (len(against) - 1) / 2)
        start = [(0.0, AT_BASE)] if found[1] else []
        there = start + [(index + aside, one) for index, one in enumerate(found) if one]
        points = [(x, float(one["win_rate"])) for x, one in there]
        spans = [(float(one["interval"][0]), float(one["interval"][1])) for _, one in there]
        series.append(Series(jurors[name].name, points, jurors[name].colour, "dots", spans))
    low = min([0.5, *(bound for one in series for bound, _ in one.spans)])
    high = max([0.5, *(bound for one in series for _, bound in one.spans)])
    axes = charts.Axes((-0.15, last + 0.25), (max(0.0, low - 0.05), min(1.0, high + 0.05)), range(last + 1))
    series.append(Series("the base itself", [(-0.15, 0.5), (last + 0.25, 0.5)], 4, "guide"))
    caption = "Upright lines are 95 % intervals. Round 0 is the base model."
    drawn = charts.draw("Win rate against the base", series, "round", "win rate", caption, axes)
    return [drawn] if drawn and against else []


def _rate(found: Figures | None) -> str:
    return "" if found is None else f"{percent(found['win_rate'], 1)} ({span(found['interval'])})"


def _read(folder: str) -> Figures | None:
    """What an earlier run says of itself, where it still is."""
    path = Path(folder) / "comparison" / "metrics.json"
    return files.read_json(path) if path.exists() else None
