"""How often a judge that cannot judge gets a headline in colour, and one that can: by simulation.

python bench/headlines.py [--worlds N]

A world is one run: preferences whose labels follow a hidden merit and, in some worlds, length or position; a bag of
words that learned from 200 of them; test pairs on which judges are measured; and a tuned model of more merit than its
base, which also writes longer or shorter and with other words. Each judge is measured and gives a verdict, and
preferent decides whether the headline is in colour. Prints the table of docs/statistics.md.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from preferent.data.types import Preference, Prompt
from preferent.evaluation import judge_accuracy, judge_quality, reward_quality, statistics
from preferent.evaluation.reward_quality import Scored, won

WORDS, HIDDEN = 300, 16
TRAIN, PROMPTS, GAIN = 200, 200, 0.8
PAIRS = (34, 100, 384)
"""Test pairs of a world; the worlds take turns."""
SPELLING = np.random.default_rng(0).integers(1, 12, WORDS)
VOCABULARY = [f"{chr(97 + place % 26) * int(size)}{place}" for place, size in enumerate(SPELLING)]


@dataclass(frozen=True)
class Texts:
    """Answers [n]: their words as counts [n, WORDS], and a merit that no text shows, standard normal."""

    counts: np.ndarray
    merit: np.ndarray

    @property
    def length(self) -> np.ndarray:
        """The number of words."""
        length: np.ndarray = self.counts.sum(1)
        return length

    def written(self) -> list[str]:
        return [" ".join(VOCABULARY[word] for word in np.repeat(np.arange(WORDS), row)) for row in self.counts]


Judge = Callable[[Texts, np.ndarray, np.random.Generator], np.ndarray]
"""A function from answers, their places in the pair (0 or 1) and noise to scores."""


def linear(texts: Texts, weights: np.ndarray) -> np.ndarray:
    """The scores of a random linear model: of the mean of its words' weights."""
    return np.asarray(texts.counts @ weights / texts.length)


def network(source: np.random.Generator) -> Judge:
    """A network of random weights: two layers over the sum of its words, as a transformer's last state is."""
    first, last = source.normal(size=(WORDS, HIDDEN)), source.normal(size=HIDDEN)
    return lambda texts, place, noise: np.tanh(texts.counts @ first / np.sqrt(WORDS)) @ last


def judges(source: np.random.Generator) -> dict[str, Judge]:
    """The judges of a world; those of random weights are drawn anew."""
    weights = source.normal(size=WORDS)
    return {
        "a coin": lambda texts, place, noise: noise.normal(size=len(texts.merit)),
        "the longer answer": lambda texts, place, noise: texts.length.astype(float),
        "the longer answer, in characters": lambda texts, place, noise: texts.counts @ SPELLING.astype(float),
        "the longer answer, with noise": lambda texts, place, noise: texts.length + noise.normal(size=len(texts.merit)),
        "the shorter answer": lambda texts, place, noise: -texts.length.astype(float),
        "the first answer": lambda texts, place, noise: -place.astype(float),
        "random weights, linear in words": lambda texts, place, noise: linear(texts, weights),
        "random weights, two layers": network(source),
    }


def able(noise_level: float) -> Judge:
    """A judge that sees the merit, with noise."""
    return lambda texts, place, noise: texts.merit + noise_level * noise.normal(size=len(texts.merit))


ABLE = {"a judge that sees the merit": able(0.0), "the same with noise": able(0.6)}
"""Judges that can judge, beside those that cannot."""


def answers(source: np.random.Generator, n: int, mean: float, liked: np.ndarray, merit: float = 0.0) -> Texts:
    """Answers of about `mean` words, drawn with the probabilities `liked` [WORDS]."""
    lengths = 3 + source.poisson(mean - 3, n)
    return Texts(source.multinomial(lengths, liked), merit + source.normal(size=n))


@dataclass(frozen=True)
class World:
    """Test pairs with what people chose, the rules' outcomes, and the answers of the two models."""

    chosen: Texts
    rejected: Texts
    places: np.ndarray
    rules: dict[str, np.ndarray]
    tuned: Texts
    base: Texts


