"""Measurements of rollouts by the networks: log-probabilities, divergence, values, scores at the last token.

Rows are prompt + answer, padded on the right. Heads are applied at answer positions only. The state of answer token t
is the hidden state at the token before it.

Shapes: B rollouts, A answer positions, b rows and T tokens of a micro-batch, N its answer tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from preferent.data.types import Rollout
from preferent.models import batching, collectives, sharding, vocabulary
from preferent.models.language_models import Network, Policy, Scorer
from preferent.models.world import to_device


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A micro-batch on the device: `tokens` [b, T], and for each answer token its positions and its id `ids` [N].

    `batch_rows` and `batch_columns` [N] are its position in the step's arrays [B, A], `rows` and `columns` [N] the
    position of its state in `tokens`.
    """

    tokens: Tensor
    batch_rows: Tensor
    batch_columns: Tensor
    rows: Tensor
    columns: Tensor
    ids: Tensor

    def states(self, network: Network) -> Tensor:
        """Return the hidden states [N, D] that predict the answer tokens."""
        return network.states(self.tokens, self.rows, self.columns)

    def take(self, values: Tensor) -> Tensor:
        """Return the entries [N] of a step's array [B, A] that belong to this micro-batch."""
        return values[self.batch_rows, self.batch_columns]


def micro_batch(rollouts: Sequence[Rollout], batch_rows: np.ndarray, pad_id: int, device: torch.device) -> MicroBatch:
    """Return the rollouts at `batch_rows` as one micro-batch."""
    chosen = [rollouts[i] for i in batch_rows]
    tokens = batching.pad([np.concatenate([r.prompt_ids, r.ids]).astype(np.int64) for r in chosen], pad_id)
    lengths = [len(r.ids) for r in chosen]
    rows = np.repeat(np.arange(len(chosen)), lengths)
    answer_positions = np.concatenate([np.arange(n) for n in lengths])
    starts = np.repeat([len(r.prompt_ids) - 1 for r in chosen], lengths)
    ids = np.concatenate([r.ids for r in chosen]).astype(np.int64)
    arrays = (tokens, batch_rows[rows], answer_positions, rows, starts + answer_positions, ids)
    return MicroBatch(*(to_device(array, device) for array in arrays))


def micro_batches(rollouts: Sequence[Rollout], max_tokens: int, pad_id: int, device: torch.device) -> list[MicroBatch]:
    """Return all rollouts in micro-batches of similar length."""
    lengths = [len(r.prompt_ids) + len(r.ids) for r in rollouts]
    return [micro_batch(rollouts, rows, pad_id, device) for rows in batching.plan(lengths, max_tokens)]


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of the sampled tokens in nats, fp32 [B, A], zero off the mask.

    `k1` is log pi - log pi_ref of the sampled token. `kl` is KL(pi || pi_ref) and `entropy` the entropy of pi, both
    over the whole vocabulary.
    """

    log_probs: Tensor
    k1: Tensor
    kl: Tensor
    entropy: Tensor


@torch.no_grad()
def measure(
    policy: Policy, reference: Policy | None, micros: Sequence[MicroBatch], shape: tuple[int, int], temperature: float
) -> Measured:
    """Run policy and reference over the micro-batches; without a reference k1 and KL are zero."""
    log_probs, k1, kl, entropy = (torch.zeros(shape, device=policy.world.device) for _ in range(4))
    for micro, weight in collectives.passes(micros):
        compute = partial(_measures, policy, reference, micro, temperature)
        if reference is not None:
            compute = partial(sharding.passed, reference.body, compute)
        at, columns = (micro.batch_rows, micro.batch_columns), sharding.passed(policy.body, compute)
        log_probs[at], k1[at], kl[at], entropy[at] = (weight * column for column in columns)
    return Measured(*map(collectives.total, (log_probs, k1, kl, entropy)))


def _measures(policy: Policy, reference: Policy | None, micro: MicroBatch, temperature: float) -> list[Tensor]:
    """Return the log-probs, k1, KL and entropy of the answer tokens of a micro-batch, [N] each."""
    rows, parts = max(1, vocabulary.CHUNK_ELEMENTS // policy.vocab_size), []
    states = micro.states(policy)
    reference_states = micro.states(reference) if reference else states
    chunks = states.split(rows), reference_states.split(rows), micro.ids.split(rows)
    for state, reference_state, ids in zip(*chunks, strict=True):
        logits = policy.logits(state, temperature)
        reference_logits = reference.logits(reference_state, temperature) if reference else None
        parts.append(vocabulary.measures(logits, reference_logits, ids))
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def divergence(
    policy: Policy, reference: Policy | None, rollouts: Sequence[Rollout], max_tokens: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(pi || pi_ref) over the whole vocabulary and its estimate k1 in nats per answer, and the sampler's gap.

    All are [B].
    """
    device = policy.world.device
    micros = micro_batches(rollouts, max_tokens, policy.tokenizer.pad_id, device)
    shape = len(rollouts), max(len(r.ids) for r in rollouts)
    measured = measure(policy, reference, micros, shape, temperature)
    return measured.kl.sum(-1), measured.k1.sum(-1), sampler_gap(rollouts, measured.log_probs)


