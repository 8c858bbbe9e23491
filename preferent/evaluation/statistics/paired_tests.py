"""Paired tests of a change, corrections for several tests, slices, and the number of prompts that a test needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binomtest

from preferent.evaluation.statistics.win_rates import WinRate, p_value, win_rate


@dataclass(frozen=True, slots=True)
class Paired:
    """Prompts that on balance are `better`, `worse` or `even`, and two tests of equal numbers of better and worse.

    `p` belongs to the win rate's interval. `p_exact` is the sign test over prompts, which is exact for any number of
    prompts and assumes nothing about the correlation of a prompt's verdicts.
    """

    better: int
    worse: int
    even: int
    p: float
    p_exact: float


def paired(
    outcomes: Sequence[float], prompts: Sequence[str], weights: Sequence[float] | np.ndarray | None = None
) -> Paired:
    """Test whether one side is better on the same prompts, from outcomes [n] of 1, 1/2 and 0.

    `weights` [n], as in `win_rate`, apply to `p` only; counts and the sign test are of the prompts that were judged.
    """
    _, cluster = np.unique(np.asarray(prompts), return_inverse=True)
    balance = np.bincount(cluster, 2 * np.asarray(outcomes, dtype=np.float64) - 1)
    better, worse = int(np.sum(balance > 0)), int(np.sum(balance < 0))
    even = len(balance) - better - worse
    return Paired(better, worse, even, p_value(outcomes, prompts, weights), sign_test(better, worse))


def sign_test(better: int, worse: int) -> float:
    """Return the p-value of the exact two-sided sign test, which is McNemar's exact test."""
    tosses = better + worse
    return float(binomtest(better, tosses).pvalue) if tosses else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (1979); rejecting those below .05 has a family-wise error rate of .05."""
    order = np.argsort(p_values, kind="stable")
    steps = np.arange(len(order), 0, -1) * np.asarray(p_values, dtype=np.float64)[order]
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


@dataclass(frozen=True, slots=True)
class Slice:
    """The win rate on some of the prompts; `p` tests it against one half, `p_holm` is corrected for all slices."""

    name: str
    rate: WinRate
    p: float
    p_holm: float


def slices(
    outcomes: Sequence[float],
    prompts: Sequence[str],
    labels: Sequence[Sequence[str]],
    weights: Sequence[float] | None = None,
) -> list[Slice]:
    """Return the win rate on each slice, by name; `labels` [n] are the names of the slices of a row."""
    rows: dict[str, list[int]] = {}
    for row, names in enumerate(labels):
        for name in dict.fromkeys(names):
            rows.setdefault(name, []).append(row)
    names = sorted(rows)
    samples = []
    for name in names:
        kept = None if weights is None else [weights[row] for row in rows[name]]
        samples.append(([outcomes[row] for row in rows[name]], [prompts[row] for row in rows[name]], kept))
    p_values = [p_value(*sample) for sample in samples]
    rates = [win_rate(outcome, prompt, weights=weight) for outcome, prompt, weight in samples]
    return [Slice(*figures) for figures in zip(names, rates, p_values, holm(p_values), strict=True)]


def by_length(lengths: Sequence[float], parts: int = 4) -> list[str]:
    """Return the slice of each row [n] by quantiles of length; equal lengths share a slice, so there may be fewer."""
    values = np.asarray(lengths, dtype=np.float64)
    limits = np.unique(np.quantile(values, np.arange(1, parts + 1) / parts, method="inverted_cdf"))
    place = np.searchsorted(limits, values)
    names = []
    for index, limit in enumerate(limits):
        above = f"over {limits[index - 1]:g} " if index else ""
        names.append(f"length {above}to {limit:g}")
    return [names[index] for index in place]


def sample_size(
    win_rate: float,
    power: float = 0.8,
    tie_share: float = 0.0,
    design_effect: float = 1.0,
    verdicts: float = 1.0,
    level: float = 0.95,
) -> int:
    """Return the number of prompts for which the interval excludes one half with probability `power`, if the true rate
    is `win_rate`.

    n = D / m · (z₁ √v₀ + z₂ √v₁)² / (rate - ½)². v₀ = (1 - tie_share) / 4 and v₁ = rate - tie_share / 4 - rate² are the
    variances of an outcome at a true rate of one half and of `win_rate`. D is the `design_effect` of m `verdicts` per
    prompt: 1 + (m - 1) times the correlation of a prompt's verdicts. z₁ and z₂ are normal quantiles.
    """
    return math.ceil(_needed(win_rate, power, tie_share, design_effect / verdicts, level))


def detectable(
    prompts: int,
    power: float = 0.8,
    tie_share: float = 0.0,
    design_effect: float = 1.0,
    verdicts: float = 1.0,
    level: float = 0.95,
) -> float | None:
    """Return the least win rate above one half that this many prompts distinguish from it; None if there is none."""
    most = 1 - tie_share / 2

    def missing(rate: float) -> float:
        return _needed(rate, power, tie_share, design_effect / verdicts, level) - prompts

    if most <= 0.5 or missing(most) > 0:
        return None
    return float(brentq(missing, 0.5 + 1e-9, most, xtol=1e-12))


def _needed(rate: float, power: float, tie_share: float, effect: float, level: float) -> float:
    if not (tie_share / 2 <= rate <= 1 - tie_share / 2 and rate != 0.5 and tie_share >= 0 and 0 < power < 1):
        raise ValueError(
            f"a win rate of {rate:g} with a share of ties of {tie_share:g} and a power of {power:g}: "
            "the rate is not one half, and at least half of the ties away from 0 and from 1"
        )
    null, true = (1 - tie_share) / 4, rate - tie_share / 4 - rate**2
    quantiles = float(ndtri((1 + level) / 2)), float(ndtri(power))
    reach = quantiles[0] * math.sqrt(null) + quantiles[1] * math.sqrt(max(true, 0.0))
    return effect * reach**2 / (rate - 0.5) ** 2
