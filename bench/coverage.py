"""How often intervals of preferent.evaluation.statistics hold the truth and sample-size advice is kept: by simulation.

python bench/coverage.py [--quick] [--only few_votes | stopping]

A judge sees each prompt in both orders, several times. Its verdict is that of u = m + s·g + b·o + e: g is the prompt's
(standard normal), o is +1 in one order and -1 in the other, e is the verdict's (logistic); a wins where u > t, loses
where u < -t, and else ties. s is how much verdicts of a prompt hang together, b the liking for the first place. m is
solved for the true win rate, over prompts and both orders. Prints the tables of docs/statistics.md.
"""

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from preferent.evaluation import statistics
from preferent.evaluation.statistics import agreement, length_control, paired_tests, rating, win_rates

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""True win rates; those above one half are the mirror images of these, as are their intervals."""
NODES, MASS = np.polynomial.hermite_e.hermegauss(80)


@dataclass(frozen=True, slots=True)
class Judge:
    """How a judge judges: s, b and t above, and how often it is asked about a prompt in each of the two orders."""

    name: str
    spread: float
    bias: float
    band: float
    repeats: int

    @property
    def rows(self) -> int:
        return 2 * self.repeats


JUDGES = (
    Judge("verdicts independent", 0.0, 0.0, 0.0, 1),
    Judge("ties", 0.0, 0.0, 0.7, 1),
    Judge("position bias", 1.0, 1.5, 0.0, 1),
    Judge("position bias, ties, 2 repeats", 1.0, 1.5, 0.7, 2),
    Judge("strong position bias, ties", 1.0, 4.0, 0.7, 1),
    Judge("prompts decide, 2 repeats", 4.0, 0.0, 0.0, 2),
    Judge("prompts decide, ties, 4 repeats", 4.0, 1.0, 0.7, 4),
    Judge("all of it, 4 repeats", 4.0, 4.0, 0.7, 4),
)


def keyed(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose.encode()])


def balance(judge: Judge, middle: float) -> float:
    """The true win rate at m = `middle`."""
    u = middle + judge.spread * NODES[:, None] + np.array([judge.bias, -judge.bias])
    net = (expit(u - judge.band) - expit(-u - judge.band)).mean(1)
    return float(0.5 + net @ MASS / MASS.sum() / 2)


def simulated(judge: Judge, rate: float, prompts: int, trials: int, seed: int = 1) -> Iterator[np.ndarray]:
    """Verdicts [prompts, 2 orders, repeats] of each trial."""
    middle = brentq(lambda m: balance(judge, m) - rate, -60, 60)
    order = np.array([judge.bias, -judge.bias])[:, None]
    source = keyed(seed, f"{judge.name} {rate} {prompts}")
    for _ in range(trials):
        g = source.standard_normal((prompts, 1, 1))
        u = middle + judge.spread * g + order + source.logistic(size=(prompts, 2, judge.repeats))
        yield np.where(u > judge.band, 1.0, np.where(u < -judge.band, 0.0, 0.5))


def covered(
    judge: Judge, rate: float, prompts: int, trials: int, level: float = 0.95, seed: int = 1
) -> tuple[float, float]:
    """The share of intervals that hold the true rate, and their mean width."""
    names = np.repeat(np.arange(prompts), judge.rows)
    found = [
        statistics.win_rate(y.ravel(), names, level).interval for y in simulated(judge, rate, prompts, trials, seed)
    ]
    low, high = np.array(found).T
    return float(np.mean((low <= rate) & (rate <= high))), float(np.mean(high - low))


def headline(counts: Sequence[int], trials: Callable[[int], int]) -> None:
    """Coverage by judge and number of prompts: the least and most over the true win rates, and the mean width."""
    print("| judge | " + " | ".join(f"{count} prompts" for count in counts) + " |")
    print("|---" * (len(counts) + 1) + "|")
    least = dict.fromkeys(counts, 1.0)
    for judge in JUDGES:
        cells = []
        for count in counts:
            found = [covered(judge, rate, count, trials(count)) for rate in RATES]
            shares = [share for share, _ in found]
            least[count] = min(least[count], *shares)
            cells.append(f"{min(shares):.3f} – {max(shares):.3f} ({np.mean([w for _, w in found]):.3f})")
        print(f"| {judge.name} | " + " | ".join(cells) + " |", flush=True)
    print("| **least** | " + " | ".join(f"**{least[count]:.3f}**" for count in counts) + " |")


def advice(trials: int) -> None:
    """How often the interval leaves out one half, at the number of prompts that sample_size says, for a power of .8."""
    print("| true win rate | ties | prompts | power |")
    print("|---|---|---|---|")
    for rate, ties in ((0.55, 0.0), (0.6, 0.0), (0.6, 0.3), (0.7, 0.0), (0.7, 0.3)):
        prompts = paired_tests.sample_size(rate, tie_share=ties)
        uniform = keyed(1, f"advice {rate} {ties}").random((trials, prompts))
        win = rate - ties / 2
        drawn = np.where(uniform < win, 1.0, np.where(uniform < win + ties, 0.5, 0.0))
        found = np.mean([win_rates.p_value(row, np.arange(prompts)) < 0.05 for row in drawn])
        print(f"| {rate} | {ties} | {prompts} | {found:.3f} |", flush=True)


def others(trials: int) -> None:
    """Coverage of the other intervals."""
    print("| interval of | prompts | method | coverage |")
    print("|---|---|---|---|")
    for name, count, method, cases in (
        ("win rate, a tenth of the prompts asked eight times as often", 30, "headline", lopsided(30, trials)),
        ("win rate, a tenth of the prompts asked eight times as often", 100, "headline", lopsided(100, trials)),
        ("win rate of pairs selected with probability .2 or .8, weighted", 60, "headline", selected(60, trials)),
        ("win rate of pairs selected with probability .2 or .8, weighted", 200, "headline", selected(200, trials)),
        ("Cohen's kappa", 30, "jackknife", kappas(30, trials)),
        ("Cohen's kappa", 100, "bootstrap", kappas(100, trials // 8)),
        ("Krippendorff's alpha, four judges, a third missing", 30, "jackknife", alphas(30, trials)),
        ("Krippendorff's alpha, four judges, a third missing", 100, "bootstrap", alphas(100, trials // 8)),
        ("Bradley-Terry rating, three models, ties", 30, "sandwich", ratings(30, trials)),
        ("Bradley-Terry rating, three models, ties", 99, "sandwich", ratings(99, trials)),
        ("length-controlled win rate", 30, "sandwich", controlled(30, trials)),
        ("length-controlled win rate", 100, "sandwich", controlled(100, trials)),
    ):
        found = [np.nan if limits is None else limits[0] <= true <= limits[1] for true, limits in cases]
        missing = f", {np.sum(np.isnan(found))} without" if np.isnan(found).any() else ""
        print(f"| {name} | {count} | {method} | {np.nanmean(found):.3f}{missing} |", flush=True)


Cases = Iterator[tuple[float, tuple[float, float] | None]]
"""The true value and the interval of each trial."""


def lopsided(prompts: int, trials: int) -> Cases:
    """The hardest judge above, asked in both orders once, or of one prompt in ten eight times; the true rate is .1."""
    judge = Judge("lopsided", 4.0, 0.0, 0.0, 8)
    source = keyed(1, f"often {prompts}")
    for y in simulated(judge, 0.1, prompts, trials):
        asked = np.arange(8) < np.where(source.random(prompts) < 0.1, 8, 1)[:, None, None]
        row, _, _ = np.nonzero(np.broadcast_to(asked, y.shape))
        yield 0.1, statistics.win_rate(y[np.broadcast_to(asked, y.shape)], row).interval


def selected(pairs: int, trials: int) -> Cases:
    """Half of all pairs are won with probability .3 and asked about with .8, the others with .9 and .2."""
    source = keyed(1, f"selected {pairs}")
    for _ in range(trials):
        hard, won, asked = source.random((3, pairs))
        probability = np.where(hard < 0.5, 0.8, 0.2)
        kept = asked < probability
        y = (won < np.where(hard < 0.5, 0.3, 0.9)) * 1.0
        yield 0.6, statistics.win_rate(y[kept], np.arange(pairs)[kept], weights=1 / probability[kept]).interval


def kappas(prompts: int, trials: int) -> Cases:
    """Two judges who follow what a prompt deserves with probability .8, and else say A, tie or B anyhow."""
    shares, follow = np.array([0.45, 0.15, 0.4]), 0.8
    source = keyed(1, f"kappa {prompts}")
    for _ in range(trials):
        answer = source.choice(3, prompts, p=shares)
        said = [np.where(source.random(prompts) < follow, answer, source.choice(3, prompts, p=shares)) for _ in "ab"]
        found = agreement.between(*said, [str(i) for i in range(prompts)])
        yield follow**2, found.kappa_interval


def alphas(prompts: int, trials: int) -> Cases:
    shares, follow = np.array([0.45, 0.15, 0.4]), 0.8
    source = keyed(1, f"alpha {prompts}")
    for _ in range(trials):
        answer = source.choice(3, prompts, p=shares)
        said = np.where(source.random((4, prompts)) < follow, answer, source.choice(3, (4, prompts), p=shares))
        seen = np.where(source.random((4, prompts)) < 1 / 3, np.nan, said)
        yield follow**2, agreement.alpha(seen, [str(i) for i in range(prompts)]).interval


def ratings(prompts: int, trials: int) -> Cases:
    """Three models meet on each prompt in both orders; the second order's verdict repeats the first in 7 of 10."""
    strength = dict(zip("xyz", (0.5, 0.0, -0.5), strict=True))
    source = keyed(1, f"rating {prompts} interval")
    for _ in range(trials):
        games = []
        for prompt in range(prompts):
            for a, b in ("xy", "xz", "yz"):
                win = (expit(strength[a] - strength[b]) - 0.1) / 0.8  # a fifth are ties
                one, other = (0.5 if u < 0.2 else float(v < win) for u, v in source.random((2, 2)))
                other = one if source.random() < 0.7 else other
                games += [rating.Game(a, b, one, str(prompt)), rating.Game(a, b, other, str(prompt))]
        yield rating.CENTER + rating.SCALE * 0.5, rating.bradley_terry(games).interval["x"]


