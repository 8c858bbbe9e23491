"""Ratings of several models on one scale: Bradley-Terry strengths with intervals, and Elo.

Bradley and Terry (1952, Biometrika 39:324): P(a beats b) = σ(s_a - s_b), where s is a model's strength in log-odds. A
tie is half a win for both. A rating is 1000 + 400 / ln 10 times the strength: 400 points are odds of ten to one, and
the mean of the models is 1000.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, stdtrit

from preferent import randomness
from preferent.evaluation.statistics.logistic_regression import most_likely, sandwich

SCALE = 400 / math.log(10)
CENTER = 1000.0
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Game:
    """One verdict about models a and b: `outcome` is 1, 1/2 or 0 for a."""

    a: str
    b: str
    outcome: float
    prompt: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Ratings:
    """Strengths and ratings by model, the best first, with their intervals.

    `interval` comes from the sandwich over prompts, or is None. `covariance` is of the strengths in the order of
    `models`. `separated` are models that won or lost all their games against the rest, so their strength has no bound.
    All strengths are then those with one more tie of every two models that met, and there are no intervals.
    """

    models: tuple[str, ...]
    strength: dict[str, float]
    rating: dict[str, float]
    interval: dict[str, Interval | None]
    covariance: tuple[tuple[float, ...], ...] | None
    separated: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RatingTable:
    """Games in numbers; games with the same a and b are one kind.

    `met` [kinds, 2] are the places of a and b among `models`. `design` [kinds, models - 1] maps the free parameters to
    the log-odds of a kind, `basis` [models, models - 1] to the strengths, which sum to 0. `won` and `played` [prompts,
    kinds] are sums of weights.
    """

    models: tuple[str, ...]
    met: np.ndarray
    design: np.ndarray
    basis: np.ndarray
    won: np.ndarray
    played: np.ndarray


def bradley_terry(games: Sequence[Game], level: float = 0.95) -> Ratings:
    """Return the maximum-likelihood strengths of all models that played, with intervals clustered by prompt.

    The covariance is H⁻¹ (Σ g gᵀ) H⁻¹ P / (P - 1) with g a prompt's sum of scores and P prompts; the quantile is
    Student's with P - 1 degrees of freedom. H⁻¹ alone would overstate the noise of a tie, and treat the verdicts of a
    prompt as independent.
    """
    table = _table(games)
    prompts = len(table.won)
    solution = most_likely(table.design, table.won.sum(0), table.played.sum(0))
    if solution is None:
        estimate = table.basis @ _with_ties(table.design, table.won.sum(0), table.played.sum(0))
        return _ratings(table, estimate, None, None)
    scores = (table.won - table.played * expit(table.design @ solution)) @ table.design
    covariance = table.basis @ sandwich(table.design, table.played.sum(0), solution, scores) @ table.basis.T
    half = np.full(len(covariance), math.inf)
    if prompts > 1:
        half = float(stdtrit(prompts - 1, (1 + level) / 2)) * np.sqrt(np.diag(covariance))
    estimate = table.basis @ solution
    return _ratings(table, estimate, covariance, np.stack([estimate - half, estimate + half]))


def _with_ties(design: np.ndarray, won: np.ndarray, played: np.ndarray) -> np.ndarray:
    """Return the maximum with one more tie per kind, which always exists: for two, Haldane's (w + ½) / (l + ½)."""
    estimate = most_likely(design, won + 0.5, played + 1)
    assert estimate is not None
    return estimate


