"""A sampler that takes answers from a script instead of a model, for tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preferent.data.types import Rollout
from preferent.rollouts.decoding import Params


@dataclass(frozen=True)
class ScriptedSampler:
    """A sampler whose answers are a function of (prompt ids, item): (answer ids, their log-probabilities, ended)."""

    script: Callable[[np.ndarray, int], tuple[Sequence[int], Sequence[float], bool]]

    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]:
        """Return one answer per prompt, cut at `max_tokens`."""
        rollouts = []
        for prompt, item in zip(prompts, items, strict=True):
            ids, log_probs, ended = self.script(prompt, item)
            columns = (
                np.asarray(ids[: params.max_tokens], np.int32),
                np.asarray(log_probs[: params.max_tokens], np.float32),
            )
            rollouts.append(Rollout(item, 0, step, np.asarray(prompt, np.int32), *columns, ended))
        return rollouts

    def refresh(self, policy: Any) -> None:
        """Do nothing: a script has no weights."""
