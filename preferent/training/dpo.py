"""Tune the policy on preferences directly, without a reward model and without sampling: DPO, IPO, SimPO and KTO.

The policy's log-ratio to the reference is its reward (Rafailov et al. 2023), at `sampler.temperature`: the policy
that is sampled is the one that the KL penalty constrains. The reference's log-probabilities are computed once, with the
policy before its first step, so no second model is loaded. A resumed run computes them again.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from preferent import randomness
from preferent.config import defaults, model_reference
from preferent.config.recipe import Recipe, tuned_by
from preferent.data import datasets
from preferent.data.counts import kto_weights
from preferent.errors import DataError, DivergedError
from preferent.models import batching, collectives, language_models
from preferent.models.language_models import Policy
from preferent.models.world import World, to_device
from preferent.runs import progress, stages
from preferent.training import loop
from preferent.training.losses import dpo_loss, ipo_loss, kto_anchor, kto_loss, reference_free_loss
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.preference_pairs import PreferencePairs


@dataclass(frozen=True)
class AnsweredPairs:
    """Prompts with their answers as token ids, and the number of tokens of each answer.

    `reference` [n] are the log-probabilities of the answers under the reference (zeros if the loss has none).
    """

    ids: list[np.ndarray]
    tokens: np.ndarray
    reference: Tensor


@dataclass(frozen=True)
class PairSubset:
    """The pairs of one part of the data, both sides [n].

    With method kto `mismatched` has each prompt with an answer to another prompt.
    """

    pairs: PreferencePairs
    chosen: AnsweredPairs
    rejected: AnsweredPairs
    mismatched: AnsweredPairs | None

    def __len__(self) -> int:
        return len(self.pairs)

    def count(self, rows: np.ndarray) -> float:
        """Return half the number of answers in rows: a pair counts 1, a thumb 1/2."""
        return float(self.pairs.sides[:, rows].sum()) / 2


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Run stage `dpo`, of methods dpo and kto: model=, train=, validation=, test= -> out/model."""
    world = World.of(recipe, learns=True)
    source = model_reference.resolve(str(inputs["model"]))
    recipe, by_default = defaults.resolve(recipe, policy=model_reference.parameters(str(source)))
    language_models.check_length(source, recipe)
    with stages.locked(out):
        stage = loop.opened("dpo", out, recipe, inputs | {"model": source}, by_default)
        if stage.done:
            return
        recipe = world.settled(recipe, stage)
        rank = defaults.decided(recipe.dpo.lora_dim)
        policy = language_models.load_policy(source, world, rank, recipe.gradient_checkpointing)
        names = ("train", "validation", "test")
        load = datasets.load_feedback if recipe.method == "kto" else datasets.load_preferences
        pairs = {name: PreferencePairs.of(load(inputs[name]), policy.tokenizer, recipe) for name in names}
        if not pairs["train"].sides.any(1).all():
            raise DataError(f"{inputs['train']}: holds no decided preference to train on, and no thumbs of both kinds")
        epochs = progress.epochs("dpo.train_steps", recipe.dpo.train_steps, recipe.dpo.batch_size, len(pairs["train"]))
        recipe = with_weights(recipe, pairs["train"], stage)
        stage.place(**world.facts())
        counts = {name: rows.counts for name, rows in pairs.items()}
        stage.record(counts=counts, epochs=round(epochs, 2), lora_dim=rank)
        parts = {name: with_reference(recipe, policy, pairs[name], inputs[name]) for name in names}
        train(recipe, stage, policy, parts)


def with_weights(recipe: Recipe, pairs: PreferencePairs, stage: stages.Stage) -> Recipe:
    """Return the recipe with KTO's weights times those that balance the two kinds of answers; record and print them."""
    good, bad = (int(count) for count in pairs.sides.sum(1))
    names, weights = ("desirable_weight", "undesirable_weight"), kto_weights(good, bad)
    if recipe.method != "kto" or weights == (1.0, 1.0):
        return recipe
    balanced = {name: getattr(recipe.dpo, name) * weight for name, weight in zip(names, weights, strict=True)}
    stage.record(balanced=balanced)
    shown = " and ".join(f"{weight:.3g}" for weight in balanced.values())
    print(f"{stage.folder}: {good} desirable and {bad} undesirable answers weigh {shown}", file=sys.stderr)
    return recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update=balanced)})


