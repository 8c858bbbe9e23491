"""One step of PPO on its rollouts: rewards, advantages, losses, updates and metrics.

The algorithms differ in how advantages are computed and in whether there is a critic.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preferent import randomness
from preferent.config.algorithms import Algorithm, algorithm
from preferent.config.defaults import decided
from preferent.config.recipe import Recipe
from preferent.data.types import Rollout
from preferent.errors import DivergedError
from preferent.models import batching, collectives, sharding, vocabulary
from preferent.models.world import to_device
from preferent.rewards import scoring
from preferent.rewards.normalization import Normalizer
from preferent.rollouts import measurement
from preferent.rollouts.measurement import MicroBatch
from preferent.runs.directory import StageDirectory
from preferent.training import advantages, losses, sequences
from preferent.training.optimizer import Optimizer
from preferent.training.ppo.moving_average import MovingAverage
from preferent.training.ppo.ppo_networks import PPONetworks


@dataclass
class PPOState:
    """Trainer state: step, optimizers, moving average, and the scalars saved in checkpoints."""

    step: int
    policy: Optimizer
    critic: Optimizer | None
    scalars: dict[str, Any] = field(default_factory=dict)
    average: MovingAverage | None = None

    def _parts(self) -> dict[str, Optimizer | MovingAverage]:
        parts = {"policy": self.policy, "critic": self.critic, "average": self.average}
        return {name: part for name, part in parts.items() if part is not None}

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": t for name, part in self._parts().items() for key, t in part.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, part in self._parts().items():
            part.restore({k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")})


@dataclass(frozen=True)
class TrainingBatch:
    """A step's rollouts as arrays [B, A] on the device, and the minibatches of micro-batches that every pass uses.

    There are values and returns if there is a critic. `weights` are the weights of tokens in the loss, `kl_loss_coeff`
    is that of the KL in the loss (0 if the KL is in the reward).
    """

    rollouts: list[Rollout]
    minibatches: list[list[MicroBatch]]
    mask: Tensor
    measured: measurement.Measured
    scores: Tensor
    advantages: Tensor
    weights: Tensor
    kl_loss_coeff: float = 0.0
    values: Tensor | None = None
    returns: Tensor | None = None


def assemble(
    recipe: Recipe, state: PPOState, rollouts: list[Rollout], networks: PPONetworks, greedy: Sequence[Rollout] = ()
) -> TrainingBatch:
    """Compute log-probabilities, KL, rewards and advantages of a step's rollouts; with a critic, values and returns.

    `greedy` are the greedy answers to the prompts of the rollouts, the baseline of ReMax.
    """
    ppo, policy, how = recipe.ppo, networks.policy, algorithm(recipe.ppo)
    device = policy.world.device
    lengths = [len(r.prompt_ids) + len(r.ids) for r in rollouts]
    plan = batching.minibatches(lengths, ppo.minibatches, decided(ppo.micro_batch_tokens), recipe.seed, state.step)
    pad_id = policy.tokenizer.pad_id
    minibatches = [[measurement.micro_batch(rollouts, rows, pad_id, device) for rows in part] for part in plan]
    micros = [micro for part in minibatches for micro in part]
    mask = measurement.answer_mask(rollouts, device)
    shape = mask.shape[0], mask.shape[1]
    measured = measurement.measure(policy, networks.reference, micros, shape, recipe.sampler.temperature)
    scores, baselines = (final_scores(recipe, answers, networks, device) for answers in (rollouts, greedy))
    kl_coeff, in_loss = state.scalars["kl_coeff"], how.kl_in == "loss"
    rewards = losses.shaped_rewards(scores, measured.k1, mask, 0.0 if in_loss else kl_coeff)
    if ppo.whiten_rewards:
        rewards = torch.where(mask, losses.whiten(rewards, mask) + rewards[mask].mean(), 0.0)
    values = returns = None
    if networks.critic is not None:
        values = normalize_values(measurement.values_of(networks.critic, micros, shape), networks.normalizer) * mask
        advantages, returns = losses.gae(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
    else:
        advantages = critic_free_advantages(how, rewards, mask, baselines, ppo.gamma)
    if how.whiten:
        advantages = losses.whiten(advantages, mask)
    weights = mask.sum() / (len(mask) * mask.sum(-1, keepdim=True)) if how.by_length else torch.ones_like(rewards)
    weights = weights.expand_as(rewards)
    kl_loss_coeff = kl_coeff if in_loss else 0.0
    return TrainingBatch(
        rollouts, minibatches, mask, measured, scores, advantages, weights, kl_loss_coeff, values, returns
    )


def critic_free_advantages(
    how: Algorithm, rewards: Tensor, mask: Tensor, greedy_scores: Tensor, gamma: float
) -> Tensor:
    """Return the advantages [B, A] of an algorithm without a critic."""
    if how.name == "rloo":
        return advantages.rloo(rewards, mask, how.samples)
    if how.name == "grpo":
        return advantages.grpo(rewards, mask, how.samples)
    if how.name == "dr_grpo":
        return advantages.dr_grpo(rewards, mask, how.samples)
    if how.name == "remax":
        return advantages.remax(rewards, mask, greedy_scores, gamma)
    return advantages.reinforce_plus_plus(rewards, mask, how.samples, gamma)


def final_scores(recipe: Recipe, rollouts: Sequence[Rollout], networks: PPONetworks, device: torch.device) -> Tensor:
    """Return normalised scores [B] on the device."""
    if not rollouts:
        return torch.zeros(0, device=device)
    return to_device(scoring.final_scores(rollouts, networks.reward.scale, recipe), device)


def normalize_values(raw: Tensor, normalizer: Normalizer) -> Tensor:
    """Map the critic's raw values to the scale of the normalised score, so they start with the reward model's bias."""
    return normalizer.gain * (raw - normalizer.bias)


def learn(recipe: Recipe, state: PPOState, batch: TrainingBatch, networks: PPONetworks) -> dict[str, float]:
    """Make the passes over the minibatches, each in a fresh order; return the means of losses and diagnostics.

    A loss is the sum over a minibatch divided by the minibatch's number of tokens.
    """
    totals: dict[str, float] = {}
    epochs = algorithm(recipe.ppo).epochs
    updates, first_ratio, rate = 0, math.nan, 0.0
    for epoch in range(epochs):
        order = randomness.permutation(recipe.seed, "epoch", state.step * epochs + epoch, len(batch.minibatches))
        for index in order:
            sums = update(recipe, batch, batch.minibatches[index], networks)
            if networks.pretraining is not None:
                number = (state.step * epochs + epoch) * len(order) + int(index)
                sums["loss/ptx"] = pretraining_gradients(recipe, networks, number)
            if not math.isfinite(sums["rl_loss"]):
                raise DivergedError(
                    f"step {state.step}: the loss is not finite; its rollouts are in "
                    f"{StageDirectory(Path()).rollouts}/{state.step:06d}.safetensors"
                )
            if state.step < recipe.ppo.critic_warmup_steps and state.critic is not None:
                state.policy.discard()
            else:
                rate, sums["policy/gradient_norm"] = state.policy.step(state.step)
            if state.critic is not None:
                sums["val/gradient_norm"] = state.critic.step(state.step)[1]
            first_ratio = sums["val/ratio"] if updates == 0 else first_ratio
            totals = {key: totals.get(key, 0.0) + value for key, value in sums.items()}
            updates += 1
    if state.average is not None:
        state.average.update(state.policy.masters)
    means = {key: value / updates for key, value in totals.items()}
    return means | {"val/first_ratio": first_ratio, "learning_rate": rate}


def update(
    recipe: Recipe, batch: TrainingBatch, micros: Sequence[MicroBatch], networks: PPONetworks
) -> dict[str, float]:
    """Accumulate the gradients of one minibatch, micro-batch by micro-batch; return its losses and diagnostics."""
    tokens = sum(len(micro.ids) for micro in micros)
    totals: dict[str, Tensor | float] = {}
    for micro, weight in collectives.passes(micros):
        sums = policy_gradients(recipe, batch, micro, networks, tokens, weight)
        if networks.critic is not None:
            value_loss = critic_gradients(recipe, batch, micro, networks, tokens, weight)
            sums |= {"loss/value": value_loss, "rl_loss": sums["rl_loss"] + recipe.ppo.vf_coeff * value_loss}
        totals = {key: totals.get(key, 0.0) + weight * value for key, value in sums.items()}
    summed = collectives.sums({key: float(value) for key, value in totals.items()})
    return {key: value / tokens for key, value in summed.items()}


def policy_gradients(
    recipe: Recipe, batch: TrainingBatch, micro: MicroBatch, networks: PPONetworks, tokens: int, weight: float = 1.0
) -> dict[str, Tensor]:
    """Add a micro-batch's gradient of the policy's loss times `weight` / `tokens`; return sums to log.

    `tokens` are those of its minibatch.
    """
    ppo, policy = recipe.ppo, networks.policy

    def measured() -> tuple[Tensor, Tensor | None]:
        head, states = policy.head(recipe.sampler.temperature), micro.states(policy)
        log_probs = vocabulary.chunked_log_probs(states, micro.ids, head, policy.vocab_size)
        with_entropy = ppo.entropy_coeff > 0
        return log_probs, vocabulary.chunked_entropy(states, head, policy.vocab_size).sum() if with_entropy else None

    log_probs, entropy = sharding.passed(policy.body, measured)
    old, weights = micro.take(batch.measured.log_probs), micro.take(batch.weights)
    clips = ppo.clip_range, ppo.clip_range_high, ppo.dual_clip
    loss, sums = losses.policy_loss(log_probs, old, weights * micro.take(batch.advantages), *clips)
    logged = {"loss/policy": loss.detach(), "val/ratio": sums["ratio"]}
    logged |= {"policy/approxkl": sums["approxkl"], "policy/clipfrac": sums["clipfrac"]}
    if batch.kl_loss_coeff > 0:
        kl = losses.kl_loss(log_probs, old - micro.take(batch.measured.k1), weights)
        logged["loss/kl"] = kl.detach()
        loss = loss + batch.kl_loss_coeff * kl
    if entropy is not None:
        loss = loss - ppo.entropy_coeff * entropy
    (weight * loss / tokens).backward()
    return logged | {"rl_loss": loss.detach()}


def critic_gradients(
    recipe: Recipe, batch: TrainingBatch, micro: MicroBatch, networks: PPONetworks, tokens: int, weight: float = 1.0
) -> Tensor:
    """Add the gradient of the critic's loss of a micro-batch, times `weight` / `tokens`; return the loss, summed."""
    critic = networks.critic
    assert critic is not None and batch.values is not None and batch.returns is not None
    values = normalize_values(measurement.token_values(critic, micro), networks.normalizer)
    old_values, returns = micro.take(batch.values), micro.take(batch.returns)
    loss = losses.value_loss(values, old_values, returns, recipe.ppo.value_clip_range)
    (weight * recipe.ppo.vf_coeff * loss / tokens).backward()
    return loss.detach()


