"""PPO and its relatives on prompts, scored by a reward model or a function, held to a reference by a KL penalty.

Clipped PPO with a separate critic (Schulman et al. 2017; for language models Ziegler et al. 2019, Stiennon et al. 2020
and the implementation details collected by Huang et al. 2024), or the algorithms of `recipe.algorithm` without one.
Each step: sample, score and commit rollouts; measure them under policy, reference and critic; advantages; passes of
minibatch updates. Rollouts on disk are replayed on resume.
"""

import contextlib
import math
import time
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
from preferent.models import checkpoint, language_models, saving
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.scoring import RolloutBatch
from preferent.rollouts.sampler import Prompts, rollout_params
from preferent.rollouts.store import RolloutStore
from preferent.runs import interruption, progress, stages
from preferent.runs.metrics import Metrics, tensorboard
from preferent.training import losses
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
    if saved := checkpoint.resume(out):
        state.restore(saved)
        networks.sampler.refresh(policy)
    ledger, metrics = RolloutStore(out / "rollouts"), Metrics(out / "metrics.jsonl")
    metrics.rewind(state.step + 1 if saved else 0)
    ledger.rewind(state.step)
    total = recipe.reinforcement_learning_train_steps
    asked = recipe.ppo.batch_size // algorithm(recipe.ppo).samples
    progress.epochs("reinforcement_learning_train_steps", total, asked, len(prompts.ids))
    if not saved and held_out.ids:
        metrics.append(0, validate(recipe, state, networks, held_out, ledger, out))
    with progress.bar("ppo", total, state.step) as bar:
        while state.step < total and state.scalars.get("stopped") is None:
            interruption.stop().check(lambda: save(recipe, state, out))
            started = time.perf_counter()
            rollouts = sample(recipe, state.step, networks, prompts, ledger)
            greedy = sample_greedy(recipe, state.step, networks, prompts, ledger, rollouts)
            sampled = time.perf_counter()
            batch_ = assemble(recipe, state, rollouts, networks, greedy)
            assembled = time.perf_counter()
            values = learn(recipe, state, batch_, networks) | summary(batch_, state)
            networks.sampler.refresh(policy)
            values |= scoring.metrics(rollouts, networks.reward.scale)
            if recipe.ppo.kl_target is not None:
                adapt(recipe, state, batch_)
            state.step += 1
            clock = {
                "sample": sampled - started,
                "assemble": assembled - sampled,
                "learn": time.perf_counter() - assembled,
            }
            if held_out.ids and (state.step % recipe.ppo.validation_every == 0 or state.step == total):
                values |= validate(recipe, state, networks, held_out, ledger, out)
            metrics.append(state.step, values)
            log_time(out, state.step, clock, rollouts)
            if state.step % recipe.checkpoint_every == 0 or state.step == total or "stopped" in state.scalars:
                save(recipe, state, out)
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
    """Move kl_coeff towards the KL target."""
    assert recipe.ppo.kl_target is not None
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
        found = scoring.validated(
            recipe, networks.reward, networks.policy, networks.reference, networks.sampler, prompts, state.step, ledger,
            limit,
        )  # fmt: skip
        select(recipe, state, found["validation/objective"], found["validation/kl"], out)
    return found


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
    """Remember the best policy within the KL budget; set the reason to stop where there is one."""
    ppo, scalars = recipe.ppo, state.scalars
    within = ppo.kl_budget is None or kl <= ppo.kl_budget
    if within and value > scalars.get("best_objective", -math.inf):
        scalars |= {"best_objective": value, "best_step": state.step, "evaluations_since_best": 0}
        checkpoint.save(out / "best", state.step, state.policy.tensors(), {}, keep=1000)
    else:
        scalars["evaluations_since_best"] = scalars.get("evaluations_since_best", 0) + 1
    if not within:
        scalars["stopped"] = f"KL {kl:.2f} is above the budget of {ppo.kl_budget}"
    elif ppo.early_stopping_patience is not None and scalars["evaluations_since_best"] >= ppo.early_stopping_patience:
        scalars["stopped"] = f"no better validation objective in {ppo.early_stopping_patience} evaluations"


def log_time(out: Path, step: int, clock: dict[str, float], rollouts: Sequence[Rollout]) -> None:
    """Seconds by phase and sampled tokens a second, apart from the metrics, which must not depend on the clock."""
    tokens = sum(len(r.ids) for r in rollouts)
    rounded = {name: round(seconds, 4) for name, seconds in clock.items()}
    speed = {"tokens_per_second": round(tokens / max(1e-9, clock["sample"]), 1), "answer_tokens": tokens}
    Metrics(out / "timings.jsonl").append(step, rounded | speed)


def save(recipe: Recipe, state: PPOState, out: Path) -> None:
    """Checkpoint, then forget every best policy that no checkpoint knows."""
    checkpoint.save(out / "checkpoints", state.step, state.tensors(), state.scalars, recipe.keep_checkpoints)
    checkpoint.forget(out)
    tensorboard(out / "metrics.jsonl", out / "tensorboard")


def finish(stage: stages.Stage, state: PPOState, networks: PPONetworks, how: str) -> None:
    """Write the selected policy as the model, say which it is and `how` it came to be, and mark the stage done."""
    out = stage.folder
    step = state.scalars.get("best_step")
    best = None if step is None else checkpoint.read(out / "best", step)
    if best is not None:
        state.policy.restore(best.tensors)
    elif state.average is not None:
        state.policy.put(state.average.weights)
    facts = {key: state.scalars.get(key) for key in ("best_step", "best_objective", "stopped")}
    stage.record(**facts, steps=state.step)
    chosen = state.step if best is None else best.step
    origin = f"By {how} from `{networks.policy.source.name}`, the checkpoint of step {chosen}."
    card = f"# Policy tuned by preferent\n\n{origin}\n"
    saving.save(networks.policy, out / "model", state.policy.masters, card)
    stage.finish(["model"])
