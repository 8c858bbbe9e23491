"""Tune the policy on the preferences themselves, without a reward model and without sampling: DPO, IPO, SimPO and KTO.

The policy's log-ratio to where it started is its reward (Rafailov et al. 2023), at `sampler.temperature`: the policy
that is sampled is the one that the KL penalty holds. What the reference says of every pair is computed once, by the
policy before it learns anything, so no second model is held; a resumed run computes it again.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from preferent import randomness
from preferent.config import defaults, model_reference, stage_graph
from preferent.config.recipe import Recipe, pick, tuned_by
from preferent.data import datasets
from preferent.errors import DataError, DivergedError
from preferent.models import batching, language_models, saving, vocabulary
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.runs import progress, stages
from preferent.training import loop
from preferent.training.losses import dpo_loss, ipo_loss, kto_anchor, kto_loss, reference_free_loss
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.preference_pairs import PreferencePairs


@dataclass(frozen=True)
class AnsweredPairs:
    """Prompts with their answers as token ids, how many tokens each answer has, and the answers' log-probabilities [n]
    under the reference (empty where none is asked)."""

    ids: list[np.ndarray]
    tokens: np.ndarray
    reference: Tensor


@dataclass(frozen=True)
class PairSubset:
    """Pairs to learn from or to measure on; both sides [n] beside each other, chosen and rejected, and with method kto
    each prompt with an answer to another prompt."""

    pairs: PreferencePairs
    chosen: AnsweredPairs
    rejected: AnsweredPairs
    mismatched: AnsweredPairs | None

    def __len__(self) -> int:
        return len(self.pairs)


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Stage `dpo`, of methods dpo and kto: model=, train=, validation=, test= -> out/model."""
    world = World.of(recipe)
    source = model_reference.resolve(str(inputs["model"]))
    recipe, by_default = defaults.resolve(recipe, policy=model_reference.parameters(str(source)))
    language_models.check_length(source, recipe)
    with stages.locked(out):
        fields = pick(recipe, *stage_graph.FIELDS["dpo"])
        stage = stages.open_stage(
            "dpo", out, fields, inputs | {"model": source}, stage_graph.EXTENDABLE["dpo"], by_default=by_default
        )
        if stage.done:
            return
        rank = defaults.decided(recipe.dpo.lora_dim)
        policy = language_models.load_policy(source, world, rank, recipe.gradient_checkpointing)
        names = ("train", "validation", "test")
        pairs = {
            name: PreferencePairs.of(datasets.load_preferences(inputs[name]), policy.tokenizer, recipe)
            for name in names
        }
        if not len(pairs["train"]):
            raise DataError(f"{inputs['train']}: holds no decided preference to train on")
        epochs = progress.epochs("dpo.train_steps", recipe.dpo.train_steps, recipe.dpo.batch_size, len(pairs["train"]))
        counts = {name: {"pairs": len(p), "ties": p.ties, "truncated": p.truncated} for name, p in pairs.items()}
        stage.place(**world.facts())
        stage.record(counts=counts, epochs=round(epochs, 2), lora_dim=rank)
        parts = {name: refer(recipe, policy, pairs[name], inputs[name]) for name in names}
        train(recipe, stage, policy, parts)


def refer(recipe: Recipe, policy: Policy, pairs: PreferencePairs, source: Path) -> PairSubset:
    """The pairs with the log-probabilities that the reference, which the policy still is, gives the answers."""

    def answered(ids: list[np.ndarray], tokens: np.ndarray) -> AnsweredPairs:
        asked = defaults.reference(recipe, "dpo") != "none"
        return AnsweredPairs(ids, tokens, measured(recipe, policy, ids, tokens) if asked else torch.zeros(len(ids)))

    chosen, rejected = answered(pairs.chosen, pairs.chosen_tokens), answered(pairs.rejected, pairs.rejected_tokens)
    other = answered(*mismatched(pairs, recipe.seed, source)) if recipe.method == "kto" and len(pairs) else None
    return PairSubset(pairs, chosen, rejected, other)


