"""Supervised fine-tuning on demonstrations (loss on answers) or on plain text (packed)."""

import math
from pathlib import Path

import numpy as np

from preferent import randomness
from preferent.config import defaults, model_reference
from preferent.config.recipe import Recipe
from preferent.config.sections import SftSection, paths
from preferent.data.formats import row_sources
from preferent.errors import DivergedError
from preferent.models import language_models, saving
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.runs import progress, stages
from preferent.runs.directory import StageDirectory
from preferent.training import loop
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.sequences import Sequences, accumulate_gradients, mean_loss, read

VALIDATION_SHARE = 0.02
VALIDATION_ROWS = 512


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Run stage `sft`: model= and the files of sft.dataset -> out/model (a LoRA adapter is merged into it)."""
    world = World.of(recipe, learns=True)
    source = model_reference.resolve(str(inputs["model"]))
    recipe, by_default = defaults.resolve(recipe, policy=model_reference.parameters(str(source)))
    assert recipe.sft is not None, "the stage graph has sft only if the recipe has it"
    with stages.locked(out):
        names = row_sources.local_files(paths(recipe.sft.dataset))
        files = {f"dataset {i}": Path(name) for i, name in enumerate(names)}
        stage = loop.opened("sft", out, recipe, {"model": source} | files, by_default)
        if stage.done:
            return
        recipe = world.settled(recipe, stage)
        assert recipe.sft is not None
        rank = defaults.decided(recipe.sft.lora_dim)
        policy = language_models.load_policy(source, world, rank, recipe.gradient_checkpointing)
        sequences = read(recipe, policy, paths(recipe.sft.dataset), defaults.decided(recipe.sft.sequence_length))
        part = randomness.split(recipe.seed, "sft", [str(i) for i in range(len(sequences))], [VALIDATION_SHARE])
        held_out = sequences.part(np.flatnonzero(part == 0)[:VALIDATION_ROWS])
        training = sequences.part(np.flatnonzero(part == 1))
        epochs = progress.epochs("sft.train_steps", recipe.sft.train_steps, recipe.sft.batch_size, len(training))
        stage.place(**world.facts())
        stage.record(sequences=len(training), validation=len(held_out), epochs=round(epochs, 2), lora_dim=rank)
        train(recipe.sft, recipe, stage, policy, training, held_out)


def train(
    sft: SftSection, recipe: Recipe, stage: stages.Stage, policy: Policy, sequences: Sequences, held_out: Sequences
) -> None:
    """Train on batches of sequences; validate and save at intervals; write the model."""
    out = stage.folder
    schedule = Schedule(defaults.decided(sft.learning_rate), sft.warmup_steps, sft.schedule, sft.train_steps)
    state = TrainingState(0, Optimizer(policy.trainable(), schedule, sft.max_grad_norm, kind=recipe.optimizer))
    log, total = loop.resume(state, out), sft.train_steps
    with progress.bar("sft", total, state.step) as bar:
        while loop.unfinished(state, total):
            loop.check_stop(recipe, state, out)
            with log.timed("learn"):
                rows = randomness.rows(recipe.seed, "data", state.step, sft.batch_size, len(sequences))
                values = learn(sft, state, policy, sequences.part(rows))
            state.step += 1
            if loop.due(state, sft.validation_every, total):
                values |= {"validation/loss": mean_loss(policy, held_out, defaults.decided(sft.micro_batch_tokens))}
            log.append(state.step, values)
            if loop.due(state, recipe.checkpoint_every, total):
                loop.save(recipe, state, out)
            bar.update(state.step, loss=values["loss"])
    finish(stage, state, policy)


def learn(sft: SftSection, state: TrainingState, policy: Policy, sequences: Sequences) -> dict[str, float]:
    """Make one optimizer step on the mean loss of the batch's target tokens."""
    loss = accumulate_gradients(policy, sequences, defaults.decided(sft.micro_batch_tokens))
    if not math.isfinite(loss):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower sft.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    return {"loss": loss, "learning_rate": rate, "gradient_norm": norm}


def finish(stage: stages.Stage, state: TrainingState, policy: Policy) -> None:
    """Write the model, merged if it was an adapter, and mark the stage done."""
    card = f"# Fine-tuned by preferent\n\nSupervised fine-tuning of `{policy.source.name}`, {state.step} steps.\n"
    model = StageDirectory(stage.folder).model
    if policy.peft is None:
        saving.save(policy, model, state.optimizer.masters, card)
    else:
        saving.save_merged(policy, model, state.optimizer.masters, card)
    stage.record(steps=state.step)
    stage.finish([model.name, StageDirectory(stage.folder).metrics.name])
