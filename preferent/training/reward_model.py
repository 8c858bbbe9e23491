"""Train a reward model on preferences: the Bradley-Terry loss on scores read at the last answer token.

A thumb is a pair whose other side is an offset, which is learned beside the model and forgotten after it.

The model is a causal language model with a new head (Stiennon et al. 2020); dropout is off. The checkpoint with the
lowest validation loss is kept, because a reward model overfits within a few epochs. Its scores are raw: the stages that
use them normalise them.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from preferent import files, randomness
from preferent.config import defaults, model_reference
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.data.counts import strengths, without_ties
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Preference, Thumb
from preferent.errors import DataError, DivergedError
from preferent.evaluation import reward_quality
from preferent.evaluation.inference import initial_answers
from preferent.evaluation.reward_quality import Scored
from preferent.models import collectives, language_models, saving
from preferent.models.language_models import Scorer
from preferent.models.world import World, to_device
from preferent.rollouts import measurement
from preferent.runs import progress, stages
from preferent.runs.directory import StageDirectory
from preferent.training import loop, losses
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.preference_pairs import PreferencePairs

OFFSET = "offset"
"""The name of the parameter that thumbs are compared with."""


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Run stage `reward`: model=, train=, validation=, test= -> out/model, out/quality.json, out/mistakes.jsonl."""
    world = World.of(recipe, learns=True)
    source = model_reference.resolve(str(inputs["model"]))
    recipe, by_default = defaults.resolve(recipe, reward=model_reference.parameters(str(source)))
    language_models.check_length(source, recipe)
    with stages.locked(out):
        stage = loop.opened("reward", out, recipe, inputs | {"model": source}, by_default)
        if stage.done:
            return
        recipe = world.settled(recipe, stage)
        feedback = {name: datasets.load_feedback(inputs[name]) for name in ("train", "validation", "test")}
        rows = {name: [row for row in each if isinstance(row, Preference)] for name, each in feedback.items()}
        rank = defaults.decided(recipe.reward.lora_dim)
        policy = language_models.load_policy(source, world) if rank and initial_answers.writes(recipe, source) else None
        sample = partial(initial_answers.sampled, recipe, world, source, without_ties(rows["validation"]), policy)
        answers = initial_answers.sample_once(StageDirectory(out).initial_answers, sample)
        scorer = language_models.load_scorer(
            source, world, rank, recipe.seed, checkpointing=recipe.gradient_checkpointing, on=policy
        )
        if recipe.reward.margin and not strengths(rows["train"]).any():
            raise DataError(
                f"{inputs['train']}: reward.margin is set, but no pair has a strength; give strengths, or set no margin"
            )
        parts = {
            name: encoded(recipe, each, scorer.tokenizer, training=name == "train") for name, each in feedback.items()
        }
        if not parts["train"].sides.any(1).all():
            raise DataError(f"{inputs['train']}: holds no decided preference to train on, and no thumbs of both kinds")
        steps = recipe.reward_model_train_steps
        epochs = progress.epochs("reward_model_train_steps", steps, recipe.reward.batch_size, len(parts["train"]))
        stage.place(**world.facts())
        stage.record(counts={name: part.counts for name, part in parts.items()}, epochs=round(epochs, 2), lora_dim=rank)
        state = train(recipe, stage, scorer, parts)
        held_out = {
            name: scored(recipe, scorer, encoded(recipe, pairs, scorer.tokenizer, training=False), pairs)
            for name in ("validation", "test")
            if (pairs := without_ties(rows[name]))
        }
        figures = reward_quality.report(held_out, rows["train"]) | thumbs_quality(recipe, state, scorer, feedback)
        figures |= initial_answers.compare_samples(recipe, scorer, held_out.get("validation"), answers)
        finish(stage, state, scorer, held_out, figures)


