"""Charts as inline SVG, coloured by the page's style sheet, so that one drawing serves light and dark.

A point is (x, y). Coordinates of the drawing are pixels of a 460 x 280 view box; the plot fills it except for the axes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 10, 42
MOST_POINTS = 300
LINE_LEFT, LINE_WIDTH, MIDDLE = 6, 228, 10
"""Of the picture of an interval, which is 240 x 20 pixels."""

Point = tuple[float, float]
Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name and colour (1 to 6 of the style sheet).

    A `line` of many points is drawn as the means of equal groups on a band from their minimum to their maximum. `dots`
    is a line with a mark at each point, `scatter` is marks alone (of many points, every n-th), `guide` is a dashed
    line, and `ring` is circles around points. `spans` are intervals of the points, drawn as vertical lines.
    """

    name: str
    points: Sequence[Point]
    colour: int
    kind: Literal["line", "dots", "scatter", "guide", "ring"] = "line"
    spans: Sequence[Range] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with its title, legend and caption."""

    title: str
    svg: Markup
    series: Sequence[Series]
    caption: str


@dataclass(frozen=True, slots=True)
class Axes:
    """The ranges of the data; `at` are the numbers on the x axis, round numbers by default."""

    x: Range
    y: Range
    at: Sequence[float] = ()

    @classmethod
    def around(cls, points: Sequence[Point]) -> "Axes":
        """Return axes that contain all points with a small margin."""
        return cls(_padded([x for x, _ in points], 0.0), _padded([y for _, y in points], 0.06))

    def place(self, point: Point) -> Point:
        """Return the place of a point in the drawing, in pixels."""
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _padded(values: Sequence[float], share: float) -> Range:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) / 10 or 1.0
        return low - room, high + room
    return low - share * (high - low), high + share * (high - low)


def draw(title: str, series: Sequence[Series], x: str, y: str, caption: str, axes: Axes | None = None) -> Chart | None:
    """Draw series over labelled axes; None if no series has a point."""
    series = [line for line in series if line.points]
    if not series:
        return None
    axes = axes or Axes.around([point for line in series for point in line.points])
    marks = Markup("").join([_grid(axes, x, y), *(_marks(line, axes) for line in series)])
    svg = Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-range="{} {} {} {}" data-plot="{} {} {} {}">{}</svg>'
    ).format(
        *(WIDTH, HEIGHT, f"{title}. {caption}"),
        *(f"{value:.6g}" for value in (*axes.x, *axes.y)),
        *(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP),
        marks,
    )
    return Chart(title, svg, series, caption)


def _grid(axes: Axes, x: str, y: str) -> Markup:
    """Return grid lines, numbers and names of both axes."""
    parts = []
    for value in ticks(*axes.y):
        _, height = axes.place((axes.x[0], value))
        parts.append(_element("line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height))
        parts.append(_text(number(value), "tick end", LEFT - 7, height + 4))
    for value in axes.at or ticks(*axes.x):
        across, _ = axes.place((value, axes.y[0]))
        parts.append(_element("line", "axis", x1=across, x2=across, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4))
        parts.append(_text(number(value), "tick middle", across, HEIGHT - BOTTOM + 17))
    parts.append(_element("line", "axis", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM))
    parts.append(_text(x, "label middle", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = Markup('<text class="label middle" transform="translate(12 {:.1f}) rotate(-90)">{}</text>')
    parts.append(turned.format(middle, y))
    return Markup("").join(parts)


def _marks(series: Series, axes: Axes) -> Markup:
    """Return the marks of one series."""
    colour = f"c{series.colour}"
    if series.kind == "line":
        mean, band = grouped(series.points)
        area = _element("polygon", f"band {colour}", points=_path(band, axes)) if band else Markup("")
        return area + _line(mean, f"line {colour}", series.name, axes)
    if series.kind == "guide":
        return _element("polyline", "guide", points=_path(series.points, axes))
    radius, style = {"dots": (3.2, "dot"), "scatter": (2.2, "dust"), "ring": (8, "ring")}[series.kind]
    shown = series.points[:: -(-len(series.points) // MOST_POINTS)]
    places = [axes.place(point) for point in shown]
    marks = [_element("circle", f"{style} {colour}", cx=left, cy=top, r=radius) for left, top in places]
    line = _line(shown, f"line {colour}", series.name, axes) if series.kind == "dots" else Markup("")
    upright = [_upright(x, span, colour, axes) for (x, _), span in zip(series.points, series.spans, strict=False)]
    return line + Markup("").join([*upright, *marks])


def _upright(x: float, span: Range, colour: str, axes: Axes) -> Markup:
    """Return the interval of a point as a vertical line."""
    (across, bottom), (_, top) = axes.place((x, span[0])), axes.place((x, span[1]))
    return _element("line", f"whisker {colour}", x1=across, x2=across, y1=bottom, y2=top)


def grouped(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Return at most `MOST_POINTS` means of neighbours, and the outline of their ranges (empty if none are grouped)."""
    size = -(-len(points) // MOST_POINTS)
    if size == 1:
        return list(points), []
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    middles = [sum(x for x, _ in group) / len(group) for group in groups]
    means = [sum(y for _, y in group) / len(group) for group in groups]
    least = [(x, min(y for _, y in group)) for x, group in zip(middles, groups, strict=True)]
    greatest = [(x, max(y for _, y in group)) for x, group in zip(middles, groups, strict=True)]
    return list(zip(middles, means, strict=True)), greatest + least[::-1]


def _line(points: Sequence[Point], style: str, name: str, axes: Axes) -> Markup:
    """Return a line from which the page's script can read values."""
    markup = Markup('<polyline class="{}" data-name="{}" points="{}"/>')
    return markup.format(style, name, _path(points, axes))


def _path(points: Sequence[Point], axes: Axes) -> str:
    return " ".join("{:.1f},{:.1f}".format(*axes.place(point)) for point in points)


def _element(tag: str, style: str, **attributes: float | str) -> Markup:
    shown = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in attributes.items()}
    inner = Markup(" ").join(Markup('{}="{}"').format(name, value) for name, value in shown.items())
    return Markup('<{} class="{}" {}/>').format(Markup(tag), style, inner)


