"""Sample answers in this process, with a key-value cache and keyed uniforms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from preferent.rollouts.sampler import Params

COMPACT_BELOW = 0.9


@dataclass(frozen=True)
class LocalSampler:
    """Decode with the policy in this process, `rows` answers at once, shorter prompts first together."""

    policy: Policy
    seed: int
    rows: int = 256
    on_tokens: Callable[[int], None] = field(default=lambda count: None)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]:
        """One answer to each prompt; `prompt_index` is the row's item, `policy_step` the given step."""
        order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
        found: dict[int, Rollout] = {}
        for start in range(0, len(order), self.rows):
            part = order[start : start + self.rows]
            decoded = _decode(
                self.policy, [prompts[i] for i in part], [items[i] for i in part], self.seed, purpose, params
            )
            for i, (ids, log_probs) in zip(part, decoded, strict=True):
                ended = params.stop_at_eos and len(ids) > 0 and int(ids[-1]) == self.policy.tokenizer.eos_id
                found[i] = Rollout(int(items[i]), 0, step, np.asarray(prompts[i], np.int32), ids, log_probs, ended)
            self.on_tokens(sum(len(found[i].ids) for i in part))
        return [found[i] for i in range(len(prompts))]


def _decode(
    policy: Policy, prompts: Sequence[np.ndarray], items: Sequence[int], seed: int, purpose: str, params: Params
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Answer ids and sampler log-probs of rows that are decoded together."""
    device, eos_id = policy.world.device, policy.tokenizer.eos_id
    uniforms = randomness.uniforms(seed, purpose, np.asarray(items)[:, None], np.arange(params.max_tokens))
    ids = torch.zeros(len(prompts), params.max_tokens, dtype=torch.long, device=device)
    log_probs = torch.zeros(len(prompts), params.max_tokens, device=device)
    lengths = np.full(len(prompts), params.max_tokens)

    mask = torch.from_numpy(batching.pad([np.ones(len(p), np.int64) for p in prompts], 0, left=True)).to(device)
    tokens = torch.from_numpy(
        batching.pad([np.asarray(p, np.int64) for p in prompts], policy.tokenizer.pad_id, left=True)
    ).to(device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    draws = torch.from_numpy(uniforms).to(device)
    cache = _cache(policy, tokens.shape[1] + params.max_tokens)
    padded = bool((mask == 0).any())
    live = np.arange(len(prompts))
    ended = np.zeros(len(prompts), dtype=bool)
    for t in range(params.max_tokens):
        hidden = policy.hidden(tokens, mask if padded else None, positions, cache)
        chosen, chosen_log_probs = choose(policy.logits(hidden[:, -1], params.temperature), draws[live, t], params)
        rows = torch.from_numpy(live).to(device)
        ids[rows, t], log_probs[rows, t] = chosen, chosen_log_probs
        if params.stop_at_eos:
            stops = chosen.cpu().numpy() == eos_id
            lengths[live[stops & ~ended[live]]] = t + 1
            ended[live[stops]] = True
        keep = ~ended[live]
        if not keep.any() or t + 1 == params.max_tokens:
            break
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        if keep.mean() < COMPACT_BELOW:
            kept = torch.from_numpy(np.flatnonzero(keep)).to(device)
            cache.batch_select_indices(kept)
            tokens, positions, mask, live = tokens[kept], positions[kept], mask[kept], live[keep]
    columns = zip(ids.int().cpu().numpy(), log_probs.cpu().numpy(), lengths, strict=True)
    return [(row[:length].copy(), row_log_probs[:length].copy()) for row, row_log_probs, length in columns]


def choose(logits: Tensor, uniforms: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    """The token where the cumulative distribution passes the uniform number: [n, V], [n] -> ids [n], log-probs [n].

    Greedy takes the most probable. The log-probability is that of the distribution sampled from.
    """
    logits = logits.float()
    if params.greedy:
        chosen = logits.argmax(-1)
        return chosen, logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
    log_probs = _filtered(logits, params).log_softmax(-1)
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.double)
    target = uniforms[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)
    return chosen, log_probs.gather(-1, chosen[:, None]).squeeze(-1)


def _filtered(logits: Tensor, params: Params) -> Tensor:
    """Logits with everything outside top-k and top-p (Holtzman et al. 2020) set to -inf."""
    if params.top_k:
        threshold = logits.topk(min(params.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def _cache(policy: Policy, length: int) -> DynamicCache:
    """A KV cache whose full-attention layers are allocated once, at the length that decoding can reach."""
    cache = DynamicCache(config=policy.body.config)
    if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [Preallocated(length) for _ in cache.layers]
    return cache


class Preallocated(DynamicLayer):
    """A cache layer that writes new keys and values in place instead of copying all of them at every token."""

    def __init__(self, length: int) -> None:
        super().__init__()
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
