"""Decoding of any family by its own forward pass in transformers, with the cache that its configuration asks for.

Shapes: B rows read together, L of them live, P tokens of their prompts, padded on the left so that every row goes on in
the same column; D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from preferent.models import batching
from preferent.models.language_models import Policy
from preferent.models.world import to_device

COMPACT_BELOW = 0.9
"""Rows that are not kept are dropped when less than this share of the computed rows is live."""


class CachedDecoder:
    """The live rows of one policy and their cache. New rows are admitted when all have ended."""

    refills = False

    def __init__(self, policy: Policy, tokens: int, prefill_tokens: int) -> None:
        self.policy, self.tokens, self.prefill_tokens = policy, tokens, prefill_tokens

    def admit(self, prompts: Sequence[np.ndarray]) -> Tensor:
        """Read prompts into a new cache, some columns at a time; return the hidden states [B, D] of their ends."""
        device = self.policy.world.device
        self.ids, self.mask = (to_device(array, device) for array in _padded(prompts, self.policy.tokenizer.pad_id))
        self.positions = (self.mask.cumsum(-1) - 1).clamp_min(0)
        self.padded = bool((self.mask == 0).any())
        self.cache = new_cache(self.policy, self.ids.shape[1] + self.tokens)
        self.live = torch.arange(len(prompts), device=device)
        width = self.ids.shape[1]
        if all(isinstance(layer, (DynamicLayer, DynamicSlidingWindowLayer)) for layer in self.cache.layers):
            width = max(1, self.prefill_tokens // len(prompts))
        for start in range(0, self.ids.shape[1], width):
            part = slice(start, start + width)
            hidden = self._hidden(self.ids[:, part], self.mask[:, : start + width], self.positions[:, part])
        return hidden

    def step(self, ids: Tensor) -> Tensor:
        """Append one token to every live row; return their hidden states [L, D]."""
        self.ids = self.ids[:, -1:].index_put((self.live,), ids[:, None].long())
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return self._hidden(self.ids, self.mask, self.positions)[self.live]

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """Return logits [L, V] of hidden states [L, D]."""
        return self.policy.logits(hidden, temperature)

    def keep(self, order: np.ndarray) -> None:
        """Keep the rows `order` of the live ones; row i becomes row order[i].

        A row that is not kept costs a little until it is dropped; dropping it copies the whole cache.
        """
        self.live = self.live[to_device(order, self.live.device)]
        if len(self.live) < COMPACT_BELOW * len(self.ids):
            self.cache.batch_select_indices(self.live)
            self.ids, self.positions, self.mask = self.ids[self.live], self.positions[self.live], self.mask[self.live]
            self.live = torch.arange(len(self.live), device=self.ids.device)

    def _hidden(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self.policy.hidden(ids, mask if self.padded else None, positions, self.cache)[:, -1]


def _padded(prompts: Sequence[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return prompts as tokens [B, P], padded on the left, and a mask [B, P] that keeps what is not padding."""
    tokens = batching.pad([np.asarray(prompt, np.int64) for prompt in prompts], pad_id, left=True)
    return tokens, batching.pad([np.ones(len(prompt), np.int64) for prompt in prompts], 0, left=True)


def new_cache(policy: Policy, length: int) -> DynamicCache:
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
