"""The quality of a reward model on held-out pairs: accuracy, calibration, biases and worst mistakes.

A pair is right (1) where the chosen answer has the higher score, wrong (0) where the other has, 1/2 where they are
equal. Every share has a 95 % interval (`winrate.win_rate`; without ties and clusters it is Wilson's).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import rankdata

from preferent import randomness
from preferent.data.formats import row_writer
from preferent.data.types import Preference
from preferent.evaluation import statistics
from preferent.evaluation.bag_of_words import BagOfWords
from preferent.evaluation.statistics.win_rates import lower_limit

BUCKETS = 5
VALUES = 7
"""Different strengths that are a bucket each, as on a scale that people answer on."""
CLUSTERS = 10
"""Prompts from which on pairs of one prompt count as one cluster; fewer say nothing of how prompts differ."""
MISTAKES = 20
LEARNT = 20_000
"""Pairs that the bag of words learns from, at most."""


@dataclass(frozen=True)
class Scored:
    """Decided pairs with their raw scores and lengths in tokens, all [n]."""

    preferences: Sequence[Preference]
    chosen: np.ndarray
    rejected: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray

    @cached_property
    def right(self) -> np.ndarray:
        return won(self.chosen - self.rejected)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability that the model gives to its own choice."""
        probability: np.ndarray = expit(np.abs(self.chosen - self.rejected))
        return probability

    @cached_property
    def first(self) -> np.ndarray:
        """1 where candidate_0 is the chosen answer, else 0."""
        return np.array([float(preference.choice == 0) for preference in self.preferences])

    @cached_property
    def clusters(self) -> list[str]:
        """The cluster of each pair: its prompt, or the pair alone where prompts are empty or few."""
        alone = [str(place) for place in range(len(self.preferences))]
        prompts = [preference.prompt for preference in self.preferences]
        together = [place if p.is_empty else p.key for p, place in zip(prompts, alone, strict=True)]
        return together if len(set(together)) >= CLUSTERS else alone


def won(lead: np.ndarray) -> np.ndarray:
    """Return 1, 1/2 or 0 by the sign of a lead."""
    outcomes: np.ndarray = np.sign(lead) / 2 + 0.5
    return outcomes


def figures(scored: Scored) -> dict[str, Any]:
    """Return loss, accuracy, calibration and the scores' dependence on length, as one number each."""
    tokens = np.concatenate([scored.chosen_tokens, scored.rejected_tokens])
    return {
        "count": len(scored.chosen),
        "loss": float(np.logaddexp(0, scored.rejected - scored.chosen).mean()),
        "accuracy": float(scored.right.mean()),
        "ece": statistics.calibration_error(statistics.reliability(scored.confidence, scored.right)),
        "length_correlation": statistics.rank_correlation(np.concatenate([scored.chosen, scored.rejected]), tokens),
        "longer_accuracy": float(won(scored.chosen_tokens - scored.rejected_tokens).mean()),
    }


def details(scored: Scored, train: Sequence[Preference]) -> dict[str, Any]:
    """Return all further figures of the reported pairs; the bag of words learns from `train`."""
    everything = np.ones(len(scored.chosen), bool)
    has_strength = np.array([preference.strength is not None for preference in scored.preferences])
    strength = np.array([preference.strength or 0.0 for preference in scored.preferences])
    without_strength = (
        [_bucket(scored, ~has_strength, None, None)] if not has_strength.all() and has_strength.any() else []
    )
    bins = statistics.reliability(scored.confidence, scored.right)
    return {
        "reliability": [dataclasses.asdict(interval) for interval in bins],
        "accuracy": measured(scored.right, scored.clusters),
        "mean_confidence": float(scored.confidence.mean()),
        "by_confidence": buckets(scored, np.abs(scored.chosen - scored.rejected), everything),
        "by_strength": buckets(scored, strength, has_strength) + without_strength,
        "length": length(scored),
        "position": position(scored),
        "rules": rules(scored, train),
    }


