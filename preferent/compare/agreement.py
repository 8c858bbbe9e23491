"""How far judges agree with each other, and with people."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from preferent import winrate
from preferent.compare.opinion import Opinion, choices

A_B = ("a", "b")


def figures(opinions: Sequence[Opinion]) -> dict[str, Any]:
    """`agreement` of every two judges on the pairs of a and b that both saw and whose answers differ."""
    said = {one.name: choices(one.said.get(A_B, ())) for one in opinions}
    found = []
    for x, y in combinations(said, 2):
        both = [id for id in said[x] if id in said[y]]
        if both:
            share = winrate.agreement.percent([said[x][id] for id in both], [said[y][id] for id in both])
            found.append({"judges": [x, y], "n": len(both), "percent": share})
    return {"agreement": found}
