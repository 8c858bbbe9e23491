"""Several models on one scale: Bradley-Terry strengths with intervals, and Elo.

Bradley and Terry (1952, Biometrika 39:324): P(a beats b) = σ(s_a - s_b), where s is a model's strength in log-odds. A
tie is half a win of each. A rating is 1000 + 400 / ln 10 times the strength, so that 400 points more are odds of ten to
one; models average 1000, or one of them, the anchor, has 1000.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, stdtrit

from preferent import randomness
from preferent.evaluation.statistics import resampling
from preferent.evaluation.statistics.logistic_regression import most_likely, sandwich

SCALE = 400 / math.log(10)
CENTER = 1000.0
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Game:
    """One verdict about models a and b: `outcome` is 1, 1/2 or 0 for a; `first` is the one that was shown first."""

    a: str
    b: str
    outcome: float
    prompt: str
    first: Literal["a", "b"] | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Ratings:
    """Strengths and ratings by model, the best first, and how sure they are.

    `interval` is by the sandwich and `bootstrap` by the bootstrap, over prompts, both None where there is none;
    `covariance` is of the strengths in the order of `models`. An anchor's intervals have no width: those of the others
    are of their distance to it. `order` is what being shown first adds to the log-odds, where it was asked for.
    `separated` are models that won or lost all their games against the rest: their strength has no bound, all of
    `strength` is that of the games and one more tie of every two models that met, and there are no intervals.
    """

    models: tuple[str, ...]
    strength: dict[str, float]
    rating: dict[str, float]
    interval: dict[str, Interval | None]
    bootstrap: dict[str, Interval | None]
    covariance: tuple[tuple[float, ...], ...] | None
    order: float | None
    order_interval: Interval | None
    separated: tuple[str, ...]
    anchor: str | None


@dataclass(frozen=True, slots=True)
class RatingTable:
    """Games in numbers, where those of the same two models in the same order are one kind.

    `met` [kinds, 2] are the places of a and b among `models`. `design` [kinds, free] gives the log-odds of a kind from
    the free parameters, `basis` [models (and order), free] the strengths (and the order's effect). `won` and `played`
    [prompts, kinds] are sums of weights.
    """

    models: tuple[str, ...]
    met: np.ndarray
    design: np.ndarray
    basis: np.ndarray
    won: np.ndarray
    played: np.ndarray


def bradley_terry(
    games: Sequence[Game], anchor: str | None = None, order: bool = False, level: float = 0.95, seed: int = 0
) -> Ratings:
    """The most likely strengths of all models that played, with intervals clustered by prompt.

    The sandwich is H⁻¹ (Σ g gᵀ) H⁻¹ with g a prompt's sum of scores, times P / (P - 1), and Student's quantile with
    P - 1 degrees of freedom, P prompts; the plain H⁻¹ would take a tie for more noise than it is, and the verdicts of
    a prompt for independent. With `order` a judge's liking for the first place is estimated too, and taken off.
    """
    table = _table(games, anchor, order)
    prompts = len(table.won)
    found = most_likely(table.design, table.won.sum(0), table.played.sum(0))
    if found is None:
        estimate = table.basis @ _with_ties(table.design, table.won.sum(0), table.played.sum(0))
        return _ratings(table, estimate, None, None, None, anchor)
    scores = (table.won - table.played * expit(table.design @ found)) @ table.design
    covariance = table.basis @ sandwich(table.design, table.played.sum(0), found, scores) @ table.basis.T
    half = np.full(len(covariance), math.inf)
    if prompts > 1:
        half = float(stdtrit(prompts - 1, (1 + level) / 2)) * np.sqrt(np.diag(covariance))
    estimate = table.basis @ found
    redrawn = _bootstrap(table, level, seed) if prompts >= resampling.LEAST else None
    return _ratings(table, estimate, covariance, np.stack([estimate - half, estimate + half]), redrawn, anchor)


def chance(ratings: Ratings, a: str, b: str) -> float:
    """The win rate of a over b that the strengths predict."""
    return float(expit(ratings.strength[a] - ratings.strength[b]))


def _with_ties(design: np.ndarray, won: np.ndarray, played: np.ndarray) -> np.ndarray:
    """The maximum with one more tie of each kind, which always exists: for two models, Haldane's (w + ½) / (l + ½)."""
    found = most_likely(design, won + 0.5, played + 1)
    assert found is not None
    return found


def _bootstrap(table: RatingTable, level: float, seed: int) -> np.ndarray:
    """Limits [2, models (and order)] from redrawn prompts; where one has no maximum, of the games and more ties."""
    estimates = []
    for places in resampling.drawn(len(table.won), seed=seed):
        won, played = table.won[places].sum(0), table.played[places].sum(0)
        found = most_likely(table.design, won, played)
        estimates.append(table.basis @ (_with_ties(table.design, won, played) if found is None else found))
    return np.asarray(np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2], axis=0))


