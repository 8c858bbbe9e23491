"""Logistic regression of outcomes from 0 to 1 with few parameters: plain, with sandwich covariance, with L1 penalty."""

import numpy as np
from scipy.special import expit

INFINITE = 30.0
"""Log-odds beyond which an estimate counts as infinite."""
STEPS = 200


def most_likely(design: np.ndarray, won: np.ndarray, played: np.ndarray) -> np.ndarray | None:
    """Return the maximum of a logistic likelihood by Newton's method; None if it is infinite or not unique.

    `design` is [rows, parameters]; `played` [rows] are weights and `won` [rows] the weighted outcomes. The likelihood
    is concave. A maximum is reached in a few steps; without a maximum, steps of about one continue without end.
    """
    theta = np.zeros(design.shape[1])
    for _ in range(STEPS):
        chance = expit(design @ theta)
        curve = (design.T * (played * chance * (1 - chance))) @ design
        if not np.linalg.cond(curve) < 1 / np.finfo(float).eps:
            return None
        step = np.linalg.solve(curve, design.T @ (won - played * chance))
        theta += step / max(1.0, np.abs(step).max())
        if np.abs(design @ theta).max() > INFINITE:
            return None
        if np.abs(step).max() < 1e-13:
            break
    return theta


def sandwich(design: np.ndarray, played: np.ndarray, theta: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the covariance of `theta`, H⁻¹ (Σ g gᵀ) H⁻¹ P / (P - 1) (Liang and Zeger 1986, Biometrika 73:13).

    `scores` [prompts, parameters] has one g per prompt, the sum of (won - played · chance) · design over its rows.
    """
    chance = expit(design @ theta)
    inverse = np.linalg.inv((design.T * (played * chance * (1 - chance))) @ design)
    prompts = len(scores)
    return np.asarray(prompts / max(prompts - 1, 1) * inverse @ (scores.T @ scores) @ inverse)


def lasso(design: np.ndarray, outcomes: np.ndarray, strength: float, start: np.ndarray | None = None) -> np.ndarray:
    """Return the minimum of Σ|θ| + strength · Σ loss, which always exists; `strength` is scikit-learn's C.

    Newton's method, whose quadratic with the penalty is minimised by coordinate descent at every step (Friedman, Hastie
    and Tibshirani 2010, Journal of Statistical Software 33).
    """
    theta = np.zeros(design.shape[1]) if start is None else start.copy()

    def cost(theta: np.ndarray) -> float:
        odds = design @ theta
        return float(np.abs(theta).sum() + strength * np.sum(np.logaddexp(0, odds) - outcomes * odds))

    now = cost(theta)
    for _ in range(STEPS):
        chance = expit(design @ theta)
        slope = strength * design.T @ (chance - outcomes)
        curve = strength * (design.T * (chance * (1 - chance))) @ design
        step = _descended(theta, slope, curve) - theta
        if np.abs(step).max() < 1e-8:  # which is the last one: the next would be its square
            return np.asarray(theta + step)
        size = 1.0
        while cost(theta + size * step) > now and size > 1e-10:
            size /= 2
        theta = theta + size * step
        now = cost(theta)
    return theta


def _descended(theta: np.ndarray, slope: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Return the minimum of Σ|x| + slope · (x - θ) + (x - θ)ᵀ curve (x - θ) / 2 by coordinate descent."""
    solution = theta.copy()
    for _ in range(1000):
        before = solution.copy()
        for place in range(len(solution)):
            bend = curve[place, place] + 1e-300
            aim = bend * solution[place] - slope[place] - curve[place] @ (solution - theta)
            solution[place] = np.sign(aim) * max(abs(aim) - 1, 0.0) / bend
        if np.abs(solution - before).max() < 1e-14:
            break
    return solution
