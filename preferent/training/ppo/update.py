"""What a step makes of its rollouts: rewards, advantages, losses, updates, and the numbers that say how it went.

The algorithms differ by how advantages are made and by whether there is a critic.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preferent import randomness
from preferent.config.algorithms import Algorithm, algorithm
from preferent.config.recipe import Recipe
from preferent.data.types import Rollout
from preferent.errors import DivergedError
from preferent.models import batching, vocabulary
from preferent.rewards import scoring
from preferent.rewards.normalization import Normalizer
from preferent.rollouts import measurement
from preferent.rollouts.measurement import Micro
from preferent.training import advantages, losses, sequences
from preferent.training.optimizer import Optimizer
from preferent.training.ppo.moving_average import MovingAverage
from preferent.training.ppo.ppo_networks import PPONetworks


@dataclass
class PPOState:
    """How far the run is: updates done, optimizers, and the few numbers that a checkpoint carries besides."""

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

    Values and returns are there where there is a critic. `weights` say how much a token counts in the loss,
    `kl_loss_coeff` how much the KL does there (0 where it stands in the reward).
    """

    rollouts: list[Rollout]
    minibatches: list[list[Micro]]
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
    """Log-probabilities, KL, rewards and advantages of a step's rollouts; with a critic, values and returns.

    `greedy` are the greedy answers to the prompts of the rollouts, which ReMax holds them against.
    """
    ppo, policy, how = recipe.ppo, networks.policy, algorithm(recipe.ppo)
    device = policy.world.device
    lengths = [len(r.prompt_ids) + len(r.ids) for r in rollouts]
    plan = batching.minibatches(lengths, ppo.minibatches, ppo.micro_batch_tokens, recipe.seed, state.step)
    pad_id = policy.tokenizer.pad_id
    minibatches = [[measurement.micro_batch(rollouts, rows, pad_id, device) for rows in part] for part in plan]
    micros = [micro for part in minibatches for micro in part]
    mask = measurement.answer_mask(rollouts, device)
    shape = mask.shape[0], mask.shape[1]
    measured = measurement.measure(policy, networks.reference, micros, shape, recipe.sampler.temperature)
    scores, baselines = (final_scores(recipe, found, networks, device) for found in (rollouts, greedy))
    kl_coeff, in_loss = state.scalars["kl_coeff"], how.kl_in == "loss"
    rewards = losses.shaped_rewards(scores, measured.k1, mask, 0.0 if in_loss else kl_coeff)
    if ppo.whiten_rewards:
        rewards = torch.where(mask, losses.whiten(rewards, mask) + rewards[mask].mean(), 0.0)
    values = returns = None
    if networks.critic is not None:
        values = normal_values(measurement.values_of(networks.critic, micros, shape), networks.normalizer) * mask
        advantages, returns = losses.gae(rewards, values, mask, ppo.gamma, ppo.gae_lambda)
    else:
        advantages = without_critic(how, rewards, mask, baselines, ppo.gamma)
    if how.whiten:
        advantages = losses.whiten(advantages, mask)
    weights = mask.sum() / (len(mask) * mask.sum(-1, keepdim=True)) if how.by_length else torch.ones_like(rewards)
    weights = weights.expand_as(rewards)
    kl_loss_coeff = kl_coeff if in_loss else 0.0
    return TrainingBatch(
        rollouts, minibatches, mask, measured, scores, advantages, weights, kl_loss_coeff, values, returns
    )


def without_critic(how: Algorithm, rewards: Tensor, mask: Tensor, greedy_scores: Tensor, gamma: float) -> Tensor:
    """The advantages [B, A] of the algorithms that have no critic."""
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
    """Normalised scores [B] on the device."""
    if not rollouts:
        return torch.zeros(0, device=device)
    return torch.from_numpy(scoring.final_scores(rollouts, networks.reward.scale, recipe)).to(device)


def normal_values(raw: Tensor, normalizer: Normalizer) -> Tensor:
    """The critic's raw numbers on the scale of the normalised score, so that it starts with the reward model's bias."""
    return normalizer.gain * (raw - normalizer.bias)


