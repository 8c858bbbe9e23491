"""Sequences of supervised fine-tuning, rejection sampling and the pretraining term, and their loss.

The loss of a sequence counts from its start position on: an answer after its prompt, or a whole text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preferent.config.recipe import Recipe
from preferent.data import chat_refusals, datasets
from preferent.data.formats import row_reader
from preferent.data.types import Demonstration
from preferent.errors import DataError
from preferent.models import batching, collectives
from preferent.models.language_models import Policy
from preferent.models.world import to_device


@dataclass(frozen=True)
class Sequences:
    """Token ids and, for each sequence, the first position that counts in the loss (0: all but the first token)."""

    ids: list[np.ndarray]
    starts: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: np.ndarray) -> "Sequences":
        """Return the sequences at `rows`."""
        return Sequences([self.ids[i] for i in rows], [self.starts[i] for i in rows])


def read(recipe: Recipe, policy: Policy, files: Sequence[str], length: int) -> Sequences:
    """Read sequences from files: one per demonstration, or plain text packed to `length` tokens."""
    columns = recipe.data.named_columns
    kind, _ = row_reader.detect(files, columns)
    if kind not in ("demonstration", "text"):
        raise DataError(f"{files[0]}: holds {kind} rows; fine-tuning needs input_text and output_text, or text")
    reading = datasets.read(files, kind, "auto", columns)
    reading = chat_refusals.without(reading, lambda: [policy.tokenizer], recipe.instruction)
    records = row_reader.kept(reading, recipe.data.max_dropped)
    sequences = demonstrated(recipe, policy, records) if kind == "demonstration" else packed(policy, records, length)
    if len(sequences) < 2:
        raise DataError(f"{files[0]}: too little text: {len(sequences)} sequences; give at least 2")
    return sequences


def packed(policy: Policy, records: Sequence[Demonstration], length: int) -> Sequences:
    """Join texts and cut them into sequences of `length` tokens."""
    texts = [policy.tokenizer.encode_text(record.output_text) for record in records]
    ids = [row.astype(np.int32) for row in batching.pack(texts, policy.tokenizer.eos_id, length)]
    return Sequences(ids, [0] * len(ids))


def demonstrated(recipe: Recipe, policy: Policy, records: Sequence[Demonstration]) -> Sequences:
    """Encode prompts with their answers; only the answers count in the loss."""
    tokenizer, instruction = policy.tokenizer, recipe.instruction
    prompts = tokenizer.encode_prompts(
        [record.prompt for record in records], instruction, recipe.prompt_sequence_length
    )
    answers = [record.output_text for record in records]
    texts, ends = [prompt.text for prompt in prompts], [prompt.end for prompt in prompts]
    encoded = tokenizer.encode_answers(texts, answers, recipe.target_sequence_length, ends)
    ids = [np.array(prompt.ids + answer, np.int32) for prompt, (answer, _) in zip(prompts, encoded, strict=True)]
    return Sequences(ids, [len(prompt.ids) for prompt in prompts])


def targets(policy: Policy, sequences: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row [N] and column [N] of the state before each target token, and the token's id [N].

    A pad id inside a text is not a target, because it has no probability.
    """
    rows, columns, ids = [], [], []
    for number, (row, start) in enumerate(zip(sequences.ids, sequences.starts, strict=True)):
        positions = np.arange(max(1, start), len(row))
        positions = positions[row[positions] != policy.tokenizer.pad_id]
        rows.append(np.full(len(positions), number))
        columns.append(positions - 1)
        ids.append(row[positions].astype(np.int64))
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(ids)


def target_count(policy: Policy, sequences: Sequences) -> int:
    """Return the number of target tokens."""
    return len(targets(policy, sequences)[2])


def loss_sum(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> torch.Tensor:
    """Return the negative log-likelihood at a temperature, in nats, summed over the target tokens."""
    device, pad_id = policy.world.device, policy.tokenizer.pad_id
    padded = batching.pad([row.astype(np.int64) for row in sequences.ids], pad_id)
    tokens, rows, columns, ids = (to_device(a, device) for a in (padded, *targets(policy, sequences)))
    return -policy.log_probs(tokens, rows, columns, ids, temperature).sum()


def accumulate_gradients(policy: Policy, sequences: Sequences, max_tokens: int, temperature: float = 1.0) -> float:
    """Add the gradient of the mean negative log-likelihood of all target tokens; return that mean.

    Sequences are computed in micro-batches of at most `max_tokens` padded tokens.
    """
    parts = [sequences.part(rows) for rows in plan(sequences, max_tokens)]
    tokens = sum(target_count(policy, part) for part in parts)
    total = 0.0
    for part, weight in collectives.passes(parts):
        loss = weight * loss_sum(policy, part, temperature)
        (loss / tokens).backward()
        total += float(loss.detach())
    return collectives.sums({"loss": total})["loss"] / tokens


@torch.no_grad()
def mean_loss(policy: Policy, sequences: Sequences, max_tokens: int) -> float:
    """Return the mean negative log-likelihood of the target tokens, in nats."""
    parts = [sequences.part(rows) for rows in plan(sequences, max_tokens)]
    total = sum((weight * float(loss_sum(policy, part)) for part, weight in collectives.passes(parts)), 0.0)
    return collectives.sums({"loss": total})["loss"] / sum(target_count(policy, part) for part in parts)


def plan(sequences: Sequences, max_tokens: int) -> list[np.ndarray]:
    """Cut the sequences into micro-batches of at most `max_tokens` padded tokens."""
    return batching.plan([len(ids) for ids in sequences.ids], max_tokens)
