"""Log-probabilities, entropy and KL over the vocabulary, computed from logits or a chunk of hidden states at a time.

Shapes: N tokens (flat), V vocabulary, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 25
CACHED_ELEMENTS = 1 << 17
"""Logits that are taken through a softmax at once: few enough that their exponentials stay in a processor's cache."""

LOWEST = -1e30
"""Stands for a logit of -inf where it is multiplied with its probability of 0."""


def wide(x: Tensor) -> Tensor:
    """Return the tensor in fp32 at least, for sums over the vocabulary."""
    return x if x.dtype == torch.float64 else x.float()


def _rows(logits: Tensor) -> int:
    return max(1, CACHED_ELEMENTS // logits.shape[-1])


def _buffers(logits: Tensor, count: int) -> Tensor:
    """Return room for some rows of logits, [count, n, V], fp32 at least; fresh memory would cost more than it holds."""
    rows = min(_rows(logits), len(logits))
    return logits.new_empty(count, rows, logits.shape[-1], dtype=wide(logits[:0]).dtype)


def _exponentials(logits: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits less their maximum and the exponentials of these [n, V], in two buffers, and the maximum [n, 1]."""
    shifted, exponentials = buffers[:2, : len(logits)]
    most = shifted.copy_(logits).amax(-1, keepdim=True)
    torch.exp(shifted.sub_(most), out=exponentials)
    return shifted, exponentials, most


class _LogProbs(torch.autograd.Function):
    """log softmax(logits)[ids], computed some rows at a time; only the logits are saved, in their own dtype.

    The derivative is (1[id] - softmax) times the incoming gradient; that of a logit of -inf is zero.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        buffers = _buffers(logits, 2)
        log_probs = torch.empty_like(ids, dtype=buffers.dtype)
        normalizers = torch.empty_like(log_probs)
        columns = (logits, ids, log_probs, normalizers)
        for part, id, log_prob, normalizer in zip(*(column.split(_rows(logits)) for column in columns), strict=True):
            shifted, exponentials, most = _exponentials(part, buffers)
            log_sum = exponentials.sum(-1).log_()
            torch.sub(_at(shifted, id), log_sum, out=log_prob)
            torch.add(most[:, 0], log_sum, out=normalizer)
        ctx.save_for_backward(logits, normalizers, ids)
        return log_probs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, normalizer, ids = ctx.saved_tensors
        slopes, (buffer,) = torch.empty_like(logits), _buffers(logits, 1)
        columns = (logits, normalizer, ids, gradient, slopes)
        for part, norm, id, incoming, out in zip(*(column.split(_rows(logits)) for column in columns), strict=True):
            probabilities = buffer[: len(part)].copy_(part).sub_(norm[:, None]).exp_()
            out.copy_(probabilities.mul_(-incoming[:, None]).scatter_add_(-1, id[:, None], incoming[:, None]))
        return slopes, None


def _at(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids[:, None]).squeeze(-1)


def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log softmax(logits)[ids], at least fp32: logits [N, V], ids [N] -> [N]."""
    return _LogProbs.apply(logits, ids)  # type: ignore[no-any-return,no-untyped-call]


def measures(logits: Tensor, reference_logits: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-prob, k1, KL and entropy in nats, all [N] and fp32 at least, in one pass over the vocabulary.

    The log-prob is that of `log_probs_of`, to the last bit; k1 is what it has over the reference's. The KL is
    KL(softmax(logits) || softmax(reference_logits)). Logits are [N, V]; an id with a logit of -inf in both has
    probability 0. Without a reference k1 and KL are 0.
    """
    rows, buffers = _rows(logits), _buffers(logits, 4)
    references = [None] * -(-len(ids) // rows) if reference_logits is None else reference_logits.split(rows)
    columns = zip(logits.split(rows), references, ids.split(rows), strict=True)
    log_probs, k1, kl, entropy = zip(*(_measures(*part, buffers) for part in columns), strict=True)
    return torch.cat(log_probs), torch.cat(k1), torch.cat(kl), torch.cat(entropy)


def _measures(
    logits: Tensor, reference_logits: Tensor | None, ids: Tensor, buffers: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shifted, weights, _ = _exponentials(logits, buffers)
    reference, products = buffers[2:, : len(logits)]
    total = weights.sum(-1)
    log_sum = total.log()
    log_prob = _at(shifted, ids) - log_sum
    shifted.clamp_(min=LOWEST)
    entropy = log_sum - torch.mul(weights, shifted, out=products).sum(-1) / total
    if reference_logits is None:
        return log_prob, torch.zeros_like(log_prob), torch.zeros_like(log_prob), entropy
    _exponentials(reference_logits, buffers[2:])
    reference_sum = products.sum(-1).log_()
    k1 = log_prob - (_at(reference, ids) - reference_sum)
    gaps = shifted.sub_(reference.clamp_(min=LOWEST))
    kl = gaps.mul_(weights).sum(-1) / total - (log_sum - reference_sum)
    return log_prob, k1, kl, entropy


def chunked_log_probs(hidden: Tensor, ids: Tensor, head: Callable[[Tensor], Tensor], vocab_size: int) -> Tensor:
    """Return log-probabilities of `ids` [N] under `head(hidden)` without keeping the [N, V] logits for the backward
    pass.

    `head` maps [n, D] to logits [n, V], scaled and masked. Up to `CHUNK_ELEMENTS` logits are kept. More are computed
    in chunks, and again in the backward pass. The chunks depend on the shapes only.
    """
    rows = max(1, CHUNK_ELEMENTS // vocab_size)
    if len(ids) <= rows or not torch.is_grad_enabled():
        return torch.cat([log_probs_of(head(h), i) for h, i in zip(hidden.split(rows), ids.split(rows), strict=True)])

    def chunk(h: Tensor, i: Tensor) -> Tensor:
        return log_probs_of(head(h), i)

    parts = zip(hidden.split(rows), ids.split(rows), strict=True)
    return torch.cat([checkpoint(chunk, h, i, use_reentrant=False) for h, i in parts])


def chunked_entropy(hidden: Tensor, head: Callable[[Tensor], Tensor], vocab_size: int) -> Tensor:
    """Return the entropy [N] in nats of softmax(head(hidden)), differentiable, computed in chunks."""

    def chunk(h: Tensor) -> Tensor:
        log_probs = wide(head(h)).log_softmax(-1)
        return -(log_probs.exp() * log_probs.nan_to_num(neginf=0.0)).sum(-1)

    rows = max(1, CHUNK_ELEMENTS // vocab_size)
    return torch.cat([checkpoint(chunk, part, use_reentrant=False) for part in hidden.split(rows)])
