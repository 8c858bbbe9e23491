"""One step of the stage `ppo`, at temperature 0.7, on a small real model: each number against its definition."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from training.test_ppo import experience as taken
from training.test_ppo import networks, recipe_of

from preferent.models import language_models, vocabulary
from preferent.rewards.normalization import Normalizer
from preferent.rollouts import measurement
from preferent.training import advantages, losses, ppo
from preferent.training.ppo import update

TEMPERATURE = 0.7


def step(ending: Path, tmp_path: Path, **section: Any) -> tuple[Any, ppo.PPONetworks, ppo.TrainingBatch]:
    """Recipe, networks with a critic and a reference that differ, and a step's experience."""
    recipe = recipe_of(sampler={"temperature": TEMPERATURE}, kl_coeff=0.3, ppo=section)
    parts = networks(ending, recipe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network, size in ((parts.critic, 0.3), (parts.policy, 0.03)):
            for parameter in network.trainable().values():
                if parameter.dim() > 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    _, batch = taken(parts, recipe, tmp_path)
    assert len({len(rollout.ids) for rollout in batch.rollouts}) > 3
    return recipe, parts, batch


@pytest.fixture(scope="module")
def made(ending: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ppo.PPONetworks, ppo.TrainingBatch]:
    return step(ending, tmp_path_factory.mktemp("step"), minibatches=1)


def cleared(parts: ppo.PPONetworks) -> None:
    for network in (parts.policy, parts.critic):
        for parameter in network.trainable().values():
            parameter.grad = None


def test_nothing_that_is_learnt_from_has_a_gradient(made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch]) -> None:
    _, _, batch = made
    for name in ("values", "scores", "advantages", "returns"):
        assert not getattr(batch, name).requires_grad, name
    assert not batch.measured.log_probs.requires_grad and not batch.measured.k1.requires_grad


def test_rewards_advantages_and_returns_are_those_of_the_definition(
    made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch],
) -> None:
    """Charged k1 at every token, the score at the last; returns less values are the advantages before whitening."""
    recipe, _, batch = made
    raw = (batch.returns - batch.values).double()
    for row, rollout in enumerate(batch.rollouts):
        length = len(rollout.ids)
        rewards = -0.3 * batch.measured.k1[row, :length].double()
        rewards[-1] += batch.scores[row].double()
        values = torch.nn.functional.pad(batch.values[row, :length].double(), (0, 1))
        deltas = rewards + recipe.ppo.gamma * values[1:] - values[:-1]
        for t in range(length):
            weights = (recipe.ppo.gamma * recipe.ppo.gae_lambda) ** torch.arange(length - t)
            assert raw[row, t].item() == pytest.approx((weights * deltas[t:]).sum().item(), abs=1e-5)
    kept = raw[batch.mask]
    whitened = (kept - kept.mean()) / kept.std(unbiased=False)
    assert torch.allclose(batch.advantages[batch.mask].double(), whitened, atol=1e-4)
    assert batch.measured.k1.abs().max() > 0.01 and batch.values.abs().max() > 0.1


def test_at_ratio_one_nothing_is_clipped_and_the_loss_is_minus_the_mean_advantage(
    made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch],
) -> None:
    recipe, parts, batch = made
    found = update.update(recipe, batch, batch.minibatches[0], parts)
    cleared(parts)
    assert (found["val/ratio"], found["policy/approxkl"], found["policy/clipfrac"]) == (1.0, 0.0, 0.0)
    assert found["loss/policy"] == pytest.approx(-batch.advantages[batch.mask].mean().item(), abs=1e-6)
    assert abs(found["loss/policy"]) <= 1e-6


def test_the_first_value_loss_is_half_the_mean_square_of_the_advantages(
    made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch],
) -> None:
    recipe, parts, batch = made
    found = update.update(recipe, batch, batch.minibatches[0], parts)
    cleared(parts)
    raw = (batch.returns - batch.values)[batch.mask].double()
    assert found["loss/value"] == pytest.approx(0.5 * raw.square().mean().item(), rel=1e-4)


def test_the_first_gradient_is_reinforces(made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch]) -> None:
    """That of -mean(A log pi), with log pi from the plain forward pass of the whole rows, divided by temperature."""
    recipe, parts, batch = made
    policy = parts.policy
    update.update(recipe, batch, batch.minibatches[0], parts)
    found = torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None])
    cleared(parts)
    total = torch.zeros(())
    for row, rollout in enumerate(batch.rollouts):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]).astype(np.int64))
        logits = policy.body(ids[None]).logits[0, len(rollout.prompt_ids) - 1 : -1].float() / TEMPERATURE
        logits = logits.index_fill(-1, policy.masked_ids, -torch.inf)
        log_probs = logits.log_softmax(-1).gather(-1, ids[len(rollout.prompt_ids) :, None])[:, 0]
        total = total - (batch.advantages[row, : len(rollout.ids)] * log_probs).sum()
    (total / batch.mask.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.trainable().values() if p.grad is not None])
    cleared(parts)
    assert (found - expected).norm() / expected.norm() <= 1e-4


