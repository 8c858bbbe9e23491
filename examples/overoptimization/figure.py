"""The picture of over-optimisation as one SVG: gold and proxy over d, by data size, and the ways out."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from curve import Fit
from markupsafe import Markup

from preferent.report import charts
from preferent.report.charts import Point, Series

STYLE = """
text { font: 11px system-ui, sans-serif; fill: #5a5f6a; } .title { font-size: 14px; font-weight: 600; fill: #1d1f24; }
.end { text-anchor: end; } .middle { text-anchor: middle; } .grid { stroke: #e6e3da; } .axis { stroke: #5a5f6a; }
.line { fill: none; stroke-width: 1.6; } .proxy { stroke-dasharray: 5 3; }
"""
COLOURS = ("#b5361c", "#c58a00", "#1f8a63", "#1f56b8", "#7d3ca8", "#5a5f6a")
PROXY, FITTED = 6, 12
"""A colour is 1 to 6; a size's proxy is drawn dashed and its fit thin, under the numbers that follow."""
TITLE, LEGEND = 24, 22
D = "d = √KL to the base, nats per answer"


def draw(found: Mapping[str, Any], fits: Mapping[str, Mapping[str, Fit]]) -> str:
    """Four panels: PPO and best-of-n by size above, the ways out of the smallest size below."""
    sizes = list(found["ppo"])
    small = sizes[0]
    alone = {"one model": found["ppo"][small]}
    panels = [
        by_size("PPO: gold (dots, fit) and proxy (dashed)", found["ppo"], fits["ppo"]),
        by_size("Best-of-n: gold (dots, fit) and proxy (dashed)", found["best_of_n"], fits["best_of_n"]),
        by_way(f"PPO on {small} pairs: gold", alone | found["ppo_ways"], "scatter"),
        by_way(f"Best-of-n on {small} pairs: gold", found["best_of_n_ways"], "dots"),
    ]
    width, height = charts.WIDTH, TITLE + LEGEND + charts.HEIGHT
    places = [(column * width, row * (height + 16)) for row in range(2) for column in range(2)]
    body = Markup("").join(
        Markup('<g transform="translate({} {})">{}</g>').format(x, y, panel)
        for (x, y), panel in zip(places, panels, strict=True)
    )
    svg = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}"><style>{2}</style>'
        '<rect width="{0}" height="{1}" fill="#fff"/>{3}</svg>\n'
    )
    return str(svg.format(2 * width, 2 * height + 16, Markup(STYLE + colours()), body))


def colours() -> str:
    rules = []
    for index, colour in enumerate(COLOURS, start=1):
        for number, extra in ((index, ""), (index + PROXY, "stroke-dasharray: 5 3;"), (index + FITTED, "")):
            rules.append(
                f".line.c{number} {{ stroke: {colour}; {extra} }} .c{number}.dust, .c{number}.dot {{ fill: {colour}; }}"
            )
    return "\n".join(rules)


def points(path: Mapping[str, Sequence[float]], key: str) -> list[Point]:
    return list(zip(path["d"], path[key], strict=True))


def by_size(title: str, paths: Mapping[str, Any], fits: Mapping[str, Fit]) -> Markup:
    """Gold, its fit and the proxy, of each data size."""
    series = []
    for colour, (size, path) in enumerate(paths.items(), start=1):
        d = np.linspace(max(1e-3, min(path["d"])), max(path["d"]), 100)
        fitted = list(zip(d.tolist(), fits[size](d).tolist(), strict=True))
        series += [
            Series(f"{size} pairs", points(path, "gold"), colour, "scatter"),
            Series(f"{size} pairs, fit", fitted, colour + FITTED),
            Series(f"{size} pairs, proxy", points(path, "proxy"), colour + PROXY),
        ]
    return panel(title, series, [f"{size} pairs" for size in paths])


def by_way(title: str, paths: Mapping[str, Any], kind: Literal["scatter", "dots"]) -> Markup:
    """Gold of each way out."""
    series = [
        Series(way, points(path, "gold"), colour, kind) for colour, (way, path) in enumerate(paths.items(), start=1)
    ]
    return panel(title, series, list(paths))


def panel(title: str, series: Sequence[Series], names: Sequence[str]) -> Markup:
    """A chart under its title and the names of its colours."""
    drawn = charts.draw(title, series, D, "reward above the base, log-odds", title)
    assert drawn is not None
    parts = [Markup('<text class="title" x="{}" y="16">{}</text>').format(charts.LEFT, title)]
    step = (charts.WIDTH - charts.LEFT - charts.RIGHT) / len(names)
    for index, name in enumerate(names):
        x = charts.LEFT + index * step
        parts.append(Markup('<circle class="dot c{}" cx="{}" cy="34" r="4"/>').format(index + 1, x + 4))
        parts.append(Markup('<text x="{}" y="38">{}</text>').format(x + 13, name))
    inner = Markup('<svg y="{}" width="{}" height="{}">{}</svg>')
    return Markup("").join([*parts, inner.format(TITLE + LEGEND, charts.WIDTH, charts.HEIGHT, drawn.svg)])
