"""Best of n: the answer that is kept, its expected score, and a bound on the KL from the policy.

Numbers in, numbers out.
"""

import math
from collections.abc import Sequence

import numpy as np

Numbers = Sequence[float] | np.ndarray


def best(scores: np.ndarray) -> np.ndarray:
    """Return the index of the highest score in each row of scores [m, n], int [m]; the first among equals."""
    return np.asarray(np.argmax(scores, axis=-1))


def kl_bound(n: int) -> float:
    """Return the upper bound, in nats, on the KL of the best of n from the policy: log n - (n - 1) / n.

    It is exact if no two answers have the same reward (Stiennon et al. 2020, Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def weights(size: int, n: int) -> np.ndarray:
    """Return the share of n-subsets of `size` ranked samples whose best is the i-th, float64 [size], worst first.

    The share is C(i-1, n-1) / C(size, n). The last is n / size, and every one before is (i - n + 1) / i times the next.
    These products do not overflow.
    """
    if not 1 <= n <= size:
        raise ValueError(f"the best of {n} cannot be estimated from {size} samples")
    rank = np.arange(size - 1, 0, -1)
    falling = np.cumprod(np.maximum(rank - n + 1, 0) / rank)
    return n / size * np.concatenate([[1.0], falling])[::-1]


def expected(values: Numbers, scores: Numbers, n: int) -> float:
    """Return the unbiased estimate, from samples [size], of the value of the best of n.

    It is the mean over all n-subsets of the value of the highest score. `values` may be the scores, or a second judge's
    scores of the answers that the first judge chooses (Nakano et al. 2021, appendix I). A tie is broken at random, so
    tied samples count with their mean value.
    """
    _, level, count = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    means = np.bincount(level, np.asarray(values, np.float64)) / count
    return float(weights(len(level), n) @ np.repeat(means, count))
