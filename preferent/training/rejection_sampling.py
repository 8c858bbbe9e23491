"""Rejection-sampling fine-tuning: imitate the best of several answers of one's own, round after round.

Touvron et al. 2023 (Llama 2), section 3.2.3. A round samples answers to some training prompts with the policy as it is
now, keeps the one to each prompt that scores highest, of this and all earlier rounds, and fine-tunes on what is kept.
Answers on disk are replayed on resume.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from preferent import randomness
from preferent.config import defaults, model_reference, stage_graph
from preferent.config.recipe import Recipe, pick
from preferent.data import datasets
from preferent.data.types import Rollout
from preferent.errors import DataError, DivergedError
from preferent.evaluation.statistics import best_of
from preferent.models import language_models, saving
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.scoring import CombinedReward, RolloutBatch
from preferent.rollouts import sampler
from preferent.rollouts.sampler import Prompts, Sampler, rollout_params
from preferent.rollouts.store import RolloutStore
from preferent.runs import progress, stages
from preferent.training import loop
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.sequences import Sequences, gather

PROMPTS_AT_ONCE = 64
"""Prompts whose answers are committed together."""


@dataclass(frozen=True)
class RejectionNetworks:
    """The policy, and what judges it."""

    policy: Policy
    reference: Policy | None
    reward: CombinedReward
    sampler: Sampler


@dataclass
class Kept:
    """The best answer to each prompt so far, with its normalised score."""

    answers: dict[int, tuple[float, Rollout]] = field(default_factory=dict)

    def offer(self, rollout: Rollout, value: float) -> None:
        """Keep an answer that scores higher than what was kept of its prompt; of equals the earlier stays."""
        if rollout.prompt_index not in self.answers or value > self.answers[rollout.prompt_index][0]:
            self.answers[rollout.prompt_index] = value, rollout

    def sequences(self) -> Sequences:
        """What is imitated, by prompt."""
        rollouts = [self.answers[index][1] for index in sorted(self.answers)]
        return Sequences(
            [np.concatenate([r.prompt_ids, r.ids]) for r in rollouts], [len(r.prompt_ids) for r in rollouts]
        )

    def mean(self) -> float:
        """The mean score of what is kept."""
        return float(np.mean([value for value, _ in self.answers.values()]))


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Stage `rejection`: model=, reward= (or reward.sources of the recipe), train=, validation= -> out/model, and
    what led to it."""
    world = World.of(recipe)
    source = model_reference.resolve(str(inputs["model"]))
    recipe, by_default = defaults.resolve(recipe, policy=model_reference.parameters(str(source)))
    inputs = scoring.located(recipe, inputs)
    language_models.check_length(source, recipe)
    with stages.locked(out):
        fields = pick(recipe, *stage_graph.FIELDS["rejection"])
        stage = stages.open_stage(
            "rejection",
            out,
            fields,
            inputs | {"model": source},
            stage_graph.EXTENDABLE["rejection"],
            by_default=by_default,
        )
        if stage.done:
            return
        stage.place(**world.facts())
        rank = defaults.decided(recipe.rejection.lora_dim)
        policy = language_models.load_policy(source, world, rank, recipe.gradient_checkpointing)
        prompts = Prompts.of(datasets.load_prompts(inputs["train"]), policy.tokenizer, recipe)
        if not prompts.ids:
            raise DataError(f"{inputs['train']}: holds no prompt to train on")
        reference = None if defaults.reference(recipe, "rejection") == "none" else policy.reference()
        reward, engine = CombinedReward.load(recipe, inputs, world), sampler.make(recipe, policy)
        reward = scoring.fitted(recipe, policy, reward, engine, prompts, out)
        train(recipe, stage, RejectionNetworks(policy, reference, reward, engine), prompts)


def train(recipe: Recipe, stage: stages.Stage, networks: RejectionNetworks, prompts: Prompts) -> None:
    """The rounds: collect answers, keep the best, learn them, validate; ends with the best checkpoint as the model."""
    section, out = recipe.rejection, stage.folder
    held_out = datasets.load_prompts(stage.inputs["validation"])[: recipe.ppo.validation_prompts]
    validation = Prompts.of(held_out, networks.policy.tokenizer, recipe)
    state = TrainingState(0, optimizer(recipe, networks.policy))
    log, ledger, kept = loop.resume(state, out), RolloutStore(out / "rollouts"), Kept()
    networks.sampler.refresh(networks.policy)
    ledger.rewind(state.step)
    if log.is_new and validation.ids:
        log.append(0, validate(recipe, state, networks, validation, ledger, out))
    total = section.rounds * section.train_steps
    with progress.bar("rejection", total, state.step) as bar:
        for number in range(section.rounds):
            with log.timed("sample"):
                values = collect(recipe, state, number, networks, prompts, kept, ledger)
            sequences = kept.sequences()
            while state.step < (number + 1) * section.train_steps:
                loop.check_stop(recipe, state, out)
                with log.timed("learn"):
                    values |= learn(recipe, state, number, networks.policy, sequences)
                state.step += 1
                if state.step % section.train_steps == 0:
                    networks.sampler.refresh(networks.policy)
                    values |= validate(recipe, state, networks, validation, ledger, out) if validation.ids else {}
                log.append(state.step, values)
                if loop.due(state, recipe.checkpoint_every, total):
                    loop.save(recipe, state, out)
                bar.update(state.step, loss=values["loss/imitation"])
                values = {}
    finish(stage, state, networks.policy)