def _text(text: str, style: str, x: float, y: float) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, text)


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return about `most` or fewer round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """Return a number on an axis, with a true minus sign and thousands as k."""
    if abs(value) < 1e-12:
        return "0"
    text = f"{value / 1000:.6g}k" if abs(value) >= 10_000 else f"{value:.6g}"
    return text.replace("-", "−")


def interval(rate: float, low: float, high: float, colour: int) -> Markup:
    """Draw a win rate with its interval on a line from 0 to 1, with a mark at one half."""
    at = [LINE_LEFT + LINE_WIDTH * value for value in (rate, low, high)]
    parts = [
        *_ruler(),
        _element("line", f"span c{colour}", x1=at[1], x2=at[2], y1=MIDDLE, y2=MIDDLE),
        _element("circle", f"dot c{colour}", cx=at[0], cy=MIDDLE, r=5),
    ]
    return _picture(parts)


def no_interval() -> Markup:
    """Draw the line from 0 to 1 alone."""
    return _picture(_ruler())


def ends() -> Markup:
    """Draw the head of a column of intervals: the places of 0, one half and 1."""
    shares = {"0": 0.0, "50\u00a0%": 0.5, "100": 1.0}
    return _picture(
        [
            _text(name, f"tick {style}", LINE_LEFT + LINE_WIDTH * share, 15)
            for (name, share), style in zip(shares.items(), ("", "middle", "end"), strict=True)
        ]
    )


def _ruler() -> list[Markup]:
    right, half = LINE_LEFT + LINE_WIDTH, LINE_LEFT + LINE_WIDTH / 2
    return [
        _element("line", "grid", x1=LINE_LEFT, x2=right, y1=MIDDLE, y2=MIDDLE),
        _element("line", "half", x1=half, x2=half, y1=1, y2=19),
    ]


def _picture(parts: Sequence[Markup]) -> Markup:
    svg = Markup('<svg class="interval" viewBox="0 0 240 20" aria-hidden="true">{}</svg>')
    return svg.format(Markup("").join(parts))
