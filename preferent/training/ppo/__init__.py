"""PPO and its relatives on prompts, scored by a reward model or a function, held to a reference by a KL penalty.

Clipped PPO with a separate critic (Schulman et al. 2017; for language models Ziegler et al. 2019, Stiennon et al. 2020
and the implementation details collected by Huang et al. 2024), or the algorithms of `recipe.algorithm` without one.
Each step: sample, score and commit rollouts; measure them under policy, reference and critic; advantages; passes of
minibatch updates. Rollouts on disk are replayed on resume.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from preferent import randomness
from preferent.config import defaults, model_reference, stage_graph
from preferent.config.algorithms import algorithm
from preferent.config.recipe import Recipe, pick
from preferent.data import datasets
from preferent.data.formats import row_sources
from preferent.data.types import Rollout
from preferent.models import language_models, saving
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.scoring import RolloutBatch
from preferent.rollouts.sampler import Prompts, rollout_params
from preferent.rollouts.store import RolloutStore
from preferent.runs import progress, stages
from preferent.training import loop, losses
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.ppo.moving_average import MovingAverage
from preferent.training.ppo.ppo_networks import PPONetworks, load
from preferent.training.ppo.update import PPOState, TrainingBatch, assemble, learn, summary


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Stage `ppo`: model=, reward= (or reward.sources of the recipe), train=, validation= -> out/model and what
    led to it."""
    world = World.of(recipe)
    source, inputs = model_reference.resolve(str(inputs["model"])), scoring.located(recipe, inputs)
    recipe, by_default = defaults.resolve(recipe, policy=model_reference.parameters(str(source)))
    language_models.check_length(source, recipe)
    with stages.locked(out):
        named = [name for name in row_sources.expand(stage_graph.pretraining(recipe)) if not name.startswith("hf://")]
        files = {f"ptx {i}": Path(name) for i, name in enumerate(named)}
        fields = pick(recipe, *stage_graph.FIELDS["ppo"])
        inputs |= {"model": source}
        stage = stages.open_stage(
            "ppo", out, fields, inputs | files, stage_graph.EXTENDABLE["ppo"], by_default=by_default
        )
        if stage.done:
            return
        stage.place(**world.facts())
        networks, prompts = load(recipe, source, inputs, out, world)
        train(recipe, stage, networks, prompts)


def train(recipe: Recipe, stage: stages.Stage, networks: PPONetworks, prompts: Prompts) -> None:
    """The loop: validate, sample, assemble, learn, log, save; ends with the selected checkpoint as the model."""
    policy, out = networks.policy, stage.folder
    validation = datasets.load_prompts(stage.inputs["validation"])[: recipe.ppo.validation_prompts]
    held_out = Prompts.of(validation, policy.tokenizer, recipe)
    state = start(recipe, networks)
    log, ledger = loop.resume(state, out), RolloutStore(out / "rollouts")
    networks.sampler.refresh(policy)
    ledger.rewind(state.step)
    total = recipe.reinforcement_learning_train_steps
    asked = recipe.ppo.batch_size // algorithm(recipe.ppo).samples
    progress.epochs("reinforcement_learning_train_steps", total, asked, len(prompts.ids))
    if log.is_new and held_out.ids:
        log.append(0, validate(recipe, state, networks, held_out, ledger, out))
    with progress.bar("ppo", total, state.step) as bar:
        while loop.unfinished(state, total):
            loop.check_stop(recipe, state, out)
            with log.timed("sample"):
                rollouts = sample(recipe, state.step, networks, prompts, ledger)
                greedy = sample_greedy(recipe, state.step, networks, prompts, ledger, rollouts)
            with log.timed("assemble"):
                batch_ = assemble(recipe, state, rollouts, networks, greedy)
            with log.timed("learn"):
                values = learn(recipe, state, batch_, networks) | summary(batch_, state)
                networks.sampler.refresh(policy)
                values |= scoring.metrics(rollouts, networks.reward.scale)
            if recipe.ppo.kl_target is not None:
                adapt(recipe, state, batch_)
            state.step += 1
            if held_out.ids and loop.due(state, recipe.ppo.validation_every, total):
                values |= validate(recipe, state, networks, held_out, ledger, out)
            log.append(state.step, values, **speed(rollouts, log.seconds["sample"]))
            if loop.due(state, recipe.checkpoint_every, total):
                loop.save(recipe, state, out)
            bar.update(state.step, reward=values["reward"], kl=values["kl_loss"])
    finish(stage, state, networks, recipe.ppo.algorithm)


def start(recipe: Recipe, networks: PPONetworks) -> PPOState:
    """AdamW for the policy and, where there is one, for the critic, with the recipe's rates."""
    ppo, multiplier = recipe.ppo, recipe.reinforcement_learning_rate_multiplier
    rates = defaults.decided(ppo.learning_rate), defaults.decided(ppo.critic_learning_rate)
    steps = recipe.reinforcement_learning_train_steps
    schedules = [Schedule(rate * multiplier, ppo.warmup_steps, ppo.schedule, steps) for rate in rates]
    policy = Optimizer(networks.policy.trainable(), schedules[0], ppo.max_grad_norm)
    critic = None
    if networks.critic is not None:
        critic = Optimizer(networks.critic.trainable(), schedules[1], ppo.max_grad_norm)
    average = None if ppo.ema_decay is None else MovingAverage(policy.masters, ppo.ema_decay)
    return PPOState(0, policy, critic, {"kl_coeff": recipe.kl_coeff}, average)