def learn(recipe: Recipe, state: PPOState, batch_: TrainingBatch, networks: PPONetworks) -> dict[str, float]:
    """Passes over the minibatches in a fresh order; a loss is a sum over the minibatch's own token count."""
    totals: dict[str, float] = {}
    epochs = algorithm(recipe.ppo).epochs
    updates, first_ratio, rate = 0, math.nan, 0.0
    for epoch in range(epochs):
        order = randomness.permutation(recipe.seed, "epoch", state.step * epochs + epoch, len(batch_.minibatches))
        for index in order:
            sums = update(recipe, batch_, batch_.minibatches[index], networks)
            if networks.pretraining is not None:
                number = (state.step * epochs + epoch) * len(order) + int(index)
                sums["loss/ptx"] = pretraining_gradients(recipe, networks, number)
            if not math.isfinite(sums["rl_loss"]):
                raise DivergedError(
                    f"step {state.step}: the loss is not finite; its rollouts: rollouts/{state.step:06d}.safetensors"
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


def update(recipe: Recipe, batch_: TrainingBatch, micros: Sequence[Micro], networks: PPONetworks) -> dict[str, float]:
    """Gather the gradients of one minibatch, micro-batch by micro-batch; returns its losses and diagnostics."""
    tokens = sum(len(micro.ids) for micro in micros)
    totals: dict[str, Tensor | float] = {}
    for micro in micros:
        found = policy_gradients(recipe, batch_, micro, networks, tokens)
        if networks.critic is not None:
            value_loss = critic_gradients(recipe, batch_, micro, networks, tokens)
            found |= {"loss/value": value_loss, "rl_loss": found["rl_loss"] + recipe.ppo.vf_coeff * value_loss}
        totals = {key: totals.get(key, 0.0) + value for key, value in found.items()}
    return {key: float(value) / tokens for key, value in totals.items()}


def policy_gradients(
    recipe: Recipe, batch_: TrainingBatch, micro: Micro, networks: PPONetworks, tokens: int
) -> dict[str, Tensor]:
    """Add a micro-batch's gradient of the policy's loss, over the `tokens` of its minibatch; returns sums to log."""
    ppo, policy = recipe.ppo, networks.policy
    head, states = policy.head(recipe.sampler.temperature), micro.states(policy)
    log_probs = vocabulary.chunked_log_probs(states, micro.ids, head, policy.vocab_size)
    old, weights = micro.take(batch_.measured.log_probs), micro.take(batch_.weights)
    clips = ppo.clip_range, ppo.clip_range_high, ppo.dual_clip
    loss, sums = losses.policy_loss(log_probs, old, weights * micro.take(batch_.advantages), *clips)
    found = {"loss/policy": loss.detach(), "val/ratio": sums["ratio"]}
    found |= {"policy/approxkl": sums["approxkl"], "policy/clipfrac": sums["clipfrac"]}
    if batch_.kl_loss_coeff > 0:
        kl = losses.kl_loss(log_probs, old - micro.take(batch_.measured.k1), weights)
        found["loss/kl"] = kl.detach()
        loss = loss + batch_.kl_loss_coeff * kl
    if ppo.entropy_coeff > 0:
        loss = loss - ppo.entropy_coeff * vocabulary.chunked_entropy(states, head, policy.vocab_size).sum()
    (loss / tokens).backward()
    return found | {"rl_loss": loss.detach()}


def critic_gradients(recipe: Recipe, batch_: TrainingBatch, micro: Micro, networks: PPONetworks, tokens: int) -> Tensor:
    """Add a micro-batch's gradient of the critic's loss, over the `tokens` of its minibatch; returns the loss's sum."""
    critic = networks.critic
    assert critic is not None and batch_.values is not None and batch_.returns is not None
    values = normal_values(critic.scores(micro.states(critic)), networks.normalizer)
    old_values, returns = micro.take(batch_.values), micro.take(batch_.returns)
    loss = losses.value_loss(values, old_values, returns, recipe.ppo.value_clip_range)
    (recipe.ppo.vf_coeff * loss / tokens).backward()
    return loss.detach()


def pretraining_gradients(recipe: Recipe, networks: PPONetworks, number: int) -> float:
    """Add the gradient of PPO-ptx (Ouyang et al. 2022): `ptx_coeff` times the mean negative log-likelihood of text
    tokens, of as many sequences as a minibatch has rollouts; returns that mean, nats a token."""
    ppo, policy, text = recipe.ppo, networks.policy, networks.pretraining
    assert text is not None
    size = max(1, ppo.batch_size // ppo.minibatches)
    chosen = text.part(randomness.rows(recipe.seed, "ptx", number, size, len(text)))
    parts = [chosen.part(rows) for rows in batching.plan([len(ids) for ids in chosen.ids], ppo.micro_batch_tokens)]
    tokens, total = sequences.target_count(policy, chosen), 0.0
    for part in parts:
        loss = sequences.loss_sum(policy, part) / tokens
        (ppo.ptx_coeff * loss).backward()
        total += float(loss.detach())
    return total


def summary(batch_: TrainingBatch, state: PPOState) -> dict[str, float]:
    """A step's numbers before it learned: rewards, KL, entropy, lengths. Means are over answers, entropy over
    tokens."""
    mask, measured = batch_.mask, batch_.measured
    kl, k1 = float(measured.kl.sum(-1).mean()), float(measured.k1.sum(-1).mean())
    scores = float(batch_.scores.mean())
    found = {
        "reward": scores,
        "kl_loss": kl,
        "objective/scores": scores,
        "objective/rlhf_reward": scores - state.scalars["kl_coeff"] * k1,
        "objective/kl": kl,
        "objective/kl_k1": k1,
        "objective/kl_coeff": state.scalars["kl_coeff"],
        "objective/entropy": float(measured.entropy.sum() / mask.sum()),
        "tokens/length": float(mask.sum(-1).float().mean()),
        "tokens/ended": float(np.mean([r.ended for r in batch_.rollouts])),
    }
    if batch_.values is not None and batch_.returns is not None:
        explained = losses.explained_variance(batch_.values[mask], batch_.returns[mask])
        found["val/explained_variance"] = explained
    return found
