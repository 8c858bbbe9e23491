"""The pairs of answers that the report shows side by side, with the verdict of every judge."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from preferent import files, randomness
from preferent.data import judgments
from preferent.data.types import Judgment
from preferent.evaluation.comparison_types import ComparisonMetrics
from preferent.report import verdict_section
from preferent.runs.directory import RunDirectory

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

PairJudgments = Mapping[str, Sequence[Judgment]]
"""The judgments of one pair by judge: one each, several of people."""
Predictions = Mapping[str, Mapping[str, Any]]
"""The predictions of a model by the id of their prompt."""


def select(run: RunDirectory, metrics: ComparisonMetrics, count: int) -> list[dict[str, Any]]:
    """Return at most `count` pairs, an equal share of each group, each pair once; empty if nothing was compared."""
    path = run.comparison.judgments
    if not path.exists():
        return []
    names, headline = verdict_section.sides(metrics), metrics.get("headline")
    pairs = list(grouped(judgments.read(path), names["a"], names["b"]).values())
    folders = {key: "tuned" if key == "a" else "base" if key == "b" else name for key, name in names.items()}
    predictions = {name: _predictions(run, name) for name in folders.values()}
    repeated = {
        folders[key]: figures["most"]
        for key, figures in metrics.get("duplicates", {}).items()
        if key in folders and figures.get("count", 0) > 1
    }
    leads = [lead(pair.get(headline or "", ())) for pair in pairs]
    groups = pick_groups(leads, disagreement(pairs, headline), count)
    return [_row(group, pairs[place], headline, predictions, repeated) for group, places in groups for place in places]


def grouped(judgments: Sequence[Judgment], a: str, b: str) -> dict[str, dict[str, list[Judgment]]]:
    """Return the judgments of a against b by pair and judge, in the order of the file."""
    pairs: dict[str, dict[str, list[Judgment]]] = {}
    for judgment in judgments:
        if (judgment.extra.get("model_a", a), judgment.extra.get("model_b", b)) == (a, b):
            pairs.setdefault(judgment.id, {}).setdefault(judgment.judge, []).append(judgment)
    return pairs


def lead(judgments: Sequence[Judgment]) -> float | None:
    """Return how clearly a judge prefers the tuned answer; None without a judgment.

    This is the difference of the scores; without scores it is the mean verdict, weighted by confidence.
    """
    if not judgments:
        return None
    a, b = judgments[0].extra.get("score_a"), judgments[0].extra.get("score_b")
    if a is not None and b is not None:
        return float(a) - float(b)
    return sum(WON[judgment.choice] * judgment.confidence for judgment in judgments) / len(judgments)


def disagreement(pairs: Sequence[PairJudgments], headline: str | None) -> tuple[str, list[float]]:
    """Return the name of the group of pairs on which judges disagree, and how much they disagree on each (0: not).

    Where people judged, the headline judge is compared with them (every other judge, if people are the headline);
    otherwise the headline judge is compared with the others.
    """
    if any("people" in pair for pair in pairs):
        judges = [[headline] if headline != "people" else list(pair) for pair in pairs]
        return PEOPLE, [_gap(pair, "people", others) for pair, others in zip(pairs, judges, strict=True)]
    return JUDGES, [_gap(pair, headline or "", list(pair)) for pair in pairs]


def _gap(pair: PairJudgments, judge: str, others: Sequence[str | None]) -> float:
    """Return the largest difference of a judge's mean verdict, from -1 to 1, to one on the other side of a tie."""
    means = {
        name: sum(WON[judgment.choice] for judgment in judgments) / len(judgments) for name, judgments in pair.items()
    }
    gaps = [
        abs(means[judge] - means[other])
        for other in others
        if judge in means and other in means and means[judge] * means[other] < 0
    ]
    return max(gaps, default=0.0)


