"""The sampler that decodes in this process: prompts of unequal length together, ended rows replaced by the next ones.

A token depends on (seed, purpose, item, position) and the policy, not on which rows share a batch.

Shapes: N prompts, A tokens of an answer at most, L live rows, B of them that get a token now.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preferent import randomness
from preferent.data.types import Rollout
from preferent.models import collectives, sharding
from preferent.models.language_models import Policy
from preferent.models.world import to_device
from preferent.rollouts import llama_decoder
from preferent.rollouts.cached_decoder import CachedDecoder
from preferent.rollouts.decoding import Params, choose, draws
from preferent.rollouts.llama_decoder import LlamaDecoder

REFILL_AT = 4
"""Ended rows are replaced when they are at least one in this many: prompts are read faster together."""


@dataclass(frozen=True)
class LocalSampler:
    """A sampler that decodes with the policy in this process, `rows` answers at once, shorter prompts first.

    It reads `prefill_tokens` padded tokens of their prompts in one pass.
    """

    policy: Policy
    seed: int
    rows: int = 256
    prefill_tokens: int = 16384

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]:
        """Return one answer per prompt; its `prompt_index` is the row's item, its `policy_step` is `step`."""
        if not len(prompts):
            return []
        policy, device = self.policy, self.policy.world.device
        ends = np.array(sorted(policy.tokenizer.end_ids)) if params.stop_at_eos else np.zeros(0, np.int64)
        # The number that draws each token is fixed in advance, keyed by the row's item and the token's position.
        uniforms_NA = randomness.uniforms(self.seed, purpose, np.asarray(items)[:, None], np.arange(params.max_tokens))
        draws_NA = draws(uniforms_NA)
        ids_NA = np.zeros((len(prompts), params.max_tokens), np.int32)
        log_probs_NA = np.zeros((len(prompts), params.max_tokens), np.float32)
        lengths_N = np.zeros(len(prompts), np.int64)
        ended_N = np.zeros(len(prompts), bool)

        waiting = collectives.share(np.argsort([len(prompt) for prompt in prompts], kind="stable"))
        with sharding.whole(policy.body):
            decoder = self.decoder(prompts, params)
            live_L = waiting[:0]
            while len(live_L) or len(waiting):
                free = self.rows - len(live_L)
                if len(waiting) and (not len(live_L) or (decoder.refills and free * REFILL_AT >= self.rows)):
                    rows_B, waiting = waiting[:free], waiting[free:]
                    live_L = np.concatenate([live_L, rows_B])
                    hidden = decoder.admit([prompts[i] for i in rows_B])
                else:
                    rows_B = live_L
                    hidden = decoder.step(to_device(ids_NA[rows_B, lengths_N[rows_B] - 1], device))
                places_B = lengths_N[rows_B]
                draws_B = to_device(draws_NA[rows_B, places_B], device)
                chosen_B, log_probs_B = choose(decoder.logits(hidden, params.temperature), draws_B, params)
                ids_NA[rows_B, places_B], log_probs_NA[rows_B, places_B] = chosen_B.cpu(), log_probs_B.cpu()
                lengths_N[rows_B] += 1
                ended_N[rows_B] = np.isin(ids_NA[rows_B, places_B], ends)
                goes_on_L = ~ended_N[live_L] & (lengths_N[live_L] < params.max_tokens)
                if not goes_on_L.all():
                    order = _dense(goes_on_L)
                    decoder.keep(order)
                    live_L = live_L[order]
        for decoded in (ids_NA, log_probs_NA, lengths_N, ended_N.view(np.uint8)):
            collectives.total(torch.from_numpy(decoded))
        columns = zip(items, prompts, ids_NA, log_probs_NA, lengths_N, ended_N, strict=True)
        return [
            Rollout(int(key), 0, step, np.asarray(prompt, np.int32), ids[:n].copy(), log_probs[:n].copy(), bool(ended))
            for key, prompt, ids, log_probs, n, ended in columns
        ]

    def decoder(self, prompts: Sequence[np.ndarray], params: Params) -> LlamaDecoder | CachedDecoder:
        """Return what computes the hidden states of the rows; say it where that is not the fastest."""
        length = max(len(prompt) for prompt in prompts) + params.max_tokens
        if reason := llama_decoder.obstacle(self.policy, length):
            _say(f"{self.policy.source}: decoding goes through transformers' own forward pass, because {reason}")
            return CachedDecoder(self.policy, params.max_tokens, self.prefill_tokens)
        decoder = LlamaDecoder(self.policy, min(self.rows, len(prompts)), length, self.prefill_tokens)
        if not decoder.joined:
            _say(f"{self.policy.source}: decoding calls linear layers one by one, because they are large or adapted")
        return decoder

    def refresh(self, policy: Policy) -> None:
        """Do nothing: weights are read when `sample` begins, and no cache outlives a call."""
        assert policy is self.policy, "a local sampler decodes with the policy that it was made with"


def _dense(goes_on: np.ndarray) -> np.ndarray:
    """Return the order that keeps the rows that go on: the last ones move to the places of those that ended."""
    order = np.arange(int(goes_on.sum()))
    order[~goes_on[: len(order)]] = np.flatnonzero(goes_on[len(order) :]) + len(order)
    return order


@functools.cache
def _say(sentence: str) -> None:
    """Print a sentence to standard error, once in a process."""
    print(sentence, file=sys.stderr)