def mismatched(pairs: PreferencePairs, seed: int, source: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Every pair's prompt with an answer drawn from those of pairs with another prompt, chosen and rejected alike, and
    the tokens of that answer; drawn once, so that the reference is asked once."""
    prompts = [ids[: len(ids) - end] for ids, end in zip(pairs.chosen, pairs.chosen_tokens, strict=True)]
    numbers: dict[bytes, int] = {}
    group = np.array([numbers.setdefault(prompt.tobytes(), len(numbers)) for prompt in prompts])
    if len(numbers) == 1:
        raise DataError(
            f"{source}: all pairs have one prompt, and method: kto measures how far the policy went on answers to "
            "other prompts; give preferences on more prompts, or use method: dpo"
        )
    counts, order = np.bincount(group), np.argsort(group, kind="stable")
    place, side = randomness.uniforms(seed, "mismatch", np.arange(len(pairs)), np.array([[0], [1]]))
    skipped = (place * (len(pairs) - counts[group])).astype(np.int64)
    others = order[(counts.cumsum()[group] + skipped) % len(pairs)]
    sides = (pairs.chosen, pairs.chosen_tokens), (pairs.rejected, pairs.rejected_tokens)
    drawn = [(sides[int(half >= 0.5)], other) for half, other in zip(side, others, strict=True)]
    answers = [ids[other][-tokens[other] :] for (ids, tokens), other in drawn]
    joined = [np.concatenate(both) for both in zip(prompts, answers, strict=True)]
    return joined, np.array([len(answer) for answer in answers])


def log_probs(recipe: Recipe, policy: Policy, ids: list[np.ndarray], tokens: np.ndarray) -> Tensor:
    """log pi(y|x) in nats [n]: of each sequence in `ids` its last `tokens` summed, at `sampler.temperature`.

    A pad id inside an answer has no probability, and is left out.
    """
    device, pad_id = policy.world.device, policy.tokenizer.pad_id
    padded = batching.pad([row.astype(np.int64) for row in ids], pad_id)
    lengths = np.array([len(row) for row in ids])
    columns = np.arange(padded.shape[1])
    kept = (columns < lengths[:, None]) & (columns >= (lengths - tokens)[:, None]) & (padded != pad_id)
    lines, places = (torch.from_numpy(found).to(device) for found in np.nonzero(kept))
    inputs = torch.from_numpy(padded).to(device)
    hidden = policy.hidden(inputs)[lines, places - 1]
    head = policy.head(recipe.sampler.temperature)
    found = vocabulary.chunked_log_probs(hidden, inputs[lines, places], head, policy.vocab_size)
    return found.new_zeros(padded.shape).index_put((lines, places), found).sum(-1)


@torch.no_grad()
def measured(recipe: Recipe, policy: Policy, ids: list[np.ndarray], tokens: np.ndarray) -> Tensor:
    """`log_probs` [n] of any number of sequences, without a gradient, on the CPU."""
    found = torch.zeros(len(ids))
    for rows in batching.plan([len(row) for row in ids], recipe.dpo.micro_batch_tokens):
        found[rows] = log_probs(recipe, policy, [ids[i] for i in rows], tokens[rows]).float().cpu()
    return found


def train(recipe: Recipe, stage: stages.Stage, policy: Policy, parts: dict[str, PairSubset]) -> None:
    """The loop: a batch of pairs, a step, now and then a validation; ends with the best checkpoint as the model."""
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
    """AdamW with the recipe's rate."""
    dpo = recipe.dpo
    schedule = Schedule(defaults.decided(dpo.learning_rate), dpo.warmup_steps, dpo.schedule, dpo.train_steps)
    return Optimizer(policy.trainable(), schedule, dpo.max_grad_norm)


def learn(recipe: Recipe, state: TrainingState, policy: Policy, part: PairSubset, rows: np.ndarray) -> dict[str, float]:
    """One optimizer step on the pairs at `rows`; the loss is the sum over them divided by their number."""
    anchor = anchor_of(recipe, policy, part, rows)
    totals: dict[str, float] = {}
    for places in part.pairs.plan(rows, recipe.dpo.micro_batch_tokens):
        sides = [[side.ids[i] for i in places] for side in (part.chosen, part.rejected)]
        tokens = np.concatenate([part.chosen.tokens[places], part.rejected.tokens[places]])
        found = log_probs(recipe, policy, sides[0] + sides[1], tokens).view(2, len(places))
        loss, sums = losses(recipe, part, places, found, anchor)
        (loss / len(rows)).backward()
        totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
    if not math.isfinite(totals["loss"]):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower dpo.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    means = {name: value / len(rows) for name, value in totals.items()}
    return means | _told(anchor) | {"learning_rate": rate, "gradient_norm": norm}


def anchor_of(recipe: Recipe, policy: Policy, part: PairSubset, rows: np.ndarray) -> Tensor | None:
    """KTO's anchor of the batch at `rows`; None with another method."""
    if part.mismatched is None:
        return None
    other = part.mismatched
    found = measured(recipe, policy, [other.ids[i] for i in rows], other.tokens[rows])
    return kto_anchor(found - other.reference[rows])


def losses(
    recipe: Recipe, part: PairSubset, places: np.ndarray, found: Tensor, anchor: Tensor | None
) -> tuple[Tensor, dict[str, float]]:
    """The summed loss of the pairs at `places`, and sums for logging; `found` [2, b] are the policy's log-probabilities
    of their chosen and of their rejected answers."""
    dpo, kl_coeff = recipe.dpo, recipe.kl_coeff
    reference = torch.stack([side.reference[places] for side in (part.chosen, part.rejected)]).to(found)
    ratios = found - reference
    worth = ratios
    if anchor is not None:
        loss = kto_loss(*ratios, anchor.to(found), kl_coeff, dpo.desirable_weight, dpo.undesirable_weight)
    elif dpo.loss == "reference_free":
        tokens = np.stack([side.tokens[places] for side in (part.chosen, part.rejected)])
        worth = found / torch.from_numpy(tokens).to(found)
        loss = reference_free_loss(*worth, kl_coeff, dpo.target_margin)
    elif dpo.loss == "ipo":
        loss = ipo_loss(*ratios, kl_coeff)
    else:
        loss = dpo_loss(*ratios, kl_coeff, dpo.label_smoothing)
    chosen, rejected = kl_coeff * worth.detach()
    named = {
        "loss": loss.detach(),
        "accuracy": (chosen > rejected).float() + 0.5 * (chosen == rejected).float(),
        "margin": chosen - rejected,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "log_probs/chosen": found.detach()[0],
        "log_probs/rejected": found.detach()[1],
    }
    return loss, {name: float(values.sum()) for name, values in named.items()}


def _told(anchor: Tensor | None) -> dict[str, float]:
    return {} if anchor is None else {"anchor": float(anchor)}


def quality(recipe: Recipe, policy: Policy, part: PairSubset) -> dict[str, float]:
    """The means that a step logs, of all pairs of a part."""
    every = np.arange(len(part))
    anchor = anchor_of(recipe, policy, part, every)
    found = torch.stack([measured(recipe, policy, side.ids, side.tokens) for side in (part.chosen, part.rejected)])
    _, sums = losses(recipe, part, every, found, anchor)
    return {name: value / len(part) for name, value in sums.items()} | _told(anchor)


def validate(recipe: Recipe, state: TrainingState, policy: Policy, part: PairSubset, out: Path) -> dict[str, float]:
    """Loss and accuracy on validation pairs; keeps the best policy so far, and decides whether to stop."""
    if not len(part):
        return {}
    means = quality(recipe, policy, part)
    loop.keep_best(state, state.optimizer, out, "loss", means["loss"])
    loop.stop_early(state, recipe.dpo.early_stopping_patience, "loss")
    return {f"validation/{name}": means[name] for name in ("loss", "accuracy", "margin")}


def finish(
    recipe: Recipe, stage: stages.Stage, state: TrainingState, policy: Policy, parts: dict[str, PairSubset]
) -> None:
    """Write the best policy, say how it ranks held-out pairs, and mark the stage done."""
    out = stage.folder
    chosen = loop.restore_best(state, state.optimizer, out)
    held_out = {
        name: {key: value for key, value in quality(recipe, policy, parts[name]).items() if "/" not in key}
        for name in ("validation", "test")
        if len(parts[name])
    }
    stage.record(best_step=chosen, stopped=state.scalars.get("stopped"), steps=state.step, quality=held_out)
    name = tuned_by(recipe)
    card = f"# Policy tuned by preferent\n\n{name} from `{policy.source.name}`, the checkpoint of step {chosen}.\n"
    saving.save(policy, out / "model", state.optimizer.masters, card)
    stage.finish(["model"])
