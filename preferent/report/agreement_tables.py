"""The agreement of the judges of a comparison, with people above all, as tables and sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preferent.evaluation.comparison_types import AgreementFigures, ComparisonMetrics
from preferent.report.interval_tables import counted, number, percent, span
from preferent.report.judge_names import ReportedJudge

Judges = Mapping[str, ReportedJudge]


@dataclass(frozen=True, slots=True)
class AgreementCell:
    """The agreement of two judges; empty texts if it is unknown."""

    percent: str
    kappa: str
    more: str


@dataclass(frozen=True, slots=True)
class AgreementMatrix:
    """Every two judges once: `rows` are names with one cell for each of the judges in `heads` that precede them."""

    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[AgreementCell]]]


def matrix(metrics: ComparisonMetrics, judges: Judges) -> AgreementMatrix:
    """Return the agreement of every two judges; without rows if there are fewer than two."""
    between = {frozenset(pair["judges"]): pair for pair in metrics.get("agreement", [])}
    names = [name for name in judges if any(name in pair for pair in between)]
    rows = [
        (judges[name].title, [_cell(between.get(frozenset((name, other)))) for other in names[:place]])
        for place, name in enumerate(names)
    ]
    return AgreementMatrix([judges[name].title for name in names[:-1]], rows[1:])


def _cell(pair: AgreementFigures | None) -> AgreementCell:
    if pair is None:
        return AgreementCell("", "", "")
    kappa = pair.get("kappa")
    text = "" if kappa is None else f"κ {number(kappa)}{_bounds(pair.get('kappa_interval'))}"
    return AgreementCell(percent(pair["percent"]), text, f"of {counted(pair['n'], 'pair')}")


def _bounds(interval: Sequence[float] | None) -> str:
    return f" ({number(interval[0])} to {number(interval[1])})" if interval else ""


def sentences(metrics: ComparisonMetrics, judges: Judges) -> list[str]:
    """Return the agreement in words: with people if people judged, otherwise of every two judges."""
    pairs = metrics.get("agreement", [])
    with_people = [pair for pair in pairs if "people" in pair["judges"]]
    return [_sentence(pair, judges) for pair in with_people or pairs]


def _sentence(pair: AgreementFigures, judges: Judges) -> str:
    first, second = sorted(pair["judges"], key=lambda name: name == "people")
    who = f"{judges[first].title} and {judges[second].name} give the same verdict on {percent(pair['percent'])} of "
    agreement = f"{who}{counted(pair['n'], 'pair')}"
    kappa, interval = pair.get("kappa"), pair.get("kappa_interval")
    if kappa is None:
        return f"{agreement}."
    if kappa <= 0 or (interval and interval[0] <= 0):
        return f"{agreement}. This is not shown to be more than chance."
    return f"{agreement}: {percent(kappa)} of the way from chance to full agreement."


def against_people(metrics: ComparisonMetrics, judges: Judges) -> list[tuple[str, list[str]]]:
    """Return rows of AutoSxS's figures, with a cell for each judge that is compared with people.

    The first row names the judges.
    """
    by_judge: Mapping[str, Mapping[str, Any]] = metrics.get("against_people", {})
    if not by_judge:
        return []
    shares = ("accuracy", "precision", "recall", "f1_score")
    rates = ("model_win_rate", "human_preference_model_win_rate")
    counts = ("true_positive_count", "false_positive_count", "false_negative_count", "true_negative_count", "tie_count")
    table = [("", [judges[name].name for name in by_judge])]
    for keys, show in ((rates, _share), (shares, _share), (("cohens_kappa",), _plain), (counts, _count)):
        there = [key for key in keys if any(key in figures for figures in by_judge.values())]
        table += [(key, [show(figures, key) for figures in by_judge.values()]) for key in there]
    return table if len(table) > 1 else []


def _share(figures: Mapping[str, Any], key: str) -> str:
    interval = (figures.get("intervals") or {}).get(key)
    share = figures.get(key)
    return "–" if share is None else percent(share, 1) + (f" ({span(interval)})" if interval else "")


def _plain(figures: Mapping[str, Any], key: str) -> str:
    interval = (figures.get("intervals") or {}).get(key)
    statistic = figures.get(key)
    return "–" if statistic is None else number(statistic) + _bounds(interval)


def _count(figures: Mapping[str, Any], key: str) -> str:
    return str(figures.get(key, "–"))