def controlled(prompts: int, trials: int) -> Cases:
    """The longer answer has e^(1.5 tanh z) times the odds; at equal length the rate is .6. Two verdicts a prompt."""
    source = keyed(1, f"length {prompts}")
    for _ in range(trials):
        z = source.standard_normal(prompts)
        chance = expit(np.log(1.5) + 1.5 * np.tanh(z))
        one, other = source.random((2, prompts)) < chance
        y = np.stack([one, np.where(source.random(prompts) < 0.7, one, other)], 1).ravel()
        lengths = np.repeat(100 + 30 * z, 2)
        yield (
            0.6,
            length_control.controlled(
                1.0 * y, lengths, np.full(2 * prompts, 100.0), np.repeat(np.arange(prompts), 2)
            ).interval,
        )


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--quick", action="store_true", help="a twentieth of the trials, two numbers of prompts")
    words.add_argument("--only", choices=("few_votes", "stopping"), help="those tables of docs/few_votes.md alone")
    given = words.parse_args()
    scale = 20 if (quick := given.quick) else 1
    if given.only:
        getattr(importlib.import_module("few_votes"), given.only)(10_000 // scale)
        return
    headline(
        (30, 100) if quick else (30, 100, 500, 2000),
        lambda count: {30: 4000, 100: 4000, 500: 2000, 2000: 1500}[count] // scale,
    )
    print()
    others(2000 // scale)
    print()
    advice(4000 // scale)


if __name__ == "__main__":
    main()