def _table(games: Sequence[Game], anchor: str | None, order: bool) -> RatingTable:
    if not games:
        raise ValueError("no games: nothing to rate")
    for game in games:
        if game.a == game.b or not 0 <= game.outcome <= 1 or not game.weight > 0:
            raise ValueError(f"{game}: two different models, an outcome from 0 to 1 and a weight above 0 make a game")
    models = tuple(sorted({game.a for game in games} | {game.b for game in games}))
    place = {model: index for index, model in enumerate(models)}
    kinds = [(place[g.a], place[g.b], {"a": 1, "b": -1, None: 0}[g.first] if order else 0) for g in games]
    distinct, kind = np.unique(kinds, axis=0, return_inverse=True)
    _refuse_strangers(models, distinct)
    _, prompt = np.unique([game.prompt for game in games], return_inverse=True)
    played, won = np.zeros((2, prompt.max() + 1, len(distinct)))
    weight = np.array([game.weight for game in games])
    np.add.at(played, (prompt, kind.ravel()), weight)
    np.add.at(won, (prompt, kind.ravel()), weight * np.array([game.outcome for game in games]))
    basis = _basis(models, anchor, order)
    design = basis[distinct[:, 0]] - basis[distinct[:, 1]]
    if order:
        design[:, -1] = distinct[:, 2]
    return RatingTable(models, distinct[:, :2], design, basis, won, played)


def _basis(models: tuple[str, ...], anchor: str | None, order: bool) -> np.ndarray:
    """Strengths that sum to 0, or with the anchor's 0, and the order's effect, from as many numbers as are free."""
    if anchor is not None and anchor not in models:
        raise ValueError(f"the anchor {anchor} played no game; there are {', '.join(models)}")
    free = np.delete(np.eye(len(models)), models.index(anchor) if anchor else -1, axis=1)
    basis = np.zeros((len(models) + order, len(models) - 1 + order))
    basis[: len(models), : len(models) - 1] = free if anchor else free - free.mean(0)
    if order:
        basis[-1, -1] = 1
    return basis


def _refuse_strangers(models: tuple[str, ...], met: np.ndarray) -> None:
    graph = np.zeros((len(models), len(models)))
    graph[met[:, 0], met[:, 1]] = 1
    groups, group = connected_components(graph, directed=False)
    if groups > 1:
        names = [", ".join(m for m, g in zip(models, group, strict=True) if g == one) for one in range(groups)]
        raise ValueError(
            f"{' and '.join(f'({each})' for each in names)} never met, not even through others: no scale holds for both"
        )


def _separated(table: RatingTable) -> tuple[str, ...]:
    """The models without a chain of games, won or tied, to and from the largest group that has them; all if none."""
    won, lost = table.won.sum(0), (table.played - table.won).sum(0)
    graph = np.zeros((len(table.models), len(table.models)))
    for kind, (a, b) in enumerate(table.met):
        graph[a, b] += won[kind]
        graph[b, a] += lost[kind]
    _, group = connected_components(graph, connection="strong")
    largest = np.bincount(group).argmax()
    apart = tuple(model for model, one in zip(table.models, group, strict=True) if one != largest)
    return apart or table.models


def _ratings(
    table: RatingTable,
    estimate: np.ndarray,
    covariance: np.ndarray | None,
    limits: np.ndarray | None,
    redrawn: np.ndarray | None,
    anchor: str | None,
) -> Ratings:
    best = sorted(range(len(table.models)), key=lambda index: (-estimate[index], table.models[index]))
    models = tuple(table.models[index] for index in best)
    order = len(estimate) > len(models)

    def by_model(limits: np.ndarray | None) -> dict[str, Interval | None]:
        found = {table.models[index]: _interval(limits, index, SCALE, CENTER) for index in best}
        return found if anchor is None or limits is None else found | {anchor: (CENTER, CENTER)}

    return Ratings(
        models=models,
        strength={table.models[index]: float(estimate[index]) for index in best},
        rating={table.models[index]: CENTER + SCALE * float(estimate[index]) for index in best},
        interval=by_model(limits),
        bootstrap=by_model(redrawn),
        covariance=None if covariance is None else tuple(tuple(map(float, covariance[i, best])) for i in best),
        order=float(estimate[-1]) if order else None,
        order_interval=_interval(limits, -1, 1.0, 0.0) if order else None,
        separated=_separated(table) if limits is None else (),
        anchor=anchor,
    )


def _interval(limits: np.ndarray | None, index: int, scale: float, center: float) -> Interval | None:
    """None, too, where all prompts say the very same: that does not tell how sure they are."""
    if limits is None or not 1e-9 < limits[1, index] - limits[0, index] < math.inf:
        return None
    low, high = center + scale * limits[:, index]
    return float(low), float(high)


def elo(games: Sequence[Game], k: float = 4.0, shuffles: int = 0, seed: int = 0) -> dict[str, float]:
    """Elo ratings, the best first: after each game the two move by k (outcome - expected), from 1000 on.

    In the order of `games`, which matters; or the mean over `shuffles` orders, keyed by `seed`, in which it does not.
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
        one, other = a[now], b[now]
        move = k * (outcome[now] - expit((rating[row, one] - rating[row, other]) / SCALE))
        rating[row, one] += move
        rating[row, other] -= move
    found = dict(zip(models, rating.mean(0).tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