def test_the_critics_gradient_is_that_of_half_the_squared_error_and_none_reaches_the_policy(
    made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch],
) -> None:
    recipe, parts, batch = made
    critic = parts.critic
    update.update(recipe, batch, batch.minibatches[0], parts)
    found = torch.cat([p.grad.flatten() for p in critic.trainable().values() if p.grad is not None])
    cleared(parts)
    total = torch.zeros(())
    for row, rollout in enumerate(batch.rollouts):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]).astype(np.int64))
        values = critic.scores(critic.hidden(ids[None]))[0, len(rollout.prompt_ids) - 1 : -1]
        total = total + 0.5 * (values - batch.returns[row, : len(rollout.ids)]).square().sum()
    (recipe.ppo.vf_coeff * total / batch.mask.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in critic.trainable().values() if p.grad is not None])
    assert all(p.grad is None for p in parts.policy.trainable().values())
    cleared(parts)
    assert (found - expected).norm() / expected.norm() <= 1e-4


def test_the_reference_charges_the_policy_at_the_same_temperature(
    made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch],
) -> None:
    _, parts, batch = made
    plain = language_models.load_policy(parts.policy.source, parts.policy.world)
    for row, rollout in enumerate(batch.rollouts[:4]):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]).astype(np.int64))
        asked, said = len(rollout.prompt_ids), ids[len(rollout.prompt_ids) :]
        with torch.no_grad():
            rows = [n.logits(n.hidden(ids[None])[0, asked - 1 : -1], TEMPERATURE) for n in (parts.policy, plain)]
        ours, theirs = (vocabulary.log_probs_of(logits, said) for logits in rows)
        assert torch.allclose(batch.measured.k1[row, : len(said)], ours - theirs, atol=1e-5)


def test_the_objective_charges_what_was_measured(made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch]) -> None:
    recipe, _, batch = made
    state = ppo.PPOState(0, None, None, {"kl_coeff": 0.3})  # type: ignore[arg-type]
    found = ppo.summary(batch, state)
    charged = 0.3 * batch.measured.k1.sum(-1).mean().item()
    assert found["objective/rlhf_reward"] == pytest.approx(batch.scores.mean().item() - charged, abs=1e-6)
    recipe = quiet_recipe(ppo={"kl_target": 1e-3, "kl_horizon": 100})
    ppo.adapt(recipe, state, batch)
    assert state.scalars["kl_coeff"] == pytest.approx(0.3 * (1 + 0.2 * len(batch.rollouts) / 100))


def charged(batch: ppo.TrainingBatch, kl_coeff: float = 0.3) -> torch.Tensor:
    """-kl_coeff * k1 at every answer token and the score at the last, float64 [B, A]."""
    rewards = torch.where(batch.mask, -kl_coeff * batch.measured.k1.double(), 0.0)
    last = batch.mask.sum(-1) - 1
    rewards[torch.arange(len(last)), last] += batch.scores.double()
    return rewards


def test_the_figures_of_a_step_count_answers_and_tokens_and_no_padding(
    made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch],
) -> None:
    """The KL is a mean over answers, the entropy one over tokens; what is beyond an answer's end counts nowhere."""
    _, _, batch = made
    found = ppo.summary(batch, ppo.PPOState(0, None, None, {"kl_coeff": 0.3}))  # type: ignore[arg-type]
    lengths = [len(rollout.ids) for rollout in batch.rollouts]
    kl = [float(batch.measured.kl[row, :n].double().sum()) for row, n in enumerate(lengths)]
    entropy = [float(batch.measured.entropy[row, :n].double().sum()) for row, n in enumerate(lengths)]
    assert found["objective/kl"] == found["kl_loss"] == pytest.approx(np.mean(kl), rel=1e-5)
    assert found["objective/entropy"] == pytest.approx(sum(entropy) / sum(lengths), rel=1e-5)
    assert found["tokens/length"] == np.mean(lengths) and min(lengths) < max(lengths)
    values, returns = (
        torch.cat([side[row, :n] for row, n in enumerate(lengths)]) for side in (batch.values, batch.returns)
    )
    assert found["val/explained_variance"] == pytest.approx(losses.explained_variance(values, returns), abs=1e-9)


def test_sampler_and_trainer_give_a_token_one_log_prob(made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch]) -> None:
    """`val/sampler_gap` is the largest difference of all answer tokens: rounding in fp32, and what one token is off."""
    _, _, batch = made
    state = ppo.PPOState(0, None, None, {"kl_coeff": 0.3})  # type: ignore[arg-type]
    assert 0 < ppo.summary(batch, state)["val/sampler_gap"] <= 1e-5
    log_probs = batch.rollouts[3].sampler_log_probs.copy()
    log_probs[-1] -= 0.25
    rollouts = [*batch.rollouts]
    rollouts[3] = dataclasses.replace(rollouts[3], sampler_log_probs=log_probs)
    other = dataclasses.replace(batch, rollouts=rollouts)
    assert ppo.summary(other, state)["val/sampler_gap"] == pytest.approx(0.25, abs=1e-5)


