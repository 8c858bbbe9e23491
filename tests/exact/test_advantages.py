"""Advantages against their definition as a double sum, at the ends of lambda, and whitened."""

import math

import pytest
import torch

from preferent.training import losses

F64 = torch.float64


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and mask [20, 40] of answers of every length, with numbers off the mask that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 20, 40, generator=generator, dtype=F64)
    lengths = torch.randint(1, 41, (20,), generator=generator)
    lengths[0], lengths[1] = 40, 1
    return rewards, values, torch.arange(40) < lengths[:, None]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_the_discounted_sum_of_temporal_differences(gamma: float, gae_lambda: float) -> None:
    rewards, values, mask = drawn(0)
    found, returns = losses.gae(rewards, values, mask, gamma, gae_lambda)
    for row, length in enumerate(mask.sum(-1).tolist()):
        r, v = rewards[row, :length], torch.cat([values[row, :length], torch.zeros(1, dtype=F64)])
        deltas = r + gamma * v[1:] - v[:-1]
        for t in range(length):
            weights = (gamma * gae_lambda) ** torch.arange(length - t, dtype=F64)
            assert found[row, t].item() == pytest.approx((weights * deltas[t:]).sum().item(), abs=1e-12)
        assert torch.equal(returns[row, :length], found[row, :length] + values[row, :length])
        assert (found[row, length:] == 0).all() and (returns[row, length:] == 0).all()


def test_lambda_one_is_monte_carlo_less_the_value_and_lambda_zero_the_difference() -> None:
    rewards, values, mask = drawn(1)
    kept, critic = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    to_go = kept.flip(-1).cumsum(-1).flip(-1)
    advantages, returns = losses.gae(rewards, values, mask, 1.0, 1.0)
    assert torch.allclose(advantages, torch.where(mask, to_go - critic, 0.0), atol=1e-12)
    assert torch.allclose(returns, to_go, atol=1e-12)
    advantages, _ = losses.gae(rewards, values, mask, 0.9, 0.0)
    following = torch.nn.functional.pad(critic[:, 1:], (0, 1))
    assert torch.allclose(advantages, torch.where(mask, kept + 0.9 * following - critic, 0.0), atol=1e-12)


def test_whitened_advantages_have_mean_zero_and_biased_variance_one_and_so_a_loss_of_zero() -> None:
    rewards, values, mask = drawn(2)
    advantages, _ = losses.gae(rewards, values, mask, 1.0, 0.95)
    whitened = losses.whiten(advantages * 3 + 5, mask)
    kept = whitened[mask]
    assert kept.mean().abs() <= 1e-14 and kept.var(unbiased=False).item() == pytest.approx(1, abs=1e-8)
    assert (whitened[~mask] == 0).all()
    log_probs = -torch.rand(len(kept), dtype=F64)
    loss, sums = losses.policy_loss(log_probs, log_probs, kept, 0.2)
    assert loss.abs() <= 1e-11
    assert (sums["clipfrac"], sums["approxkl"], sums["ratio"]) == (0, 0, len(kept))


def test_what_hardly_varies_is_not_blown_up() -> None:
    """(x - mean) / sqrt(var + 1e-8): equal advantages whiten to zero, a deviation of 1e-4 to half a variance."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert losses.whiten(torch.full((1, 2), 7.0, dtype=F64), mask).tolist() == [[0, 0]]
    small = losses.whiten(torch.tensor([[2 - 1e-4, 2 + 1e-4]], dtype=F64), mask)
    assert small[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-6)


def test_the_variance_explained_is_a_share_and_none_where_there_is_none() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=F64)
    assert losses.explained_variance(returns * 0.5 + 3, returns) == pytest.approx(0.75, abs=1e-15)
    assert losses.explained_variance(-returns, returns) == pytest.approx(-3, abs=1e-15)
    assert math.isnan(losses.explained_variance(returns, returns * 1e-7))
    barely = torch.tensor([-1.0, 1.0], dtype=F64) * 1.5e-12**0.5
    assert losses.explained_variance(barely, barely) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_surrogate_is_never_better_than_plain_and_flat_only_where_clipping_binds(seed: int) -> None:
    """Its derivative by the log-probability is -A * ratio, or 0 above 1 + eps where A > 0 and below 1 - eps where A <
    0 (Schulman et al. 2017, figure 1)."""
    generator = torch.Generator().manual_seed(seed)
    log_ratio = (torch.randn(400, generator=generator, dtype=F64) * 0.4).requires_grad_()
    advantages = torch.randn(400, generator=generator, dtype=F64)
    loss, sums = losses.policy_loss(log_ratio, torch.zeros(400, dtype=F64), advantages, 0.2)
    (slope,) = torch.autograd.grad(loss, log_ratio)
    ratio = log_ratio.exp().detach()
    flat = torch.where(advantages > 0, ratio > 1.2, ratio < 0.8)
    assert torch.allclose(slope, torch.where(flat, 0.0, -advantages * ratio), atol=1e-13)
    assert sums["clipfrac"] == flat.sum() > 0
    assert loss >= (-advantages * ratio).sum()
    assert sums["approxkl"].item() == pytest.approx(0.5 * (log_ratio**2).sum().item())


@pytest.mark.parametrize("clip", [0.2, 1.0])
def test_the_value_loss_moves_only_values_whose_plain_error_is_the_larger(clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old, returns, step = torch.randn(3, 200, generator=generator, dtype=F64)
    values = (old + step).requires_grad_()
    (slope,) = torch.autograd.grad(losses.value_loss(values, old, returns, clip), values)
    plain, clipped = values.detach() - returns, old + step.clamp(-clip, clip) - returns
    stays = (step.abs() > clip) & (clipped.abs() > plain.abs())
    assert stays.any() and torch.allclose(slope, torch.where(stays, 0.0, plain), atol=1e-13)
