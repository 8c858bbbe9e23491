"""The exercises of lesson 1."""

from collections.abc import Callable

import numpy as np
import torch
import town
from lesson import Wrong, exercise


@exercise
def one_nat(answer: float) -> None:
    """With which beta is the best policy for the true worth 1 nat from the habit?"""
    if not answer > 0:
        raise Wrong("beta is above 0: it is a price for each nat")
    kl = town.measure(town.optimum(town.GOLD, float(answer))[0], town.GOLD)[1]
    if abs(kl - 1) > 0.03:
        raise Wrong(f"with that beta the best policy is {kl:.2f} nats away; a smaller beta is a longer leash")


@exercise
def rescaled(answer: float) -> None:
    """Scores times 2 plus 10: which beta gives the policy of 0.5?"""
    if answer == 0.5:
        raise Wrong("with the same beta the doubled scores pull twice as hard")
    if answer > 5:
        raise Wrong("what is added to every score cancels in the normalisation of pi*, whatever it is")
    if abs(answer - 1) > 1e-9:
        raise Wrong("in pi* only r / beta counts: by what has r grown?")


@exercise
def whitening(answer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """A function that whitens over the entries that count."""
    x = torch.tensor([[1.0, 3.0, 100.0], [5.0, -2.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    white = answer(x.clone(), mask)
    if white.shape != x.shape:
        raise Wrong(f"the shape must stay {tuple(x.shape)}, and is {tuple(white.shape)}")
    if bool((white[~mask] != 0).any()):
        raise Wrong("an entry that does not count is not 0")
    if abs(float(white[mask].mean())) > 1e-6:
        raise Wrong("the mean of the entries that count is not 0: are the others in it?")
    variance = float(white[mask].var(unbiased=False))
    if abs(variance - 0.8) < 1e-3:
        raise Wrong("divide by n, not by n - 1")
    if abs(variance - 1) > 1e-4:
        raise Wrong(f"the variance of the entries that count is {variance:.3f}")


@exercise
def how_much_more_often(answer: float) -> None:
    """pi* / pi_ref of the walk to the bakery, tuned for the true worth with beta 0.5."""
    bakery = town.GOLD[town.PLACE[0, 3]]
    value = town.optimum(town.GOLD, 0.5)[1][0]
    factor = float(np.exp((bakery - value) / 0.5))
    if abs(answer - np.exp(bakery / 0.5)) < 0.02 * np.exp(bakery / 0.5):
        raise Wrong("that is without the normalisation: the probabilities of all walks must add up to 1")
    if abs(answer - np.log(factor)) < 0.02 * np.log(factor):
        raise Wrong("that is the logarithm of it, the leash of this walk in nats")
    if abs(answer - factor) > 0.05 * factor:
        raise Wrong("the ratio of a walk is exp(r / beta) over the sum of the closed form")