def sample(recipe: Recipe, step: int, networks: PPONetworks, prompts: Prompts, ledger: RolloutStore) -> list[Rollout]:
    """The scored rollouts of a step, the answers to a prompt one after the other, committed before anything learns from
    them, or replayed."""
    size, samples = recipe.ppo.batch_size, algorithm(recipe.ppo).samples
    rows = randomness.rows(recipe.seed, "data", step, size // samples, len(prompts.ids)).repeat(samples)
    name, asked, tokenizer = f"{step:06d}", prompts.part(rows), networks.policy.tokenizer
    rollouts = ledger.replayed(name, prompts.ids)
    if rollouts is None:
        items = (step * size + np.arange(size)).tolist()
        sampled = networks.sampler.sample(asked.ids, items, "rollout", step, rollout_params(recipe))
        placed = [
            replace(r, prompt_index=int(row), sample_index=i % samples)
            for i, (r, row) in enumerate(zip(sampled, rows, strict=True))
        ]
        batch_ = RolloutBatch(placed, asked, tokenizer)
        rollouts = ledger.committed(name, scoring.scored(networks.reward, batch_))
    else:
        batch_ = RolloutBatch(rollouts, asked, tokenizer)
    ledger.describe(step, asked.texts, batch_.answers, rollouts)
    return rollouts


def sample_greedy(
    recipe: Recipe,
    step: int,
    networks: PPONetworks,
    prompts: Prompts,
    ledger: RolloutStore,
    rollouts: Sequence[Rollout],
) -> list[Rollout]:
    """The scored greedy answers to the prompts of the rollouts, one for each, committed likewise; only for ReMax."""
    if recipe.ppo.algorithm != "remax":
        return []
    rows = sorted({r.prompt_index for r in rollouts})

    def make() -> list[Rollout]:
        asked, params = prompts.part(rows), replace(rollout_params(recipe), greedy=True)
        sampled = networks.sampler.sample(asked.ids, rows, "greedy", step, params)
        return scoring.scored(networks.reward, RolloutBatch(sampled, asked, networks.policy.tokenizer))

    greedy = dict(zip(rows, ledger.recorded(f"greedy-{step:06d}", prompts.ids, make), strict=True))
    return [greedy[r.prompt_index] for r in rollouts]


def adapt(recipe: Recipe, state: PPOState, batch_: TrainingBatch) -> None:
    """Move kl_coeff towards the KL target, where there is one."""
    if recipe.ppo.kl_target is None:
        return
    kl = float(batch_.measured.kl.sum(-1).mean())
    before = state.scalars["kl_coeff"]
    state.scalars["kl_coeff"] = losses.next_kl_coeff(
        before, kl, recipe.ppo.kl_target, recipe.ppo.kl_horizon, len(batch_.rollouts)
    )


def validate(
    recipe: Recipe, state: PPOState, networks: PPONetworks, prompts: Prompts, ledger: RolloutStore, out: Path
) -> dict[str, float]:
    """Score and KL on validation prompts; keeps the best policy so far, and decides whether to stop."""
    limit = recipe.ppo.micro_batch_tokens
    with averaged(state, networks):
        figures = scoring.validated(
            recipe, networks.reward, networks.policy, networks.reference, networks.sampler, prompts, state.step, ledger,
            limit,
        )  # fmt: skip
        select(recipe, state, figures["validation/objective"], figures["validation/kl"], out)
    return figures


@contextlib.contextmanager
def averaged(state: PPOState, networks: PPONetworks) -> Iterator[None]:
    """Let the policy be the moving average of its weights, where there is one."""
    if state.average is None:
        yield
        return
    with state.average.instead(state.policy):
        networks.sampler.refresh(networks.policy)
        yield
    networks.sampler.refresh(networks.policy)


def select(recipe: Recipe, state: PPOState, value: float, kl: float, out: Path) -> None:
    """Keep the best policy within the KL budget; find the reason to stop where there is one."""
    budget = recipe.ppo.kl_budget
    within = budget is None or kl <= budget
    loop.keep_best(state, state.policy, out, "objective", value if within else -math.inf, highest=True)
    loop.stop_early(state, recipe.ppo.early_stopping_patience, "objective")
    if not within:
        state.scalars["stopped"] = f"KL {kl:.2f} is above the budget of {budget}"


def speed(rollouts: Sequence[Rollout], seconds: float) -> dict[str, float]:
    """Sampled tokens, and how many a second."""
    tokens = sum(len(r.ids) for r in rollouts)
    return {"tokens_per_second": round(tokens / max(1e-9, seconds), 1), "answer_tokens": tokens}


def finish(stage: stages.Stage, state: PPOState, networks: PPONetworks, how: str) -> None:
    """Write the selected policy as the model, say which it is and `how` it came to be, and mark the stage done."""
    chosen = loop.restore_best(state, state.policy, stage.folder)
    if state.average is not None and "best_step" not in state.scalars:
        state.policy.put(state.average.weights)
    facts = {key: state.scalars.get(key) for key in ("best_step", "best_objective", "stopped")}
    stage.record(**facts, steps=state.step)
    origin = f"By {how} from `{networks.policy.source.name}`, the checkpoint of step {chosen}."
    card = f"# Policy tuned by preferent\n\n{origin}\n"
    saving.save(networks.policy, stage.folder / "model", state.policy.masters, card)
    stage.finish(["model"])
