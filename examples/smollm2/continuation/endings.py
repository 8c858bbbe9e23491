"""What people's endings are like in length, as a reward function: `like_people`."""

import math
from collections.abc import Sequence

WORDS = 6
"""The median of people's endings; none is empty."""


def like_people(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Score an answer of `WORDS` words 0, one of half or twice as many about -0.6, and an empty one -1.9."""
    return [-abs(math.log((1 + len(answer.split())) / (1 + WORDS))) for answer in answers]
