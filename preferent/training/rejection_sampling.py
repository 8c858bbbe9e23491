"""Rejection-sampling fine-tuning: in each round, train the policy on the best of its own answers.

Touvron et al. 2023 (Llama 2), section 3.2.3. A round samples answers to some training prompts with the current
policy, keeps for each prompt the answer with the highest score of this and all earlier rounds, and fine-tunes on the
answers kept. Answers on disk are replayed on resume.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from preferent import randomness
from preferent.config import defaults, model_reference
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.data.types import Rollout
from preferent.errors import DataError, DivergedError
from preferent.evaluation.statistics import best_of
from preferent.models import language_models
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.scoring import CombinedReward, RolloutBatch
from preferent.rollouts import sampler
from preferent.rollouts.sampler import Prompts, Sampler, rollout_params
from preferent.rollouts.store import RolloutStore
from preferent.runs import progress, stages
from preferent.runs.directory import StageDirectory
from preferent.training import loop
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.sequences import Sequences, accumulate_gradients

PROMPTS_AT_ONCE = 64
"""Number of prompts whose answers are written to disk together."""


@dataclass(frozen=True)
class RejectionNetworks:
    """The policy, the reference and the reward that it is measured by, and the sampler."""

    policy: Policy
    reference: Policy | None
    reward: CombinedReward
    sampler: Sampler


@dataclass
class BestAnswers:
    """The best answer to each prompt so far, with its normalised score."""

    answers: dict[int, tuple[float, Rollout]] = field(default_factory=dict)

    def offer(self, rollout: Rollout, score: float) -> None:
        """Keep an answer if it scores higher than the one kept for its prompt; among equals keep the earlier."""
        if rollout.prompt_index not in self.answers or score > self.answers[rollout.prompt_index][0]:
            self.answers[rollout.prompt_index] = score, rollout

    def sequences(self) -> Sequences:
        """Return the prompts with the answers kept, ordered by prompt."""
        rollouts = [self.answers[index][1] for index in sorted(self.answers)]
        return Sequences(
            [np.concatenate([r.prompt_ids, r.ids]) for r in rollouts], [len(r.prompt_ids) for r in rollouts]
        )

    def mean(self) -> float:
        """Return the mean score of the answers kept."""
        return float(np.mean([score for score, _ in self.answers.values()]))


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Run stage `rejection`: model=, reward= (or reward.sources of the recipe), train=, validation= -> out/model."""
    world = World.of(recipe, learns=True)
    source = model_reference.resolve(str(inputs["model"]))
    recipe, by_default = defaults.resolve(recipe, policy=model_reference.parameters(str(source)))
    inputs = scoring.resolve_models(recipe, inputs)
    language_models.check_length(source, recipe)
    with stages.locked(out):
        stage = loop.opened("rejection", out, recipe, inputs | {"model": source}, by_default)
        if stage.done:
            return
        recipe = world.settled(recipe, stage)
        stage.place(**world.facts())
        rank = defaults.decided(recipe.rejection.lora_dim)
        policy = language_models.load_policy(source, world, rank, recipe.gradient_checkpointing)
        prompts = Prompts.of(datasets.load_prompts(inputs["train"]), policy.tokenizer, recipe)
        if not prompts.ids:
            raise DataError(f"{inputs['train']}: holds no prompt to train on")
        reference = None if defaults.reference(recipe, "rejection") == "none" else policy.reference()
        reward = CombinedReward.load(recipe, inputs, world, beside=[policy])
        engine = sampler.make(recipe, policy)
        reward = scoring.fit_scale(recipe, policy, reward, engine, prompts, out)
        train(recipe, stage, RejectionNetworks(policy, reference, reward, engine), prompts)


def train(recipe: Recipe, stage: stages.Stage, networks: RejectionNetworks, prompts: Prompts) -> None:
    """Run the rounds: collect answers, keep the best, train, validate; write the best checkpoint as the model."""
    section, out = recipe.rejection, stage.folder
    held_out = datasets.load_prompts(stage.inputs["validation"])[: recipe.ppo.validation_prompts]
    validation = Prompts.of(held_out, networks.policy.tokenizer, recipe)
    state = TrainingState(0, optimizer(recipe, networks.policy))
    log, store, kept = loop.resume(state, out), RolloutStore(StageDirectory(out).rollouts), BestAnswers()
    networks.sampler.refresh(networks.policy)
    store.rewind(state.step)
    if log.is_new and validation.ids:
        log.append(0, validate(recipe, state, networks, validation, store, out))
    total = section.rounds * section.train_steps
    with progress.bar("rejection", total, state.step) as bar:
        for number in range(section.rounds):
            with log.timed("sample"):
                values = collect(recipe, state, number, networks, prompts, kept, store)
            sequences = kept.sequences()
            while state.step < (number + 1) * section.train_steps:
                loop.check_stop(recipe, state, out)
                with log.timed("learn"):
                    values |= learn(recipe, state, number, networks.policy, sequences)
                state.step += 1
                if state.step % section.train_steps == 0:
                    networks.sampler.refresh(networks.policy)
                    values |= validate(recipe, state, networks, validation, store, out) if validation.ids else {}
                log.append(state.step, values)
                if loop.due(state, recipe.checkpoint_every, total):
                    loop.save(recipe, state, out)
                bar.update(state.step, loss=values["loss/imitation"])
                values = {}
    finish(stage, state, networks.policy)


