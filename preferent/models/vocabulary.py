"""Log-probabilities, entropy and KL over the vocabulary, computed from logits or a chunk of hidden states at a time.

Shapes: N tokens (flat), V vocabulary, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 25
ROWS = 256


def wide(x: Tensor) -> Tensor:
    """Return the tensor in fp32 at least, for sums over the vocabulary."""
    return x if x.dtype == torch.float64 else x.float()


class _LogProbs(torch.autograd.Function):
    """log softmax(logits)[ids], computed `ROWS` rows at a time; only the logits are saved, in their own dtype.

    The derivative is (1[id] - softmax) times the incoming gradient; that of a logit of -inf is zero.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        normalizer = torch.cat([wide(part).logsumexp(-1) for part in logits.split(ROWS)])
        ctx.save_for_backward(logits, normalizer, ids)
        return wide(logits.gather(-1, ids[:, None]).squeeze(-1)) - normalizer

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, normalizer, ids = ctx.saved_tensors
        slopes = torch.empty_like(logits)
        columns = (logits, normalizer, ids, gradient, slopes)
        for part, norm, id, incoming, out in zip(*(column.split(ROWS) for column in columns), strict=True):
            probabilities = (wide(part) - norm[:, None]).exp_()
            slope = probabilities.mul_(-incoming[:, None]).scatter_add_(-1, id[:, None], incoming[:, None])
            out.copy_(slope)
        return slopes, None


def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log softmax(logits)[ids], at least fp32: logits [N, V], ids [N] -> [N]."""
    return _LogProbs.apply(logits, ids)  # type: ignore[no-any-return,no-untyped-call]


def entropy_and_kl(logits: Tensor, reference_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the entropy of softmax(logits) and KL(softmax(logits) || softmax(reference_logits)) in nats, both [N].

    Logits are [N, V]; an id with a logit of -inf in both has probability 0. Without a reference the KL is 0.
    """
    log_probs = wide(logits).log_softmax(-1)
    probabilities = log_probs.exp()
    negative_entropy = torch.linalg.vecdot(probabilities, log_probs.nan_to_num_(neginf=0.0))
    if reference_logits is None:
        return -negative_entropy, torch.zeros_like(negative_entropy)
    reference = wide(reference_logits).log_softmax(-1).nan_to_num_(neginf=0.0)
    return -negative_entropy, torch.linalg.vecdot(probabilities, log_probs - reference)


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
