"""Length-controlled win rates: against other programs, at equal length, and where a judge likes nothing but length."""

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

from preferent import randomness
from preferent.evaluation.statistics import length_control, logistic_regression


def judged(prompts: int, purpose: str = "length", at_equal: float = 0.6, liking: float = 1.5) -> tuple[Any, ...]:
    """Outcomes with ties, lengths of both sides and prompts, two verdicts each, by a judge who likes length."""
    uniform = randomness.uniforms(6, purpose, np.arange(4)[:, None], np.arange(2 * prompts))
    z = np.repeat(uniform[0, :prompts] - uniform[1, :prompts], 2) * 3
    chance = expit(np.log(at_equal / (1 - at_equal)) + liking * np.tanh(z))
    outcomes = np.where(uniform[3] < 0.2, 0.5, (uniform[2] < (chance - 0.1) / 0.8) * 1.0)
    return outcomes, 100 + 30 * z, np.full(2 * prompts, 100.0), [str(i // 2) for i in range(2 * prompts)]


def features(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(a)), np.tanh((a - b) / np.std(a - b, ddof=1))])


@pytest.mark.filterwarnings("ignore:cov_type not fully supported with freq_weights")
@pytest.mark.parametrize("weighted", [False, True])
def test_the_minimal_form_is_another_programs_regression(weighted: bool) -> None:
    outcomes, a, b, prompts = judged(80)
    weights = 1 + randomness.uniforms(6, "weights", np.arange(160), 0) if weighted else None
    found = length_control.controlled(outcomes, a, b, prompts, weights)
    groups = np.unique(prompts, return_inverse=True)[1]
    model = sm.GLM(outcomes, features(a, b), family=sm.families.Binomial(), freq_weights=weights)
    other = model.fit(tol=1e-14, cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    assert found.win_rate == pytest.approx(expit(other.params[0]), abs=1e-12)
    assert found.coefficient == pytest.approx(other.params[1], abs=1e-11)
    half = student.ppf(0.975, 79) * other.bse[0] * np.sqrt(80 / 79)
    assert found.interval == pytest.approx(tuple(expit(other.params[0] + np.array([-half, half]))), abs=1e-10)
    assert found.raw == pytest.approx(np.average(outcomes, weights=weights), abs=1e-12)


def test_what_was_won_by_length_is_given_back() -> None:
    """Even answers, one side longer by a standard deviation or so: raw far from one half, controlled near it."""
    outcomes, a, b, prompts = judged(1500, "longer", at_equal=0.5, liking=2.0)
    kept = a > b - 15
    found = length_control.controlled(outcomes[kept], a[kept], b[kept], np.array(prompts)[kept])
    assert found.raw > 0.6
    assert found.interval is not None and found.interval[0] < 0.5 < found.interval[1]
    assert found.win_rate == pytest.approx(0.5, abs=0.04)
    assert found.coefficient is not None and found.coefficient > 1


def test_swapping_sides_turns_the_rate_round() -> None:
    outcomes, a, b, prompts = judged(50)
    one, other = (
        length_control.controlled(outcomes, a, b, prompts),
        length_control.controlled(1 - outcomes, b, a, prompts),
    )
    assert one.win_rate is not None and other.win_rate == pytest.approx(1 - one.win_rate, abs=1e-12)
    assert other.coefficient == pytest.approx(one.coefficient, abs=1e-11)


def test_answers_of_equal_length_keep_their_rate() -> None:
    outcomes, a, _, prompts = judged(50)
    found = length_control.controlled(outcomes, a, a, prompts)
    assert (found.win_rate, found.coefficient, found.extreme) == (pytest.approx(found.raw, abs=1e-12), None, False)


@pytest.mark.parametrize(
    ("outcomes", "a", "b"),
    [
        ([1.0, 1.0, 0.0, 0.0], [9, 8, 2, 1], [5, 5, 5, 5]),  # the longer always won
        ([1.0, 1.0, 1.0, 1.0], [9, 4, 2, 7], [5, 5, 5, 5]),  # all won
        ([1.0, 0.0, 1.0, 0.0], [9, 9, 9, 9], [5, 5, 5, 5]),  # always longer by as much
        ([1.0, 0.5, 0.5, 0.0], [9, 5, 5, 1], [5, 5, 5, 5]),  # even ties go by length
    ],
)
def test_what_cannot_be_told_is_not(outcomes: list[float], a: list[float], b: list[float]) -> None:
    found = length_control.controlled(outcomes, a, b, [str(i) for i in range(4)])
    assert (found.win_rate, found.interval, found.raw) == (None, None, np.mean(outcomes))


def test_one_prompt_has_a_rate_and_no_end_of_doubt() -> None:
    found = length_control.controlled([1.0, 0.0, 0.0, 1.0], [5, 6, 4, 6], [5] * 4, ["p"] * 4)
    assert found.win_rate is not None and found.interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("raw", "controlled", "is_extreme"),
    [
        (0.2, 0.09, True),  # the examples of AlpacaEval's get_is_extreme_changes, at 10 points
        (0.2, 0.11, False),
        (0.2, 0.41, True),
        (0.2, 0.39, False),
        (0.5, 0.37, True),
        (0.5, 0.38, False),
        (0.5, 0.63, True),
        (0.5, 0.62, False),
        (0.9, 1.0, False),
        (0.9, 0.67, True),
        (0.9, 0.68, False),
    ],
)
def test_extreme_changes(raw: float, controlled: float, is_extreme: bool) -> None:
    assert length_control.extreme(raw, controlled) is is_extreme


