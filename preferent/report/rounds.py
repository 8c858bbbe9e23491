"""Several rounds on one page: a run and those that it continues, compared with the same base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from preferent import files
from preferent.evaluation.comparison_types import ComparisonMetrics, RateFigures, SidePairFigures
from preferent.report import charts, verdict_section
from preferent.report.charts import Chart, Series
from preferent.report.interval_tables import IntervalTable, number, rate_text, row
from preferent.report.judge_names import ReportedJudge
from preferent.runs.directory import RunDirectory

AT_BASE: RateFigures = {"win_rate": 0.5, "interval": (0.5, 0.5)}
"""The base model against itself."""
BESIDE = 0.06
"""Distance between the points of two judges, in rounds."""

Rates = Sequence[RateFigures | None]
"""A judge's figures of every round, None if it gave none."""


@dataclass(frozen=True, slots=True)
class RoundsSection:
    """`heads` name the columns of `rows`, one row per round; `steps` compare each round with the one before."""

    heads: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    charts: Sequence[Chart]
    steps: IntervalTable


def section(
    metrics: ComparisonMetrics, continues: Sequence[str], judges: Mapping[str, ReportedJudge]
) -> RoundsSection | None:
    """Return every round of a run that continues others; None if it continues none."""
    earlier = [side["key"] for side in metrics.get("sides", []) if side["key"].startswith(verdict_section.ROUND)]
    if not earlier:
        return None
    sides = ["b", *sorted(earlier, key=lambda key: int(key.removeprefix(verdict_section.ROUND))), "a"]
    before = [*map(_read, continues), *[None] * len(earlier)][: len(earlier)]
    by_round = [None, *before, metrics]
    names = dict.fromkeys([*metrics.get("judges", {}), "people"])
    against = {name: against_base(name, metrics, sides, by_round) for name in names}
    against = {name: rates for name, rates in against.items() if any(rates)}
    columns = [(judges[name].title, [_rate(rate) for rate in rates]) for name, rates in against.items()]
    for name in metrics.get("prediction_powered", {}):
        powered = [(comparison or {}).get("prediction_powered", {}).get(name) for comparison in by_round]
        columns.append((f"People with {judges[name].name}", [_rate(rate) for rate in powered]))
    divergences = [(comparison or {}).get("kl") for comparison in by_round[1:]]
    if any(divergences):
        columns.append(("KL", ["0", *(number(kl["mean"]) if kl else "" for kl in divergences)]))
    for name, ratings in list(metrics.get("rating", {}).items())[:1]:
        by_side = {rating["side"]: verdict_section.rating_text(rating) for rating in ratings}
        columns.append((f"Rating, {judges[name].name}", [by_side.get(side, "") for side in sides]))
    last = len(sides) - 1
    titles = ["Round 0, the base model", *(f"Round {place}" for place in range(1, last)), f"Round {last}, this run"]
    rows = list(zip(titles, *(cells for _, cells in columns), strict=True))
    return RoundsSection([head for head, _ in columns], rows, draw(against, judges), steps(metrics, sides, judges))


def against_base(
    name: str, metrics: ComparisonMetrics, sides: Sequence[str], by_round: Sequence[ComparisonMetrics | None]
) -> Rates:
    """Return a judge's figures of every round against the base.

    People judged earlier rounds when those were made: their verdicts are in the comparisons of those runs, `by_round`.
    """
    rates: Rates = [None, *(between(metrics, name, side, "b") for side in sides[1:-1]), metrics["judges"].get(name)]
    if name != "people":
        return rates
    own = [(comparison or {}).get("judges", {}).get(name) for comparison in by_round]
    return [rate or then for rate, then in zip(rates, own, strict=True)]


def between(metrics: ComparisonMetrics, name: str, side: str, other: str) -> RateFigures | None:
    """Return a judge's figures of one side against another, whichever stands first in the file."""
    for pair in metrics.get("rates", []):
        if pair["judge"] == name and {pair["a"], pair["b"]} == {side, other}:
            return pair if pair["a"] == side else swapped(pair)
    return None


def swapped(pair: SidePairFigures) -> SidePairFigures:
    """Return the same figures seen from the other side."""
    low, high = pair["interval"]
    other = pair | {"win_rate": 1 - pair["win_rate"], "interval": [1 - high, 1 - low]}
    return other | {"win": pair["loss"], "loss": pair["win"]} if "win" in pair else other


def steps(metrics: ComparisonMetrics, sides: Sequence[str], judges: Mapping[str, ReportedJudge]) -> IntervalTable:
    """Return every round but the first against the one before it."""
    rows = []
    for place, (before, side) in enumerate(pairwise(sides[1:]), start=2):
        for name in metrics.get("judges", {}):
            if rate := between(metrics, name, side, before):
                title, judge = f"Round {place} against round {place - 1}", judges[name]
                rows.append(row(title, rate["win_rate"], rate["interval"], colour=judge.colour, note=judge.title))
    return IntervalTable("Each round against the one before", ("Rounds and judge", "Win rate", "95 % interval"), rows)


def draw(against: Mapping[str, Rates], judges: Mapping[str, ReportedJudge]) -> list[Chart]:
    """Draw the win rate against the base, round by round, with a line per judge."""
    series = []
    last = max((len(rates) for rates in against.values()), default=1) - 1
    for place, (name, rates) in enumerate(against.items()):
        aside = BESIDE * (place - (len(against) - 1) / 2)
        start = [(0.0, AT_BASE)] if rates[1] else []
        there = start + [(index + aside, rate) for index, rate in enumerate(rates) if rate]
        points = [(x, float(rate["win_rate"])) for x, rate in there]
        spans = [(float(rate["interval"][0]), float(rate["interval"][1])) for _, rate in there]
        series.append(Series(judges[name].name, points, judges[name].colour, "dots", spans))
    low = min([0.5, *(bound for line in series for bound, _ in line.spans)])
    high = max([0.5, *(bound for line in series for _, bound in line.spans)])
    axes = charts.Axes((-0.15, last + 0.25), (max(0.0, low - 0.05), min(1.0, high + 0.05)), range(last + 1))
    series.append(Series("the base itself", [(-0.15, 0.5), (last + 0.25, 0.5)], 4, "guide"))
    caption = "Vertical lines are 95 % intervals. Round 0 is the base model."
    chart = charts.draw("Win rate against the base", series, "round", "win rate", caption, axes)
    return [chart] if chart and against else []


def _rate(rate: RateFigures | None) -> str:
    return "" if rate is None else rate_text(rate["win_rate"], rate["interval"])


def _read(folder: str) -> ComparisonMetrics | None:
    """Return the comparison of an earlier run, if it still exists."""
    path = RunDirectory(Path(folder)).comparison.metrics
    metrics: ComparisonMetrics | None = files.read_json(path) if path.exists() else None
    return metrics
