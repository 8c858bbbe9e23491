"""The win rate of one side over another, its interval, and a test against one half."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import binomtest

METHOD = "Tango score interval on each prompt's net verdict"
ZERO = 1e-12
"""Variance below which there is only rounding error."""
LEAST = 0.5
"""Minimum degrees of freedom; below it, all prompts but one have almost no weight."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """`win`, `tie` and `loss` are counts of verdicts, `n` their sum, `prompts` the number of clusters.

    `win_rate` is (win + tie / 2) / n, or the weighted mean outcome; `interval` holds its limits by `method`.
    """

    win: int
    tie: int
    loss: int
    n: int
    prompts: int
    win_rate: float
    interval: tuple[float, float]
    method: str


@dataclass(frozen=True, slots=True)
class Net:
    """The net verdicts of `prompts`: the shares `won` and `lost`, and the `effective` number of independent prompts.

    `degrees` are Student's degrees of freedom; infinite if every prompt has one verdict and all weigh the same.
    """

    prompts: int
    won: float
    lost: float
    effective: float
    degrees: float


def win_rate(
    outcomes: Sequence[float] | np.ndarray,
    prompts: Sequence[str] | np.ndarray,
    level: float = 0.95,
    weights: Sequence[float] | np.ndarray | None = None,
) -> WinRate:
    """Count outcomes [n] and return their mean with an interval; rows with equal `prompts` [n] are one cluster.

    The interval is Tango's score interval for the difference of two paired proportions, here win minus loss (Tango
    1998, Statistics in Medicine 17:891). It treats a tie as a tie and stays inside [0, 1]. Unlike Wald and bootstrap
    intervals, it does not collapse to a point when all verdicts are wins or ties. Without ties it is Wilson's. Its unit
    is the prompt, whose verdicts are netted: a win in one order and a loss in the other are a tie (`net`).
    docs/statistics.md has its simulated coverage.

    `weights` [n] are the inverse probabilities with which rows were selected. The rate is then Hájek's estimate
    Σwy / Σw (1971), which does not depend on the selection.
    """
    outcomes, weights = checked(outcomes, prompts, weights)
    win, tie, loss = (int(np.sum(outcomes == value)) for value in (1.0, 0.5, 0.0))
    netted = net(outcomes, prompts, weights)
    low, high = tango(netted, quantile((1 + level) / 2, netted.degrees))
    mean = float(outcomes @ weights / weights.sum())
    method = f"{METHOD}, {100 * level:g} %"
    limits = ((1 + low) / 2, (1 + high) / 2)
    return WinRate(win, tie, loss, outcomes.size, netted.prompts, mean, limits, method)


def p_value(
    outcomes: Sequence[float] | np.ndarray,
    prompts: Sequence[str] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
) -> float:
    """Return the p-value of a win rate against one half, below .05 exactly if the 95 % interval excludes one half.

    The statistic is the score statistic at no difference, which is McNemar's: (won - lost) / √((won + lost) / n).
    """
    outcomes, weights = checked(outcomes, prompts, weights)
    netted = net(outcomes, prompts, weights)
    decided = netted.won + netted.lost
    if decided <= ZERO or netted.degrees < LEAST:
        return 1.0
    score = abs(netted.won - netted.lost) * math.sqrt(netted.effective / decided)
    return float(2 * (ndtr(-score) if math.isinf(netted.degrees) else stdtr(netted.degrees, -score)))


def net(outcomes: np.ndarray, prompts: Sequence[str] | np.ndarray, weights: np.ndarray) -> Net:
    """Return the means of each prompt's net verdict, d = (win - loss) / all of its verdicts, and its effective number.

    A prompt with d = 1/2 is half won and half tied. Netting can only reduce the variance. Prompts count as
    effective = v / Var(mean d) independent ones, but never as more than there are verdicts. v = won + lost -
    (won - lost)² is the variance if every d is -1, 0 or 1. Var is the linearised one of a weighted mean (Kish 1965).
    """
    _, cluster = np.unique(np.asarray(prompts), return_inverse=True)
    size = np.bincount(cluster, weights)
    balance = np.bincount(cluster, weights * (2 * outcomes - 1)) / size
    won, lost = (float(size @ np.maximum(side, 0) / size.sum()) for side in (balance, -balance))
    worth, most = (float(masses.sum() ** 2 / (masses @ masses)) for masses in (size, weights))
    variance = won + lost - (won - lost) ** 2
    spread = float(size**2 @ (balance - (won - lost)) ** 2 / size.sum() ** 2)
    effective = worth if variance <= ZERO else most if spread <= ZERO * variance else min(variance / spread, most)
    alone = size.size == outcomes.size and bool(np.all(weights == weights[0]))
    return Net(size.size, won, lost, effective, math.inf if alone else worth - 1)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927, JASA 22:209) for a share of n independent rows; [0, 1] if n is 0."""
    if n == 0:
        return 0.0, 1.0
    limits = binomtest(successes, n).proportion_ci(level, "wilson")
    return float(limits.low), float(limits.high)