def encoded(
    recipe: Recipe, feedback: Sequence[Preference | Thumb], tokenizer: Tokenizer, training: bool
) -> PreferencePairs:
    """Encode the pairs that a reward model is trained or measured on, with the recipe's smoothing and margins."""
    section = recipe.reward
    soft = training and section.ties == "soft"
    return PreferencePairs.of(feedback, tokenizer, recipe, soft, section.label_smoothing, section.margin)


def train(recipe: Recipe, stage: stages.Stage, scorer: Scorer, parts: dict[str, PreferencePairs]) -> TrainingState:
    """Train on batches of pairs; validate and save at intervals; restore the best checkpoint into the scorer."""
    out, pairs = stage.folder, parts["train"]
    state = TrainingState(0, optimizer(recipe, scorer, has_thumbs=not pairs.sides.all()))
    log, total = loop.resume(state, out), recipe.reward_model_train_steps
    with progress.bar(stage.folder.name, total, state.step) as bar:
        while loop.unfinished(state, total):
            loop.check_stop(recipe, state, out)
            with log.timed("learn"):
                rows = randomness.rows(recipe.seed, "data", state.step, recipe.reward.batch_size, len(pairs))
                values = learn(recipe, state, scorer, pairs, rows)
            state.step += 1
            if loop.due(state, recipe.reward.validation_every, total):
                values |= validate(recipe, state, scorer, parts["validation"], out)
            log.append(state.step, values)
            if loop.due(state, recipe.checkpoint_every, total):
                loop.save(recipe, state, out)
            bar.update(state.step, rank_loss=values["rank_loss"], accuracy=values["accuracy"])
    state.scalars["kept_step"] = loop.restore_best(state, state.optimizer, out)
    return state


def optimizer(recipe: Recipe, scorer: Scorer, has_thumbs: bool = False) -> Optimizer:
    """Return AdamW with the recipe's learning rate; an offset is learned beside the model if there are thumbs."""
    reward = recipe.reward
    rate = defaults.decided(reward.learning_rate) * recipe.reward_model_learning_rate_multiplier
    schedule = Schedule(rate, reward.warmup_steps, reward.schedule, recipe.reward_model_train_steps)
    offset = {OFFSET: Parameter(torch.zeros((), device=scorer.world.device))} if has_thumbs else {}
    parameters = scorer.trainable() | offset
    return Optimizer(parameters, schedule, reward.max_grad_norm, reward.weight_decay, recipe.optimizer)


def learn(
    recipe: Recipe, state: TrainingState, scorer: Scorer, pairs: PreferencePairs, rows: np.ndarray
) -> dict[str, float]:
    """Make one optimizer step on the mean loss of the pairs at `rows`."""
    totals: dict[str, float] = {}
    for part, weight in collectives.passes(pairs.plan(rows, defaults.decided(recipe.reward.micro_batch_tokens))):
        chosen, rejected = scores(scorer, pairs, part, state.optimizer.parameters.get(OFFSET))
        columns = (pairs.wrong, pairs.margins, pairs.weights)
        loss = losses.pair_loss(chosen, rejected, *(torch.from_numpy(each[part]).to(chosen) for each in columns))
        both = torch.from_numpy(pairs.sides[:, part].all(0)).to(chosen)
        off_center = losses.centering(both * chosen, both * rejected)
        (weight * (loss + recipe.reward.centering * off_center) / len(rows)).backward()
        right = (chosen > rejected).float().sum() + 0.5 * (chosen == rejected).float().sum()
        margin = (chosen - rejected).sum()
        logged = {"rank_loss": loss, "accuracy": right, "margin": margin, "centering": off_center}
        totals = {name: totals.get(name, 0.0) + weight * float(number.detach()) for name, number in logged.items()}
    sums = collectives.sums(totals)
    if not math.isfinite(sums["rank_loss"]):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower reward.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    means = {name: value / len(rows) for name, value in sums.items()}
    return means | {"learning_rate": rate, "gradient_norm": norm}


