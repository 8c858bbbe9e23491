"""The win rate at equal length: judges, people too, like the longer answer, so a rate may be won by writing more.

The outcome is regressed on how much longer the answer is, and the rate is read off where both are as long (Dubois et
al. 2024, arXiv:2404.04475, "Length-controlled AlpacaEval").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, stdtrit

from preferent.evaluation.statistics import resampling
from preferent.evaluation.statistics.logistic_regression import lasso, most_likely, sandwich
from preferent.evaluation.statistics.win_rates import checked

STRENGTHS = np.logspace(-4, 4, 10)
FOLDS = 5


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The win rate at equal length beside the raw one, and the effect on the log-odds of being longer by much.

    `win_rate` is None where it cannot be told: where the longer answer always won, or all verdicts are the same.
    `extreme` is AlpacaEval's warning (`extreme`), that the two rates are too far apart for such a correction.
    """

    win_rate: float | None
    interval: tuple[float, float] | None
    raw: float
    coefficient: float | None
    extreme: bool


def controlled(
    outcomes: Sequence[float] | np.ndarray,
    length_a: Sequence[float],
    length_b: Sequence[float],
    prompts: Sequence[str],
    weights: Sequence[float] | np.ndarray | None = None,
    level: float = 0.95,
) -> LengthControlled:
    """AlpacaEval's minimal form, for any prompts: σ(intercept) of outcome ~ intercept + tanh(z).

    z is the length of a less that of b, over its standard deviation. The interval is that of the intercept by the
    sandwich, clustered by prompt, with Student's quantile, carried through σ.
    """
    outcomes, weights = checked(outcomes, prompts, weights)
    raw = float(outcomes @ weights / weights.sum())
    ahead = np.asarray(length_a, dtype=np.float64) - np.asarray(length_b, dtype=np.float64)
    longer = np.tanh(ahead / ahead.std(ddof=1)) if np.ptp(ahead) > 0 else ahead
    design = np.stack([np.ones(len(longer)), longer], axis=1) if ahead.any() else np.ones((len(longer), 1))
    coefficients = most_likely(design, weights * outcomes, weights)
    if coefficients is None:
        return LengthControlled(None, None, raw, None, False)
    _, cluster = np.unique(np.asarray(prompts), return_inverse=True)
    scores = np.zeros((cluster.max() + 1, len(coefficients)))
    np.add.at(scores, cluster, (weights * (outcomes - expit(design @ coefficients)))[:, None] * design)
    error = math.sqrt(sandwich(design, weights, coefficients, scores)[0, 0])
    half = float(stdtrit(len(scores) - 1, (1 + level) / 2)) * error if len(scores) > 1 else math.inf
    rate, low, high = (float(expit(coefficients[0] + step)) for step in (0.0, -half, half))
    coefficient = float(coefficients[1]) if len(coefficients) > 1 else None
    return LengthControlled(rate, (low, high), raw, coefficient, extreme(raw, rate))


def extreme(raw: float, controlled: float) -> bool:
    """Whether the rate moved by more than 10 points, and by more than a quarter of what it had left on that side."""
    return abs(controlled - raw) > max(0.1, 0.25 * (raw if controlled < raw else 1 - raw))


def alpaca(
    preferences: Sequence[float],
    length: Sequence[float],
    length_baseline: Sequence[float],
    difficulty: Sequence[float],
    level: float = 0.95,
) -> LengthControlled:
    """AlpacaEval's whole regression, on its instructions, whose difficulties are given; a row is an instruction.

    preference ~ tanh(z) + difficulty + constant, L1-penalised, with the strength of ten between 1e-4 and 1e4 that
    predicts best in five folds (row i is in fold i mod 5); then z := 0 and the mean. z is the baseline's length less
    the model's over its standard deviation. The interval redraws instructions with that strength kept
    (`resample.interval`). The rows of AlpacaEval's two gamed baselines are left out.
    """
    outcomes = np.asarray(preferences, dtype=np.float64)
    ahead = np.asarray(length_baseline, dtype=np.float64) - np.asarray(length, dtype=np.float64)
    z = ahead / ahead.std(ddof=1) if np.ptp(ahead) > 0 else 0 * ahead
    design = np.stack([np.tanh(z), np.asarray(difficulty, dtype=np.float64), np.ones(len(z))], axis=1)
    strength = best_strength(design, outcomes)
    whole = lasso(design, outcomes, strength)

    def rate(rows: np.ndarray) -> float:
        theta = lasso(design[rows], outcomes[rows], strength, whole)
        return float(expit(design[rows, 1:] @ theta[1:]).mean())

    estimate, raw = rate(np.arange(len(design))), float(outcomes.mean())
    limits = resampling.interval(rate, np.arange(len(design)), level)
    return LengthControlled(estimate, limits, raw, float(-whole[0]), extreme(raw, estimate))


def best_strength(design: np.ndarray, outcomes: np.ndarray) -> float:
    """The strength of least mean cross-entropy over the five folds; the first, most penalised, of equals."""
    fold = np.arange(len(design)) % FOLDS
    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for held_fold in range(FOLDS):
            rest, held = fold != held_fold, fold == held_fold
            odds = design[held] @ lasso(design[rest], outcomes[rest], strength)
            loss += float(np.mean(np.logaddexp(0, odds) - outcomes[held] * odds))
        losses.append(loss)
    return float(STRENGTHS[int(np.argmin(losses))])
