"""PPO and its variants: tune a policy on prompts for a reward, with a KL penalty to a reference.

Clipped PPO with a separate critic (Schulman et al. 2017; for language models Ziegler et al. 2019, Stiennon et al. 2020
and the implementation details collected by Huang et al. 2024), or the algorithms of `recipe.algorithm` without one.
Each step samples, scores and commits rollouts, measures them under policy, reference and critic, computes advantages,
and makes several passes of minibatch updates. Rollouts on disk are replayed on resume.
"""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from preferent import randomness
from preferent.config import defaults, model_reference, stage_graph
from preferent.config.algorithms import algorithm
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.data.formats import row_sources
from preferent.data.types import Rollout
from preferent.models import language_models
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.scoring import RolloutBatch
from preferent.rollouts.sampler import Prompts, rollout_params
from preferent.rollouts.store import RolloutStore
from preferent.runs import progress, stages
from preferent.runs.directory import StageDirectory
from preferent.training import loop, losses
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.ppo.moving_average import MovingAverage
from preferent.training.ppo.ppo_networks import PPONetworks, load
from preferent.training.ppo.update import PPOState, TrainingBatch, assemble, learn, summary


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Run stage `ppo`: model=, reward= (or reward.sources of the recipe), train=, validation= -> out/model."""
    world = World.of(recipe, learns=True)
    source, inputs = model_reference.resolve(str(inputs["model"])), scoring.resolve_models(recipe, inputs)
    recipe, by_default = defaults.resolve(recipe, policy=model_reference.parameters(str(source)))
    language_models.check_length(source, recipe)
    with stages.locked(out):
        names = row_sources.local_files(stage_graph.pretraining(recipe))
        files = {f"ptx {i}": Path(name) for i, name in enumerate(names)}
        inputs |= {"model": source}
        stage = loop.opened("ppo", out, recipe, inputs | files, by_default)
        if stage.done:
            return
        recipe = world.settled(recipe, stage)
        stage.place(**world.facts())
        networks, prompts = load(recipe, source, inputs, out, world)
        train(recipe, stage, networks, prompts)


def train(recipe: Recipe, stage: stages.Stage, networks: PPONetworks, prompts: Prompts) -> None:
    """Run the loop: sample, assemble, learn, validate, log, save; write the selected checkpoint as the model."""
    policy, out = networks.policy, stage.folder
    validation = datasets.load_prompts(stage.inputs["validation"])[: recipe.ppo.validation_prompts]
    held_out = Prompts.of(validation, policy.tokenizer, recipe)
    state = start(recipe, networks)
    log, store = loop.resume(state, out), RolloutStore(StageDirectory(out).rollouts)
    networks.sampler.refresh(policy)
    store.rewind(state.step)
    total = recipe.reinforcement_learning_train_steps
    prompts_per_step = recipe.ppo.batch_size // algorithm(recipe.ppo).samples
    progress.epochs("reinforcement_learning_train_steps", total, prompts_per_step, len(prompts.ids))
    if log.is_new and held_out.ids:
        log.append(0, validate(recipe, state, networks, held_out, store, out))
    with progress.bar("ppo", total, state.step) as bar:
        while loop.unfinished(state, total):
            loop.check_stop(recipe, state, out)
            with log.timed("sample"):
                rollouts = sample(recipe, state.step, networks, prompts, store)
                greedy = sample_greedy(recipe, state.step, networks, prompts, store, rollouts)
            with log.timed("assemble"):
                batch = assemble(recipe, state, rollouts, networks, greedy)
            with log.timed("learn"):
                values = learn(recipe, state, batch, networks) | summary(batch, state)
                networks.sampler.refresh(policy)
                values |= scoring.metrics(rollouts, networks.reward.scale)
            adapt(recipe, state, batch)
            state.step += 1
            if held_out.ids and loop.due(state, recipe.ppo.validation_every, total):
                values |= validate(recipe, state, networks, held_out, store, out)
            log.append(state.step, values, **speed(rollouts, log.seconds["sample"]))
            if loop.due(state, recipe.checkpoint_every, total):
                loop.save(recipe, state, out)
            bar.update(state.step, reward=values["reward"], kl=values["kl_loss"])
    for path in store.damaged(f"{step:06d}" for step in range(state.step)):
        print(f"{path}: missing or damaged; it was learnt from already, and nothing else reads it", file=sys.stderr)
    finish(stage, state, networks, recipe.ppo.algorithm)


def start(recipe: Recipe, networks: PPONetworks) -> PPOState:
    """Return AdamW for the policy and, if there is one, for the critic, with the recipe's learning rates."""
    ppo, multiplier = recipe.ppo, recipe.reinforcement_learning_rate_multiplier
    rates = defaults.decided(ppo.learning_rate), defaults.decided(ppo.critic_learning_rate)
    steps = recipe.reinforcement_learning_train_steps
    schedules = [Schedule(rate * multiplier, ppo.warmup_steps, ppo.schedule, steps) for rate in rates]
    policy = Optimizer(networks.policy.trainable(), schedules[0], ppo.max_grad_norm, kind=recipe.optimizer)
    critic = None
    if networks.critic is not None:
        critic = Optimizer(networks.critic.trainable(), schedules[1], ppo.max_grad_norm, kind=recipe.optimizer)
    average = None if ppo.ema_decay is None else MovingAverage(policy.masters, ppo.ema_decay)
    return PPOState(0, policy, critic, {"kl_coeff": recipe.kl_coeff}, average)


