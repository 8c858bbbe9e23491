"""How far judges agree, with each other and with people."""

from collections.abc import Sequence

import numpy as np


def percent(a: Sequence[str], b: Sequence[str]) -> float:
    """The share of pairs on which two judges gave the same verdict, ties included."""
    return float(np.mean([one == other for one, other in zip(a, b, strict=True)]))
