"""Intervals of statistics without a formula, by the jackknife and the bootstrap over prompts."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit

from preferent import randomness

LEAST = 100
"""Minimum number of prompts of a bootstrap; with fewer its intervals are too short."""
ROUNDS = 1000
UNDEFINED = 0.05
"""Maximum share of resampled data sets on which the statistic is undefined; above it there is no interval."""

Statistic = Callable[[np.ndarray], float | None]
"""A function from row numbers [m], which may repeat, to a value, or None if it is undefined."""


def interval(
    statistic: Statistic, prompts: Sequence[str] | np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Return the interval by the bootstrap from 100 prompts on, and by the jackknife below.

    None if both limits are the same: resampling has no width where nothing varies, as with judges who never disagreed.
    """
    few = len(np.unique(np.asarray(prompts))) < LEAST
    limits = jackknife(statistic, prompts, level) if few else bootstrap(statistic, prompts, level, seed=seed)
    return None if limits is None or limits[0] == limits[1] else limits


def bootstrap(
    statistic: Statistic,
    prompts: Sequence[str] | np.ndarray,
    level: float = 0.95,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the percentiles of the statistic over data sets of as many prompts, drawn with replacement (Efron 1979).

    The draw is keyed by `seed`. None if the statistic is undefined in more than one data set of twenty.
    """
    members = rows_of(prompts)
    if len(members) < LEAST:
        raise ValueError(
            f"a bootstrap of {len(members)} prompts: needs at least {LEAST}, because its intervals are too short with "
            "fewer; win_rate and jackknife have intervals for any number"
        )
    values = [
        statistic(np.concatenate([members[place] for place in places])) for places in drawn(len(members), rounds, seed)
    ]
    return percentiles([value for value in values if value is not None], rounds, level)


def drawn(prompts: int, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """Return the prompts of each resampled data set, int64 [rounds, prompts]."""
    places = randomness.uniforms(seed, "bootstrap", np.arange(rounds)[:, None], np.arange(prompts)) * prompts
    return places.astype(np.int64)


def percentiles(values: Sequence[float], rounds: int, level: float = 0.95) -> tuple[float, float] | None:
    """Return the limits of the middle `level` of the values of `rounds` data sets; None if too many have no value."""
    if len(values) < (1 - UNDEFINED) * rounds:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def jackknife(
    statistic: Statistic, prompts: Sequence[str] | np.ndarray, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the statistic ± Student's quantile times its standard error from leaving out each prompt (Tukey 1958).

    None if there is only one prompt, or if the statistic is undefined without one of them.
    """
    members = rows_of(prompts)
    whole = statistic(np.arange(len(prompts)))
    without = [statistic(np.setdiff1d(np.arange(len(prompts)), rows)) for rows in members] if len(members) > 1 else []
    values = [value for value in without if value is not None]
    if whole is None or len(members) < 2 or len(values) < len(members):
        return None
    count = len(values)
    error = math.sqrt((count - 1) / count * float(np.sum((np.array(values) - np.mean(values)) ** 2)))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    return float(whole - half), float(whole + half)


def rows_of(prompts: Sequence[str] | np.ndarray) -> list[np.ndarray]:
    """Return the numbers of each prompt's rows."""
    _, cluster, size = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    return np.split(np.argsort(cluster, kind="stable"), np.cumsum(size)[:-1])
