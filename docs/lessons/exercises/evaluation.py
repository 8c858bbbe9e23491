"""The exercises of lesson 4."""

import math
from collections.abc import Callable

import kitchen
from lesson import Wrong, exercise


@exercise
def position(answer: float) -> None:
    """The log-odds of a judge that takes the first of two equal answers in 80 % of the pairs."""
    liking = math.log(0.8 / 0.2)
    if abs(answer - 0.8) < 1e-6 or abs(answer - 0.3) < 1e-6:
        raise Wrong("that is a share; log-odds are the logarithm of share over rest")
    if abs(answer + liking) < 0.01:
        raise Wrong("with that sign it would like the second place")
    if abs(answer - liking) > 0.01:
        raise Wrong(f"with that liking it takes the first place in {1 / (1 + math.exp(-answer)):.0%}")


@exercise
def win_rate(answer: Callable[[int, int, int], float]) -> None:
    """The win rate from counts of wins, ties and losses."""
    if abs(answer(3, 0, 1) - 0.75) > 1e-9:
        raise Wrong("3 wins and 1 loss, without ties, is not 3 of 4")
    tied = answer(0, 10, 0)
    if abs(tied - 0.5) > 1e-9:
        raise Wrong(f"when all is tied neither side is ahead, and yours says {tied:g}")
    if abs(answer(1, 2, 1) + answer(1, 2, 1) - 1) > 1e-9 or abs(answer(5, 3, 2) + answer(2, 3, 5) - 1) > 1e-9:
        raise Wrong("the rates of the two sides do not add up to 1")
    if abs(answer(6, 2, 2) - 0.7) > 1e-9:
        raise Wrong("ties must count in the number of verdicts too")


@exercise
def without_a_leash(answer: float) -> None:
    """The KL of always the same ingredient to the cook's habit."""
    one = math.log(len(kitchen.INGREDIENTS))
    if abs(answer - one) < 0.01:
        raise Wrong("that is for one portion")
    if abs(answer - kitchen.PORTIONS * one / math.log(2)) < 0.05:
        raise Wrong("that is in bits; a nat is a natural logarithm")
    if abs(answer - kitchen.PORTIONS * one) > 0.05:
        raise Wrong(
            "without a leash every portion is the one ingredient with the highest score: how surprising is one?"
        )
