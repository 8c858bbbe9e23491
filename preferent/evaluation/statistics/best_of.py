"""Best of n: which of n independent answers is kept, what that is worth, and how far it moves a distribution.

Numbers in, numbers out.
"""

import math
from collections.abc import Sequence

import numpy as np

Numbers = Sequence[float] | np.ndarray


def best(scores: np.ndarray) -> np.ndarray:
    """Which of each row's scores [m, n] is the highest, int [m]; the first of several."""
    return np.asarray(np.argmax(scores, axis=-1))


def kl_bound(n: int) -> float:
    """The most that keeping the best of n moves a distribution, in nats: log n - (n - 1) / n.

    An equality where no two answers have the same reward (Stiennon et al. 2020, Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def weights(size: int, n: int) -> np.ndarray:
    """How many of the n-subsets of `size` ranked samples have the i-th as their best: C(i-1, n-1) / C(size, n) of them,
    float64 [size], the worst first.

    The last is n / size, and each that comes before is (i - n + 1) / i of it: products, so that none overflows.
    """
    if not 1 <= n <= size:
        raise ValueError(f"the best of {n} cannot be estimated from {size} samples")
    rank = np.arange(size - 1, 0, -1)
    falling = np.cumprod(np.maximum(rank - n + 1, 0) / rank)
    return n / size * np.concatenate([[1.0], falling])[::-1]


def expected(values: Numbers, scores: Numbers, n: int) -> float:
    """What the best of n is worth, estimated without bias from samples [size]: the mean over all n-subsets of the value
    of the one that scores highest.

    `values` may be the scores, or what a second judge says of answers that the first one chose (Nakano et al. 2021,
    appendix I). A tie is broken at random, so tied samples count with their mean value.
    """
    _, level, count = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    means = np.bincount(level, np.asarray(values, np.float64)) / count
    return float(weights(len(level), n) @ np.repeat(means, count))
