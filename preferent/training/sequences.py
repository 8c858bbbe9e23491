"""Imitation of texts: what supervised fine-tuning, rejection sampling and a pretraining term learn, and its loss.

A sequence is token ids of which those from a start on are imitated: an answer after its prompt, or all of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.data.formats import row_reader
from preferent.data.types import Demonstration
from preferent.errors import DataError
from preferent.models import batching, vocabulary
from preferent.models.language_models import Policy


@dataclass(frozen=True)
class Sequences:
    """Token ids and, for each, from which position on the loss counts (0: everything that has a token before it)."""

    ids: list[np.ndarray]
    starts: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: np.ndarray) -> "Sequences":
        return Sequences([self.ids[i] for i in rows], [self.starts[i] for i in rows])


def read(recipe: Recipe, policy: Policy, files: Sequence[str], length: int) -> Sequences:
    """What files hold to imitate: demonstrations one by one, or plain text packed to `length` tokens."""
    kind, _ = row_reader.detect(files)
    if kind not in ("demonstration", "text"):
        raise DataError(f"{files[0]}: holds {kind} rows; imitation wants input_text and output_text, or text")
    records = row_reader.kept(datasets.read(files, kind), recipe.data.max_dropped)
    found = answered(recipe, policy, records) if kind == "demonstration" else packed(policy, records, length)
    if len(found) < 2:
        raise DataError(f"{files[0]}: too little text: {len(found)} sequences")
    return found


def packed(policy: Policy, records: Sequence[Demonstration], length: int) -> Sequences:
    texts = [policy.tokenizer.encode_text(record.output_text) for record in records]
    ids = [row.astype(np.int32) for row in batching.pack(texts, policy.tokenizer.eos_id, length)]
    return Sequences(ids, [0] * len(ids))


def answered(recipe: Recipe, policy: Policy, records: Sequence[Demonstration]) -> Sequences:
    prompts = [record.prompt for record in records]
    tokenizer, instruction = policy.tokenizer, recipe.instruction
    asked = tokenizer.encode_prompts(prompts, instruction, recipe.prompt_sequence_length)
    answers = [record.output_text for record in records]
    encoded = tokenizer.encode_answers([prompt.text for prompt in asked], answers, recipe.target_sequence_length)
    ids = [np.array(prompt.ids + answer, np.int32) for prompt, (answer, _) in zip(asked, encoded, strict=True)]
    return Sequences(ids, [len(prompt.ids) for prompt in asked])


def targets(policy: Policy, sequences: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the loss counts: line [N] and column [N] of the state before each target token, and its id [N].

    A pad id inside a text has no probability, and is no target.
    """
    lines, columns, ids = [], [], []
    for line, (row, start) in enumerate(zip(sequences.ids, sequences.starts, strict=True)):
        places = np.arange(max(1, start), len(row))
        places = places[row[places] != policy.tokenizer.pad_id]
        lines.append(np.full(len(places), line))
        columns.append(places - 1)
        ids.append(row[places].astype(np.int64))
    return np.concatenate(lines), np.concatenate(columns), np.concatenate(ids)


def target_count(policy: Policy, sequences: Sequences) -> int:
    return len(targets(policy, sequences)[2])


def loss_sum(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> torch.Tensor:
    """Summed negative log-likelihood of the target tokens at a temperature, in nats."""
    device, pad_id = policy.world.device, policy.tokenizer.pad_id
    tokens = torch.from_numpy(batching.pad([row.astype(np.int64) for row in sequences.ids], pad_id)).to(device)
    lines, columns, ids = (torch.from_numpy(a).to(device) for a in targets(policy, sequences))
    hidden = policy.hidden(tokens)[lines, columns]
    return -vocabulary.chunked_log_probs(hidden, ids, policy.head(temperature), policy.vocab_size).sum()


def gather(policy: Policy, sequences: Sequences, max_tokens: int, temperature: float = 1.0) -> float:
    """Add the gradient of the mean negative log-likelihood of all target tokens, a micro-batch of at most `max_tokens`
    padded tokens at a time; returns that mean."""
    parts = [sequences.part(rows) for rows in plan(sequences, max_tokens)]
    tokens = sum(target_count(policy, part) for part in parts)
    total = 0.0
    for part in parts:
        loss = loss_sum(policy, part, temperature)
        (loss / tokens).backward()
        total += float(loss.detach())
    return total / tokens


@torch.no_grad()
def mean_loss(policy: Policy, sequences: Sequences, max_tokens: int) -> float:
    """Mean negative log-likelihood of the target tokens in nats."""
    parts = [sequences.part(rows) for rows in plan(sequences, max_tokens)]
    return sum(float(loss_sum(policy, part)) for part in parts) / sum(target_count(policy, part) for part in parts)


def plan(sequences: Sequences, max_tokens: int) -> list[np.ndarray]:
    return batching.plan([len(ids) for ids in sequences.ids], max_tokens)
