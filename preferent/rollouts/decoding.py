"""The choice of a token from logits: temperature, top-k, top-p or greedy.

A keyed uniform number is inverted through the cumulative distribution, so the token depends only on the number and the
logits. The inversion computes in integers: their sums are exact in any order, no device needs float64, and torch has no
deterministic cumulative sum of floats on CUDA.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ONE = 2.0**62
"""Probability 1 as an integer. Probabilities are rounded down to multiples of 2^-62; what is below is never drawn."""

BLOCK = 64
"""Ids whose probabilities are summed before the cumulative distribution is, which is then short."""

CACHED_LOGITS = 1 << 16
"""Logits of the rows that a CPU inverts together, so that all passes over them stay in its cache."""


@dataclass(frozen=True, slots=True)
class Params:
    """Sampling parameters: temperature, top-p (1: off), top-k (0: off), greedy; at most `max_tokens` tokens per row."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    stop_at_eos: bool = True


def draws(uniforms: np.ndarray) -> np.ndarray:
    """Return uniform numbers, float64 in [0, 1) with 53 bits, as int64 multiples of 2^-53."""
    return (uniforms * 2.0**53).astype(np.int64)


def choose(logits: Tensor, draws: Tensor, params: Params) -> tuple[Tensor, Tensor]:
    """Return ids [n] and log-probs [n] of the tokens at which the cumulative distribution passes the `draws` [n].

    `logits` are [n, V]. Greedy returns the most probable token. Log-probabilities are those of the distribution that is
    sampled.
    """
    if params.greedy:
        chosen = logits.argmax(-1)
        return chosen, logits.float().log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
    rows = max(1, CACHED_LOGITS // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    blocks = -(-logits.shape[-1] // BLOCK)
    log_probs, sums = logits.new_empty(len(logits), blocks * BLOCK, dtype=torch.float32), []
    log_probs[:, logits.shape[-1] :] = -torch.inf
    for part, room in zip(logits.split(rows), log_probs.split(rows), strict=True):
        torch.log_softmax(_filtered(part.float(), params), -1, out=room[:, : logits.shape[-1]])
        sums.append(_masses(room).unflatten(-1, (blocks, BLOCK)).sum(-1))
    return _inverted(log_probs.unflatten(-1, (blocks, BLOCK)), torch.cat(sums), draws)


def _inverted(log_probs: Tensor, sums: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first id of each row whose cumulative probability exceeds the draw, and its log-prob, both [n].

    Of log-probs [n, blocks, BLOCK] the sums of their masses [n, blocks] tell the block, and the block alone the id.
    """
    ends = sums.cumsum(-1)
    target = _product(ends[:, -1], draws)[:, None]
    block = torch.searchsorted(ends, target, right=True).clamp_max_(sums.shape[-1] - 1)
    inside = log_probs.take_along_dim(block[:, :, None], 1).squeeze(1)
    rest = target - (ends - sums).gather(-1, block)
    place = torch.searchsorted(_masses(inside).cumsum(-1), rest, right=True).clamp_max_(BLOCK - 1)
    return (block * BLOCK + place).squeeze(-1), inside.gather(-1, place).squeeze(-1)


def _masses(log_probs: Tensor) -> Tensor:
    """Return probabilities as int64, in units of 1 / ONE."""
    return log_probs.exp().mul_(ONE).long()


def _product(total: Tensor, draws: Tensor) -> Tensor:
    """Return total * draws / 2^53 rounded down to at most 2 less, all int64, by halves that do not overflow."""
    total_high, total_low = total >> 31, total & (1 << 31) - 1
    high, low = draws >> 26, draws & (1 << 26) - 1
    return (high * total_high << 4) + (high * total_low >> 27) + (low * total_high >> 22) + (low * total_low >> 53)


def _filtered(logits: Tensor, params: Params) -> Tensor:
    """Return logits with all ids outside top-k and top-p (Holtzman et al. 2020) set to -inf."""
    if params.top_k:
        threshold = logits.topk(min(params.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = (probabilities * ONE).long().cumsum(-1).float() / ONE - probabilities
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits
