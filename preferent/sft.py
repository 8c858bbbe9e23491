"""Supervised fine-tuning: imitate demonstrations (loss on answers), or read plain text (packed)."""

import math
import time
from pathlib import Path

import numpy as np

from preferent import checkpoint, dataset, draw, export, graph, hub, imitation, model, progress, run
from preferent.error import DivergedError
from preferent.imitation import Sequences
from preferent.metric import Metrics, tensorboard
from preferent.model import Policy
from preferent.optimizer import Optimizer, Schedule, State
from preferent.recipe import Recipe, pick
from preferent.recipe.section import Sft, paths
from preferent.world import World

VALIDATION_SHARE = 0.02
VALIDATION_ROWS = 512


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
        sequences = imitation.read(recipe, policy, paths(recipe.sft.dataset), recipe.sft.sequence_length)
        part = draw.split(recipe.seed, "sft", [str(i) for i in range(len(sequences))], [VALIDATION_SHARE])
        held_out = sequences.part(np.flatnonzero(part == 0)[:VALIDATION_ROWS])
        training = sequences.part(np.flatnonzero(part == 1))
        epochs = progress.epochs("sft.train_steps", recipe.sft.train_steps, recipe.sft.batch_size, len(training))
        stage.place(**world.facts())
        stage.record(sequences=len(training), validation=len(held_out), epochs=round(epochs, 2), lora_dim=rank)
        train(recipe.sft, recipe, stage, policy, training, held_out)


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
                values |= {"validation/loss": imitation.mean_loss(policy, held_out, sft.micro_batch_tokens)}
            metrics.append(state.step, values)
            if state.step % recipe.checkpoint_every == 0 or state.step == sft.train_steps:
                save(recipe, state, out)
            bar.update(state.step, loss=values["loss"])
    finish(stage, state, policy)


def learn(sft: Sft, state: State, policy: Policy, sequences: Sequences) -> dict[str, float]:
    """One optimizer step; the loss is the sum over the batch's target tokens divided by their number."""
    loss = imitation.gather(policy, sequences, sft.micro_batch_tokens)
    if not math.isfinite(loss):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower sft.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    return {"loss": loss, "learning_rate": rate, "gradient_norm": norm}


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