def scores(
    scorer: Scorer, pairs: PreferencePairs, rows: np.ndarray, offset: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores [b] of chosen and of rejected answers at their last tokens, from one forward pass; the offset in
    place of an answer that a thumb does not have."""
    sides = pairs.sides[:, rows]
    both = measurement.scores_at_end(scorer, pairs.answers(rows))
    if offset is not None:
        both = offset.expand(sides.shape).masked_scatter(to_device(sides, both.device), both).flatten()
    return both[: len(rows)], both[len(rows) :]


def validate(
    recipe: Recipe, state: TrainingState, scorer: Scorer, pairs: PreferencePairs, out: Path
) -> dict[str, float]:
    """Return metrics on validation pairs; save the best model so far, and record a reason to stop."""
    if not len(pairs):
        return {}
    figures = reward_quality.figures(scored(recipe, scorer, pairs, offset=offset_of(state)))
    loop.keep_best(state, state.optimizer, out, "loss", figures["loss"])
    loop.stop_early(state, recipe.reward.early_stopping_patience, "loss")
    return {f"validation/{name}": figures[name] for name in ("loss", "accuracy", "ece", "length_correlation")}


def offset_of(state: TrainingState) -> float:
    """Return the offset that thumbs are compared with; 0 where there are none."""
    return float(state.optimizer.masters[OFFSET].detach()) if OFFSET in state.optimizer.parameters else 0.0


def measured(
    recipe: Recipe, scorer: Scorer, pairs: PreferencePairs, offset: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return raw scores, float64 [n], of the chosen and of the rejected answers; the offset in place of none."""
    tokens = defaults.decided(recipe.reward.micro_batch_tokens)
    both = np.full(pairs.sides.shape, offset)
    both[pairs.sides] = measurement.last_scores(scorer, pairs.answers(np.arange(len(pairs))), tokens)
    return both[0], both[1]


def scored(
    recipe: Recipe, scorer: Scorer, pairs: PreferencePairs, preferences: Sequence[Preference] = (), offset: float = 0.0
) -> Scored:
    """Score the pairs, which were encoded from `preferences`."""
    return Scored(preferences, *measured(recipe, scorer, pairs, offset), pairs.chosen_tokens, pairs.rejected_tokens)


def thumbs_quality(
    recipe: Recipe, state: TrainingState, scorer: Scorer, feedback: dict[str, list[Preference | Thumb]]
) -> dict[str, Any]:
    """Return how far held-out thumbs agree with the model, and the offset; nothing if none was learned from."""
    figures: dict[str, Any] = {"offset": offset_of(state)} if OFFSET in state.optimizer.parameters else {}
    for name in ("validation", "test"):
        thumbs = [row for row in feedback[name] if isinstance(row, Thumb)]
        if figures and thumbs:
            rows = encoded(recipe, thumbs, scorer.tokenizer, training=False)
            figures[name] = reward_quality.figures(scored(recipe, scorer, rows, offset=figures["offset"]))
    return {"thumbs": figures} if figures else {}


def finish(
    stage: stages.Stage, state: TrainingState, scorer: Scorer, held_out: dict[str, Scored], figures: dict[str, Any]
) -> None:
    """Write the model, its quality and its worst mistakes, and mark the stage done."""
    out, step = StageDirectory(stage.folder), state.scalars["kept_step"]
    worst = reward_quality.mistakes(held_out[figures["reported"]], out.folder.parent) if held_out else []
    files.write_jsonl(out.mistakes, worst)
    files.write_json(out.quality, figures | {"best_step": step})
    stage.record(best_step=step, stopped=state.scalars.get("stopped"), steps=state.step)
    test = figures.get("test")
    accuracy = f", accuracy {test['accuracy']:.3f} on {test['count']} pairs" if test else ""
    origin = f"From `{scorer.source.name}`, step {step}{accuracy}. Scores are raw."
    card = f"# Reward model trained by preferent\n\n{origin}\n"
    masters = {name: master for name, master in state.optimizer.masters.items() if name != OFFSET}
    saving.save(scorer, out.model, masters, card)
    stage.finish([out.model.name, out.metrics.name, out.quality.name, out.mistakes.name])
