"""The choice of a token from logits: temperature, top-k, top-p or greedy.

A keyed uniform number is inverted through the cumulative distribution, so the token depends only on the number and the
logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Params:
    """Sampling parameters: temperature, top-p (1: off), top-k (0: off), greedy; at most `max_tokens` tokens per row."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    stop_at_eos: bool = True


def choose(logits: Tensor, uniforms: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    """Return ids [n] and log-probs [n] of the tokens at which the cumulative distribution passes the uniforms [n].

    `logits` are [n, V]. Greedy returns the most probable token. Log-probabilities are those of the distribution that is
    sampled.
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
    """Return logits with all ids outside top-k and top-p (Holtzman et al. 2020) set to -inf."""
    if params.top_k:
        threshold = logits.topk(min(params.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits
