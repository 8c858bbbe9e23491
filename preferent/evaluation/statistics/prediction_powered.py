"""A win rate from people's votes on some prompts and a judge's verdicts on all: prediction-powered inference.

PPI++ (Angelopoulos, Duchi and Zrnic 2023, arXiv:2311.01453): mean_n(y - λ f) + λ mean_N(f) is unbiased whatever the
judge says, and its variance is least where λ = cov(y, f) / ((1 + n / N) var f). y [n] are the votes of the prompts that
people judged, f what the judge says of them and of N `others`. Arrays may have leading axes, for many samples at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from preferent.evaluation.statistics.win_rates import ZERO, Net, checked, quantile, tango

FEW = 160
"""λ is multiplied by 1 - 160 / n²: .6 at 20 votes, .94 at 50. So few may all agree with a judge that errs."""
FEWEST = 3
"""Votes, of which all but one show a slope."""


@dataclass(frozen=True, slots=True)
class PredictionPowered:
    """A win rate from the votes on `voted` of `prompts` prompts and a judge's verdicts on all of them.

    `factor` is the mean λ. `effective` is the number of prompts that people alone would have to judge for an interval
    as narrow.
    """

    win_rate: float
    interval: tuple[float, float]
    voted: int
    prompts: int
    factor: float
    effective: float


@dataclass(frozen=True, slots=True)
class PowerEstimate:
    """A rate with the two parts of its variance, from the votes and from the other prompts, and the variance of both
    as estimates."""

    rate: np.ndarray
    voted: np.ndarray
    other: np.ndarray
    noise: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        return np.asarray(self.voted + self.other)


def win_rate(
    outcomes: Sequence[float],
    prompts: Sequence[str],
    judged: Mapping[str, float],
    weights: Sequence[float] | None = None,
    level: float = 0.95,
) -> PredictionPowered | None:
    """Return the rate of people's outcomes [rows] on `prompts` [rows], helped by a judge's mean outcome by prompt.

    Several votes on a prompt are averaged; `weights` [rows] are inverse probabilities of selection. Votes on prompts
    that the judge did not see are left out. None where nothing can be gained: without votes, or without other prompts.

    The interval is that of the win rate (`win_rates.win_rate`), with as many effective prompts as the variance shows.
    """
    known = [row for row, prompt in enumerate(prompts) if prompt in judged]
    others = np.array([judged[prompt] for prompt in judged.keys() - set(prompts)])
    if not known or not others.size:
        return None
    kept = None if weights is None else [weights[row] for row in known]
    names = [prompts[row] for row in known]
    votes, weights_of = checked([outcomes[row] for row in known], names, kept)
    unique, cluster, size = np.unique(names, return_inverse=True, return_counts=True)
    y, w = (np.bincount(cluster, column) / size for column in (votes, weights_of))
    f = np.array([judged[prompt] for prompt in unique])
    factors = tuned(y, f, others, w)
    powered = estimate(y, f, others, factors, w)
    shares = netted(y, powered, w, unique.size + others.size, votes.size / unique.size)
    won, lost, effective = map(float, shares)
    alone = size.max() == 1 and bool(np.all(w == w[0]))
    degrees = np.inf if alone else float(w.sum() ** 2 / (w @ w)) - 1
    low, high = tango(Net(unique.size, won, lost, effective, degrees), quantile((1 + level) / 2, degrees))
    limits = ((1 + low) / 2, (1 + high) / 2)
    factor = float(w @ factors / w.sum())
    return PredictionPowered((1 + won - lost) / 2, limits, unique.size, len(judged), factor, effective)


def tuned(votes: np.ndarray, judged: np.ndarray, others: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return λ [..., n] for each vote, learned from the other votes alone, so that the rate stays unbiased.

    With weights the variances are those of weighted means. A judge that says the same of all the others has λ = 0.
    """
    if votes.shape[-1] < FEWEST:
        return np.zeros_like(votes)

    def without(values: np.ndarray) -> np.ndarray:
        return np.asarray(values.sum(-1, keepdims=True) - values)

    mass, squares = without(weights), weights**2
    y, f = without(weights * votes) / mass, without(weights * judged) / mass
    square = without(squares)
    covariance = without(squares * votes * judged) - y * without(squares * judged)
    covariance += y * f * square - f * without(squares * votes)
    variance = without(squares * judged**2) - 2 * f * without(squares * judged) + f**2 * square
    slope = np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > ZERO * square)
    alone, many = _effective(weights), votes.shape[-1] + others.shape[-1]
    return np.asarray(slope * np.maximum(1 - alone / many, 0) * np.maximum(1 - FEW / alone**2, 0))


