"""Supervised fine-tuning: imitate demonstrations (loss on answers), or read plain text (packed)."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferent import batch, checkpoint, dataset, draw, export, graph, hub, model, objective, progress, run
from preferent.error import DataError, DivergedError
from preferent.metric import Metrics, tensorboard
from preferent.model import Policy
from preferent.optimizer import Optimizer, Schedule
from preferent.recipe import Recipe, pick
from preferent.recipe.section import Sft, paths
from preferent.record import Demonstration
from preferent.world import World

VALIDATION_SHARE = 0.02
VALIDATION_ROWS = 512


@dataclass(frozen=True)
class Sequences:
    """Token ids and, for each, from which position on the loss counts (0: everything that has a token before it)."""

    ids: list[np.ndarray]
    starts: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: np.ndarray) -> "Sequences":
        return Sequences([self.ids[i] for i in rows], [self.starts[i] for i in rows])


@dataclass
class State:
    """How far the run is, the optimizer, and the few numbers that a checkpoint carries besides."""

    step: int
    optimizer: Optimizer
    scalars: dict[str, Any] = field(default_factory=dict)


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Stage `sft`: model= and the files of sft.dataset -> out/model (a LoRA adapter is merged into it)."""
    assert recipe.sft is not None, "the graph runs sft only where the recipe has it"
    world = World.of(recipe)
    source = hub.resolve(str(inputs["model"]))
    with run.locked(out):
        named = dataset.expand(paths(recipe.sft.dataset))
        files = {f"dataset {i}": Path(name) for i, name in enumerate(named) if not name.startswith("hf://")}
        fields = pick(recipe, *graph.FIELDS["sft"])
        stage = run.stage("sft", out, fields, {"model": source} | files, graph.EXTENDABLE["sft"])
        if stage.done:
            return
        rank = model.lora_dim(recipe.sft.lora_dim, source, 4, world)
        policy = model.load_policy(source, world, rank, recipe.gradient_checkpointing)
        sequences = read(recipe, policy)
        part = draw.split(recipe.seed, "sft", [str(i) for i in range(len(sequences))], [VALIDATION_SHARE])
        held_out = sequences.part(np.flatnonzero(part == 0)[:VALIDATION_ROWS])
        training = sequences.part(np.flatnonzero(part == 1))
        epochs = progress.epochs("sft.train_steps", recipe.sft.train_steps, recipe.sft.batch_size, len(training))
        stage.place(**world.facts())
        stage.record(sequences=len(training), validation=len(held_out), epochs=round(epochs, 2), lora_dim=rank)
        train(recipe.sft, recipe, stage, policy, training, held_out)


def read(recipe: Recipe, policy: Policy) -> Sequences:
    """The training sequences: demonstrations one by one, or plain text packed to full length."""
    assert recipe.sft is not None
    files = paths(recipe.sft.dataset)
    kind, _ = dataset.detect(files)
    if kind not in ("demonstration", "text"):
        raise DataError(f"{files[0]}: holds {kind} rows; sft wants input_text and output_text, or text")
    records = dataset.kept(dataset.read(files, kind), recipe.data.max_dropped)
    found = packed(recipe, policy, records) if kind == "text" else answered(recipe, policy, records)
    if len(found) < 2:
        raise DataError(f"{files[0]}: too little text: {len(found)} sequences")
    return found


def packed(recipe: Recipe, policy: Policy, records: Sequence[Demonstration]) -> Sequences:
    assert recipe.sft is not None
    length = recipe.sft.sequence_length or recipe.prompt_sequence_length + recipe.target_sequence_length
    texts = [policy.tokenizer.encode_text(record.output_text) for record in records]
    ids = [row.astype(np.int32) for row in batch.pack(texts, policy.tokenizer.eos_id, length)]
    return Sequences(ids, [0] * len(ids))


def answered(recipe: Recipe, policy: Policy, records: Sequence[Demonstration]) -> Sequences:
    prompts = [record.prompt for record in records]
    tokenizer, instruction = policy.tokenizer, recipe.instruction
    asked = tokenizer.encode_prompts(prompts, instruction, recipe.prompt_sequence_length)
    answers = [record.output_text for record in records]
    said = tokenizer.encode_answers(prompts, instruction, answers, recipe.target_sequence_length)
    ids = [np.array(a[0] + b[0], np.int32) for a, b in zip(asked, said, strict=True)]
    return Sequences(ids, [len(a[0]) for a in asked])