def test_the_adaptive_coefficient_compares_nats_per_answer_with_its_target(
    made: tuple[Any, ppo.PPONetworks, ppo.TrainingBatch],
) -> None:
    """At a target a tenth below the measured KL the coefficient rises by a ninth of answers / horizon."""
    _, _, batch = made
    state = ppo.PPOState(0, None, None, {"kl_coeff": 0.3})  # type: ignore[arg-type]
    kl = np.mean([float(batch.measured.kl[row, : len(r.ids)].sum()) for row, r in enumerate(batch.rollouts)])
    ppo.adapt(quiet_recipe(ppo={"kl_target": float(kl) * 0.9, "kl_horizon": 100}), state, batch)
    assert state.scalars["kl_coeff"] == pytest.approx(0.3 * (1 + 0.16 / 9), rel=1e-6)


def test_whitened_rewards_keep_the_mean_over_answer_tokens(ending: Path, tmp_path: Path) -> None:
    recipe, _, batch = step(ending, tmp_path, minibatches=1, whiten_rewards=True, whiten_advantages=False)
    rewards = charged(batch)
    kept = rewards[batch.mask]
    whitened = torch.where(batch.mask, (rewards - kept.mean()) / kept.std(unbiased=False) + kept.mean(), 0.0)
    expected, _ = losses.gae(whitened, batch.values.double(), batch.mask, 1.0, recipe.ppo.gae_lambda)
    assert torch.allclose(batch.advantages.double(), expected, atol=1e-4)
    assert abs(float(rewards.mean() - kept.mean())) > 0.005, "the mean with padding is another"


def test_the_discount_reaches_the_algorithms_without_a_critic(ending: Path, tmp_path: Path) -> None:
    section = {"algorithm": "reinforce_plus_plus", "gamma": 0.5, "whiten_advantages": False}
    recipe = recipe_of(kl_coeff=0.3, ppo=section)
    _, batch = taken(networks(ending, recipe), recipe, tmp_path)
    expected = advantages.returns_to_go(charged(batch), batch.mask, 0.5)
    assert torch.allclose(batch.advantages.double(), expected, atol=1e-5)
    assert batch.mask.sum(-1).max() > 3


def test_every_option_of_the_losses_reaches_them(ending: Path, tmp_path: Path) -> None:
    """After both networks moved: the losses from new log-probs, entropies and values, by their formulas."""
    options = {"clip_range": 0.02, "clip_range_high": 0.05, "dual_clip": 1.04, "entropy_coeff": 0.3}
    options |= {"value_clip_range": 0.01, "vf_coeff": 0.7}
    recipe, parts, _ = step(ending, tmp_path / "first", minibatches=1, **options)
    parts = dataclasses.replace(parts, normalizer=Normalizer(bias=0.5, gain=2.0))
    _, batch = taken(parts, recipe, tmp_path / "second")
    shape = batch.mask.shape
    raw = measurement.values_of(parts.critic, batch.minibatches[0], (shape[0], shape[1]))
    assert torch.allclose(batch.values, torch.where(batch.mask, 2 * (raw - 0.5), 0.0), atol=1e-6)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for network in (parts.critic, parts.policy):
            for parameter in network.trainable().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    now = measurement.measure(parts.policy, None, batch.minibatches[0], (shape[0], shape[1]), TEMPERATURE)
    values = 2 * (measurement.values_of(parts.critic, batch.minibatches[0], (shape[0], shape[1])) - 0.5)
    found = update.update(recipe, batch, batch.minibatches[0], parts)
    ratio = (now.log_probs - batch.measured.log_probs)[batch.mask].double().exp().numpy()
    advantage = batch.advantages[batch.mask].double().numpy()
    loss = np.maximum(-advantage * ratio, -advantage * ratio.clip(0.98, 1.05))
    loss = np.where(advantage < 0, np.minimum(loss, -advantage * 1.04), loss)
    old, returns, new = (x[batch.mask].double().numpy() for x in (batch.values, batch.returns, values))
    clipped = old + (new - old).clip(-0.01, 0.01)
    error = 0.5 * np.maximum((new - returns) ** 2, (clipped - returns) ** 2)
    assert found["loss/policy"] == pytest.approx(loss.mean(), abs=1e-6)
    assert found["loss/value"] == pytest.approx(error.mean(), rel=1e-4)
    entropy = float(now.entropy[batch.mask].mean())
    assert found["rl_loss"] == pytest.approx(loss.mean() - 0.3 * entropy + 0.7 * error.mean(), rel=1e-4)
    assert (ratio > 1.05).any() and (ratio < 0.98).any() and (abs(new - old) > 0.01).any()


def test_a_step_makes_epochs_times_minibatches_updates(ending: Path, tmp_path: Path) -> None:
    recipe = recipe_of(ppo={"epochs": 3, "minibatches": 2}, reinforcement_learning_rate_multiplier=0.5)
    parts = networks(ending, recipe)
    state, batch = taken(parts, recipe, tmp_path)
    found = ppo.learn(recipe, state, batch, parts)
    for optimizer in (state.policy, state.critic):
        assert {float(t) for name, t in optimizer.tensors().items() if name.startswith("step.")} == {6.0}
    assert found["learning_rate"] == 0.005
