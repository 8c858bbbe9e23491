"""What the networks say about rollouts: log-probabilities, divergence, values, scores at the last token.

Rows are prompt + answer, padded on the right; heads are applied at answer positions only. The state before answer
token t is the hidden state at the token in front of it.

Shapes: B rollouts, A answer positions, b rows and T tokens of a micro-batch, N its answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from preferent.data.types import Rollout
from preferent.models import batching, vocabulary
from preferent.models.language_models import Network, Policy, Scorer


@dataclass(frozen=True, slots=True)
class Micro:
    """A micro-batch on the device: `tokens` [b, T]; for each answer token its row and slot in the step's arrays [B, A]
    (`rows`, `slots` [N]), its row and column here (`lines`, `columns` [N]), and its id (`ids` [N])."""

    tokens: Tensor
    rows: Tensor
    slots: Tensor
    lines: Tensor
    columns: Tensor
    ids: Tensor

    def states(self, network: Network) -> Tensor:
        """Hidden states [N, D] from which the answer tokens were drawn."""
        return network.hidden(self.tokens)[self.lines, self.columns]

    def take(self, values: Tensor) -> Tensor:
        """The entries [N] of a step's array [B, A] that belong to this micro-batch."""
        return values[self.rows, self.slots]


def micro_batch(rollouts: Sequence[Rollout], rows: np.ndarray, pad_id: int, device: torch.device) -> Micro:
    """The rollouts at `rows` as one micro-batch."""
    chosen = [rollouts[i] for i in rows]
    tokens = batching.pad([np.concatenate([r.prompt_ids, r.ids]).astype(np.int64) for r in chosen], pad_id)
    lengths = [len(r.ids) for r in chosen]
    lines = np.repeat(np.arange(len(chosen)), lengths)
    slots = np.concatenate([np.arange(n) for n in lengths])
    starts = np.repeat([len(r.prompt_ids) - 1 for r in chosen], lengths)
    ids = np.concatenate([r.ids for r in chosen]).astype(np.int64)
    arrays = (tokens, rows[lines], slots, lines, starts + slots, ids)
    return Micro(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))


def micro_batches(rollouts: Sequence[Rollout], max_tokens: int, pad_id: int, device: torch.device) -> list[Micro]:
    """All rollouts in micro-batches of similar length."""
    lengths = [len(r.prompt_ids) + len(r.ids) for r in rollouts]
    return [micro_batch(rollouts, rows, pad_id, device) for rows in batching.plan(lengths, max_tokens)]


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the sampled tokens, all fp32 [B, A], zero off the mask: log-prob under the policy, k1 = log pi - log pi_ref,
    and over the whole vocabulary KL(pi || pi_ref) and the entropy of pi, in nats."""

    log_probs: Tensor
    k1: Tensor
    kl: Tensor
    entropy: Tensor


@torch.no_grad()
def measure(
    policy: Policy, reference: Policy | None, micros: Sequence[Micro], shape: tuple[int, int], temperature: float
) -> Measured:
    """Run policy and reference over the micro-batches; without a reference k1 and KL stay zero."""
    log_probs, k1, kl, entropy = (torch.zeros(shape, device=policy.world.device) for _ in range(4))
    rows = max(1, vocabulary.CHUNK_ELEMENTS // policy.vocab_size)
    for micro in micros:
        states = micro.states(policy)
        others = micro.states(reference) if reference else states
        parts = []
        for state, other, ids in zip(states.split(rows), others.split(rows), micro.ids.split(rows), strict=True):
            logits = policy.logits(state, temperature)
            reference_logits = reference.logits(other, temperature) if reference else None
            parts.append(_measure(logits, reference_logits, ids))
        where = micro.rows, micro.slots
        log_probs[where], k1[where], kl[where], entropy[where] = (torch.cat(c) for c in zip(*parts, strict=True))
    return Measured(log_probs, k1, kl, entropy)


def divergence(
    policy: Policy, reference: Policy | None, rollouts: Sequence[Rollout], max_tokens: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """KL(pi || pi_ref) over the whole vocabulary and its estimate k1 of each answer, both [B], in nats an answer."""
    device = policy.world.device
    micros = micro_batches(rollouts, max_tokens, policy.tokenizer.pad_id, device)
    shape = len(rollouts), max(len(r.ids) for r in rollouts)
    measured = measure(policy, reference, micros, shape, temperature)
    return measured.kl.sum(-1), measured.k1.sum(-1)


def _measure(logits: Tensor, reference_logits: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-prob, k1, KL and entropy, all [n]; the log-prob is computed as the training pass computes it."""
    log_probs = vocabulary.log_probs_of(logits, ids)
    k1 = torch.zeros_like(log_probs)
    others = [None] * len(logits.split(vocabulary.ROWS))
    if reference_logits is not None:
        k1, others = log_probs - vocabulary.log_probs_of(reference_logits, ids), reference_logits.split(vocabulary.ROWS)
    pairs = zip(logits.split(vocabulary.ROWS), others, strict=True)
    columns = zip(*(vocabulary.entropy_and_kl(one, other) for one, other in pairs), strict=True)
    entropy, kl = (torch.cat(column) for column in columns)
    return log_probs, k1, kl, entropy


@torch.no_grad()
def values_of(critic: Scorer, micros: Sequence[Micro], shape: tuple[int, int]) -> Tensor:
    """Raw values [B, A] of the states before each answer token."""
    values = torch.zeros(shape, device=critic.world.device)
    for micro in micros:
        values[micro.rows, micro.slots] = critic.scores(micro.states(critic))
    return values


@torch.no_grad()
def last_scores(scorer: Scorer, sequences: Sequence[np.ndarray], max_tokens: int) -> np.ndarray:
    """Raw scores, float32 [n], read at the last token of each sequence of token ids."""
    found = np.zeros(len(sequences), np.float32)
    for rows in batching.plan([len(s) for s in sequences], max_tokens):
        chosen = [np.asarray(sequences[i], np.int64) for i in rows]
        tokens = torch.from_numpy(batching.pad(chosen, scorer.tokenizer.pad_id)).to(scorer.world.device)
        hidden = scorer.hidden(tokens)
        last = torch.tensor([len(s) - 1 for s in chosen], device=tokens.device)
        found[rows] = scorer.scores(hidden[torch.arange(len(rows), device=tokens.device), last]).float().cpu().numpy()
    return found


def answer_mask(rollouts: Sequence[Rollout], device: torch.device) -> Tensor:
    """[B, A], True at the tokens of each answer."""
    return torch.from_numpy(batching.pad([np.ones(len(r.ids), np.bool_) for r in rollouts], False)).to(device)
