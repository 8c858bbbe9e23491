"""The exercises of lesson 1: their checks take what is right, and say of what is wrong why, without the answer."""

import numpy as np
import pytest
import torch

town = pytest.importorskip("town", reason="the lessons need pip install 'preferent[lessons]'")
how_rlhf_works = pytest.importorskip("exercises.how_rlhf_works")


@pytest.mark.parametrize(
    "name", [name for name, check in vars(how_rlhf_works).items() if hasattr(check, "__wrapped__")]
)
def test_no_answer_is_no_mistake(name, said):
    assert said(getattr(how_rlhf_works, name), None) == "No answer yet.\n"


def whiten(x, mask, unbiased=False, padding=0.0):
    kept = x[mask]
    white = (x - kept.mean()) / kept.var(unbiased=unbiased).sqrt()
    return torch.where(mask, white, padding)


def one_nat() -> float:
    """By bisection over beta."""
    low, high = 0.1, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        far = town.measure(town.optimum(town.GOLD, middle)[0], town.GOLD)[1] > 1
        low, high = (middle, high) if far else (low, middle)
    return round(low, 2)


def factor() -> float:
    """By counting walks."""
    walks = town.every_walk()
    p = np.exp(np.where(walks.mask, town.HABIT[walks.moves], 0).sum(-1))
    best = p * np.exp(town.GOLD[walks.ends] / 0.5)
    there = walks.texts.index("nnn")
    return float((best / best.sum() / p)[there])


def test_how_rlhf_works(said):
    right = {"one_nat": one_nat(), "rescaled": 1.0, "whitening": whiten, "how_much_more_often": factor()}
    wrong = {
        "one_nat": [(-1.0, "above 0"), (0.5, "nats away"), (5.0, "nats away")],
        "rescaled": [(0.5, "same beta"), (10.5, "added to every score"), (0.25, "has r grown")],
        "whitening": [
            (lambda x, mask: whiten(x, mask, unbiased=True), "n - 1"),
            (lambda x, mask: whiten(x, mask, padding=1.0), "does not count is not 0"),
            (lambda x, mask: x[mask], "the shape"),
            (lambda x, mask: torch.where(mask, x - x.mean(), 0), "the mean"),
            (lambda x, mask: torch.where(mask, x - x[mask].mean(), 0), "the variance"),
        ],
        "how_much_more_often": [
            (np.exp(6), "normalisation"), (np.log(factor()), "logarithm"), (1.0, "ratio of a walk"),
        ],
    }  # fmt: skip
    for name, answer in right.items():
        assert said(getattr(how_rlhf_works, name), answer) == "Right.\n", name
    for name, answers in wrong.items():
        for answer, complaint in answers:
            told = said(getattr(how_rlhf_works, name), answer)
            assert told.startswith("Not yet: ") and complaint in told, (name, told)
            assert callable(right[name]) or f"{right[name]:.3g}" not in told
