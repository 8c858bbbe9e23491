"""How far judges agree with each other, and with people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from preferent.compare.opinion import A_B, Opinion
from preferent.judge.vote import choices
from preferent.winrate import agreement


def figures(opinions: Sequence[Opinion], prompts: Mapping[str, str]) -> dict[str, Any]:
    """Of every two judges the agreement on the pairs of a and b that both saw and whose answers differ, and of every
    judge how it did by what people said."""
    said = {one.name: choices(one.said.get(A_B, ())) for one in opinions}
    found = [_between(said, x, y, prompts) for x, y in combinations(said, 2)]
    judged = {name: _against_people(said, name, prompts) for name in said if name != "people" and "people" in said}
    return {
        "agreement": [one for one in found if one is not None],
        "against_people": {name: one for name, one in judged.items() if one is not None},
    }


def _shared(said: Mapping[str, Mapping[str, str]], x: str, y: str) -> list[str]:
    return [id for id in said[x] if id in said[y]]


def _between(
    said: Mapping[str, Mapping[str, str]], x: str, y: str, prompts: Mapping[str, str]
) -> dict[str, Any] | None:
    ids = _shared(said, x, y)
    if not ids:
        return None
    one, other = ([said[name][id] for id in ids] for name in (x, y))
    return {"judges": [x, y]} | {"n": len(ids), "percent": agreement.percent(one, other)}


def _against_people(
    said: Mapping[str, Mapping[str, str]], name: str, prompts: Mapping[str, str]
) -> dict[str, Any] | None:
    ids = _shared(said, name, "people")
    if not ids:
        return None
    one, people = ([said[judge][id] for id in ids] for judge in (name, "people"))
    return {"n": len(ids)}
