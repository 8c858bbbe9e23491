"""The true preference of the quickstart, hidden from all models. It labels the data with noise and judges without."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from preferent.evaluation import statistics
from preferent.quickstart.synthetic_posts import EVENTS, PEOPLE, PLACES, Facts, ends, facts_of

ENOUGH_WORDS = 8
"""The number of words of a summary that cost nothing."""
SHARPNESS = 2.0
"""Log-odds of the annotator's choice per unit of utility."""
STEPS_PER_POINT = 5
Rows = Sequence[Mapping[str, Any]]


def _fact_scores(facts: Facts, text: str) -> dict[str, int]:
    """Return a score for who, what and where: 1 if right, 0 if missing, -1 if wrong (or both right and wrong)."""
    words = set(re.findall(r"\w+", text))
    stated = {
        "who": words & PEOPLE.keys(),
        "what": {short for short, long in EVENTS.items() if f" {short}" in text or f" {long}" in text},
        "where": words & set(PLACES),
    }
    return {key: 0 if not words else 1 if words == {getattr(facts, key)} else -1 for key, words in stated.items()}


def utility(facts: Facts, text: str, ended: bool) -> float:
    """Return the true utility of a summary: the sum of right (+1), missing (0) and wrong (-1) over who, what and where;
    minus 0.1 per word beyond `ENOUGH_WORDS`; minus 1 if the summary did not end."""
    idle = max(0, len(re.findall(r"\w+", text)) - ENOUGH_WORDS)
    return sum(_fact_scores(facts, text).values()) - 0.1 * idle - (0.0 if ended else 1.0)


def faithful(facts: Facts, text: str) -> bool:
    """Return whether a summary states who, what and where, all correctly."""
    return all(score == 1 for score in _fact_scores(facts, text).values())


def choose(facts: Facts, candidates: tuple[str, str], uniform: float) -> int:
    """Return the annotator's choice: candidate 1 with probability `preference_probability`."""
    return int(uniform < preference_probability(facts, *candidates))


def preference_probability(facts: Facts, candidate_0: str, candidate_1: str) -> float:
    """Return the probability that the annotator prefers candidate 1: sigma(`SHARPNESS` * difference in utility), the
    Bradley-Terry model."""
    difference = utility(facts, candidate_1, ends(candidate_1)) - utility(facts, candidate_0, ends(candidate_0))
    return 1 / (1 + math.exp(-SHARPNESS * difference))


def ceiling(pairs: Rows) -> float:
    """Return the expected agreement of the true preference with the annotator, over preference rows."""
    p = np.array(
        [preference_probability(facts_of(row["input_text"]), row["candidate_0"], row["candidate_1"]) for row in pairs]
    )
    return float(np.maximum(p, 1 - p).mean())


def true_scores(rows: Rows) -> list[float]:
    """Return the utility of each row of a prediction file."""
    return [utility(facts_of(_post(row)), row["prediction"], row["ended"]) for row in rows]


def _post(row: Mapping[str, Any]) -> str:
    return str(row["inputs"]["inputs_pretokenized"])


def verdict(base: Rows, tuned: Rows) -> dict[str, Any]:
    """Compare tuned with base answers to the same posts by the true preference. Equal utilities are a tie."""
    before, after = true_scores(base), true_scores(tuned)
    outcomes = (np.sign(np.round(np.subtract(after, before), 9)) + 1) / 2
    prompts = [_post(row) for row in base]
    rate = statistics.win_rate(outcomes, prompts)
    both = np.array([a["ended"] and b["ended"] for a, b in zip(base, tuned, strict=True)], dtype=bool)
    return {
        "win_rate": rate.win_rate,
        "interval": list(rate.interval),
        "n": rate.n,
        "win": rate.win,
        "tie": rate.tie,
        "loss": rate.loss,
        "win_rate_both_ended": float(outcomes[both].mean()) if both.any() else None,
        "n_both_ended": int(both.sum()),
    } | {
        f"{name}_{side}": value
        for side, rows, scores in (("base", base, before), ("tuned", tuned, after))
        for name, value in _means(rows, scores).items()
    }


def _means(rows: Rows, scores: Sequence[float]) -> dict[str, float]:
    """Return the mean figures of one side's answers."""
    kls = [row["kl"] for row in rows if "kl" in row]
    return {
        "faithful": float(np.mean([faithful(facts_of(_post(row)), row["prediction"]) for row in rows])),
        "ended": float(np.mean([row["ended"] for row in rows])),
        "utility": float(np.mean(scores)),
    } | ({"kl": float(np.mean(kls))} if kls else {})


def curve(samples: Rows, metrics: Rows) -> list[dict[str, float]]:
    """Return the course of PPO: `kl`, `proxy` (its reward) and `gold` (the true utility), as means over a few steps.

    `samples` are the rows of the rollouts as text, `metrics` those of the policy, where the numbers of step s have step
    s + 1. `gold` is in log-odds of the annotator relative to the first point, like the reward.
    """
    utilities: dict[int, list[float]] = {}
    for row in samples:
        gold = utility(facts_of(row["input"]), row["answer"], row["ended"])
        utilities.setdefault(row["step"] // STEPS_PER_POINT, []).append(gold)
    rewarded = [row for row in metrics if row.get("reward") is not None]
    points = []
    for index, golds in sorted(utilities.items()):
        steps = [row for row in rewarded if (row["step"] - 1) // STEPS_PER_POINT == index]
        if steps:
            means = {
                new: float(np.mean([row[old] for row in steps]))
                for new, old in (("kl", "kl_loss"), ("proxy", "reward"))
            }
            points.append(means | {"gold": SHARPNESS * float(np.mean(golds))})
    return [point | {"gold": point["gold"] - points[0]["gold"]} for point in points]