def sampler_gap(rollouts: Sequence[Rollout], log_probs: Tensor) -> Tensor:
    """Return the largest absolute difference in nats between the sampler's log-probs of each answer and `log_probs`.

    `log_probs` [B, A] are those of the pass that trains, zero off the mask; the gap is [B].
    """
    sampled = to_device(batching.pad([r.sampler_log_probs for r in rollouts], 0.0), log_probs.device)
    return (sampled - log_probs).abs().amax(-1)


@torch.no_grad()
def values_of(critic: Scorer, micros: Sequence[MicroBatch], shape: tuple[int, int]) -> Tensor:
    """Return raw values [B, A] of the states before each answer token."""
    values = torch.zeros(shape, device=critic.world.device)
    for micro, weight in collectives.passes(micros):
        values[micro.batch_rows, micro.batch_columns] = weight * token_values(critic, micro)
    return collectives.total(values)


def token_values(critic: Scorer, micro: MicroBatch) -> Tensor:
    """Return raw values [N] of the states before the answer tokens of a micro-batch."""
    return sharding.passed(critic.body, lambda: critic.scores(micro.states(critic)))


@torch.no_grad()
def last_scores(scorer: Scorer, sequences: Sequence[np.ndarray], max_tokens: int) -> np.ndarray:
    """Return raw scores, float32 [n], at the last token of each sequence of token ids."""
    scores = np.zeros(len(sequences), np.float32)
    for rows, weight in collectives.passes(batching.plan([len(s) for s in sequences], max_tokens)):
        scores[rows] = weight * scores_at_end(scorer, [sequences[i] for i in rows]).float().cpu().numpy()
    collectives.total(torch.from_numpy(scores))
    return scores


def scores_at_end(scorer: Scorer, sequences: Sequence[np.ndarray]) -> Tensor:
    """Return raw scores [b] at the last token of each sequence, from one forward pass."""
    tokens = batching.pad([np.asarray(s, np.int64) for s in sequences], scorer.tokenizer.pad_id)
    rows, last = np.arange(len(sequences)), np.array([len(s) - 1 for s in sequences])
    ids, rows_b, last_b = (to_device(array, scorer.world.device) for array in (tokens, rows, last))
    return sharding.passed(scorer.body, lambda: scorer.scores(scorer.states(ids, rows_b, last_b)))


def answer_mask(rollouts: Sequence[Rollout], device: torch.device) -> Tensor:
    """Return a mask [B, A], True at the tokens of each answer."""
    return to_device(batching.pad([np.ones(len(r.ids), np.bool_) for r in rollouts], False), device)
