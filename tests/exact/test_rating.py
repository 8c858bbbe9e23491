"""Bradley-Terry and Elo: against published strengths, closed forms, other programs, and repeated experiments."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from scipy.stats import t as student

from preferent import randomness
from preferent.evaluation import statistics
from preferent.evaluation.statistics import rating, resampling
from preferent.evaluation.statistics.rating import Game

BASEBALL = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WON = (
    (0, 7, 9, 7, 7, 9, 11),
    (6, 0, 7, 5, 11, 9, 9),
    (4, 6, 0, 7, 7, 8, 12),
    (6, 8, 6, 0, 6, 7, 10),
    (6, 2, 6, 7, 0, 7, 12),
    (4, 4, 5, 6, 6, 0, 6),
    (2, 4, 1, 3, 1, 7, 0),
)
AGRESTI = (1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0)


def baseball() -> list[Game]:
    pairs = [(i, j) for i in range(7) for j in range(7) for _ in range(WON[i][j])]
    return [Game(BASEBALL[i], BASEBALL[j], 1.0, str(place)) for place, (i, j) in enumerate(pairs)]


def tournament(prompts: int, purpose: str = "games", delta: float = 0.7) -> list[Game]:
    """x, y and z, `delta` apart, meet on each prompt in both orders; a fifth are ties, and the second verdict often
    repeats the first."""
    strength = {"x": delta, "y": 0.0, "z": -delta}
    games = []
    for place, (a, b) in enumerate(("xy", "xz", "yz")):
        uniform = randomness.uniforms(5, f"{purpose} {place}", np.arange(prompts)[:, None], np.arange(5))
        for prompt, (tie, one, other, again, tied) in enumerate(uniform):
            chance = (expit(strength[a] - strength[b]) - 0.1) / 0.8
            first = 0.5 if tie < 0.2 else float(one < chance)
            second = 0.5 if tied < 0.2 else float(other < chance)
            games.append(Game(a, b, first, str(prompt)))
            games.append(Game(a, b, first if again < 0.6 else second, str(prompt)))
    return games


def logistic(games: Sequence[Game], models: Sequence[str]) -> sm.GLM:
    """The same regression, for statsmodels: the strength of the last model is 0."""
    design = np.array([[(g.a == model) - (g.b == model) for model in models[:-1]] for g in games], dtype=float)
    _, groups = np.unique([g.prompt for g in games], return_inverse=True)
    model = sm.GLM(np.array([g.outcome for g in games]), design, family=sm.families.Binomial())
    return model.fit(tol=1e-14, maxiter=100, cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})


def test_baseball_of_1987() -> None:
    """Agresti, Categorical Data Analysis (2nd ed. 2002), table 10.10: the American League East, and its estimates."""
    found = rating.bradley_terry(baseball())
    assert found.models == BASEBALL
    ahead = [found.strength[team] - found.strength["Baltimore"] for team in BASEBALL]
    assert ahead == pytest.approx(AGRESTI, abs=5e-3)


def test_estimates_and_sandwich_are_those_of_another_program() -> None:
    for games in (baseball(), tournament(60)):
        found = rating.bradley_terry(games)
        other = logistic(games, found.models)
        count, prompts = len(found.models), len({game.prompt for game in games})
        centred = (np.eye(count) - 1 / count)[:, :-1]
        assert [found.strength[model] for model in found.models] == pytest.approx(centred @ other.params, abs=1e-12)
        covariance = centred @ np.asarray(other.cov_params()) @ centred.T * prompts / (prompts - 1)
        assert np.array(found.covariance) == pytest.approx(covariance, rel=1e-9, abs=1e-15)
        half = student.ppf(0.975, prompts - 1) * np.sqrt(np.diag(covariance)) * 400 / math.log(10)
        for model, width in zip(found.models, half, strict=True):
            limits = found.rating[model] - width, found.rating[model] + width
            assert found.interval[model] == pytest.approx(limits, abs=1e-6)


@pytest.mark.parametrize("delta", [0.0, 0.8])
@pytest.mark.parametrize("bias", [0.0, 0.5, 3.0, math.inf])
def test_a_liking_for_the_first_place_makes_no_even_models_uneven(delta: float, bias: float) -> None:
    """P15: from chances σ(Δ + γ) of a shown first and σ(Δ - γ) shown second; it only hides a part of a difference."""
    games = [Game("a", "b", float(expit(delta + sign * bias)), str(i)) for i in range(3) for sign in (1, -1)]
    found = rating.bradley_terry(games)
    ahead = found.strength["a"] - found.strength["b"]
    if delta == 0 or math.isinf(bias):
        assert ahead == pytest.approx(0, abs=1e-14)
        assert found.interval == {"a": None, "b": None} and found.rating == pytest.approx({"a": 1000, "b": 1000})
    else:
        assert ahead == pytest.approx(delta, abs=1e-12) if bias == 0 else 0 < ahead < delta


def test_two_models_in_closed_form() -> None:
    """The log-odds of the rate, with its standard error by the delta method: √(variance of the mean) / (p (1 - p))."""
    outcomes = np.array([1.0] * 11 + [0.5] * 4 + [0.0] * 5)
    found = rating.bradley_terry([Game("a", "b", y, str(i)) for i, y in enumerate(outcomes)])
    rate = outcomes.mean()
    assert found.strength["a"] == -found.strength["b"] == pytest.approx(logit(rate) / 2, abs=1e-12)
    assert found.rating["a"] == pytest.approx(1000 + 200 * math.log10(rate / (1 - rate)), abs=1e-9)
    error = statistics.mean(outcomes, [str(i) for i in range(20)]).standard_error
    assert error is not None and found.covariance is not None
    assert math.sqrt(found.covariance[0][0]) == pytest.approx(error / (rate * (1 - rate)) / 2, rel=1e-12)


def test_a_tie_is_half_a_win_of_each() -> None:
    games = tournament(20)
    split = [
        Game(g.a, g.b, y, g.prompt, 0.5) for g in games for y in ((g.outcome,) * 2 if g.outcome != 0.5 else (0, 1))
    ]
    one, other = rating.bradley_terry(games), rating.bradley_terry(split)
    assert one.strength == pytest.approx(other.strength, abs=1e-12)
    assert np.array(one.covariance) == pytest.approx(np.array(other.covariance), abs=1e-12)


def test_400_points_are_ten_to_one_and_swapping_sides_changes_nothing() -> None:
    found = rating.bradley_terry([Game("a", "b", 10 / 11, "x"), Game("b", "a", 1 / 11, "y")])
    assert found.rating["a"] - found.rating["b"] == pytest.approx(400, abs=1e-9)
    assert sum(found.rating.values()) / 2 == pytest.approx(1000)
    games = tournament(20)
    turned = [Game(g.b, g.a, 1 - g.outcome, g.prompt) for g in games]
    assert rating.bradley_terry(turned).strength == pytest.approx(rating.bradley_terry(games).strength, abs=1e-12)


def test_repeated_verdicts_of_a_prompt_are_no_new_evidence() -> None:
    games = tournament(40)
    once, twice = rating.bradley_terry(games), rating.bradley_terry(games * 3)
    assert twice.strength == pytest.approx(once.strength, abs=1e-12)
    assert np.array(twice.covariance) == pytest.approx(np.array(once.covariance), rel=1e-9)
    assert once.interval["x"] == pytest.approx(twice.interval["x"], abs=1e-6)


def test_jackknife_and_sandwich_agree() -> None:
    """P15: leaving out one prompt after the other, the ratio of the widths goes to 1."""
    games = tournament(100)
    found = rating.bradley_terry(games)
    for model in "xyz":
        jackknife = resampling.jackknife(
            lambda rows, model=model: rating.bradley_terry([games[row] for row in rows]).rating[model],
            [game.prompt for game in games],
        )
        sandwich = found.interval[model]
        assert sandwich is not None and jackknife is not None
        assert (jackknife[1] - jackknife[0]) / (sandwich[1] - sandwich[0]) == pytest.approx(1, abs=0.03)
        assert sandwich[0] < found.rating[model] < sandwich[1]


def test_the_standard_error_is_what_repeating_the_experiment_gives() -> None:
    found = [rating.bradley_terry(tournament(50, f"again {i}")) for i in range(120)]
    places = [each.models.index("x") for each in found]
    reported = np.mean(
        [math.sqrt(each.covariance[p][p]) for each, p in zip(found, places, strict=True) if each.covariance]
    )
    assert np.std([each.strength["x"] for each in found], ddof=1) == pytest.approx(reported, rel=4 / math.sqrt(240))


def test_who_won_everything_is_named_and_has_no_interval() -> None:
    """For two models the estimate is Haldane's: the log-odds of (w + 1/2) / (l + 1/2)."""
    found = rating.bradley_terry([Game("a", "b", 1.0, str(i)) for i in range(7)])
    assert found.separated and found.interval == {"a": None, "b": None}
    assert (found.covariance, found.strength["a"]) == (None, pytest.approx(math.log(15) / 2, abs=1e-12))
    champion = [Game("top", one, 1.0, "p") for one in "xyz"] + tournament(20)
    assert rating.bradley_terry(champion).separated == ("top",)
    assert rating.bradley_terry(champion).models[0] == "top"
    beaten = [*champion, Game("top", "x", 0.5, "p")]
    assert rating.bradley_terry(beaten).separated == ()