def pretraining_gradients(recipe: Recipe, networks: PPONetworks, number: int) -> float:
    """Add the gradient of PPO-ptx (Ouyang et al. 2022); return the mean negative log-likelihood in nats per token.

    The loss is `ptx_coeff` times that mean, over `ptx_batch_size` sequences of text.
    """
    ppo, policy, text = recipe.ppo, networks.policy, networks.pretraining
    assert text is not None
    size = ppo.ptx_batch_size or max(1, ppo.batch_size // ppo.minibatches)
    chosen = text.part(randomness.rows(recipe.seed, "ptx", number, size, len(text)))
    parts = [
        chosen.part(rows) for rows in batching.plan([len(ids) for ids in chosen.ids], decided(ppo.micro_batch_tokens))
    ]
    tokens, total = sequences.target_count(policy, chosen), 0.0
    for part, weight in collectives.passes(parts):
        loss = weight * sequences.loss_sum(policy, part) / tokens
        (ppo.ptx_coeff * loss).backward()
        total += float(loss.detach())
    return collectives.sums({"ptx": total})["ptx"]


def summary(batch: TrainingBatch, state: PPOState) -> dict[str, float]:
    """Return the metrics of a step's rollouts before its updates: means over answers, the entropy over tokens."""
    mask, measured = batch.mask, batch.measured
    kl, k1 = float(measured.kl.sum(-1).mean()), float(measured.k1.sum(-1).mean())
    scores = float(batch.scores.mean())
    metrics = {
        "reward": scores,
        "kl_loss": kl,
        "objective/scores": scores,
        "objective/rlhf_reward": scores - state.scalars["kl_coeff"] * k1,
        "objective/kl": kl,
        "objective/kl_k1": k1,
        "objective/kl_coeff": state.scalars["kl_coeff"],
        "objective/entropy": float(measured.entropy.sum() / mask.sum()),
        "tokens/length": float(mask.sum(-1).float().mean()),
        "tokens/ended": float(np.mean([r.ended for r in batch.rollouts])),
        "val/sampler_gap": float(measurement.sampler_gap(batch.rollouts, measured.log_probs).max()),
    }
    if batch.values is not None and batch.returns is not None:
        explained = losses.explained_variance(batch.values[mask], batch.returns[mask])
        metrics["val/explained_variance"] = explained
    return metrics
