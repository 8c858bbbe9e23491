"""Tables of shares with their intervals, each row with a picture of the interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from preferent.evaluation.comparison_types import Interval
from preferent.report import charts


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A name with a `note` below it and a mark (`tag`, a warning if it `warns`), a picture, and cells of text."""

    name: str
    cells: tuple[str, ...]
    picture: Markup
    note: str = ""
    tag: str = ""
    warns: bool = False


@dataclass(frozen=True, slots=True)
class IntervalTable:
    """Rows under a caption; `heads` name the first column and the cells, `remark` is shown below the table."""

    caption: str
    heads: tuple[str, ...]
    rows: Sequence[IntervalRow]
    remark: str = ""


def row(
    name: str,
    share: float,
    interval: Interval | None,
    *more: str,
    colour: int = 1,
    note: str = "",
    tag: str = "",
    warns: bool = False,
) -> IntervalRow:
    """Return a row for a share and its interval (None if there is none); `more` are further cells."""
    low, high = interval or (share, share)
    picture = charts.interval(share, low, high, colour)
    return IntervalRow(name, (percent(share, 1), span(interval) if interval else "", *more), picture, note, tag, warns)


def percent(share: float, digits: int = 0) -> str:
    """Return a share in percent with a non-breaking space; only all of them are 100 %, only none of them are 0 %."""
    text = f"{100 * share:.{digits}f}"
    if digits == 0 and text in ("0", "100") and share not in (0, 1):
        text = f"{100 * share:.1f}"
    return f"{text}\u00a0%"


def span(interval: Interval) -> str:
    """Return an interval of shares in percent."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}\u00a0%"


def rate_text(win_rate: float, interval: Interval | None) -> str:
    """Return a rate, followed by its interval if there is one."""
    return percent(win_rate, 1) + (f" ({span(interval)})" if interval else "")


def outcome_counts(figures: Mapping[str, Any]) -> str:
    """Return the wins, ties and losses of a win rate; nothing if they are unknown."""
    return "–".join(str(figures[key]) for key in ("win", "tie", "loss")) if "win" in figures else ""


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """Return a number with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def probability(p: float) -> str:
    """Return a p value; values below 0.001 are not told apart."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(n: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{n} {singular if n == 1 else plural or singular + 's'}"