@pytest.mark.parametrize(
    ("games", "why"),
    [
        ([], "no games"),
        ([Game("a", "a", 1.0, "p")], "two different models"),
        ([Game("a", "b", 1.5, "p")], "outcome from 0 to 1"),
        ([Game("a", "b", 1.0, "p", 0.0)], "weight above 0"),
        ([Game("a", "b", 0.5, "p"), Game("c", "d", 0.5, "p")], r"\(a, b\) and \(c, d\) never met"),
    ],
)
def test_what_cannot_be_rated_is_refused(games: list[Game], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rating.bradley_terry(games)


def test_one_prompt_gives_strengths_without_intervals() -> None:
    found = rating.bradley_terry([Game("a", "b", 1.0, "p"), Game("a", "b", 0.5, "p")])
    assert found.strength["a"] - found.strength["b"] == pytest.approx(math.log(3), abs=1e-12)
    assert found.interval == {"a": None, "b": None} and found.separated == ()


def test_elo_by_hand() -> None:
    games = [Game("a", "b", 1.0, "p"), Game("b", "c", 0.5, "p"), Game("c", "a", 1.0, "p")]
    b = 998 + 4 * (0.5 - 1 / (1 + 10 ** (2 / 400)))
    c = 1000 - 4 * (0.5 - 1 / (1 + 10 ** (2 / 400)))
    move = 4 * (1 - 1 / (1 + 10 ** ((1002 - c) / 400)))
    assert rating.elo(games) == pytest.approx({"c": c + move, "a": 1002 - move, "b": b}, abs=1e-12)
    assert sum(rating.elo(games).values()) == pytest.approx(3000)
    assert list(rating.elo(games)) == ["c", "a", "b"]


def test_elo_over_shuffles_forgets_the_order() -> None:
    """In order, who won last is ahead; over many orders two who won as often are even, others in BT's order."""
    games = [Game("a", "b", 1.0, "p")] * 10 + [Game("a", "b", 0.0, "p")] * 10
    assert rating.elo(games, k=32)["b"] > 1030
    mean = rating.elo(games, k=32, shuffles=400)
    assert mean["a"] == pytest.approx(1000, abs=6)
    assert mean == rating.elo(games, k=32, shuffles=400)
    assert mean != rating.elo(games, k=32, shuffles=400, seed=1)
    played = tournament(60)
    assert tuple(rating.elo(played, shuffles=50)) == rating.bradley_terry(played).models