def instructions(n: int) -> tuple[np.ndarray, ...]:
    uniform = randomness.uniforms(7, "instructions", np.arange(4)[:, None], np.arange(n))
    difficulty = 2 * uniform[0] - 1
    ahead = 400 * (uniform[1] - 0.35)
    chance = expit(0.3 + 0.8 * difficulty + 1.2 * np.tanh(ahead / 120))
    return np.clip(chance + 0.6 * (uniform[2] - 0.5), 0, 1), 1000 + ahead, np.full(n, 1000.0), difficulty


@pytest.mark.parametrize("strength", [0.003, 0.02, 0.4, 100.0])
def test_the_penalised_fit_is_scikit_learns(strength: float) -> None:
    """Outcomes between 0 and 1 as two rows each, weighted by them, as AlpacaEval fits them."""
    outcomes, a, b, difficulty = instructions(120)
    design = np.column_stack([np.tanh((b - a) / np.std(b - a, ddof=1)), difficulty, np.ones(120)])
    ours = logistic_regression.lasso(design, outcomes, strength)
    other = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="saga", fit_intercept=False, tol=1e-13, max_iter=100_000, random_state=0
    )
    other.fit(np.tile(design, (2, 1)), np.repeat([1, 0], 120), np.concatenate([outcomes, 1 - outcomes]))
    assert ours == pytest.approx(other.coef_[0], abs=1e-7)
    slope = strength * design.T @ (outcomes - expit(design @ ours))
    at_rest = np.where(ours == 0, np.abs(slope) <= 1, np.abs(slope - np.sign(ours)) < 1e-9)
    assert at_rest.all(), "the conditions of a minimum"
    assert strength > 0.003 or not ours.any()


def test_alpaca_by_hand() -> None:
    """The whole regression, from its parts: strength by five folds of another program, then no difference of length."""
    outcomes, a, b, difficulty = instructions(150)
    z = (b - a) / np.std(b - a, ddof=1)
    design = np.column_stack([np.tanh(z), difficulty, np.ones(150)])
    twice = np.tile(design, (2, 1))

    def fitted(rows: np.ndarray, strength: float) -> np.ndarray:
        kept = np.concatenate([rows, rows + len(design)])
        mass = np.concatenate([outcomes, 1 - outcomes])
        one = LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-10, max_iter=5000
        )
        return one.fit(twice[kept], (kept < len(design)) * 1, mass[kept]).coef_[0]

    fold, losses = np.arange(len(design)) % 5, []
    for strength in np.logspace(-4, 4, 10):
        loss = []
        for held in range(5):
            chance = expit(design[fold == held] @ fitted(np.flatnonzero(fold != held), strength))
            y = outcomes[fold == held]
            loss.append(-np.mean(y * np.log(chance) + (1 - y) * np.log(1 - chance)))
        losses.append(np.mean(loss))
    strength = np.logspace(-4, 4, 10)[np.argmin(losses)]
    assert length_control.best_strength(design, outcomes) == strength
    theta = fitted(np.arange(len(design)), strength)
    found = length_control.alpaca(outcomes, a, b, difficulty)
    assert found.win_rate == pytest.approx(expit(difficulty * theta[1] + theta[2]).mean(), abs=1e-5)
    assert found.coefficient == pytest.approx(-theta[0], abs=1e-4)
    assert found.raw == pytest.approx(outcomes.mean()) and found.raw > found.win_rate + 0.03
    assert found.interval is not None and found.interval[0] < found.win_rate < found.interval[1] < found.raw


def test_alpaca_and_the_minimal_form_agree_where_difficulty_says_nothing() -> None:
    outcomes, a, b, prompts = judged(100)
    one = length_control.alpaca(outcomes, a, b, np.zeros(200))
    other = length_control.controlled(outcomes, a, b, prompts)
    assert one.win_rate == pytest.approx(other.win_rate, abs=0.01)