def optimizer(recipe: Recipe, policy: Policy) -> Optimizer:
    """AdamW at the recipe's rate, which is constant."""
    section = recipe.rejection
    schedule = Schedule(defaults.decided(section.learning_rate), 0, "constant", section.rounds * section.train_steps)
    return Optimizer(policy.trainable(), schedule, section.max_grad_norm)


def collect(
    recipe: Recipe,
    state: TrainingState,
    number: int,
    networks: RejectionNetworks,
    prompts: Prompts,
    kept: Kept,
    ledger: RolloutStore,
) -> dict[str, float]:
    """Sample, score and commit the answers of a round, or replay them; keep the best. What the round's answers were
    like, where nothing was learnt from them yet."""
    section = recipe.rejection
    count, fresh = min(section.prompts, len(prompts.ids)), state.step == number * section.train_steps
    rows = randomness.rows(recipe.seed, "data", number, count, len(prompts.ids))
    rollouts: list[Rollout] = []
    for start in range(0, count, PROMPTS_AT_ONCE):
        loop.check_stop(recipe, state, ledger.folder.parent)
        slots = np.arange(start, min(start + PROMPTS_AT_ONCE, count))
        items = ((number * count + slots)[:, None] * section.samples + np.arange(section.samples)).ravel()
        name, places = f"{number:06d}-{start:06d}", rows[slots].repeat(section.samples)
        answers = ledger.replayed(name, prompts.ids)
        if answers is None and not fresh:
            raise lost(ledger, number)
        if answers is None:
            batch = sampled(recipe, state, networks, prompts, places, items)
            answers = ledger.committed(name, scoring.scored(networks.reward, batch))
        else:
            batch = RolloutBatch(answers, prompts.part(places), networks.policy.tokenizer)
        if fresh:
            ledger.describe(state.step, batch.prompts.texts, batch.answers, answers)
        rollouts += answers
    scores = scoring.final_scores(rollouts, networks.reward.scale, recipe)
    scores = scores.reshape(count, section.samples)
    for slot, place in enumerate(best_of.best(scores)):
        kept.offer(rollouts[slot * section.samples + place], float(scores[slot, place]))
    if not fresh:
        return {}
    return {
        "reward": float(scores.mean()),
        "rejection/best": float(scores.max(-1).mean()),
        "rejection/kept": kept.mean(),
        "rejection/answers": len(kept.answers),
        "tokens/length": float(np.mean([len(r.ids) for r in rollouts])),
        "tokens/ended": float(np.mean([r.ended for r in rollouts])),
    }


def sampled(
    recipe: Recipe,
    state: TrainingState,
    networks: RejectionNetworks,
    prompts: Prompts,
    places: np.ndarray,
    items: np.ndarray,
) -> RolloutBatch:
    """Answers of the policy to the prompts at `places` [n], sampled under the keys `items` [n]."""
    asked, samples = prompts.part(places), items % recipe.rejection.samples
    rollouts = networks.sampler.sample(asked.ids, items.tolist(), "rollout", state.step, rollout_params(recipe))
    placed = [
        replace(rollout, prompt_index=int(prompt), sample_index=int(sample))
        for rollout, prompt, sample in zip(rollouts, places, samples, strict=True)
    ]
    return RolloutBatch(placed, asked, networks.policy.tokenizer)


def lost(ledger: RolloutStore, number: int) -> DataError:
    """The policy that gave answers which were learnt from is no more."""
    return DataError(
        f"{ledger.folder}: the answers of round {number} were learnt from and are damaged or gone; restore them, "
        f"or remove {ledger.folder.parent} to do this stage again"
    )


def learn(recipe: Recipe, state: TrainingState, number: int, policy: Policy, sequences: Sequences) -> dict[str, float]:
    """One optimizer step on a batch of kept answers, at the temperature at which they were sampled."""
    section = recipe.rejection
    within = state.step - number * section.train_steps
    rows = randomness.rows(recipe.seed, f"kept {number}", within, section.batch_size, len(sequences))
    part = sequences.part(rows)
    loss = gather(policy, part, section.micro_batch_tokens, recipe.sampler.temperature)
    if not math.isfinite(loss):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower rejection.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    return {"loss/imitation": loss, "learning_rate": rate, "gradient_norm": norm}


def validate(
    recipe: Recipe, state: TrainingState, networks: RejectionNetworks, prompts: Prompts, ledger: RolloutStore, out: Path
) -> dict[str, float]:
    """Score and KL on validation prompts; keeps the best policy so far."""
    figures = scoring.validated(
        recipe, networks.reward, networks.policy, networks.reference, networks.sampler, prompts, state.step, ledger,
        recipe.rejection.micro_batch_tokens,
    )  # fmt: skip
    loop.keep_best(state, state.optimizer, out, "objective", figures["validation/objective"], highest=True)
    return figures


def finish(stage: stages.Stage, state: TrainingState, policy: Policy) -> None:
    """Write the selected policy as the model, say which it is, and mark the stage done."""
    chosen = loop.restore_best(state, state.optimizer, stage.folder)
    stage.record(**{key: state.scalars.get(key) for key in ("best_step", "best_objective")}, steps=state.step)
    card = f"# Policy tuned by preferent\n\nRejection sampling from `{policy.source.name}`, step {chosen}.\n"
    saving.save(policy, stage.folder / "model", state.optimizer.masters, card)
    stage.finish(["model"])
