"""Calibration of a judge: its accuracy by confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Bin:
    """The judgments of similar confidence: their mean confidence, the share that is right, and their number."""

    confidence: float
    accuracy: float
    count: int


def reliability(confidence: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray) -> list[Bin]:
    """Return judgments in ten equal bins of confidence from 1/2 to 1; empty bins are left out.

    `confidence` [n] is the probability that the judge gives to its own choice. `right` [n] is 1 where that choice is
    right, 0 where it is wrong and 1/2 where the judge made none.
    """
    confidence, right = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    place = np.clip(np.floor((confidence - 0.5) * 20).astype(int), 0, 9)
    inside = [place == index for index in range(10)]
    return [Bin(float(confidence[i].mean()), float(right[i].mean()), int(i.sum())) for i in inside if i.any()]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error, the mean gap of confidence and accuracy by count (Guo et al. 2017)."""
    count = sum(bin.count for bin in bins)
    return sum(bin.count * abs(bin.confidence - bin.accuracy) for bin in bins) / count