def share(outcomes: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """Return the mean of outcomes 1, 1/2 and 0 [n] with its interval."""
    rate = statistics.win_rate(outcomes, clusters)
    return {"share": rate.win_rate, "interval": list(rate.interval), "count": rate.n}


def measured(outcomes: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """Return the mean of outcomes with its interval and the lower limit that decides whether it is above chance."""
    return share(outcomes, clusters) | {"lower_99": lower_limit(outcomes, clusters)}


def _of(scored: Scored, outcomes: np.ndarray, keep: np.ndarray) -> dict[str, Any] | None:
    """Return the share over the kept pairs; None where none is kept."""
    kept = np.flatnonzero(keep)
    return share(outcomes[kept], [scored.clusters[i] for i in kept]) if len(kept) else None


def buckets(scored: Scored, keys: np.ndarray, keep: np.ndarray) -> list[dict[str, Any]]:
    """Return the accuracy of the kept pairs in buckets of like `keys` [n]; equal keys stay together.

    Seven values or fewer are a bucket each; of more, there are five buckets of about as many pairs.
    """
    kept = np.flatnonzero(keep)
    if not len(kept):
        return []
    values, place = np.unique(keys[kept], return_inverse=True)
    if len(values) > VALUES:
        place = ((rankdata(keys[kept], "min") - 1) * BUCKETS // len(kept)).astype(int)
    by_key = []
    for index in np.unique(place):
        inside = kept[place == index]
        mask = np.zeros(len(keys), bool)
        mask[inside] = True
        by_key.append(_bucket(scored, mask, float(keys[inside].min()), float(keys[inside].max())))
    return by_key


def _bucket(scored: Scored, mask: np.ndarray, low: float | None, high: float | None) -> dict[str, Any]:
    """Return one bucket: its bounds, the model's mean confidence and its accuracy."""
    return {"low": low, "high": high, "confidence": float(scored.confidence[mask].mean())} | (
        _of(scored, scored.right, mask) or {}
    )


def length(scored: Scored) -> dict[str, Any]:
    """Return how often the model prefers the longer answer, and its accuracy where that was chosen and where not."""
    lead = scored.chosen_tokens - scored.rejected_tokens
    prefers = won((scored.chosen - scored.rejected) * lead)
    return {
        "longer_preferred": _of(scored, prefers, lead != 0),
        "longer_won": _of(scored, scored.right, lead > 0),
        "shorter_won": _of(scored, scored.right, lead < 0),
    }


def position(scored: Scored) -> dict[str, Any]:
    """Return how often people and the model choose candidate_0, and Spearman's correlation of score and place."""
    first = scored.first
    scores, places = np.concatenate([scored.chosen, scored.rejected]), np.concatenate([first, 1 - first])
    return {
        "first_chosen": share(first, scored.clusters),
        "first_preferred": share(won((scored.chosen - scored.rejected) * (2 * first - 1)), scored.clusters),
        "correlation": statistics.rank_correlation(scores, places),
    }


def rules(scored: Scored, train: Sequence[Preference]) -> dict[str, Any]:
    """Return the accuracy of each rule that needs no model, and the model's lead over it."""
    return leads(scored.right, rule_outcomes(scored, train), scored.clusters)


def rule_outcomes(scored: Scored, train: Sequence[Preference]) -> dict[str, np.ndarray]:
    """Return where each rule that needs no model is right, [n] each.

    There is no rule of the position where one place always won: the order that people saw was not kept.
    """
    longer = won(scored.chosen_tokens - scored.rejected_tokens)
    right = {"longer": longer, "shorter": 1 - longer}
    if 0 < scored.first.mean() < 1:
        right |= {"first": scored.first, "second": 1 - scored.first}
    decided = [preference for preference in train if preference.choice != "tie"]
    if decided:
        order = randomness.permutation(0, "words", 0, len(decided))[:LEARNT]
        words = BagOfWords.learn([decided[i].chosen for i in order], [decided[i].rejected for i in order])
        answers = [p.chosen for p in scored.preferences], [p.rejected for p in scored.preferences]
        right["words"] = won(words.scores(answers[0]) - words.scores(answers[1]))
    return right


def leads(right: np.ndarray, rules: Mapping[str, np.ndarray], clusters: Sequence[str]) -> dict[str, Any]:
    """Return the share of each rule's outcomes [n], and the lead over it of the outcomes `right` [n]."""
    return {name: share(outcomes, clusters) | lead(right, outcomes, clusters) for name, outcomes in rules.items()}


def lead(right: np.ndarray, rule: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """Return the mean of `right` [n] less that of a rule with the outcomes `rule` [n], and the difference's interval.

    A win is a pair on which the rule alone is wrong; half a pair is one of two rows of its cluster.
    """
    model, other = (np.repeat(outcomes, 2) > np.tile([0.25, 0.75], len(rule)) for outcomes in (right, rule))
    rate = statistics.win_rate(won(model.astype(float) - other), np.repeat(clusters, 2).tolist())
    return {"lead": 2 * rate.win_rate - 1, "lead_interval": [2 * limit - 1 for limit in rate.interval]}


def mistakes(scored: Scored, root: Path) -> list[dict[str, Any]]:
    """Return the pairs on which the model is surest and wrong: rows with scores and their FILE:LINE below `root`."""
    margin = scored.chosen - scored.rejected
    worst = [i for i in np.argsort(margin, kind="stable")[:MISTAKES] if margin[i] < 0]
    return [_mistake(scored, int(i), root) for i in worst]


def _mistake(scored: Scored, i: int, root: Path) -> dict[str, Any]:
    preference = scored.preferences[i]
    scores = [float(scored.chosen[i]), float(scored.rejected[i])]
    place = preference.source
    if place and Path(place).resolve().is_relative_to(root.resolve()):
        place = os.path.relpath(Path(place).resolve(), root.resolve())
    by_candidate = dict(zip(("score_0", "score_1"), scores if preference.choice == 0 else scores[::-1], strict=True))
    return (
        (row_writer.row(preference) or {}) | by_candidate | {"confidence": float(scored.confidence[i]), "source": place}
    )


def beside(sampled: np.ndarray, chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    """Return scores of sampled answers [n] beside those of the answers that people compared for the same prompts."""
    sides: Mapping[str, np.ndarray] = {"sampled": sampled, "chosen": chosen, "rejected": rejected}
    alone = [str(place) for place in range(len(sampled))]
    return {
        **{name: {"mean": float(side.mean()), "sd": float(side.std())} for name, side in sides.items()},
        "chosen_above": share(won(chosen - sampled), alone),
        "rejected_above": share(won(rejected - sampled), alone),
    }


def report(held_out: dict[str, Scored], train: Sequence[Preference]) -> dict[str, Any]:
    """Return figures of every part, and details of the test pairs, or else of the validation pairs."""
    measured: dict[str, Any] = {name: figures(pairs) for name, pairs in held_out.items()}
    if not held_out:
        return measured | {"reliability": []}
    name, pairs = list(held_out.items())[-1]
    return measured | {"reported": name} | details(pairs, train)
