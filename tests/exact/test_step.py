"""One step of the stage `ppo`, at temperature 0.7, on a small real model: each number against its definition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from training.test_ppo import experience as taken
from training.test_ppo import networks, recipe_of

from preferent.models import language_models, vocabulary
from preferent.training import ppo
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
