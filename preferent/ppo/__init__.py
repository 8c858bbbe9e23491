"""PPO on prompts, scored by a reward model or a function, held to a reference by a KL penalty.

Clipped PPO with a separate critic (Schulman et al. 2017; for language models Ziegler et al. 2019, Stiennon et al. 2020
and the implementation details collected by Huang et al. 2024). Each step: sample, score and commit rollouts; measure
them under policy, reference and critic; advantages; `epochs` passes of minibatch updates. Rollouts on disk are
replayed on resume.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preferent import (
    batch,
    checkpoint,
    dataset,
    draw,
    experience,
    export,
    graph,
    hub,
    model,
    objective,
    progress,
    run,
    score,
)
from preferent.error import DivergedError, UsageError
from preferent.experience import Micro
from preferent.metric import Metrics, tensorboard
from preferent.optimizer import Optimizer, Schedule
from preferent.ppo.networks import Networks, Prompts, load, rollout_params
from preferent.recipe import Recipe, pick
from preferent.record import Rollout
from preferent.rollouts import Ledger
from preferent.score import Normalizer
from preferent.world import World


@dataclass
class State:
    """How far the run is: updates done, optimizers, and the few numbers that a checkpoint carries besides."""

    step: int
    policy: Optimizer
    critic: Optimizer
    scalars: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        parts = {"policy": self.policy, "critic": self.critic}
        return {f"{part}.{name}": t for part, optimizer in parts.items() for name, t in optimizer.tensors().items()}

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        self.step, self.scalars = saved.step, dict(saved.scalars)
        for part, optimizer in (("policy", self.policy), ("critic", self.critic)):
            found = {k.removeprefix(f"{part}."): t for k, t in saved.tensors.items() if k.startswith(f"{part}.")}
            optimizer.restore(found)


@dataclass(frozen=True)
class Experience:
    """A step's rollouts as arrays [B, A] on the device, and the minibatches of micro-batches that every pass uses."""

    rollouts: list[Rollout]
    minibatches: list[list[Micro]]
    mask: Tensor
    measured: experience.Measured
    values: Tensor
    scores: Tensor
    advantages: Tensor
    returns: Tensor


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Stage `ppo`: model=, reward= (or recipe.ppo.reward), train=, validation= -> out/model and all that led to it."""
    world = World.of(recipe)
    source = hub.resolve(str(inputs["model"]))
    if not graph.members(inputs) and recipe.ppo.reward is None:
        raise UsageError("ppo: needs a reward: give --in reward=FOLDER, or ppo.reward: module:function")
    model.check_length(source, recipe)
    with run.locked(out):
        stage = run.stage(
            "ppo", out, pick(recipe, *graph.FIELDS["ppo"]), inputs | {"model": source}, graph.EXTENDABLE["ppo"]
        )
        if stage.done:
            return
        stage.place(**world.facts())
        networks = load(recipe, source, inputs, out, world)
        train(recipe, stage, networks, world)


def train(recipe: Recipe, stage: run.Stage, networks: Networks, world: World) -> None:
    """The loop: validate, sample, assemble, learn, log, save; ends with the selected checkpoint as the model."""
    policy, out = networks.policy, stage.folder
    prompts = Prompts.of(dataset.load_prompts(stage.inputs["train"]), policy, recipe)
    held_out = Prompts.of(
        dataset.load_prompts(stage.inputs["validation"])[: recipe.ppo.validation_prompts], policy, recipe
    )
    state = State(0, *optimizers(recipe, networks), {"kl_coeff": recipe.kl_coeff})
    if saved := checkpoint.resume(out):
        state.restore(saved)
    ledger, metrics = Ledger(out / "rollouts"), Metrics(out / "metrics.jsonl")
    metrics.rewind(state.step + 1 if saved else 0)
    ledger.rewind(state.step)
    total = recipe.reinforcement_learning_train_steps
    progress.epochs("reinforcement_learning_train_steps", total, recipe.ppo.batch_size, len(prompts.ids))
    if not saved and held_out.ids:
        metrics.append(0, validate(recipe, state, networks, held_out, ledger, out))
    with progress.bar("ppo", total, state.step) as bar:
        while state.step < total and state.scalars.get("stopped") is None:
            run.stop().check(lambda: save(recipe, state, out))
            started = time.perf_counter()
            rollouts = sample(recipe, state.step, networks, prompts, ledger)
            sampled = time.perf_counter()
            batch_ = assemble(recipe, state, rollouts, networks)
            assembled = time.perf_counter()
            values = learn(recipe, state, batch_, networks) | summary(batch_, state)
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
    finish(stage, state, networks, out)


def optimizers(recipe: Recipe, networks: Networks) -> tuple[Optimizer, Optimizer]:
    """AdamW for the policy and for the critic, with the recipe's rates or the defaults by LoRA or full."""
    ppo, multiplier = recipe.ppo, recipe.reinforcement_learning_rate_multiplier
    lora = networks.policy.peft is not None
    rates = ppo.learning_rate or (1e-4 if lora else 1e-6), ppo.critic_learning_rate or (1e-4 if lora else 5e-6)
    steps = recipe.reinforcement_learning_train_steps
    schedules = [Schedule(rate * multiplier, ppo.warmup_steps, ppo.schedule, steps) for rate in rates]
    return (
        Optimizer(networks.policy.trainable(), schedules[0], ppo.max_grad_norm),
        Optimizer(networks.critic.trainable(), schedules[1], ppo.max_grad_norm),
    )


