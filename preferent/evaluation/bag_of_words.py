"""The bag of words: a Bradley-Terry model that is linear in the words of an answer, the floor for a reward model."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

PENALTY = 1.0
"""Weight of ½|w|² beside the summed loss: scikit-learn's default."""
LEAST = 2
"""Answers that a term must occur in."""
WORD = re.compile(r"\w+|[^\w\s]")


def terms(text: str) -> Iterator[str]:
    """Yield words and signs in lower case, then every two neighbours."""
    words = WORD.findall(text.lower())
    yield from words
    yield from (f"{first} {second}" for first, second in itertools.pairwise(words))


def fit(differences: csr_array) -> np.ndarray:
    """Return the w [F] that minimises Σ log(1 + exp(-w·d)) + ½ |w|² over rows d of `differences` [n, F].

    This is logistic regression without intercept on chosen less rejected features. The objective is strongly convex
    with modulus `PENALTY`, so w is as near as its gradient is small.
    """

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = differences @ weights
        total = np.logaddexp(0, -margins).sum() + PENALTY / 2 * weights @ weights
        return float(total), PENALTY * weights - differences.T @ expit(-margins)

    start = np.zeros(differences.shape[1])
    if not len(start):  # no term occurs in two answers
        return start
    options = {"maxiter": 1000, "maxfun": 2000, "gtol": 1e-8, "ftol": 0.0}
    weights: np.ndarray = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return weights


@dataclass(frozen=True)
class BagOfWords:
    """Terms with their places, inverse document frequencies [F] and weights [F]."""

    places: dict[str, int]
    rarity: np.ndarray
    weights: np.ndarray

    @classmethod
    def learn(cls, chosen: Sequence[str], rejected: Sequence[str]) -> "BagOfWords":
        """Fit pairs of answers; a term counts tf · (log((1 + N) / (1 + df)) + 1), an answer's terms have norm 1."""
        answers = [*chosen, *rejected]
        frequencies = Counter(term for answer in answers for term in set(terms(answer)))
        kept = sorted(term for term, count in frequencies.items() if count >= LEAST)
        rarity = np.log((1 + len(answers)) / (1 + np.array([frequencies[term] for term in kept], np.float64))) + 1
        blank = cls({term: place for place, term in enumerate(kept)}, rarity, np.zeros(len(kept)))
        differences = csr_array(blank.features(chosen) - blank.features(rejected))
        return cls(blank.places, rarity, fit(differences))

    def features(self, texts: Sequence[str]) -> csr_array:
        """Return the TF-IDF [n, F]; unknown terms count nothing."""
        starts, places, values = [0], [], []
        for text in texts:
            counts = Counter(self.places[term] for term in terms(text) if term in self.places)
            present = np.array(list(counts), np.int64)
            weights = np.array(list(counts.values()), np.float64) * self.rarity[present]
            places.append(present)
            values.append(weights / max(float(np.linalg.norm(weights)), 1e-300))
            starts.append(starts[-1] + len(present))
        columns = np.concatenate([np.zeros(0, np.int64), *places])
        return csr_array((np.concatenate([np.zeros(0), *values]), columns, starts), (len(texts), len(self.places)))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return one score per answer [n]."""
        scores: np.ndarray = self.features(texts) @ self.weights
        return scores
