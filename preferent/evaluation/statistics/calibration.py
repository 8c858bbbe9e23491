"""Whether a judge's confidence can be believed: how often it is right where it says that it is sure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Bin:
    """The judgments of similar confidence: their mean confidence, the share that was right, and their number."""

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray) -> list[Bin]:
    """Judgments in ten equal bins of confidence from 1/2 to 1; empty bins are left out.

    `confidence` [n] is the probability a judge gave its own choice, `right` [n] is 1 where that choice was right, 0
    where it was wrong and 1/2 where it made none.
    """
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    place = np.clip(np.floor((confidence - 0.5) * 20).astype(int), 0, 9)
    inside = [place == index for index in range(10)]
    return [Bin(float(confidence[i].mean()), float(right[i].mean()), int(i.sum())) for i in inside if i.any()]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy, weighted by count (Guo et al. 2017)."""
    count = sum(bin.count for bin in bins)
    return sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in bins) / count
