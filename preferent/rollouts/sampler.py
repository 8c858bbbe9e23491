"""Where answers come from: the seam `Sampler`, the one place that makes an engine, and the prompts that it is given.

A token is one keyed uniform number inverted through the cumulative distribution, so what is drawn depends on (seed,
purpose, item, position) and the policy, never on which rows share a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from preferent.config.recipe import Recipe
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt, Rollout
from preferent.models.language_models import Policy
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler


class Sampler(Protocol):
    """An engine that answers prompts with the weights of a policy."""

    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]:
        """Answer each of `prompts`, which are token ids; `items` number the rows of this purpose, and key their
        randomness."""

    def refresh(self, policy: Policy) -> None:
        """Answer with the policy's weights as they are now; called after they changed and before `sample` is."""


def make(recipe: Recipe, policy: Policy, rows: int | None = None) -> Sampler:
    """Make the engine that answers with a policy, at most `rows` answers at once (default: `sampler.rows`)."""
    return LocalSampler(policy, recipe.seed, recipe.sampler.rows if rows is None else rows)


def rollout_params(recipe: Recipe) -> Params:
    """Rollouts and validation sample the whole distribution at the recipe's temperature."""
    return Params(recipe.target_sequence_length, recipe.sampler.temperature)


@dataclass(frozen=True)
class Prompts:
    """Prompts with their token ids, their text as the model sees it, and as the data have them."""

    ids: Sequence[np.ndarray]
    texts: Sequence[str]
    records: Sequence[Prompt]

    @classmethod
    def of(cls, records: Sequence[Prompt], tokenizer: Tokenizer, recipe: Recipe) -> "Prompts":
        """Render and encode each prompt, once."""
        encoded = tokenizer.encode_prompts(records, recipe.instruction, recipe.prompt_sequence_length)
        ids = [np.asarray(prompt.ids, np.int32) for prompt in encoded]
        return cls(ids, [prompt.text for prompt in encoded], records)

    def part(self, rows: Sequence[int] | np.ndarray) -> "Prompts":
        """The prompts at `rows`, in that order; a row may occur several times."""
        ids, texts, records = self.ids, self.texts, self.records
        return Prompts([ids[row] for row in rows], [texts[row] for row in rows], [records[row] for row in rows])