def with_reference(recipe: Recipe, policy: Policy, pairs: PreferencePairs, source: Path) -> PairSubset:
    """Return the pairs with the reference's log-probabilities; the policy must not have been trained yet."""

    def answered(ids: list[np.ndarray], tokens: np.ndarray) -> AnsweredPairs:
        if defaults.reference(recipe, "dpo") == "none":
            return AnsweredPairs(ids, tokens, torch.zeros(len(ids)))
        return AnsweredPairs(ids, tokens, measure_log_probs(recipe, policy, ids, tokens))

    chosen, rejected = answered(pairs.chosen, pairs.chosen_tokens), answered(pairs.rejected, pairs.rejected_tokens)
    other = answered(*mismatched_answers(pairs, recipe.seed, source)) if recipe.method == "kto" and len(pairs) else None
    return PairSubset(pairs, chosen, rejected, other)


def mismatched_answers(pairs: PreferencePairs, seed: int, source: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Return each pair's prompt followed by an answer to another prompt, and the number of tokens of that answer.

    The answer is drawn from the chosen and rejected answers of all pairs with another prompt. It is drawn once per run,
    so the reference's log-probabilities are computed once.
    """
    prompts = [ids[: len(ids) - end] for ids, end in zip(pairs.chosen, pairs.chosen_tokens, strict=True)]
    numbers: dict[bytes, int] = {}
    group = np.array([numbers.setdefault(prompt.tobytes(), len(numbers)) for prompt in prompts])
    if len(numbers) == 1:
        raise DataError(
            f"{source}: all pairs have the same prompt, but method: kto needs answers to other prompts to estimate the "
            "KL; give preferences on more prompts, or use method: dpo"
        )
    counts, order = np.bincount(group), np.argsort(group, kind="stable")
    place, half = randomness.uniforms(seed, "mismatch", np.arange(len(pairs)), np.array([[0], [1]]))
    skipped = (place * (len(pairs) - counts[group])).astype(np.int64)
    others = order[(counts.cumsum()[group] + skipped) % len(pairs)]
    sides = (pairs.chosen, pairs.chosen_tokens), (pairs.rejected, pairs.rejected_tokens)
    rejected = np.where(pairs.sides[:, others].all(0), half >= 0.5, pairs.sides[1, others])
    drawn = [(sides[int(side)], other) for side, other in zip(rejected, others, strict=True)]
    answers = [ids[other][-tokens[other] :] for (ids, tokens), other in drawn]
    joined = [np.concatenate(both) for both in zip(prompts, answers, strict=True)]
    return joined, np.array([len(answer) for answer in answers])


def answer_log_probs(recipe: Recipe, policy: Policy, ids: list[np.ndarray], tokens: np.ndarray) -> Tensor:
    """Return log pi(y|x) in nats [n] at `sampler.temperature`, summed over the last `tokens` of each sequence in `ids`.

    A pad id inside an answer is left out, because it has no probability.
    """
    device, pad_id = policy.world.device, policy.tokenizer.pad_id
    padded = batching.pad([row.astype(np.int64) for row in ids], pad_id)
    lengths = np.array([len(row) for row in ids])
    columns = np.arange(padded.shape[1])
    kept = (columns < lengths[:, None]) & (columns >= (lengths - tokens)[:, None]) & (padded != pad_id)
    rows, places, inputs = (to_device(array, device) for array in (*np.nonzero(kept), padded))
    log_probs = policy.log_probs(inputs, rows, places - 1, inputs[rows, places], recipe.sampler.temperature)
    return log_probs.new_zeros(padded.shape).index_put((rows, places), log_probs).sum(-1)


@torch.no_grad()
def measure_log_probs(recipe: Recipe, policy: Policy, ids: list[np.ndarray], tokens: np.ndarray) -> Tensor:
    """Return `answer_log_probs` [n] of any number of sequences, without a gradient, on the CPU."""
    log_probs = torch.zeros(len(ids))
    plan = batching.plan([len(row) for row in ids], defaults.decided(recipe.dpo.micro_batch_tokens))
    for rows, weight in collectives.passes(plan):
        log_probs[rows] = weight * answer_log_probs(recipe, policy, [ids[i] for i in rows], tokens[rows]).float().cpu()
    return collectives.total(log_probs)


def train(recipe: Recipe, stage: stages.Stage, policy: Policy, parts: dict[str, PairSubset]) -> None:
    """Train on batches of pairs; validate and save at intervals; write the best checkpoint as the model."""
    dpo, out, part = recipe.dpo, stage.folder, parts["train"]
    state = TrainingState(0, optimizer(recipe, policy))
    log, total = loop.resume(state, out), dpo.train_steps
    with progress.bar(recipe.method, total, state.step) as bar:
        while loop.unfinished(state, total):
            loop.check_stop(recipe, state, out)
            with log.timed("learn"):
                rows = randomness.rows(recipe.seed, "data", state.step, dpo.batch_size, len(part))
                values = learn(recipe, state, policy, part, rows)
            state.step += 1
            if loop.due(state, dpo.validation_every, total):
                values |= validate(recipe, state, policy, parts["validation"], out)
            log.append(state.step, values)
            if loop.due(state, recipe.checkpoint_every, total):
                loop.save(recipe, state, out)
            bar.update(state.step, loss=values["loss"], accuracy=values["accuracy"])
    finish(recipe, stage, state, policy, parts)


def optimizer(recipe: Recipe, policy: Policy) -> Optimizer:
    """Return AdamW with the recipe's learning rate."""
    dpo = recipe.dpo
    schedule = Schedule(defaults.decided(dpo.learning_rate), dpo.warmup_steps, dpo.schedule, dpo.train_steps)
    return Optimizer(policy.trainable(), schedule, dpo.max_grad_norm, kind=recipe.optimizer)


def learn(recipe: Recipe, state: TrainingState, policy: Policy, part: PairSubset, rows: np.ndarray) -> dict[str, float]:
    """Make one optimizer step on the mean loss of the pairs at `rows`."""
    anchor = batch_anchor(recipe, policy, part, rows)
    totals: dict[str, float] = {}
    plan = part.pairs.plan(rows, defaults.decided(recipe.dpo.micro_batch_tokens))
    for places, weight in collectives.passes(plan):
        sides = [[side.ids[i] for i in places] for side in (part.chosen, part.rejected)]
        tokens = np.concatenate([part.chosen.tokens[places], part.rejected.tokens[places]])
        log_probs = answer_log_probs(recipe, policy, sides[0] + sides[1], tokens).view(2, len(places))
        loss, sums = losses(recipe, part, places, log_probs, anchor)
        (weight * loss / part.count(rows)).backward()
        totals = {name: totals.get(name, 0.0) + weight * value for name, value in sums.items()}
    totals = collectives.sums(totals)
    if not math.isfinite(totals["loss"]):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower dpo.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    means = {name: value / part.count(rows) for name, value in totals.items()}
    return means | _anchor_metric(anchor) | {"learning_rate": rate, "gradient_norm": norm}


def batch_anchor(recipe: Recipe, policy: Policy, part: PairSubset, rows: np.ndarray) -> Tensor | None:
    """Return KTO's anchor of the batch at `rows`; None with another method."""
    if part.mismatched is None:
        return None
    other = part.mismatched
    log_probs = measure_log_probs(recipe, policy, [other.ids[i] for i in rows], other.tokens[rows])
    return kto_anchor(log_probs - other.reference[rows])


def losses(
    recipe: Recipe, part: PairSubset, places: np.ndarray, log_probs: Tensor, anchor: Tensor | None
) -> tuple[Tensor, dict[str, float]]:
    """Return the summed loss of the pairs at `places`, and sums for logging.

    `log_probs` [2, b] are the policy's log-probabilities of the chosen and of the rejected answers.
    """
    dpo, kl_coeff = recipe.dpo, recipe.kl_coeff
    reference = torch.stack([side.reference[places] for side in (part.chosen, part.rejected)]).to(log_probs)
    ratios = log_probs - reference
    rewards = ratios
    if anchor is None and dpo.loss == "reference_free":
        tokens = np.stack([side.tokens[places] for side in (part.chosen, part.rejected)])
        rewards = log_probs / torch.from_numpy(tokens).to(log_probs)
    chosen, rejected = rewards
    sides = torch.from_numpy(part.pairs.sides[:, places]).to(log_probs)
    weights = torch.from_numpy(part.pairs.weights[places]).to(log_probs)
    if anchor is not None:
        weighted = dpo.desirable_weight * weights * sides[0], dpo.undesirable_weight * weights * sides[1]
        loss = kto_loss(chosen, rejected, anchor.to(log_probs), kl_coeff, *weighted)
    elif dpo.loss == "reference_free":
        loss = reference_free_loss(chosen, rejected, kl_coeff, dpo.target_margin, weights)
    elif dpo.loss == "ipo":
        loss = ipo_loss(chosen, rejected, kl_coeff, weights)
    else:
        loss = dpo_loss(chosen, rejected, kl_coeff, dpo.label_smoothing, weights)
    at = rewards.new_zeros(()) if anchor is None else anchor.to(rewards)
    chosen, rejected = kl_coeff * torch.where(sides > 0, rewards.detach(), at)  # without a second answer, its anchor
    half = sides.mean(0)
    metrics = {
        "loss": loss.detach(),
        "accuracy": half * ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()),
        "margin": half * (chosen - rejected),
        "rewards/chosen": half * chosen,
        "rewards/rejected": half * rejected,
        "log_probs/chosen": half * log_probs.detach()[0],
        "log_probs/rejected": half * log_probs.detach()[1],
    }
    return loss, {name: float(values.sum()) for name, values in metrics.items()}


