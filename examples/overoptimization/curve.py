"""The mathematics of over-optimisation: best-of-n without bias, and the curves that Gao et al. (2022) fit.

d = sqrt(KL(policy || base)), in nats per answer. P prompts with N answers of the base each.
"""

from dataclasses import dataclass

import numpy as np

from preferent.evaluation.statistics import best_of


def best_of_n(proxy: np.ndarray, values: np.ndarray, n: int) -> float:
    """Mean of `values` [P, N] at the answer of highest `proxy` [P, N] among n, over all subsets of n of the N answers
    (Nakano et al. 2021)."""
    return float(np.mean([best_of.expected(one, by, n) for one, by in zip(values, proxy, strict=True)]))


@dataclass(frozen=True)
class Fit:
    """R(d) = d (alpha − beta · g(d)), and how well it fits: R² about the mean, root mean square of what is left."""

    alpha: float
    beta: float
    r2: float
    rms: float
    logarithmic: bool

    @classmethod
    def of(cls, d: np.ndarray, gold: np.ndarray, logarithmic: bool) -> "Fit":
        """Least squares: g(d) = log d for reinforcement learning, d for best-of-n (Gao et al. 2022)."""
        d, gold = d[d > 0], gold[d > 0]
        columns = np.stack([d, -d * (np.log(d) if logarithmic else d)], axis=1)
        (alpha, beta), *_ = np.linalg.lstsq(columns, gold, rcond=None)
        left = gold - columns @ np.array([alpha, beta])
        total = ((gold - gold.mean()) ** 2).sum()
        rms = float(np.sqrt((left**2).mean()))
        return cls(float(alpha), float(beta), float(1 - (left**2).sum() / total), rms, logarithmic)

    def __call__(self, d: np.ndarray) -> np.ndarray:
        return d * (self.alpha - self.beta * (np.log(d) if self.logarithmic else d))
