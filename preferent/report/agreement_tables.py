"""How far the judges of a comparison agree, in words and tables; with people above all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preferent.report.interval_tables import counted, number, percent, span
from preferent.report.judge_names import ReportedJudge

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AgreementCell:
    """How far two judges agree; empty texts where it is not known."""

    percent: str
    kappa: str
    more: str


@dataclass(frozen=True, slots=True)
class AgreementMatrix:
    """Every two judges once: `rows` are names with cells, one for each of the judges in `heads` that stand before."""

    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[AgreementCell]]]


def matrix(metrics: Figures, jury: Mapping[str, ReportedJudge]) -> AgreementMatrix:
    """How far every two judges agree; without rows where there are fewer than two."""
    between = {frozenset(one["judges"]): one for one in metrics.get("agreement", [])}
    names = [name for name in jury if any(name in pair for pair in between)]
    rows = [
        (jury[name].title, [_cell(between.get(frozenset((name, other)))) for other in names[:place]])
        for place, name in enumerate(names)
    ]
    return AgreementMatrix([jury[name].title for name in names[:-1]], rows[1:])


def _cell(found: Figures | None) -> AgreementCell:
    if found is None:
        return AgreementCell("", "", "")
    low, high = found.get("kappa_interval") or (None, None)
    kappa = "" if found.get("kappa") is None else f"κ {number(found['kappa'])}"
    interval = "" if low is None or high is None else f" ({number(low)} to {number(high)})"
    return AgreementCell(percent(found["percent"]), kappa + interval, f"of {counted(found['n'], 'pair')}")


def readings(metrics: Figures, jury: Mapping[str, ReportedJudge]) -> list[str]:
    """Agreement in words, with people where people judged, else of every two judges."""
    found = metrics.get("agreement", [])
    with_people = [one for one in found if "people" in one["judges"]]
    return [_reading(one, jury) for one in with_people or found]


def _reading(found: Figures, jury: Mapping[str, ReportedJudge]) -> str:
    one, other = sorted(found["judges"], key=lambda name: name == "people")
    who = f"{jury[one].title} and {jury[other].name} give the same verdict on {percent(found['percent'])} of "
    says = f"{who}{counted(found['n'], 'pair')}"
    kappa, interval = found.get("kappa"), found.get("kappa_interval")
    if kappa is None:
        return f"{says}."
    if kappa <= 0 or (interval and interval[0] <= 0):
        return f"{says}: no more than chance alone would make, as far as these pairs show."
    return f"{says}: {percent(kappa)} of the way from what chance alone would make to always."


def against_people(metrics: Figures, jury: Mapping[str, ReportedJudge]) -> list[tuple[str, list[str]]]:
    """Rows of AutoSxS's figures, a cell for each judge that people can be held against; the first row names them."""
    found = metrics.get("against_people", {})
    if not found:
        return []
    shares = ("accuracy", "precision", "recall", "f1_score")
    rates = ("model_win_rate", "human_preference_model_win_rate")
    counts = ("true_positive_count", "false_positive_count", "false_negative_count", "true_negative_count", "tie_count")
    table = [("", [jury[name].name for name in found])]
    for keys, show in ((rates, _share), (shares, _share), (("cohens_kappa",), _plain), (counts, _count)):
        there = [key for key in keys if any(key in one for one in found.values())]
        table += [(key, [show(one, key) for one in found.values()]) for key in there]
    return table if len(table) > 1 else []


def _share(found: Figures, key: str) -> str:
    interval = (found.get("intervals") or {}).get(key)
    value = found.get(key)
    return "–" if value is None else percent(value, 1) + (f" ({span(interval)})" if interval else "")


def _plain(found: Figures, key: str) -> str:
    interval = (found.get("intervals") or {}).get(key)
    value = found.get(key)
    shown = f" ({number(interval[0])} to {number(interval[1])})" if interval else ""
    return "–" if value is None else number(value) + shown


def _count(found: Figures, key: str) -> str:
    return str(found.get(key, "–"))