def _anchor_metric(anchor: Tensor | None) -> dict[str, float]:
    return {} if anchor is None else {"anchor": float(anchor)}


def quality(recipe: Recipe, policy: Policy, part: PairSubset) -> dict[str, float]:
    """Return the means that a step logs, over all pairs of a part."""
    rows = np.arange(len(part))
    anchor = batch_anchor(recipe, policy, part, rows)
    sides = (part.chosen, part.rejected)
    log_probs = torch.stack([measure_log_probs(recipe, policy, side.ids, side.tokens) for side in sides])
    _, sums = losses(recipe, part, rows, log_probs, anchor)
    return {name: value / part.count(rows) for name, value in sums.items()} | _anchor_metric(anchor)


def validate(recipe: Recipe, state: TrainingState, policy: Policy, part: PairSubset, out: Path) -> dict[str, float]:
    """Return loss and accuracy on validation pairs; save the best policy so far, and record a reason to stop."""
    if not len(part):
        return {}
    means = quality(recipe, policy, part)
    loop.keep_best(state, state.optimizer, out, "loss", means["loss"])
    loop.stop_early(state, recipe.dpo.early_stopping_patience, "loss")
    return {f"validation/{name}": means[name] for name in ("loss", "accuracy", "margin")}


def finish(
    recipe: Recipe, stage: stages.Stage, state: TrainingState, policy: Policy, parts: dict[str, PairSubset]
) -> None:
    """Write the best policy, record its metrics on held-out pairs, and mark the stage done."""
    best_step = loop.restore_best(state, state.optimizer, stage.folder)
    held_out = {
        name: {key: value for key, value in quality(recipe, policy, parts[name]).items() if "/" not in key}
        for name in ("validation", "test")
        if len(parts[name])
    }
    stage.record(best_step=best_step, stopped=state.scalars.get("stopped"), steps=state.step, quality=held_out)
    origin = f"{tuned_by(recipe)} from `{policy.source.name}`, the checkpoint of step {best_step}."
    loop.finish(stage, policy, state.optimizer, origin, best_step, state.step)
