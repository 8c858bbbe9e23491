"""Means with standard errors, the lengths of two sides, and rank correlation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over prompts with its standard error (None for a single prompt); `n` counts rows."""

    mean: float
    standard_error: float | None
    n: int


def mean(values: Sequence[float] | np.ndarray, prompts: Sequence[str]) -> Mean:
    """Return the mean over prompts of each prompt's mean of `values` [n]; equal `prompts` [n] are a cluster."""
    _, cluster, size = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    means = np.bincount(cluster, np.asarray(values, dtype=np.float64)) / size
    error = float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else None
    return Mean(float(means.mean()), error, len(values))


@dataclass(frozen=True, slots=True)
class LengthComparison:
    """Mean lengths of two sides, the mean of a - b with its standard error, and the shares of longer and shorter a."""

    mean_a: float
    mean_b: float
    difference: float
    standard_error: float | None
    share_longer: float
    share_shorter: float


def lengths(a: Sequence[float], b: Sequence[float], prompts: Sequence[str]) -> LengthComparison:
    """Return the differences of the lengths of paired answers, a [n] and b [n]."""
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    apart = mean(difference, prompts)
    longer, shorter = float(np.mean(difference > 0)), float(np.mean(difference < 0))
    return LengthComparison(
        mean(a, prompts).mean, mean(b, prompts).mean, apart.mean, apart.standard_error, longer, shorter
    )


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Return Spearman's rank correlation of x [n] and y [n], ties at their mean rank; 0 if either does not vary.

    Ranks are used because the scale of a reward is arbitrary.
    """
    varies = len(x) > 1 and all(np.min(values) < np.max(values) for values in (x, y))
    return float(spearmanr(x, y).statistic) if varies else 0.0
