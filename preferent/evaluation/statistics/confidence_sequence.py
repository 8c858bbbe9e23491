"""An interval that may be looked at after every vote: a confidence sequence by betting, without replacement.

Waudby-Smith and Ramdas (2024, JRSS B 86:1): a gambler bets against each possible mean m on the next vote, at odds that
are fair if m is true. What the gambler's capital passes 2 / α is excluded for good; of the true mean that happens with
probability α at most, whenever one stops. The mean is that of the votes on all M questions. The next question is
drawn from those left with a known probability q, so that Z = (what was voted + (y - g f) / q + g Σ f of those left) / M
has that mean, whatever the judge's f and whatever q. Arrays may have leading axes, for many sequences at once.
"""

import math
from dataclasses import dataclass

import numpy as np

GRID = 401
"""Possible means from 0 to 1; limits are a step too wide rather than too narrow."""
ALWAYS = 0.1
"""Half the width for which bets are sized where none is wanted: to decide between the sides."""
BOLDEST = 0.9
"""The largest share of the capital that a vote can lose."""
LEARNING = 20
"""Votes after which the judge counts with half of the slope that was seen so far."""
PRIOR, PRIORS = 0.25, 5
"""The variance before any vote, and how many votes it is worth."""
TINY = 1e-9


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """Limits [..., n + 1] before and after each vote, the mean of Z so far (unbiased, so it may lie outside),
    and the variance of Z for the next bet."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def follow(
    outcomes: np.ndarray,
    judged: np.ndarray,
    weights: np.ndarray,
    half: float = ALWAYS,
    ties: int = 0,
    level: float = 0.95,
) -> SequenceLimits:
    """Return the limits after each of the outcomes [..., n] of the first n of all questions, in the order of asking.

    `judged` [..., M] is what a judge expects of every question, 1/2 where it says nothing. A question was drawn from
    those left in proportion to its weight [..., M]. `ties` are further pairs of equal answers, which are not asked.
    Bets are sized for an interval of mean ± `half`.
    """
    n, many = outcomes.shape[-1], judged.shape[-1]
    total, means = many + ties, np.linspace(0, 1, GRID)
    shape = np.broadcast_shapes(outcomes.shape[:-1], judged.shape[:-1], weights.shape[:-1])
    mass, expected = (np.flip(np.cumsum(np.flip(each, -1), -1), -1) for each in (weights, judged))
    lightest = weights.min(-1)
    capital, excluded = np.zeros((2, *shape, GRID)), np.zeros((*shape, GRID), dtype=bool)
    voted, moments, drawn = np.full(shape, ties / 2), np.zeros((5, *shape)), np.zeros((2, *shape))
    variance = np.full(shape, PRIOR)
    steps = [(*_limits(excluded, voted / total, many / total), np.full(shape, 0.5), variance)]
    for t in range(n):
        y, f, factor = outcomes[..., t], judged[..., t], _factor(moments)
        base, most = (voted + factor * expected[..., t]) / total, mass[..., t] / lightest / total
        z = base + (y - factor * f) * mass[..., t] / weights[..., t] / total
        size, gain = (half / variance)[..., None], z[..., None] - means
        below, above = means - (base - factor * most)[..., None], (base + most)[..., None] - means
        capital[0] += np.log1p(np.minimum(size, BOLDEST / np.maximum(below, TINY)) * gain)
        capital[1] += np.log1p(-np.minimum(size, BOLDEST / np.maximum(above, TINY)) * gain)
        excluded |= capital.max(0) >= math.log(2 / (1 - level))
        voted = voted + y
        moments = moments + np.stack([np.ones(shape), y, f, y * f, f * f])
        drawn = drawn + np.stack([z, z * z])
        mean = drawn[0] / (t + 1)
        spread = np.maximum(drawn[1] - drawn[0] * mean, 0)
        variance = (PRIOR * PRIORS + spread) / (PRIORS + t + 1)
        low, high = _limits(excluded, voted / total, (many - t - 1) / total)
        steps.append((low, high, mean, variance))
    return SequenceLimits(*(np.stack(each, -1) for each in zip(*steps, strict=True)))


def _factor(moments: np.ndarray) -> np.ndarray:
    """Return how much the judge counts for the next vote, in [0, 1]: the slope of y on f so far, shrunk."""
    n, y, f, yf, ff = moments
    variance = ff * n - f * f
    slope = np.divide(yf * n - y * f, variance, out=np.zeros_like(n), where=variance > TINY)
    return np.asarray(np.clip(slope, 0, 1) * n / (n + LEARNING))


def _limits(excluded: np.ndarray, voted: np.ndarray, left: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the means beside those that are not excluded; none is impossible, whatever the votes that are left."""
    first, last = np.argmin(excluded, -1), GRID - 1 - np.argmin(np.flip(excluded, -1), -1)
    low, high = np.maximum(first - 1, 0) / (GRID - 1), np.minimum(last + 1, GRID - 1) / (GRID - 1)
    return np.clip(low, voted, voted + left), np.clip(high, voted, voted + left)


def votes_left(limits: SequenceLimits, half: float | None, questions: int, level: float = 0.95) -> int:
    """Return about how many more votes it takes until the limits are mean ± `half`, or leave out 1/2 without `half`.

    Of `questions` in all; the limits are of one sequence. A bet of b on each vote reaches log(2 / α) / (b n) + b v / 2
    from the mean after n votes of variance v.
    """
    n, variance = limits.low.size - 1, float(limits.variance[-1])
    if enough(limits, half):
        return 0
    wanted = half if half is not None else abs(float(limits.mean[-1]) - 0.5)
    bet = (half or ALWAYS) / variance
    reach = wanted - bet * variance / 2
    needed = math.log(2 / (1 - level)) / (bet * reach) if reach > 0 else math.inf
    return int(max(1, min(math.ceil(min(needed, questions)) - n, questions - n)))


def enough(limits: SequenceLimits, half: float | None) -> bool:
    """Return whether the last limits are as narrow as mean ± `half`, or without `half` leave out 1/2."""
    low, high = float(limits.low[-1]), float(limits.high[-1])
    return not low <= 0.5 <= high if half is None else high - low <= 2 * half + TINY