def pairs(source: np.random.Generator, n: int, liked: np.ndarray) -> tuple[Texts, Texts, np.ndarray]:
    """Chosen and rejected answers [n], and the place of the chosen one; labels lean to length and place in some."""
    by_length, by_place = source.choice([0.0, 0.05, 0.2]), source.choice([0.0, 0.5])
    first, second = (answers(source, n, 14, liked) for _ in range(2))
    lead = 1.4 * (first.merit - second.merit) + by_length * (first.length - second.length) + by_place
    place = np.where(source.random(n) < expit(lead), 0, 1)
    both = [np.stack([getattr(side, name) for side in (first, second)]) for name in ("counts", "merit")]
    rows = np.arange(n)
    return (*(Texts(*(part[at, rows] for part in both)) for at in (place, 1 - place)), place)


def scored(chosen: Texts, rejected: Texts, place: np.ndarray, scores: tuple[np.ndarray, np.ndarray]) -> Scored:
    """The pairs as the reward stage measures them."""
    texts = [
        (a, b) if at == 0 else (b, a) for a, b, at in zip(chosen.written(), rejected.written(), place, strict=True)
    ]
    rows = [Preference(Prompt(), *two, int(at)) for two, at in zip(texts, place, strict=True)]
    return Scored(rows, *scores, chosen.length, rejected.length)


def worlds(count: int, seed: int) -> Iterator[tuple[World, np.random.Generator]]:
    """Worlds, each with the source of its judges' noise."""
    for number in range(count):
        source = np.random.default_rng([seed, number])
        liked = source.dirichlet(np.full(WORDS, 0.3))
        both = pairs(source, TRAIN + PAIRS[number % len(PAIRS)], liked)
        train, test = (
            (*(Texts(side.counts[part], side.merit[part]) for side in both[:2]), both[2][part])
            for part in (slice(TRAIN), slice(TRAIN, None))
        )
        blank = [scored(*part, (np.zeros(len(part[2])),) * 2) for part in (train, test)]
        rules = reward_quality.rule_outcomes(blank[1], blank[0].preferences)
        fashion = source.dirichlet(np.full(WORDS, 0.3))
        tuned = answers(source, PROMPTS, 14 + source.choice([-4, 0, 6]), 0.5 * liked + 0.5 * fashion, GAIN)
        yield World(*test, rules, tuned, answers(source, PROMPTS, 14, liked)), source


def coloured(world: World, judge: Judge, source: np.random.Generator) -> tuple[float, bool, bool]:
    """The judge's accuracy, whether its verdict is beyond chance, and whether the headline is in colour."""
    places = world.places
    right = won(judge(world.chosen, places, source) - judge(world.rejected, 1 - places, source))
    clusters = [str(pair) for pair in range(len(right))]
    quality = {"reported": "test", "accuracy": reward_quality.measured(right, clusters)}
    accuracy = judge_accuracy.held_out(quality | {"rules": reward_quality.leads(right, world.rules, clusters)})
    zeros = np.zeros(PROMPTS, int)
    outcomes = won(judge(world.tuned, zeros, source) - judge(world.base, 1 - zeros, source))
    rate = statistics.win_rate(outcomes, [str(prompt) for prompt in range(PROMPTS)])
    figures = {"kind": "reward_model", "independent": True, "interval": rate.interval, "accuracy": accuracy}
    low, high = rate.interval
    shown = judge_quality.trusted({"headline": "judge", "judges": {"judge": figures}})
    return float(right.mean()), not low <= 0.5 <= high, shown


def simulate(count: int, seed: int = 1, good: bool = True) -> dict[str, np.ndarray]:
    """The rows of `coloured` by judge, [worlds, 3]."""
    rows: dict[str, list[tuple[float, bool, bool]]] = {}
    for world, source in worlds(count, seed):
        for name, judge in (judges(source) | (ABLE if good else {})).items():
            rows.setdefault(name, []).append(coloured(world, judge, source))
    return {name: np.array(row, float) for name, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=700)
    found = simulate(parser.parse_args().worlds)
    print("| judge | headlines | right on | verdict beyond chance | in colour |\n|---|---|---|---|---|")
    for name, rows in found.items():
        accuracy, beyond, shown = rows.mean(0)
        print(f"| {name} | {len(rows)} | {accuracy:.1%} | {beyond:.1%} | {shown:.2%} |")
    for name in ABLE:
        by_size = [f"{found[name][place :: len(PAIRS), 2].mean():.0%} of {size}" for place, size in enumerate(PAIRS)]
        print(f"\n{name}: in colour with test pairs: {', '.join(by_size)}")
    guesses = np.concatenate([rows for name, rows in found.items() if name not in ABLE])
    print(f"\n{len(guesses)} headlines of judges that cannot judge: {int(guesses[:, 2].sum())} in colour")
    assert guesses[:, 2].mean() <= 0.01


if __name__ == "__main__":
    main()
