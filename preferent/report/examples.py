"""Which answers the report shows side by side, and what every judge said of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from preferent import files, randomness
from preferent.data import judgments
from preferent.data.types import Judgment
from preferent.report import verdict_section

WINS, LOSSES, PEOPLE, JUDGES, RANDOM = (
    *("biggest wins", "biggest losses"),
    *("judge against people", "judges disagree", "random"),
)
FOLDER = re.compile(r"\w[\w.-]*")
"""Names of sides that are names of folders."""
LONGEST = 20_000
"""Characters of a text that the page shows."""
SIDE = {"A": "tuned", "B": "base", "tie": "tie"}
WON = {"A": 1.0, "tie": 0.0, "B": -1.0}

Said = Mapping[str, Sequence[Judgment]]
"""What was said of one pair: judgments by judge, one each but for people."""
Figures = Mapping[str, Any]


def chosen(root: Path, metrics: Figures, count: int) -> list[dict[str, Any]]:
    """At most `count` pairs, an equal share of each group, each pair once; empty where nothing was compared."""
    path = root / "comparison" / "judgments.jsonl"
    if not path.exists():
        return []
    names, headline = verdict_section.sides(metrics), metrics.get("headline")
    pairs = list(grouped(judgments.read(path), names["a"], names["b"]).values())
    folders = {key: "tuned" if key == "a" else "base" if key == "b" else name for key, name in names.items()}
    predictions = {name: _predictions(root, name) for name in folders.values()}
    repeated = {
        folders[key]: found["most"]
        for key, found in metrics.get("duplicates", {}).items()
        if key in folders and found.get("count", 0) > 1
    }
    groups = picked([lead(pair.get(headline or "", ())) for pair in pairs], disagreement(pairs, headline), count)
    return [_row(group, pairs[place], headline, predictions, repeated) for group, places in groups for place in places]


def grouped(judgments: Sequence[Judgment], a: str, b: str) -> dict[str, dict[str, list[Judgment]]]:
    """Judgments of a against b by pair and judge, in the order of the file."""
    pairs: dict[str, dict[str, list[Judgment]]] = {}
    for one in judgments:
        if (one.extra.get("model_a", a), one.extra.get("model_b", b)) == (a, b):
            pairs.setdefault(one.id, {}).setdefault(one.judge, []).append(one)
    return pairs


def lead(judgments: Sequence[Judgment]) -> float | None:
    """How clearly a judge was for the tuned answer: by how much higher it scored; without scores the mean verdict, each
    worth its confidence; None where the judge said nothing."""
    if not judgments:
        return None
    a, b = judgments[0].extra.get("score_a"), judgments[0].extra.get("score_b")
    if a is not None and b is not None:
        return float(a) - float(b)
    return sum(WON[one.choice] * one.confidence for one in judgments) / len(judgments)


def disagreement(pairs: Sequence[Said], headline: str | None) -> tuple[str, list[float]]:
    """The name of the group of pairs on which judges disagree, and how far they do on each (0: not at all).

    Where people judged, it is the headline judge against them (another judge, where people are the headline); else the
    headline judge against the others.
    """
    if any("people" in pair for pair in pairs):
        return PEOPLE, [_apart(pair, ["people"], [headline] if headline != "people" else list(pair)) for pair in pairs]
    return JUDGES, [_apart(pair, [headline or ""], list(pair)) for pair in pairs]


def _apart(pair: Said, ones: Sequence[str], others: Sequence[str | None]) -> float:
    """By how much the mean verdicts of two judges, from -1 to 1, lie on either side of a tie, at the most."""
    said = {name: sum(WON[one.choice] for one in found) / len(found) for name, found in pair.items()}
    gaps = [
        abs(said[one] - said[other])
        for one in ones
        for other in others
        if one in said and other in said and said[one] * said[other] < 0
    ]
    return max(gaps, default=0.0)


def picked(
    leads: Sequence[float | None], apart: tuple[str, Sequence[float]], count: int
) -> list[tuple[str, list[int]]]:
    """Places by group: the greatest leads of either side, those judged furthest apart, and some others in a fixed
    random order. A place is in one group only; the random ones fill up what the other groups leave."""
    name, gaps = apart
    by_lead = sorted((place for place, value in enumerate(leads) if value), key=lambda place: -(leads[place] or 0.0))
    each = min(count, len(leads)) // (4 if any(gaps) else 3)
    disputed = sorted((place for place, gap in enumerate(gaps) if gap > 0), key=lambda place: (-gaps[place], place))
    best = [place for place in by_lead[:each] if (leads[place] or 0.0) > 0]
    worst = [place for place in by_lead[::-1][:each] if (leads[place] or 0.0) < 0]
    far = [place for place in disputed if place not in best and place not in worst][:each]
    taken = {*best, *worst, *far}
    order = [int(i) for i in randomness.permutation(0, "report", 0, len(leads)) if int(i) not in taken]
    rest = order[: min(count, len(leads)) - len(taken)]
    return [(WINS, best), (LOSSES, worst), (name, far), (RANDOM, rest)]


def within(rows: Sequence[dict[str, Any]], budget: int, size: Callable[[dict[str, Any]], int]) -> list[dict[str, Any]]:
    """As many of the rows as fit into `budget` by `size`, taken from the groups in turn; in their order."""
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row["group"], []).append(place)
    kept, spent = set(), 0
    for place in (place for turn in zip_longest(*groups.values()) for place in turn if place is not None):
        spent += size(rows[place])
        if spent > budget:
            break
        kept.add(place)
    return [row for place, row in enumerate(rows) if place in kept]


def _predictions(root: Path, side: str) -> dict[str, Figures]:
    path = root / "predictions" / side / "text.jsonl"
    there = FOLDER.fullmatch(side) and path.exists()
    return {str(row.get("id", "")): row for row in files.read_jsonl(path)} if there else {}


def _row(
    group: str,
    pair: Said,
    headline: str | None,
    predictions: Mapping[str, Mapping[str, Figures]],
    repeated: Mapping[str, str],
) -> dict[str, Any]:
    """What the page needs of one pair: texts as they are, numbers as numbers."""
    judgments = [one for found in pair.values() for one in found]
    first, judged = judgments[0], pair.get(headline or "", ())
    balance = sum(WON[one.choice] for one in judged)
    scored = next(iter(judged), first).extra
    found = {side: rows.get(first.id, {}) for side, rows in predictions.items()}
    answers = {"tuned": first.response_a, "base": first.response_b} | {
        side: row["prediction"] for side, row in found.items() if side not in ("tuned", "base") and "prediction" in row
    }
    scores = {"tuned": scored.get("score_a"), "base": scored.get("score_b")}
    return {
        "group": group,
        "id": first.id,
        "prompt": shortened(first.inference_context),
        "reference": shortened(found["tuned"].get("inputs", {}).get("targets_pretokenized", "")),
        "choice": ("tuned" if balance > 0 else "base" if balance < 0 else "tie") if judged else None,
        "kl": found["tuned"].get("kl"),
        "verdicts": [spoken(one) for one in judgments],
        "answers": [
            {
                "side": side,
                "text": shortened(text),
                "score": scores.get(side),
                "tokens": found.get(side, {}).get("tokens"),
                "repeated": text == repeated.get(side),
            }
            for side, text in answers.items()
        ],
    }


def spoken(judgment: Judgment) -> dict[str, Any]:
    """What one judge, or one of the people, said of a pair, without what is not known."""
    extra = judgment.extra
    said = {
        "judge": judgment.judge,
        "choice": "both bad" if extra.get("both_bad") else SIDE[judgment.choice],
        "confidence": None if judgment.judge == "people" else judgment.confidence,
        "annotator": extra.get("annotator"),
        "strength": extra.get("strength"),
        "orders": [_order(one) for one in extra.get("verdicts", [])],
        "words": shortened(judgment.explanation),
        "note": shortened(str(extra.get("note") or "")),
        "flagged": bool(extra.get("flagged")),
    }
    return {key: value for key, value in said.items() if value not in (None, "", [], False)}


def _order(found: Figures) -> list[str]:
    """One verdict of a language model: which answer stood first, and what it chose."""
    choice = found.get("choice")
    return ["tuned" if found["first"] == "a" else "base", "no verdict" if choice is None else SIDE[choice]]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
