"""Coverage and width of people's win rate with the help of a judge, and of the interval that says when to stop.

python bench/coverage.py --only few_votes | stopping [--quick]

People vote on n of all prompts. Half of the prompts are won a little more often than the rate, half as much less often;
with `weights` these halves are drawn in proportion 4 to 1. A vote is a tie with probability .2 where there are ties.
Three raters share what a prompt deserves in four cases of five. A judge says what people say (or what the prompt
deserves), and errs as its name says. Width is relative to √(1 - ρ² N / (n + N)) times that of people alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

from preferent.evaluation import statistics
from preferent.evaluation.statistics import confidence_sequence, prediction_powered

RATES = (0.5, 0.8)
COUNTS = (20, 50, 100, 300)
BATCH = 1000
DRAWN = (4.0, 1.0)
"""Weights of the two halves of the prompts."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What people do: raters on each prompt, share of ties, and whether some prompts are drawn more often."""

    name: str
    raters: int = 1
    ties: float = 0.0
    weights: bool = False


SETTINGS = (
    Setting("one vote"),
    Setting("ties", ties=0.2),
    Setting("3 raters", raters=3),
    Setting("weights", weights=True),
    Setting("ties, 3 raters, weights", 3, 0.2, True),
)
JUDGES = {
    "perfect": (0.0, 0.0),
    "good": (0.15, 0.15),
    "useless": (0.5, 0.5),
    "adversarial": (0.8, 0.8),
    "lenient": (0.0, 0.4),
    "lenient in one of ten": (0.0, 0.1),
}
"""How often a judge says the opposite where people preferred a, and where they preferred b."""


@dataclass(frozen=True, slots=True)
class World:
    """Votes [batch, prompts, raters], a judge's verdicts and the weights [batch, prompts]; those voted on first."""

    votes: np.ndarray
    judged: np.ndarray
    weights: np.ndarray


def all_prompts(count: int) -> int:
    return max(300, 2 * count)


def worlds(setting: Setting, judge: str, rate: float, count: int, trials: int) -> Iterator[World]:
    """Worlds in batches."""
    total = all_prompts(count)
    source = np.random.default_rng([7, *f"{setting.name} {judge} {rate} {count}".encode()])
    for start in range(0, trials, BATCH):
        shape = (min(BATCH, trials - start), total)
        first = np.arange(total) % 2 == 0
        won = source.random(shape) < rate + np.where(first, -0.1, 0.1) * (setting.weights or setting.raters > 1)
        tied = source.random(shape) < setting.ties
        deserved = np.where(tied, 0.5, won * 1.0)
        votes = np.repeat(deserved[..., None], setting.raters, -1)
        if setting.raters > 1:
            other = source.random(votes.shape) < rate
            votes = np.where(source.random(votes.shape) < 0.8, votes, other)
        wrong_a, wrong_b = JUDGES[judge]
        errs = source.random(shape) < np.where(deserved == 1, wrong_a, wrong_b)
        judged = np.where(deserved == 0.5, np.where(errs, source.integers(0, 2, shape), 0.5), 0)
        judged = np.where(deserved == 0.5, judged, np.where(errs, 1 - deserved, deserved))
        weights = np.broadcast_to(np.where(first, *DRAWN) if setting.weights else 1.0, shape)
        if setting.weights or setting.raters > 1:
            order = np.argsort(source.exponential(size=shape) / weights, -1)
            judged, weights = (np.take_along_axis(each, order, -1) for each in (judged, weights))
            votes = np.take_along_axis(votes, order[..., None], 1)
        yield World(votes, judged, inverse(weights, count) if setting.weights else weights)


def inverse(weights: np.ndarray, count: int) -> np.ndarray:
    """One over the probability of being among the first `count` that are drawn by weight."""
    values, share = np.unique(weights[0], return_counts=True)
    time = brentq(lambda t: -np.expm1(-values * t) @ share - count, 1e-9, 1e9) if count < share.sum() else np.inf
    return np.asarray(-1 / np.expm1(-weights * time))