def sample(recipe: Recipe, step: int, networks: PPONetworks, prompts: Prompts, store: RolloutStore) -> list[Rollout]:
    """Return the scored rollouts of a step, the answers to a prompt one after the other.

    They are committed before any update uses them, or replayed.
    """
    size, samples = recipe.ppo.batch_size, algorithm(recipe.ppo).samples
    rows = randomness.rows(recipe.seed, "data", step, size // samples, len(prompts.ids)).repeat(samples)
    name, answered, tokenizer = f"{step:06d}", prompts.part(rows), networks.policy.tokenizer
    rollouts = store.replay(name, prompts.ids)
    if rollouts is None:
        items = (step * size + np.arange(size)).tolist()
        sampled = networks.sampler.sample(answered.ids, items, "rollout", step, rollout_params(recipe))
        numbered = [
            replace(r, prompt_index=int(row), sample_index=i % samples)
            for i, (r, row) in enumerate(zip(sampled, rows, strict=True))
        ]
        batch = RolloutBatch(numbered, answered, tokenizer)
        rollouts = store.commit(name, scoring.score_rollouts(networks.reward, batch))
    else:
        batch = RolloutBatch(rollouts, answered, tokenizer)
    store.append_samples(step, answered.texts, batch.answers, rollouts)
    return rollouts


def sample_greedy(
    recipe: Recipe,
    step: int,
    networks: PPONetworks,
    prompts: Prompts,
    store: RolloutStore,
    rollouts: Sequence[Rollout],
) -> list[Rollout]:
    """Return the scored greedy answer to the prompt of each rollout, committed or replayed; none except with ReMax."""
    if recipe.ppo.algorithm != "remax":
        return []
    rows = sorted({r.prompt_index for r in rollouts})

    def make() -> list[Rollout]:
        answered, params = prompts.part(rows), replace(rollout_params(recipe), greedy=True)
        sampled = networks.sampler.sample(answered.ids, rows, "greedy", step, params)
        return scoring.score_rollouts(networks.reward, RolloutBatch(sampled, answered, networks.policy.tokenizer))

    greedy = dict(zip(rows, store.replay_or_make(f"greedy-{step:06d}", prompts.ids, make), strict=True))
    return [greedy[r.prompt_index] for r in rollouts]


def adapt(recipe: Recipe, state: PPOState, batch: TrainingBatch) -> None:
    """Move kl_coeff towards the KL target, if there is one."""
    if recipe.ppo.kl_target is None:
        return
    kl = float(batch.measured.kl.sum(-1).mean())
    before = state.scalars["kl_coeff"]
    state.scalars["kl_coeff"] = losses.next_kl_coeff(
        before, kl, recipe.ppo.kl_target, recipe.ppo.kl_horizon, len(batch.rollouts)
    )


def validate(
    recipe: Recipe, state: PPOState, networks: PPONetworks, prompts: Prompts, store: RolloutStore, out: Path
) -> dict[str, float]:
    """Return score and KL on validation prompts; save the best policy so far, and record a reason to stop."""
    limit = defaults.decided(recipe.ppo.micro_batch_tokens)
    with averaged(state, networks):
        figures = scoring.validate(
            recipe, networks.reward, networks.policy, networks.reference, networks.sampler, prompts, state.step, store,
            limit,
        )  # fmt: skip
        select(recipe, state, figures["validation/objective"], figures["validation/kl"], out)
    return figures


@contextlib.contextmanager
def averaged(state: PPOState, networks: PPONetworks) -> Iterator[None]:
    """Set the policy to the moving average of its weights within the block, if there is one."""
    if state.average is None:
        yield
        return
    with state.average.instead(state.policy):
        networks.sampler.refresh(networks.policy)
        yield
    networks.sampler.refresh(networks.policy)


def select(recipe: Recipe, state: PPOState, objective: float, kl: float, out: Path) -> None:
    """Save the best policy within the KL budget; record a reason to stop if there is one."""
    budget = recipe.ppo.kl_budget
    within = budget is None or kl <= budget
    loop.keep_best(state, state.policy, out, "objective", objective if within else -math.inf, highest=True)
    loop.stop_early(state, recipe.ppo.early_stopping_patience, "objective")
    if not within:
        state.scalars["stopped"] = f"KL {kl:.2f} is above the budget of {budget}"


def speed(rollouts: Sequence[Rollout], seconds: float) -> dict[str, float]:
    """Return the number of sampled tokens, and of tokens per second."""
    tokens = sum(len(r.ids) for r in rollouts)
    return {"tokens_per_second": round(tokens / max(1e-9, seconds), 1), "answer_tokens": tokens}


def finish(stage: stages.Stage, state: PPOState, networks: PPONetworks, name: str) -> None:
    """Write the policy selected in training by algorithm `name` as the model, and mark the stage done."""
    best_step = loop.restore_best(state, state.policy, stage.folder)
    if state.average is not None and "best_step" not in state.scalars:
        state.policy.put(state.average.weights)
    facts = {key: state.scalars.get(key) for key in ("best_step", "best_objective", "stopped")}
    stage.record(**facts, steps=state.step)
    origin = f"By {name} from `{networks.policy.source.name}`, the checkpoint of step {best_step}."
    loop.finish(stage, networks.policy, state.policy, origin, best_step, state.step)
