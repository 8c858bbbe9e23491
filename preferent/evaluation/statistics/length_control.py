"""The win rate at equal length. Judges and people prefer longer answers, so longer answers alone raise a win rate.

The outcome is regressed on the difference of the lengths, and the rate is that at equal lengths (Dubois et al. 2024,
arXiv:2404.04475, "Length-controlled AlpacaEval").
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
    """The win rate at equal length, the raw win rate, and the effect of a much longer answer on the log-odds.

    `win_rate` is None if it is undetermined: if the longer answer always won, or all verdicts are the same. `extreme`
    is AlpacaEval's warning that the two rates are too far apart for such a correction.
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
    """Return AlpacaEval's minimal form, for any prompts: σ(intercept) of outcome ~ intercept + tanh(z).

    z is the length of a minus that of b, over its standard deviation. The interval is σ of the intercept's, which comes
    from the sandwich, clustered by prompt, with Student's quantile.
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
    """Return whether the rate moved by more than 10 points and more than a quarter of its distance to that end."""
    return abs(controlled - raw) > max(0.1, 0.25 * (raw if controlled < raw else 1 - raw))


def alpaca(
    preferences: Sequence[float],
    length: Sequence[float],
    length_baseline: Sequence[float],
    difficulty: Sequence[float],
    level: float = 0.95,
) -> LengthControlled:
    """Return the rate by AlpacaEval's whole regression, for instructions of known difficulty; a row is an instruction.

    The model is preference ~ tanh(z) + difficulty + constant, L1-penalised. Of ten strengths between 1e-4 and 1e4 it
    takes the one that predicts best in five folds (row i is in fold i mod 5). The rate is the mean prediction at z = 0.
    z is the baseline's length minus the model's, over its standard deviation. The interval resamples instructions at
    that strength (`resampling.interval`). The rows of AlpacaEval's two gamed baselines are left out.
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
    """Return the strength with the least mean cross-entropy over the five folds; the most penalised among equals."""
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
