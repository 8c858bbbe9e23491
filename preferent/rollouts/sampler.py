"""Answers from a policy: one seam, `sample(prompts, ...) -> rollouts`.

A token is one keyed uniform number inverted through the cumulative distribution, so what is drawn depends on (seed,
purpose, item, position) and the policy, never on which rows share a batch. Local decoding keeps a KV cache, takes
prompts of unequal length, and computes a finished row no further. `Scripted` answers from a script: for tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from preferent.config.recipe import Recipe
from preferent.data.types import Prompt, Rollout
from preferent.models.language_models import Policy


@dataclass(frozen=True, slots=True)
class Params:
    """How tokens are chosen: temperature, top-p (1 off), top-k (0 off), or greedily; at most `max_tokens` a row."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    stop_at_eos: bool = True


def rollout_params(recipe: Recipe) -> Params:
    """Rollouts and validation sample the whole distribution at the recipe's temperature."""
    return Params(recipe.target_sequence_length, recipe.sampler.temperature)


@dataclass(frozen=True)
class Prompts:
    """Prompts with their token ids, their text as the model sees it, and as the data have them."""

    ids: list[np.ndarray]
    texts: list[str]
    records: Sequence[Prompt]

    @classmethod
    def of(cls, records: Sequence[Prompt], policy: Policy, recipe: Recipe) -> "Prompts":
        limit, instruction = recipe.prompt_sequence_length, recipe.instruction
        ids = [np.asarray(policy.tokenizer.encode_prompt(p, instruction, limit)[0], np.int32) for p in records]
        return cls(ids, [policy.tokenizer.text(p, instruction) for p in records], records)


class Sampler(Protocol):
    """`prompts` are token ids; `items` number the rows of this purpose, and key their randomness."""

    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]: ...