def limits(world: World, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Limits [batch] of `prediction_powered.win_rate`, by bisection for all worlds at once."""
    y, f, w = world.votes[:, :count].mean(-1), world.judged[:, :count], world.weights[:, :count]
    others, total = world.judged[:, count:], world.judged.shape[-1]
    powered = prediction_powered.estimate(y, f, others, prediction_powered.tuned(y, f, others, w), w)
    raters = world.votes.shape[-1]
    won, lost, effective = prediction_powered.netted(y, powered, w, total, raters)
    kish = w.sum(-1) ** 2 / (w**2).sum(-1)
    degrees = np.where((raters == 1) & np.all(w == w[:, :1], -1), np.inf, kish - 1)
    z = np.where(np.isinf(degrees), ndtri(0.975), stdtrit(degrees, 0.975))
    ends = []
    for sign in (1.0, -1.0):
        inside, outside = won - lost, np.full_like(won, -sign)
        for _ in range(45):
            middle = (inside + outside) / 2
            b = (2 - won + lost) * middle - won - lost
            c = -lost * middle * (1 - middle)
            restricted = (np.sqrt(np.maximum(b * b - 8 * c, 0)) - b) / 4
            spread = np.sqrt(np.maximum(2 * restricted + middle * (1 - middle), 0) / effective)
            beyond = sign * (won - lost - middle) > z * spread
            inside, outside = np.where(beyond, inside, middle), np.where(beyond, middle, outside)
        ends.append((1 + inside) / 2)
    return ends[0], ends[1]


def called(world: World, count: int, place: int) -> tuple[tuple[float, float], float]:
    """The interval of one world as the package computes it, and the width of people alone."""
    names = [str(i) for i in range(world.judged.shape[-1])]
    rows = np.repeat(np.arange(count), world.votes.shape[-1])
    votes, weights = world.votes[place, :count].ravel(), world.weights[place, rows]
    asked = [names[row] for row in rows]
    judged = dict(zip(names, world.judged[place].tolist(), strict=True))
    told = prediction_powered.win_rate(votes.tolist(), asked, judged, weights.tolist())
    low, high = statistics.win_rate(votes, asked, weights=weights).interval
    assert told is not None
    return told.interval, high - low


@dataclass(frozen=True, slots=True)
class Cell:
    coverage: float
    width: float
    """Relative to what theory allows."""


def cell(setting: Setting, judge: str, rate: float, count: int, trials: int) -> Cell:
    """Coverage and width of one cell; the first worlds are computed by the package too."""
    held, widths, alone, squares = [], [], [], []
    true = true_rate(setting, rate)
    for number, world in enumerate(worlds(setting, judge, rate, count, trials)):
        low, high = limits(world, count)
        held.append((low <= true) & (true <= high))
        widths.append(high - low)
        means = world.votes.mean(-1)
        squares.append(np.corrcoef(means.ravel(), world.judged.ravel())[0, 1] ** 2)
        if number == 0:
            for place in range(min(100, low.size)):
                interval, width = called(world, count, place)
                alone.append(width)
                assert np.allclose(interval, (low[place], high[place]), atol=1e-6), (interval, low[place], high[place])
    kish = count if not setting.weights else float(np.mean(effective(setting, count)))
    total = all_prompts(count)
    theory = np.sqrt(1 - np.mean(squares) * (total - kish) / total) * np.mean(alone)
    return Cell(float(np.mean(np.concatenate(held))), float(np.mean(np.concatenate(widths)) / theory))


def effective(setting: Setting, count: int) -> np.ndarray:
    """How many equal votes weighted ones are worth."""
    weights = next(worlds(setting, "good", 0.5, count, 200)).weights[:, :count]
    return np.asarray(weights.sum(-1) ** 2 / (weights**2).sum(-1))


def true_rate(setting: Setting, rate: float) -> float:
    """The mean vote: ties draw it to one half, where nobody decides otherwise."""
    deserved = (1 - setting.ties) * rate + setting.ties / 2
    return deserved if setting.raters == 1 else 0.8 * deserved + 0.2 * rate


def wanted(count: int, found: Cell, judge: str) -> list[str]:
    """What a cell misses of the requirement."""
    least, most = (0.93, 1.0) if count < 50 else (0.935, 0.97)
    missed = [] if least <= round(found.coverage, 3) <= most else [f"coverage {found.coverage:.3f}"]
    if count >= 50 and (found.width > 1.05 or (found.width < 0.95 and judge != "useless")):
        missed.append(f"width {found.width:.2f}")
    return missed


def few_votes(trials: int) -> None:
    """Prints the least and most coverage over the true rates, and the widest relative width, by setting and judge."""
    print("| people | judge | " + " | ".join(f"{n} votes of {all_prompts(n)}" for n in COUNTS) + " |")
    print("|---" * (len(COUNTS) + 2) + "|")
    missed = []
    for setting in SETTINGS:
        for judge in JUDGES:
            row = []
            for count in COUNTS:
                found = [cell(setting, judge, rate, count, trials) for rate in RATES]
                shares = [each.coverage for each in found]
                widest = max((each.width for each in found), key=lambda width: abs(width - 1))
                row.append(f"{min(shares):.3f} – {max(shares):.3f} ({widest:.2f})")
                for rate, each in zip(RATES, found, strict=True):
                    missed += [
                        f"{setting.name}, {judge}, {rate}, {count} votes: {m}" for m in wanted(count, each, judge)
                    ]
            print(f"| {setting.name} | {judge} | " + " | ".join(row) + " |", flush=True)
    print(f"\n{len(missed)} of {2 * len(SETTINGS) * len(JUDGES) * len(COUNTS) * len(RATES)} requirements missed")
    print("\n".join(missed))


def stopping(trials: int, votes: int = 180) -> None:
    """Prints how often the interval holds at the vote at which one stops and at every vote, and how many it took."""
    print("| judge | pairs asked | true rate | stop at | held when stopped | held always | votes | mean error |")
    print("|---" * 8 + "|")
    confidence_sequence.GRID = 201
    cells = [(judge, 0.65, informative, 0.1) for judge in JUDGES for informative in (False, True)]
    cells += [("good", rate, False, 0.1) for rate in (0.5, 0.8)]
    cells += [("good", 0.65, informative, None) for informative in (False, True)]
    for judge, rate, informative, half in cells:
        found = [followed(*each, half, votes) for each in questions(judge, rate, informative, trials)]
        at_stop, always, counts, error = (np.concatenate(column) for column in zip(*found, strict=True))
        asked, stop = (
            "informative first" if informative else "random",
            "one half is out" if half is None else "width .2",
        )
        print(
            f"| {judge} | {asked} | {rate} | {stop} | {at_stop.mean():.3f} | {always.mean():.3f} | "
            f"{counts.mean():.0f} | {error.mean():+.4f} |",
            flush=True,
        )


def questions(judge: str, rate: float, informative: bool, trials: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Votes, the judge's expectations and weights of 300 pairs in the order of asking, in batches.

    The judge says how sure it is; it is right as often as it says where it errs in neither direction more.
    """
    source = np.random.default_rng([9, *f"{judge} {rate} {informative}".encode()])
    wrong_a, wrong_b = JUDGES[judge]
    for start in range(0, trials, BATCH):
        shape = (min(BATCH, trials - start), 300)
        votes = (source.random(shape) < rate) * 1.0
        sure = source.uniform(0.5, 1.0, shape)
        errs = source.random(shape) < np.where(votes == 1, wrong_a, wrong_b) * 2 * (1.25 - sure)
        judged = np.where((votes == 1) ^ errs, sure, 1 - sure)
        weights = np.maximum(2 * np.sqrt(judged * (1 - judged)), 0.5) if informative else np.ones(shape)
        order = np.argsort(source.exponential(size=shape) / weights, -1)
        yield tuple(np.take_along_axis(each, order, -1) for each in (votes, judged, weights))


def followed(
    votes: np.ndarray, judged: np.ndarray, weights: np.ndarray, half: float | None, most: int
) -> tuple[np.ndarray, ...]:
    """Whether the true rate was held at the stop and always, the votes until the stop, and the estimate's error there
    after 50 votes."""
    true = votes.mean(-1, keepdims=True)
    found = confidence_sequence.follow(votes[:, :most], judged, weights, half or confidence_sequence.ALWAYS)
    held = (found.low <= true + 1e-12) & (true <= found.high + 1e-12)
    enough = (found.low > 0.5) | (found.high < 0.5) if half is None else found.high - found.low <= 2 * half + 1e-9
    stop = np.where(enough.any(-1), enough.argmax(-1), most)
    return held[np.arange(len(stop)), stop], held.all(-1), stop, found.mean[:, 50] - true[:, 0]
