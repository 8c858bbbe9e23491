"""How Llama 3.1 and later stretch rotary positions, which a GGUF file keeps as one tensor of factors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

TENSOR = "rope_freqs.weight"
KNOWN = tuple(
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
)
"""The settings of Llama 3.1 (8) and 3.2 (32), as `rope_parameters` in a config.json has them."""

Factors = np.ndarray[Any, np.dtype[np.float64]]


def factors(settings: Mapping[str, Any], theta: float, width: int) -> Factors:
    """Return by what the frequencies of `width` rotary channels are divided [width / 2].

    Wave lengths below original length / high_freq_factor stay, those above original length / low_freq_factor are
    stretched by `factor`, those between partly (Llama 3.1 model code; `rope_type: llama3` in transformers).
    """
    waves = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    smooth = np.clip((settings["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    stretched: Factors = 1 / ((1 - smooth) / settings["factor"] + smooth)
    return stretched


def recognised(stored: Factors, theta: float) -> dict[str, Any] | None:
    """Return the settings that make the stored factors; None if no known ones do."""
    width = 2 * len(stored)
    made = (settings for settings in KNOWN if np.allclose(stored, factors(settings, theta, width), rtol=1e-4))
    return next(made, None)