def lower_limit(outcomes: Sequence[float] | np.ndarray, prompts: Sequence[str], level: float = 0.99) -> float:
    """Return a lower limit of the mean of outcomes [n] that holds for few rows, too.

    It is the lesser of two: the limit of `win_rate`, which knows clusters, and Clopper and Pearson's (1934, Biometrika
    26:404), which is exact for rows that are alone. Of n coin tosses the exact limit is above one half at most (1 -
    level) / 2 of the time, whatever n is.
    """
    right = math.floor(float(np.sum(outcomes)) + ZERO * len(prompts))
    exact = float(binomtest(right, len(prompts)).proportion_ci(level, "exact").low)
    return min(exact, win_rate(outcomes, prompts, level).interval[0])


def checked(
    outcomes: Sequence[float] | np.ndarray,
    prompts: Sequence[str] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return outcomes and weights as arrays, all weights 1 if there are none; raise `ValueError` for other values."""
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if outcomes.size == 0 or outcomes.shape != (len(prompts),):
        raise ValueError(f"{outcomes.size} outcomes for {len(prompts)} prompts: needs at least one, and one per prompt")
    if not np.all(np.isin(outcomes, (0.0, 0.5, 1.0))):
        raise ValueError("every outcome must be 1, 1/2 or 0")
    weights = np.ones(outcomes.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != outcomes.shape or not np.all((weights > 0) & np.isfinite(weights)):
        raise ValueError("weights must be finite numbers above 0, one per outcome")
    return outcomes, weights


def quantile(probability: float, degrees: float) -> float:
    """Return a quantile of Student's distribution; infinite below `LEAST` degrees of freedom."""
    if degrees < LEAST:
        return math.inf
    return float(ndtri(probability) if math.isinf(degrees) else stdtrit(degrees, probability))


def tango(net: Net, z: float) -> tuple[float, float]:
    """Return the limits of (P(win) - P(loss)) at which the score statistic is plus and minus `z`."""
    won, lost, n = net.won, net.lost, net.effective

    def excess(difference: float, sign: float) -> float:
        b = (2 - won + lost) * difference - won - lost
        c = -lost * difference * (1 - difference)
        restricted = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4  # P(loss), most likely at this difference
        variance = max(2 * restricted + difference * (1 - difference), 0.0)
        return won - lost - difference - sign * z * math.sqrt(variance / n)

    if math.isinf(z):
        return -1.0, 1.0
    middle, step = won - lost, 1e-9  # the step keeps off the statistic's 0/0 at plus and minus 1
    low = -1.0 if middle - step <= -1.0 else brentq(excess, -1.0, middle - step, args=(1.0,), xtol=1e-12)
    high = 1.0 if middle + step >= 1.0 else brentq(excess, middle + step, 1.0, args=(-1.0,), xtol=1e-12)
    return float(low), float(high)