def sample(recipe: Recipe, step: int, networks: Networks, prompts: Prompts, ledger: Ledger) -> list[Rollout]:
    """The scored rollouts of a step, committed before anything learns from them, or replayed."""
    size = recipe.ppo.batch_size
    rows = draw.rows(recipe.seed, "data", step, size, len(prompts.ids))

    def make() -> list[Rollout]:
        items = (step * size + np.arange(size)).tolist()
        sampled = networks.sampler.sample(
            [prompts.ids[i] for i in rows], items, "rollout", step, rollout_params(recipe)
        )
        placed = [replace(r, prompt_index=int(row)) for r, row in zip(sampled, rows, strict=True)]
        return score.scored(networks.reward, placed, [prompts.texts[i] for i in rows], networks.policy.tokenizer)

    rollouts = ledger.recorded(f"{step:06d}", prompts.ids, make)
    texts = [prompts.texts[i] for i in rows]
    ledger.describe(step, texts, score.decoded(rollouts, texts, networks.policy.tokenizer), rollouts)
    return rollouts


def assemble(recipe: Recipe, state: State, rollouts: list[Rollout], networks: Networks) -> Experience:
    """Log-probabilities, KL, values, rewards, advantages and returns of a step's rollouts."""
    ppo, policy = recipe.ppo, networks.policy
    device = policy.world.device
    lengths = [len(r.prompt_ids) + len(r.ids) for r in rollouts]
    plan = batch.minibatches(lengths, ppo.minibatches, ppo.micro_batch_tokens, recipe.seed, state.step)
    pad_id = policy.tokenizer.pad_id
    minibatches = [[experience.micro_batch(rollouts, rows, pad_id, device) for rows in part] for part in plan]
    micros = [micro for part in minibatches for micro in part]
    mask = experience.answer_mask(rollouts, device)
    shape = mask.shape[0], mask.shape[1]
    measured = experience.measure(policy, networks.reference, micros, shape, recipe.sampler.temperature)
    values = normal_values(experience.values_of(networks.critic, micros, shape), networks.normalizer) * mask
    scores = torch.from_numpy(score.final_scores(rollouts, networks.normalizer, ppo.missing_eos_score)).to(device)
    rewards = objective.shaped_rewards(scores, measured.k1, mask, state.scalars["kl_coeff"])
    advantages, returns = objective.gae(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
    return Experience(
        rollouts, minibatches, mask, measured, values, scores, objective.whiten(advantages, mask), returns
    )


def normal_values(raw: Tensor, normalizer: Normalizer) -> Tensor:
    """The critic's raw numbers on the scale of the normalised score, so that it starts with the reward model's bias."""
    return normalizer.gain * (raw - normalizer.bias)


def learn(recipe: Recipe, state: State, batch_: Experience, networks: Networks) -> dict[str, float]:
    """`epochs` passes over the minibatches in a fresh order; a loss is a sum over the minibatch's own token count."""
    totals: dict[str, float] = {}
    updates, first_ratio = 0, math.nan
    for epoch in range(recipe.ppo.epochs):
        order = draw.permutation(recipe.seed, "epoch", state.step * recipe.ppo.epochs + epoch, len(batch_.minibatches))
        for index in order:
            sums = update(recipe, batch_, batch_.minibatches[index], networks)
            if not math.isfinite(sums["loss/policy"] + sums["loss/value"]):
                raise DivergedError(
                    f"step {state.step}: the loss is not finite; its rollouts: rollouts/{state.step:06d}.safetensors"
                )
            rate, norm = state.policy.step(state.step)
            _, critic_norm = state.critic.step(state.step)
            sums |= {"policy/gradient_norm": norm, "val/gradient_norm": critic_norm}
            first_ratio = sums["val/ratio"] if updates == 0 else first_ratio
            totals = {key: totals.get(key, 0.0) + value for key, value in sums.items()}
            updates += 1
    means = {key: value / updates for key, value in totals.items()}
    means["rl_loss"] = means["loss/policy"] + recipe.ppo.vf_coeff * means["loss/value"]
    return means | {"val/first_ratio": first_ratio, "learning_rate": rate}


def update(recipe: Recipe, batch_: Experience, micros: Sequence[Micro], networks: Networks) -> dict[str, float]:
    """Gather the gradients of one minibatch, micro-batch by micro-batch; returns its losses and diagnostics."""
    ppo, policy, critic = recipe.ppo, networks.policy, networks.critic
    tokens = sum(len(micro.ids) for micro in micros)
    head = policy.head(recipe.sampler.temperature)
    totals: dict[str, Tensor | float] = {}
    for micro in micros:
        log_probs = objective.chunked_log_probs(micro.states(policy), micro.ids, head, policy.vocab_size)
        old, advantages = micro.take(batch_.measured.log_probs), micro.take(batch_.advantages)
        loss, sums = objective.policy_loss(log_probs, old, advantages, ppo.clip_range)
        (loss / tokens).backward()
        values = normal_values(critic.scores(micro.states(critic)), networks.normalizer)
        old_values, returns = micro.take(batch_.values), micro.take(batch_.returns)
        value_loss = objective.value_loss(values, old_values, returns, ppo.value_clip_range)
        (ppo.vf_coeff * value_loss / tokens).backward()
        named = {"loss/policy": loss.detach(), "loss/value": value_loss.detach(), "val/ratio": sums["ratio"]}
        named |= {"policy/approxkl": sums["approxkl"], "policy/clipfrac": sums["clipfrac"]}
        totals = {key: totals.get(key, 0.0) + value for key, value in named.items()}
    return {key: float(value) / tokens for key, value in totals.items()}


def summary(batch_: Experience, state: State) -> dict[str, float]:
    """A step's numbers before it learned: rewards, KL, entropy, lengths. Means are over answers, entropy over
    tokens."""
    mask, measured = batch_.mask, batch_.measured
    kl, k1 = float(measured.kl.sum(-1).mean()), float(measured.k1.sum(-1).mean())
    scores = float(batch_.scores.mean())
    return {
        "reward": scores,
        "kl_loss": kl,
        "objective/scores": scores,
        "objective/scores_raw": float(np.mean([r.scores["reward"] for r in batch_.rollouts])),
        "objective/rlhf_reward": scores - state.scalars["kl_coeff"] * k1,
        "objective/kl": kl,
        "objective/kl_k1": k1,
        "objective/kl_coeff": state.scalars["kl_coeff"],
        "objective/entropy": float(measured.entropy.sum() / mask.sum()),
        "val/explained_variance": objective.explained_variance(batch_.values[mask], batch_.returns[mask]),
        "tokens/length": float(mask.sum(-1).float().mean()),
        "tokens/ended": float(np.mean([r.ended for r in batch_.rollouts])),
    }


def adapt(recipe: Recipe, state: State, batch_: Experience) -> None:
    """Move kl_coeff towards the KL target."""
    assert recipe.ppo.kl_target is not None
    kl = float(batch_.measured.kl.sum(-1).mean())
    before = state.scalars["kl_coeff"]
    state.scalars["kl_coeff"] = objective.next_kl_coeff(
        before, kl, recipe.ppo.kl_target, recipe.ppo.kl_horizon, len(batch_.rollouts)
    )


def validate(
    recipe: Recipe, state: State, networks: Networks, prompts: Prompts, ledger: Ledger, out: Path
) -> dict[str, float]:
    """Score and KL on validation prompts; keeps the best policy so far, and decides whether to stop."""
    policy, texts = networks.policy, prompts.texts

    def make() -> list[Rollout]:
        sampled = networks.sampler.sample(prompts.ids, range(len(texts)), "eval", state.step, rollout_params(recipe))
        return score.scored(networks.reward, sampled, texts, policy.tokenizer)

    rollouts = ledger.recorded(f"validation-{state.step:06d}", prompts.ids, make)
    device = policy.world.device
    micros = experience.micro_batches(rollouts, recipe.ppo.micro_batch_tokens, policy.tokenizer.pad_id, device)
    mask = experience.answer_mask(rollouts, device)
    shape = mask.shape[0], mask.shape[1]
    measured = experience.measure(policy, networks.reference, micros, shape, recipe.sampler.temperature)
    kl = float(measured.kl.sum(-1).mean())
    mean = float(score.final_scores(rollouts, networks.normalizer, recipe.ppo.missing_eos_score).mean())
    select(recipe, state, mean - recipe.kl_coeff * kl, kl, out)
    return {
        "validation/score": mean,
        "validation/kl": kl,
        "validation/objective": mean - recipe.kl_coeff * kl,
        "validation/length": float(mask.sum(-1).float().mean()),
        "validation/ended": float(np.mean([r.ended for r in rollouts])),
    }


def select(recipe: Recipe, state: State, value: float, kl: float, out: Path) -> None:
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


def save(recipe: Recipe, state: State, out: Path) -> None:
    """Checkpoint, then forget every best policy that no checkpoint knows."""
    checkpoint.save(out / "checkpoints", state.step, state.tensors(), state.scalars, recipe.keep_checkpoints)
    checkpoint.forget(out)
    tensorboard(out / "metrics.jsonl", out / "tensorboard")


def finish(stage: run.Stage, state: State, networks: Networks, out: Path) -> None:
    """Write the selected policy as the model, say which it is, and mark the stage done."""
    step = state.scalars.get("best_step")
    best = None if step is None else checkpoint.read(out / "best", step)
    if best is not None:
        state.policy.restore(best.tensors)
    facts = {key: state.scalars.get(key) for key in ("best_step", "best_objective", "stopped")}
    stage.record(**facts, steps=state.step)
    chosen = state.step if best is None else best.step
    card = (
        f"# Policy tuned by preferent\n\nPPO from `{networks.policy.source.name}`, the checkpoint of step {chosen}.\n"
    )
    export.save(networks.policy, out / "model", state.policy.masters, card)
    stage.finish(["model"])
