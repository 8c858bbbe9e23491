"""Lesson 4: the closed form of the kitchen, and the checks of its exercises."""

import math

import numpy as np
import pytest

kitchen = pytest.importorskip("kitchen")
evaluation = pytest.importorskip("exercises.evaluation", reason="the lessons need pip install 'preferent[lessons]'")


def test_the_expected_worth_is_that_of_all_soups():
    """By enumeration with three ingredients left: every sequence of portions, weighed by its probability."""
    shares = np.zeros(len(kitchen.INGREDIENTS))
    shares[[2, 5, 9]] = 0.5, 0.3, 0.2
    total = 0.0
    for code in range(3**kitchen.PORTIONS):
        drawn = np.array([(2, 5, 9)[code // 3**place % 3] for place in range(kitchen.PORTIONS)])
        portions = np.bincount(drawn, minlength=len(shares))
        total += np.prod(shares[drawn]) * kitchen.worth(portions[None])[0]
    assert kitchen.expected_worth(shares) == pytest.approx(total, abs=1e-12)


def test_the_tilted_policy_is_the_best_on_its_leash():
    """No other shares have more reward less beta times KL."""
    draw = np.random.default_rng(0)
    scores = draw.normal(size=len(kitchen.INGREDIENTS))
    best = kitchen.tilted(scores, 0.5)

    def objective(shares):
        return kitchen.PORTIONS * shares @ scores - 0.5 * kitchen.kl(shares)

    assert all(objective(draw.dirichlet(best * 50)) < objective(best) for _ in range(200))


def test_exercises(said):
    right = {
        "position": math.log(4),
        "win_rate": lambda wins, ties, losses: (wins + ties / 2) / (wins + ties + losses),
        "without_a_leash": 6 * math.log(12),
    }
    wrong = {
        "position": [(0.8, "a share"), (-math.log(4), "second place"), (0.5, "62%")],
        "win_rate": [
            (lambda wins, ties, losses: wins / (wins + ties + losses), "neither side is ahead"),
            (lambda wins, ties, losses: wins / (wins + losses) if wins + losses else 0.5, "number of verdicts"),
            (lambda wins, ties, losses: wins / 2, "3 of 4"),
        ],
        "without_a_leash": [(math.log(12), "one portion"), (6 * math.log2(12), "bits"), (3.0, "every portion")],
    }
    for name, answer in right.items():
        assert said(getattr(evaluation, name), answer) == "Right.\n"
        assert said(getattr(evaluation, name), None) == "No answer yet.\n"
        for mistake, complaint in wrong[name]:
            told = said(getattr(evaluation, name), mistake)
            assert told.startswith("Not yet: ") and complaint in told, (name, told)
            assert callable(answer) or f"{answer:.3g}" not in told