def _table(games: Sequence[Game]) -> RatingTable:
    if not games:
        raise ValueError("no games: nothing to rate")
    for game in games:
        if game.a == game.b or not 0 <= game.outcome <= 1 or not game.weight > 0:
            raise ValueError(f"{game}: two different models, an outcome from 0 to 1 and a weight above 0 make a game")
    models = tuple(sorted({game.a for game in games} | {game.b for game in games}))
    place = {model: index for index, model in enumerate(models)}
    met, kind = np.unique([(place[g.a], place[g.b]) for g in games], axis=0, return_inverse=True)
    _refuse_strangers(models, met)
    _, prompt = np.unique([game.prompt for game in games], return_inverse=True)
    played, won = np.zeros((2, prompt.max() + 1, len(met)))
    weight = np.array([game.weight for game in games])
    np.add.at(played, (prompt, kind.ravel()), weight)
    np.add.at(won, (prompt, kind.ravel()), weight * np.array([game.outcome for game in games]))
    free = np.eye(len(models))[:, :-1]
    basis = free - free.mean(0)
    return RatingTable(models, met, basis[met[:, 0]] - basis[met[:, 1]], basis, won, played)


def _refuse_strangers(models: tuple[str, ...], met: np.ndarray) -> None:
    graph = np.zeros((len(models), len(models)))
    graph[met[:, 0], met[:, 1]] = 1
    groups, group = connected_components(graph, directed=False)
    if groups > 1:
        names = [", ".join(m for m, g in zip(models, group, strict=True) if g == label) for label in range(groups)]
        raise ValueError(
            f"{' and '.join(f'({name})' for name in names)} never met, not even through others: they have no common "
            "scale"
        )


def _separated(table: RatingTable) -> tuple[str, ...]:
    """Return the models without a chain of won or tied games to and from the largest connected group; all if none."""
    won, lost = table.won.sum(0), (table.played - table.won).sum(0)
    graph = np.zeros((len(table.models), len(table.models)))
    for kind, (a, b) in enumerate(table.met):
        graph[a, b] += won[kind]
        graph[b, a] += lost[kind]
    _, group = connected_components(graph, connection="strong")
    largest = np.bincount(group).argmax()
    apart = tuple(model for model, label in zip(table.models, group, strict=True) if label != largest)
    return apart or table.models


def _ratings(
    table: RatingTable, estimate: np.ndarray, covariance: np.ndarray | None, limits: np.ndarray | None
) -> Ratings:
    best = sorted(range(len(table.models)), key=lambda index: (-estimate[index], table.models[index]))
    return Ratings(
        models=tuple(table.models[index] for index in best),
        strength={table.models[index]: float(estimate[index]) for index in best},
        rating={table.models[index]: CENTER + SCALE * float(estimate[index]) for index in best},
        interval={table.models[index]: _interval(limits, index) for index in best},
        covariance=None if covariance is None else tuple(tuple(map(float, covariance[i, best])) for i in best),
        separated=_separated(table) if limits is None else (),
    )


def _interval(limits: np.ndarray | None, index: int) -> Interval | None:
    """Return the limits of a rating; None also if all prompts say the same, which does not determine a width."""
    if limits is None or not 1e-9 < limits[1, index] - limits[0, index] < math.inf:
        return None
    low, high = CENTER + SCALE * limits[:, index]
    return float(low), float(high)


def elo(games: Sequence[Game], k: float = 4.0, shuffles: int = 0, seed: int = 0) -> dict[str, float]:
    """Return Elo ratings, the best first: from 1000 on, both models move by k (outcome - expected) after every game.

    The order of `games` matters. With `shuffles` above 0 the result is the mean over that many orders, keyed by `seed`.
    """
    models = sorted({game.a for game in games} | {game.b for game in games})
    place = {model: index for index, model in enumerate(models)}
    orders = [randomness.permutation(seed, "elo", item, len(games)) for item in range(shuffles)] or [
        np.arange(len(games))
    ]
    a = np.array([place[game.a] for game in games], dtype=np.int64)
    b = np.array([place[game.b] for game in games], dtype=np.int64)
    outcome = np.array([game.outcome for game in games])
    rating, row = np.full((len(orders), len(models)), CENTER), np.arange(len(orders))
    for now in np.stack(orders, axis=1):
        first, second = a[now], b[now]
        move = k * (outcome[now] - expit((rating[row, first] - rating[row, second]) / SCALE))
        rating[row, first] += move
        rating[row, second] -= move
    means = dict(zip(models, rating.mean(0).tolist(), strict=True))
    return dict(sorted(means.items(), key=lambda item: -item[1]))
