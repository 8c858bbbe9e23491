"""Which answers the report shows side by side: the best, the worst and some at random, by the headline judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent import draw, judge, run
from preferent.record import Judgment

GROUPS = ("best", "worst", "random")


def chosen(root: Path, headline: str | None, count: int) -> list[dict[str, Any]]:
    """At most `count` rows, a third of each group, each row once; empty where nothing was compared.

    Best and worst are by the tuned answer's lead in score; without scores all are random.
    """
    path = root / "comparison" / "judgments.jsonl"
    if not path.exists():
        return []
    judgments = [one for one in judge.read(path) if headline is None or one.judge == headline]
    predictions = {side: _predictions(root, side) for side in ("tuned", "base", "original")}
    rows = []
    for group, places in zip(GROUPS, picked([lead(one) for one in judgments], count), strict=True):
        rows += [_row(group, judgments[place], predictions) for place in places]
    return rows


def lead(judgment: Judgment) -> float | None:
    """How much higher the tuned answer scored than the base one."""
    a, b = judgment.extra.get("score_a"), judgment.extra.get("score_b")
    return None if a is None or b is None else float(a) - float(b)


def picked(leads: Sequence[float | None], count: int) -> tuple[list[int], list[int], list[int]]:
    """Places of the best (best first), the worst (worst first) and some others in a fixed random order."""
    scored = [(-value, place) for place, value in enumerate(leads) if value is not None]
    by_lead = [place for _, place in sorted(scored)]
    each = min(count, len(leads)) // 3
    best = by_lead[:each]
    worst = [place for place in by_lead[::-1][:each] if place not in best]
    taken = {*best, *worst}
    order = [int(i) for i in draw.permutation(0, "report", 0, len(leads)) if int(i) not in taken]
    return best, worst, order[: min(count, len(leads)) - len(taken)]


def _predictions(root: Path, side: str) -> dict[str, Mapping[str, Any]]:
    path = root / "predictions" / side / "text.jsonl"
    return {str(row.get("id", "")): row for row in run.read_jsonl(path)} if path.exists() else {}


def _row(group: str, judgment: Judgment, predictions: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What the page needs of one pair: texts as they are, numbers as numbers."""
    found = {side: rows.get(judgment.id, {}) for side, rows in predictions.items()}
    answers = {"tuned": judgment.response_a, "base": judgment.response_b}
    if "prediction" in found["original"]:
        answers["original"] = found["original"]["prediction"]
    scores = {"tuned": judgment.extra.get("score_a"), "base": judgment.extra.get("score_b")}
    inputs = found["tuned"].get("inputs", {})
    return {
        "group": group,
        "id": judgment.id,
        "prompt": judgment.inference_context,
        "reference": inputs.get("targets_pretokenized", ""),
        "choice": {"A": "tuned", "B": "base", "tie": "tie"}[judgment.choice],
        "confidence": judgment.confidence,
        "kl": found["tuned"].get("kl"),
        "answers": [
            {"side": side, "text": text, "score": scores.get(side), "tokens": found[side].get("tokens")}
            for side, text in answers.items()
        ],
    }
