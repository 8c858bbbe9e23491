"""The kitchen of lesson 4: a true preference that is a formula, and policies whose expected worth is one too.

A soup is six portions, each one of twelve ingredients. What people think of it, `worth`: every ingredient has its
quality, some go together or clash, and each further portion of what is in already spoils it. A policy draws the
portions one by one from shares p [K]; so all that is expected of its soups has a closed form.
"""

import numpy as np

INGREDIENTS = (
    *("leek", "carrot", "onion", "garlic", "potato", "tomato"),
    *("pumpkin", "lentil", "rice", "cream", "thyme", "chili"),
)
PORTIONS = 6
SPOILS = 0.6
"""What each further portion of the same costs."""

_draw = np.random.default_rng(4)
QUALITY = np.sort(_draw.normal(0, 0.6, len(INGREDIENTS)))[_draw.permutation(len(INGREDIENTS))]
TOGETHER = np.triu(_draw.normal(0, 0.5, (len(INGREDIENTS),) * 2) * (_draw.random((len(INGREDIENTS),) * 2) < 0.3), 1)
HABIT = np.full(len(INGREDIENTS), 1 / len(INGREDIENTS))
"""[K]: how often a cook reaches for each ingredient before tuning."""


def soups(shares: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Return portions of each ingredient [count, K] of soups cooked by a policy."""
    return draw.multinomial(PORTIONS, shares, count)


def worth(portions: np.ndarray) -> np.ndarray:
    """Return what people think of soups [n, K], in log-odds."""
    present = np.minimum(portions, 1)
    together = np.einsum("nk,kl,nl->n", present, TOGETHER, present)
    return present @ QUALITY + together - SPOILS * (portions - present).sum(-1)


def expected_worth(shares: np.ndarray) -> float:
    """Return the exact mean of `worth` over the soups of a policy."""
    absent = (1 - shares) ** PORTIONS
    both_absent = np.maximum(1 - shares[:, None] - shares, 0) ** PORTIONS
    both_present = 1 - absent[:, None] - absent + both_absent
    repeats = PORTIONS - (1 - absent).sum()
    return float((1 - absent) @ QUALITY + (TOGETHER * both_present).sum() - SPOILS * repeats)


def tilted(scores: np.ndarray, beta: float) -> np.ndarray:
    """Return the best policy on a leash for a reward that adds up scores [K] of portions: p ~ habit * exp(s / beta)."""
    weights = HABIT * np.exp((scores - scores.max()) / beta)
    return weights / weights.sum()


def kl(shares: np.ndarray) -> float:
    """Return the KL of a policy to the habit, in nats per soup."""
    some = shares > 0
    return float(PORTIONS * (shares[some] * np.log(shares[some] / HABIT[some])).sum())


def comparisons(count: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of a cook's soups as people ordered them: the chosen and the rejected, [count, K] each."""
    first, second = soups(HABIT, count, draw), soups(HABIT, count, draw)
    prefers_first = draw.random(count) < 1 / (1 + np.exp(worth(second) - worth(first)))
    return np.where(prefers_first[:, None], first, second), np.where(prefers_first[:, None], second, first)