def pick_groups(
    leads: Sequence[float | None], apart: tuple[str, Sequence[float]], count: int
) -> list[tuple[str, list[int]]]:
    """Return places by group: the greatest leads of either side, the greatest disagreements, and a random rest.

    A place is in one group only. The random order is fixed; random places fill what the other groups leave.
    """
    name, gaps = apart
    by_lead = sorted((place for place, margin in enumerate(leads) if margin), key=lambda place: -(leads[place] or 0.0))
    share = min(count, len(leads)) // (4 if any(gaps) else 3)
    disputed = sorted((place for place, gap in enumerate(gaps) if gap > 0), key=lambda place: (-gaps[place], place))
    best = [place for place in by_lead[:share] if (leads[place] or 0.0) > 0]
    worst = [place for place in by_lead[::-1][:share] if (leads[place] or 0.0) < 0]
    far = [place for place in disputed if place not in best and place not in worst][:share]
    taken = {*best, *worst, *far}
    order = [int(i) for i in randomness.permutation(0, "report", 0, len(leads)) if int(i) not in taken]
    rest = order[: min(count, len(leads)) - len(taken)]
    return [(WINS, best), (LOSSES, worst), (name, far), (RANDOM, rest)]


def fit(rows: Sequence[dict[str, Any]], budget: int, size: Callable[[dict[str, Any]], int]) -> list[dict[str, Any]]:
    """Return as many rows as fit into `budget` by `size`, taken from the groups in turn; in their order."""
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


def _predictions(run: RunDirectory, side: str) -> Predictions:
    path = run.predictions(side)
    there = FOLDER.fullmatch(side) and path.exists()
    return {str(row.get("id", "")): row for row in files.read_jsonl(path)} if there else {}


def _row(
    group: str,
    pair: PairJudgments,
    headline: str | None,
    predictions: Mapping[str, Predictions],
    repeated: Mapping[str, str | None],
) -> dict[str, Any]:
    """Return what the page needs of one pair: texts as texts, numbers as numbers."""
    judgments = [judgment for of_judge in pair.values() for judgment in of_judge]
    first, verdicts = judgments[0], pair.get(headline or "", ())
    balance = sum(WON[judgment.choice] for judgment in verdicts)
    scored = next(iter(verdicts), first).extra
    by_side = {side: rows.get(first.id, {}) for side, rows in predictions.items()}
    answers = {"tuned": first.response_a, "base": first.response_b} | {
        side: row["prediction"]
        for side, row in by_side.items()
        if side not in ("tuned", "base") and "prediction" in row
    }
    scores = {"tuned": scored.get("score_a"), "base": scored.get("score_b")}
    return {
        "group": group,
        "id": first.id,
        "prompt": shortened(first.inference_context),
        "reference": shortened(by_side["tuned"].get("inputs", {}).get("targets_pretokenized", "")),
        "choice": ("tuned" if balance > 0 else "base" if balance < 0 else "tie") if verdicts else None,
        "kl": by_side["tuned"].get("kl"),
        "verdicts": [verdict_row(judgment) for judgment in judgments],
        "answers": [
            {
                "side": side,
                "text": shortened(text),
                "score": scores.get(side),
                "tokens": by_side.get(side, {}).get("tokens"),
                "repeated": text == repeated.get(side),
            }
            for side, text in answers.items()
        ],
    }


def verdict_row(judgment: Judgment) -> dict[str, Any]:
    """Return the verdict of one judge, or of one person, on a pair, without what is unknown."""
    extra = judgment.extra
    row = {
        "judge": judgment.judge,
        "choice": "both bad" if extra.get("both_bad") else SIDE[judgment.choice],
        "confidence": None if judgment.judge == "people" else judgment.confidence,
        "annotator": extra.get("annotator"),
        "strength": extra.get("strength"),
        "orders": [_order(verdict) for verdict in extra.get("verdicts", [])],
        "words": shortened(judgment.explanation),
        "note": shortened(str(extra.get("note") or "")),
        "flagged": bool(extra.get("flagged")),
    }
    return {key: entry for key, entry in row.items() if entry not in (None, "", [], False)}


def _order(verdict: Mapping[str, Any]) -> list[str]:
    """Return which answer a language model saw first, and its choice."""
    choice = verdict.get("choice")
    return ["tuned" if verdict["first"] == "a" else "base", "no verdict" if choice is None else SIDE[choice]]


def shortened(text: str) -> str:
    """Return a text, cut at the end if it is too long for the page."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
