"""Tables of shares with their intervals, each with a picture of the interval: what the page has most of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from preferent.report import charts


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A name, what is small under it, its mark (`tag`, a warning where it `warns`), a picture and cells of text."""

    name: str
    cells: tuple[str, ...]
    picture: Markup
    note: str = ""
    tag: str = ""
    warns: bool = False


@dataclass(frozen=True, slots=True)
class IntervalTable:
    """Rows under a caption; `heads` name the first column and the cells, `remark` stands below."""

    caption: str
    heads: tuple[str, ...]
    rows: Sequence[IntervalRow]
    remark: str = ""


def row(
    name: str,
    share: float,
    interval: Sequence[float] | None,
    *more: str,
    colour: int = 1,
    note: str = "",
    tag: str = "",
    warns: bool = False,
) -> IntervalRow:
    """A share and its interval (None where nobody offers one) as a row; `more` are cells after them."""
    low, high = interval or (share, share)
    picture = charts.interval(share, low, high, colour)
    return IntervalRow(name, (percent(share, 1), span(interval) if interval else "", *more), picture, note, tag, warns)


def percent(share: float, digits: int = 0) -> str:
    """A share as people write it, with a space that does not break; only all of them are 100 %, only none 0 %."""
    text = f"{100 * share:.{digits}f}"
    if digits == 0 and text in ("0", "100") and share not in (0, 1):
        text = f"{100 * share:.1f}"
    return f"{text}\u00a0%"


def span(interval: Sequence[float]) -> str:
    """An interval of shares."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}\u00a0%"


def told(found: Mapping[str, Any]) -> str:
    """A rate with its interval, in a sentence."""
    return f"{percent(found['win_rate'], 1)} ({span(found['interval'])})"


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def probability(p: float) -> str:
    """A p value; the smallest are not told apart."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(n: int, one: str, several: str = "") -> str:
    """A number with its noun."""
    return f"{n} {one if n == 1 else several or one + 's'}"