def optimizer(recipe: Recipe, policy: Policy) -> Optimizer:
    """Return AdamW with the recipe's learning rate, which is constant."""
    section = recipe.rejection
    schedule = Schedule(defaults.decided(section.learning_rate), 0, "constant", section.rounds * section.train_steps)
    return Optimizer(policy.trainable(), schedule, section.max_grad_norm, kind=recipe.optimizer)


def collect(
    recipe: Recipe,
    state: TrainingState,
    number: int,
    networks: RejectionNetworks,
    prompts: Prompts,
    kept: BestAnswers,
    store: RolloutStore,
) -> dict[str, float]:
    """Sample, score and commit the answers of a round, or replay them; keep the best.

    Return the metrics of the round's answers; nothing if the policy has been trained on them already.
    """
    section = recipe.rejection
    count, fresh = min(section.prompts, len(prompts.ids)), state.step == number * section.train_steps
    rows = randomness.rows(recipe.seed, "data", number, count, len(prompts.ids))
    rollouts: list[Rollout] = []
    for start in range(0, count, PROMPTS_AT_ONCE):
        loop.check_stop(recipe, state, store.folder.parent)
        slots = np.arange(start, min(start + PROMPTS_AT_ONCE, count))
        items = ((number * count + slots)[:, None] * section.samples + np.arange(section.samples)).ravel()
        name, places = f"{number:06d}-{start:06d}", rows[slots].repeat(section.samples)
        answers = store.replay(name, prompts.ids)
        if answers is None and not fresh:
            raise lost_answers(store, number)
        if answers is None:
            batch = sample(recipe, state, networks, prompts, places, items)
            answers = store.commit(name, scoring.score_rollouts(networks.reward, batch))
        else:
            batch = RolloutBatch(answers, prompts.part(places), networks.policy.tokenizer)
        if fresh:
            store.append_samples(state.step, batch.prompts.texts, batch.answers, answers)
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


def sample(
    recipe: Recipe,
    state: TrainingState,
    networks: RejectionNetworks,
    prompts: Prompts,
    places: np.ndarray,
    items: np.ndarray,
) -> RolloutBatch:
    """Sample the policy's answers to the prompts at `places` [n], keyed by `items` [n]."""
    answered, samples = prompts.part(places), items % recipe.rejection.samples
    rollouts = networks.sampler.sample(answered.ids, items.tolist(), "rollout", state.step, rollout_params(recipe))
    numbered = [
        replace(rollout, prompt_index=int(prompt), sample_index=int(sample))
        for rollout, prompt, sample in zip(rollouts, places, samples, strict=True)
    ]
    return RolloutBatch(numbered, answered, networks.policy.tokenizer)


def lost_answers(store: RolloutStore, number: int) -> DataError:
    """Return the error for answers that cannot be sampled again, because the policy has been trained on them."""
    return DataError(
        f"{store.folder}: the answers of round {number} are damaged or missing, and the policy was trained on them; "
        f"restore them, or remove {store.folder.parent} to run this stage again"
    )


def learn(recipe: Recipe, state: TrainingState, number: int, policy: Policy, sequences: Sequences) -> dict[str, float]:
    """Make one optimizer step on a batch of the answers kept, at the temperature at which they were sampled."""
    section = recipe.rejection
    within = state.step - number * section.train_steps
    rows = randomness.rows(recipe.seed, f"kept {number}", within, section.batch_size, len(sequences))
    part = sequences.part(rows)
    loss = accumulate_gradients(policy, part, defaults.decided(section.micro_batch_tokens), recipe.sampler.temperature)
    if not math.isfinite(loss):
        raise DivergedError(f"step {state.step}: the loss is not finite; lower rejection.learning_rate")
    rate, norm = state.optimizer.step(state.step)
    return {"loss/imitation": loss, "learning_rate": rate, "gradient_norm": norm}


def validate(
    recipe: Recipe, state: TrainingState, networks: RejectionNetworks, prompts: Prompts, store: RolloutStore, out: Path
) -> dict[str, float]:
    """Return score and KL on validation prompts; save the best policy so far."""
    figures = scoring.validate(
        recipe, networks.reward, networks.policy, networks.reference, networks.sampler, prompts, state.step, store,
        defaults.decided(recipe.rejection.micro_batch_tokens),
    )  # fmt: skip
    loop.keep_best(state, state.optimizer, out, "objective", figures["validation/objective"], highest=True)
    return figures


def finish(stage: stages.Stage, state: TrainingState, policy: Policy) -> None:
    """Write the selected policy as the model, record its step, and mark the stage done."""
    best_step = loop.restore_best(state, state.optimizer, stage.folder)
    stage.record(**{key: state.scalars.get(key) for key in ("best_step", "best_objective")}, steps=state.step)
    origin = f"Rejection sampling from `{policy.source.name}`, step {best_step}."
    loop.finish(stage, policy, state.optimizer, origin, best_step, state.step)