def estimate(
    votes: np.ndarray, judged: np.ndarray, others: np.ndarray, factor: np.ndarray | float, weights: np.ndarray
) -> PowerEstimate:
    """Return the rate with λ = `factor` (one, or [..., n]); with equal weights it is PPI's, and so is the variance.

    With weights, λ multiplies the distance between the judge's mean over all prompts and its weighted mean over those
    voted on (the regression estimator of survey sampling), scaled so that equal weights give PPI's.
    """
    n, rest = votes.shape[-1], others.shape[-1]
    mass, alone = weights.sum(-1, keepdims=True), _effective(weights)
    seen = (weights * judged).sum(-1, keepdims=True) / mass
    whole = (judged.sum(-1, keepdims=True) + others.sum(-1, keepdims=True)) / (n + rest)
    unseen = np.maximum(n + rest - alone, 1)
    shifted = votes + factor * (seen + (n + rest) / unseen * (whole - seen) - judged)
    rate = (weights * shifted).sum(-1, keepdims=True) / mass
    parts = (weights * (shifted - rate) / mass) ** 2
    voted = parts.sum(-1)
    mean_factor = (weights * factor).sum(-1) / mass[..., 0]
    spread = (others - others.mean(-1, keepdims=True)) ** 2
    scale = mean_factor**2 / unseen[..., 0]
    noise = n * parts.var(-1) + scale**2 * spread.var(-1) / rest
    return PowerEstimate(rate[..., 0], voted, scale * spread.mean(-1), noise)


def netted(
    votes: np.ndarray, powered: PowerEstimate, weights: np.ndarray, prompts: int, verdicts: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the shares of won and of lost prompts at the rate, and how many prompts with votes have its variance.

    People's share of ties stays. The variance of a rate that few votes decide is itself uncertain. What exceeds the
    uncertainty that the score interval allows for anyway is taken off the number of prompts, which is at most that of
    all `prompts`, or of their votes if each had as many (`verdicts`) as those voted on.
    """
    balance, mass = 2 * votes - 1, weights.sum(-1)
    rate = np.clip(2 * powered.rate - 1, -1, 1)
    decided = np.maximum((weights * np.abs(balance)).sum(-1) / mass, np.abs(rate))
    won, lost = (decided + rate) / 2, (decided - rate) / 2
    variance = decided - rate**2
    spread = 4 * powered.variance
    determined = (variance > ZERO) & (spread > ZERO)
    alone = _effective(weights)[..., 0]
    effective = np.divide(variance, spread, out=np.where(variance > ZERO, np.inf, alone), where=determined)
    effective = np.minimum(effective, prompts * verdicts)
    fourth = won * (1 - rate) ** 4 + lost * (1 + rate) ** 4 + (1 - decided) * rate**4
    allowed = np.divide(fourth, variance**2, out=np.ones_like(fourth), where=determined) - 1
    uncertain = np.divide(powered.noise, powered.variance**2, out=np.zeros_like(fourth), where=determined)
    return won, lost, effective / (1 + np.maximum(uncertain - allowed / effective, 0))


def _effective(weights: np.ndarray) -> np.ndarray:
    """Return the number of votes, or of equal ones that are worth as much (Kish 1965), [..., 1]."""
    return np.asarray(weights.sum(-1, keepdims=True) ** 2 / (weights**2).sum(-1, keepdims=True))