def train(
    sft: Sft, recipe: Recipe, stage: run.Stage, policy: Policy, sequences: Sequences, held_out: Sequences
) -> None:
    """The loop: a batch of sequences, a step, now and then a validation."""
    out = stage.folder
    rate = sft.learning_rate or (1e-4 if policy.peft is not None else 1e-5)
    schedule = Schedule(rate, sft.warmup_steps, sft.schedule, sft.train_steps)
    state = State(0, Optimizer(policy.trainable(), schedule, sft.max_grad_norm))
    if saved := checkpoint.resume(out):
        state.step, state.scalars = saved.step, dict(saved.scalars)
        state.optimizer.restore(saved.tensors)
    metrics = Metrics(out / "metrics.jsonl")
    metrics.rewind(state.step + 1 if saved else 0)
    with progress.bar("sft", sft.train_steps, state.step) as bar:
        while state.step < sft.train_steps:
            run.stop().check(lambda: save(recipe, state, out))
            started = time.perf_counter()
            rows = draw.rows(recipe.seed, "data", state.step, sft.batch_size, len(sequences))
            values = learn(sft, state, policy, sequences.part(rows))
            state.step += 1
            Metrics(out / "timings.jsonl").append(state.step, {"learn": round(time.perf_counter() - started, 4)})
            if state.step % sft.validation_every == 0 or state.step == sft.train_steps:
                values |= {"validation/loss": validation_loss(sft, policy, held_out)}
            metrics.append(state.step, values)
            if state.step % recipe.checkpoint_every == 0 or state.step == sft.train_steps:
                save(recipe, state, out)
            bar.update(state.step, loss=values["loss"])
    finish(stage, state, policy)


def learn(sft: Sft, state: State, policy: Policy, sequences: Sequences) -> dict[str, float]:
    """One optimizer step; the loss is the sum over the batch's target tokens divided by their number."""
    parts = plan(sft, sequences)
    tokens = sum(target_count(policy, sequences.part(part)) for part in parts)
    total = 0.0
    for part in parts:
        loss = loss_sum(policy, sequences.part(part))
        (loss / tokens).backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower sft.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    return {"loss": total / tokens, "learning_rate": rate, "gradient_norm": norm}


def plan(sft: Sft, sequences: Sequences) -> list[np.ndarray]:
    return batch.plan([len(ids) for ids in sequences.ids], sft.micro_batch_tokens)


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


def loss_sum(policy: Policy, sequences: Sequences) -> torch.Tensor:
    """Summed negative log-likelihood of the target tokens in nats."""
    device, pad_id = policy.world.device, policy.tokenizer.pad_id
    tokens = torch.from_numpy(batch.pad([row.astype(np.int64) for row in sequences.ids], pad_id)).to(device)
    lines, columns, ids = (torch.from_numpy(a).to(device) for a in targets(policy, sequences))
    hidden = policy.hidden(tokens)[lines, columns]
    return -objective.chunked_log_probs(hidden, ids, policy.head(1.0), policy.vocab_size).sum()


@torch.no_grad()
def validation_loss(sft: Sft, policy: Policy, sequences: Sequences) -> float:
    """Mean negative log-likelihood of held-out target tokens in nats."""
    parts = [sequences.part(part) for part in plan(sft, sequences)]
    return sum(float(loss_sum(policy, part)) for part in parts) / sum(target_count(policy, part) for part in parts)


def save(recipe: Recipe, state: State, out: Path) -> None:
    checkpoint.save(out / "checkpoints", state.step, state.optimizer.tensors(), state.scalars, recipe.keep_checkpoints)
    tensorboard(out / "metrics.jsonl", out / "tensorboard")


def finish(stage: run.Stage, state: State, policy: Policy) -> None:
    """Write the model, merged where it was an adapter, and mark the stage done."""
    card = f"# Fine-tuned by preferent\n\nSupervised fine-tuning of `{policy.source.name}`, {state.step} steps.\n"
    if policy.peft is None:
        export.save(policy, stage.folder / "model", state.optimizer.masters, card)
    else:
        export.save_merged(policy, stage.folder / "model", card)
    stage.record(steps=state.step)
    stage.finish(["model"])
