"""The accuracy of a judge: of a reward model on its own test pairs, of others on the pairs that people voted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preferent.data.judgment_outcomes import OUTCOMES
from preferent.evaluation import reward_quality
from preferent.evaluation.bag_of_words import BagOfWords
from preferent.evaluation.comparison_types import AccuracyFigures
from preferent.evaluation.quality_types import QualityFigures
from preferent.evaluation.reward_quality import won

FOLDS = 5
"""Parts of the voted pairs, of which each is scored by a bag of words that learned from the others."""


@dataclass(frozen=True, slots=True)
class VotedPair:
    """A pair of which people prefer an answer, and what the judge and the rules need to know of it.

    `right` and `first` are 1, 1/2 or 0: whether the judge prefers the same answer, and whether people saw it first,
    None where that is unknown. `longer` is the length of the preferred answer less that of the other.
    """

    prompt: str
    right: float
    first: float | None
    longer: float
    chosen: str
    rejected: str


def held_out(quality: QualityFigures) -> AccuracyFigures | None:
    """Return the accuracy of a reward model on its test pairs; None where it was not measured.

    Validation pairs do not count: they selected the model. The `quality.json` of earlier versions has no 99 % limit.
    """
    accuracy = quality.get("accuracy")
    if accuracy is None or quality["reported"] != "test" or "lower_99" not in accuracy:
        return None
    return _figures("held_out", accuracy, quality["rules"])


def by_votes(pairs: Sequence[VotedPair]) -> AccuracyFigures | None:
    """Return the accuracy of a judge on pairs that people voted on; None if there are none."""
    if not pairs:
        return None
    right, clusters = np.array([pair.right for pair in pairs]), [pair.prompt for pair in pairs]
    longer = won(np.array([pair.longer for pair in pairs]))
    rules = {"longer": longer, "shorter": 1 - longer, "words": _words(pairs)}
    if None not in (first := [pair.first for pair in pairs]):
        rules |= {"first": np.array(first), "second": 1 - np.array(first, np.float64)}
    return _figures("people", reward_quality.measured(right, clusters), reward_quality.leads(right, rules, clusters))


def agrees(verdict: str, choice: str) -> float:
    """Return 1 if a verdict is the choice, 0 if it is the opposite, 1/2 if it is a tie."""
    return 1 - abs(OUTCOMES[verdict] - OUTCOMES[choice])


def _figures(by: Any, accuracy: Mapping[str, Any], rules: Mapping[str, Any]) -> AccuracyFigures:
    return {
        "by": by,
        "share": accuracy["share"],
        "interval": accuracy["interval"],
        "lower_99": accuracy["lower_99"],
        "count": accuracy["count"],
        "rules": {
            name: {"share": rule["share"], "lead_interval": rule["lead_interval"]} for name, rule in rules.items()
        },
    }


def _words(pairs: Sequence[VotedPair]) -> np.ndarray:
    """Return the outcomes [n] of bags of words, each of which learned from the pairs of other prompts."""
    fold = {prompt: place % FOLDS for place, prompt in enumerate(dict.fromkeys(pair.prompt for pair in pairs))}
    outcomes = np.full(len(pairs), 0.5)
    for part in range(FOLDS):
        others = [pair for pair in pairs if fold[pair.prompt] != part]
        own = [place for place, pair in enumerate(pairs) if fold[pair.prompt] == part]
        if others and own:
            words = BagOfWords.learn([pair.chosen for pair in others], [pair.rejected for pair in others])
            chosen, rejected = [pairs[i].chosen for i in own], [pairs[i].rejected for i in own]
            outcomes[own] = won(words.scores(chosen) - words.scores(rejected))
    return outcomes
