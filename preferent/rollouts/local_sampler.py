"""The sampler that decodes in this process: with a KV cache, prompts of unequal length together, ended rows dropped.

A token depends on (seed, purpose, item, position) and the policy, not on which rows share a batch.

Shapes: B rows decoded together, L of them still computed, P tokens of their padded prompts, A tokens of an answer at
most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from preferent import randomness
from preferent.data.types import Rollout
from preferent.models import batching
from preferent.models.language_models import Policy
from preferent.models.world import to_device
from preferent.rollouts.decoding import Params, choose, draws

COMPACT_BELOW = 0.9
"""Ended rows are dropped when less than this share of the computed rows is unfinished."""


@dataclass(frozen=True)
class LocalSampler:
    """A sampler that decodes with the policy in this process, `rows` answers at once, shorter prompts first."""

    policy: Policy
    seed: int
    rows: int = 256

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]:
        """Return one answer per prompt; its `prompt_index` is the row's item, its `policy_step` is `step`."""
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        rollouts: dict[int, Rollout] = {}
        for start in range(0, len(order), self.rows):
            part = order[start : start + self.rows]
            decoded = _decode(
                self.policy, [prompts[i] for i in part], [items[i] for i in part], self.seed, purpose, params
            )
            for i, (ids, log_probs) in zip(part, decoded, strict=True):
                ended = params.stop_at_eos and len(ids) > 0 and int(ids[-1]) in self.policy.tokenizer.end_ids
                rollouts[i] = Rollout(int(items[i]), 0, step, np.asarray(prompts[i], np.int32), ids, log_probs, ended)
        return [rollouts[i] for i in range(len(prompts))]

    def refresh(self, policy: Policy) -> None:
        """Do nothing: the weights are the policy's own, and no cache outlives a call of `sample`."""
        assert policy is self.policy, "a local sampler decodes with the policy that it was made with"


def _decode(
    policy: Policy, prompts: Sequence[np.ndarray], items: Sequence[int], seed: int, purpose: str, params: Params
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the answer ids and the sampler's log-probs of B rows that are decoded together."""
    device, tokenizer = policy.world.device, policy.tokenizer
    ends = np.array(sorted(tokenizer.end_ids))
    # The uniform number of every token is drawn in advance, keyed by the row's item and the token's position.
    uniforms = randomness.uniforms(seed, purpose, np.asarray(items)[:, None], np.arange(params.max_tokens))
    draws_BA = to_device(draws(uniforms), device)
    ids_BA = torch.zeros(len(prompts), params.max_tokens, dtype=torch.long, device=device)
    log_probs_BA = torch.zeros(len(prompts), params.max_tokens, device=device)
    lengths_B = np.full(len(prompts), params.max_tokens)
    ended_B = np.zeros(len(prompts), dtype=bool)

    # Prompts are padded on the left, so that the last column of every row is the one to continue.
    tokens, mask = _padded(prompts, tokenizer.pad_id, device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    padded = bool((mask == 0).any())
    cache = _cache(policy, tokens.shape[1] + params.max_tokens)
    live_L = np.arange(len(prompts))
    for t in range(params.max_tokens):
        # The first pass reads whole prompts [L, P] into the cache, each later one the last token [L, 1].
        hidden = policy.hidden(tokens, mask if padded else None, positions, cache)
        chosen_L, log_probs_L = choose(policy.logits(hidden[:, -1], params.temperature), draws_BA[live_L, t], params)
        rows_L = to_device(live_L, device)
        ids_BA[rows_L, t], log_probs_BA[rows_L, t] = chosen_L, log_probs_L
        if params.stop_at_eos:
            stops_L = np.isin(chosen_L.cpu().numpy(), ends)
            lengths_B[live_L[stops_L & ~ended_B[live_L]]] = t + 1
            ended_B[live_L[stops_L]] = True
        goes_on_L = ~ended_B[live_L]
        if not goes_on_L.any() or t + 1 == params.max_tokens:
            break
        tokens, positions = chosen_L[:, None], positions[:, -1:] + 1
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        # An ended row costs a little until it is dropped; dropping it copies the whole cache.
        if goes_on_L.mean() < COMPACT_BELOW:
            kept = to_device(np.flatnonzero(goes_on_L), device)
            cache.batch_select_indices(kept)
            tokens, positions, mask, live_L = tokens[kept], positions[kept], mask[kept], live_L[goes_on_L]
    # Tokens after the end of a row are cut off.
    columns = zip(ids_BA.int().cpu().numpy(), log_probs_BA.cpu().numpy(), lengths_B, strict=True)
    return [(ids[:length].copy(), log_probs[:length].copy()) for ids, log_probs, length in columns]


def _padded(prompts: Sequence[np.ndarray], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return prompts as tokens [B, P], padded on the left, and a mask [B, P] that keeps what is not padding."""
    tokens = batching.pad([np.asarray(prompt, np.int64) for prompt in prompts], pad_id, left=True)
    mask = batching.pad([np.ones(len(prompt), np.int64) for prompt in prompts], 0, left=True)
    return to_device(tokens, device), to_device(mask, device)


def _cache(policy: Policy, length: int) -> DynamicCache:
    """Return a KV cache whose full-attention layers are allocated once, at the maximum length of decoding."""
    cache = DynamicCache(config=policy.body.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [Preallocated(length) for _ in cache.layers]
    return cache


class Preallocated(DynamicLayer):
    """A cache layer that writes new keys and values in place instead of copying all of them for every token."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length, self.used = length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            batch_size, heads, _, _ = key_states.shape
            self.all_keys = key_states.new_empty(batch_size, heads, self.length, key_states.shape[-1])
            self.all_values = value_states.new_empty(batch_size, heads, self.length, value_states.shape[-1])
        end = self.used + key_states.shape[-2]
        self.all_keys[:, :, self.used : end] = key_states
        self.all_values[:, :, self.used : end] = value_states
        self.used = end
        self.keys, self.values = self.all_keys[:, :, :end], self.all_values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.all_keys, self.all_values = self.all_keys[indices], self.all_values[indices]
        self.keys, self.values = self.all_keys[:, :, : self.used], self.all_values[:, :, : self.used]
