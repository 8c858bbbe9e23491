"""The true preference of the little world, which no model is told: it labels, through noise, and it judges, without."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from preferent.evaluation import statistics
from preferent.quickstart.synthetic_posts import EVENTS, PEOPLE, PLACES, Facts, ends, facts_of

ENOUGH_WORDS = 8
"""Words of a summary that cost nothing."""
SHARPNESS = 2.0
"""Log-odds of the annotator's choice for a unit of utility."""
STEPS_A_POINT = 5
Rows = Sequence[Mapping[str, Any]]


def _correct(facts: Facts, text: str) -> dict[str, int]:
    """For who, what and where: 1 told right, 0 not told, -1 told wrong (or right and wrong)."""
    words = set(re.findall(r"\w+", text))
    told = {
        "who": words & PEOPLE.keys(),
        "what": {short for short, long in EVENTS.items() if f" {short}" in text or f" {long}" in text},
        "where": words & set(PLACES),
    }
    return {key: 0 if not said else 1 if said == {getattr(facts, key)} else -1 for key, said in told.items()}


def utility(facts: Facts, text: str, ended: bool) -> float:
    """The true preference: the sum of right (+1), missing (0) and wrong (-1) over who, what and where; less 0.1 for
    every word beyond `ENOUGH_WORDS`; less 1 for a summary that did not end."""
    idle = max(0, len(re.findall(r"\w+", text)) - ENOUGH_WORDS)
    return sum(_correct(facts, text).values()) - 0.1 * idle - (0.0 if ended else 1.0)


def faithful(facts: Facts, text: str) -> bool:
    """Whether a summary tells who, what and where, all right."""
    return all(right == 1 for right in _correct(facts, text).values())


def choose(facts: Facts, candidates: tuple[str, str], uniform: float) -> int:
    """The annotator: candidate 1 with the probability that `likes` gives it."""
    return int(uniform < likes(facts, *candidates))


def likes(facts: Facts, zero: str, one: str) -> float:
    """How likely the annotator prefers candidate 1: sigma(`SHARPNESS` * difference in utility), Bradley-Terry."""
    difference = utility(facts, one, ends(one)) - utility(facts, zero, ends(zero))
    return 1 / (1 + math.exp(-SHARPNESS * difference))


def ceiling(pairs: Rows) -> float:
    """How often who knew the true preference would agree with the annotator, expected over rows of candidates."""
    one = np.array([likes(facts_of(row["input_text"]), row["candidate_0"], row["candidate_1"]) for row in pairs])
    return float(np.maximum(one, 1 - one).mean())


def true_scores(rows: Rows) -> list[float]:
    """The utility of each row of a prediction file."""
    return [utility(facts_of(_post(row)), row["prediction"], row["ended"]) for row in rows]


def _post(row: Mapping[str, Any]) -> str:
    return str(row["inputs"]["inputs_pretokenized"])


def verdict(base: Rows, tuned: Rows) -> dict[str, Any]:
    """How tuned answers do against base answers to the same posts, by the true preference: equal utilities tie."""
    before, after = true_scores(base), true_scores(tuned)
    outcomes = (np.sign(np.round(np.subtract(after, before), 9)) + 1) / 2
    prompts = [_post(row) for row in base]
    found = statistics.win_rate(outcomes, prompts)
    both = np.array([a["ended"] and b["ended"] for a, b in zip(base, tuned, strict=True)], dtype=bool)
    return {
        "win_rate": found.win_rate,
        "interval": list(found.interval),
        "n": found.n,
        "win": found.win,
        "tie": found.tie,
        "loss": found.loss,
        "win_rate_both_ended": float(outcomes[both].mean()) if both.any() else None,
        "n_both_ended": int(both.sum()),
    } | {
        f"{name}_{side}": value
        for side, rows, scores in (("base", base, before), ("tuned", tuned, after))
        for name, value in _described(rows, scores).items()
    }


def _described(rows: Rows, scores: Sequence[float]) -> dict[str, float]:
    kls = [row["kl"] for row in rows if "kl" in row]
    return {
        "faithful": float(np.mean([faithful(facts_of(_post(row)), row["prediction"]) for row in rows])),
        "ended": float(np.mean([row["ended"] for row in rows])),
        "utility": float(np.mean(scores)),
    } | ({"kl": float(np.mean(kls))} if kls else {})


def curve(samples: Rows, metrics: Rows) -> list[dict[str, float]]:
    """Truth beside score while PPO ran: `kl`, `proxy` (the reward that PPO saw) and `gold`, means of a few steps each.

    `samples` are the rows of `rollouts/samples.jsonl`, `metrics` those of `policy/metrics.jsonl`, where the numbers of
    step s stand at s + 1. `gold` is in the annotator's log-odds, from the first point's mean, as the reward is.
    """
    utilities: dict[int, list[float]] = {}
    for row in samples:
        truth = utility(facts_of(row["input"]), row["answer"], row["ended"])
        utilities.setdefault(row["step"] // STEPS_A_POINT, []).append(truth)
    seen = [row for row in metrics if row.get("reward") is not None]
    points = []
    for index, truths in sorted(utilities.items()):
        steps = [row for row in seen if (row["step"] - 1) // STEPS_A_POINT == index]
        if steps:
            means = {
                new: float(np.mean([row[old] for row in steps]))
                for new, old in (("kl", "kl_loss"), ("proxy", "reward"))
            }
            points.append(means | {"gold": SHARPNESS * float(np.mean(truths))})
    return [point | {"gold": point["gold"] - points[0]["gold"]} for point in points]
