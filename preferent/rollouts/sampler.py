"""Samplers: the protocol `Sampler`, the one place that makes an engine, and the prompts that it answers.

A token is one keyed uniform number inverted through the cumulative distribution, so it depends on (seed, purpose, item,
position) and the policy, not on which rows share a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from preferent.config.defaults import decided
from preferent.config.recipe import Recipe
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt, Rollout
from preferent.models.language_models import Policy
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler


class Sampler(Protocol):
    """An engine that samples answers to prompts with the weights of a policy."""

    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]:
        """Return one answer per prompt (token ids); `items` number the rows of this purpose and key their draws."""

    def refresh(self, policy: Policy) -> None:
        """Use the current weights of the policy. Call it after they change, before the next `sample`."""


def make(recipe: Recipe, policy: Policy, rows: int | None = None) -> Sampler:
    """Return the engine that samples from a policy, at most `rows` answers at once (default: `sampler.rows`)."""
    settings = recipe.sampler
    most = decided(settings.rows) if rows is None else rows
    return LocalSampler(policy, recipe.seed, most, decided(settings.prefill_tokens))


def rollout_params(recipe: Recipe) -> Params:
    """Return the parameters of rollouts and validation: the whole distribution at the recipe's temperature."""
    return Params(recipe.target_sequence_length, recipe.sampler.temperature)


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, as text with the template applied, and as records of the data."""

    ids: Sequence[np.ndarray]
    texts: Sequence[str]
    records: Sequence[Prompt]

    @classmethod
    def of(cls, records: Sequence[Prompt], tokenizer: Tokenizer, recipe: Recipe) -> "Prompts":
        """Apply the template to each prompt and encode it, once."""
        encoded = tokenizer.encode_prompts(records, recipe.instruction, recipe.prompt_sequence_length)
        ids = [np.asarray(prompt.ids, np.int32) for prompt in encoded]
        return cls(ids, [prompt.text for prompt in encoded], records)

    def part(self, rows: Sequence[int] | np.ndarray) -> "Prompts":
        """Return the prompts at `rows`, in that order; a row may occur several times."""
        ids, texts, records = self.ids, self.texts, self.records
        return Prompts([ids[row] for row in rows], [texts[row] for row in rows], [records[row] for row in rows])
