"""Two estimates of one KL: k1 of the sampled token, and the sum over the vocabulary; both against closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quiet_recipe

from exact.mdp import Mdp
from preferent.models import language_models, vocabulary
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler

F64 = torch.float64


@pytest.mark.parametrize("mean", [0.1, 1.0])
def test_k1_between_gaussians_is_unbiased_with_the_known_deviation(mean: float) -> None:
    """x ~ N(0, 1) against N(m, 1): KL m^2 / 2, and k1 = m^2 / 2 - m x, so that its deviation over the KL is 2 / m."""
    grid = torch.linspace(-12, 12, 4001, dtype=F64)
    here, there = -(grid**2) / 2, -((grid - mean) ** 2) / 2
    ids = torch.arange(len(grid))
    log_p = vocabulary.log_probs_of(here.expand(len(grid), -1), ids)
    k1 = log_p - vocabulary.log_probs_of(there.expand(len(grid), -1), ids)
    expected = (log_p.exp() * k1).sum()
    deviation = (log_p.exp() * (k1 - expected) ** 2).sum().sqrt()
    assert expected.item() == pytest.approx(mean**2 / 2, rel=1e-9)
    assert (deviation / expected).item() == pytest.approx(2 / mean, rel=1e-9)
    _, _, kl, _ = vocabulary.measures(here[None], there[None], torch.tensor([0]))
    assert kl.item() == pytest.approx(mean**2 / 2, rel=1e-9)


def test_entropy_of_a_gaussian() -> None:
    grid = torch.linspace(-12, 12, 4001, dtype=F64)
    _, _, _, entropy = vocabulary.measures(-(grid[None] ** 2) / 2, None, torch.tensor([0]))
    wanted = 0.5 * math.log(2 * math.pi * math.e) - math.log(24 / 4000)
    assert entropy.item() == pytest.approx(wanted, abs=1e-10)


def test_k1_of_public_tests() -> None:
    # NVIDIA-NeMo/RL test_loss_functions.py: log-prob -1, reference 0, -15, -30 -> k1 -1, 14, 29, unclamped.
    def log_odds(log_probs: list[float]) -> torch.Tensor:
        found = torch.tensor(log_probs, dtype=F64)
        return torch.stack([found, torch.log(-torch.expm1(found))], dim=1)

    logits, reference = log_odds([-1.0] * 3), log_odds([0.0, -15.0, -30.0])
    log_probs, k1, *_ = vocabulary.measures(logits, reference, torch.zeros(3, dtype=torch.long))
    assert log_probs.tolist() == pytest.approx([-1] * 3)
    assert k1.tolist() == pytest.approx([-1, 14, 29])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_kl_of_an_answer_is_the_expected_sum_over_its_tokens(seed: int) -> None:
    """By enumeration: E[sum of k1] = E[sum of the vocabulary's KL] = KL of the answers; the second sum varies less."""
    mdp = Mdp.drawn(seed)
    logits, _ = mdp.optimum(0.5)
    k1 = mdp.log_probs(logits) - mdp.log_probs(mdp.reference)
    chance = mdp.log_probs(logits).sum(-1).exp()
    _, _, kl, _ = vocabulary.measures(logits, mdp.reference, torch.zeros(len(logits), dtype=torch.long))
    sums = torch.where(mdp.mask, kl[mdp.states], 0.0).sum(-1)
    exact = (chance * k1.sum(-1)).sum()
    assert (chance * sums).sum().item() == pytest.approx(exact.item(), abs=1e-12)
    varies, varies_less = ((chance * (x - exact) ** 2).sum() for x in (k1.sum(-1), sums))
    assert varies_less < 0.7 * varies


def test_both_estimates_agree_on_rollouts(tiny: Path) -> None:
    """A policy moved off its reference: the means of 400 answers differ by less than 4 standard errors of their
    difference, and the sum over the vocabulary varies less."""
    policy = language_models.load_policy(tiny, World.of(quiet_recipe()), lora_dim=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    asked = [np.array([1, *range(270, 272 + i % 7)], np.int32) for i in range(400)]
    rollouts = LocalSampler(policy, 0).sample(asked, range(400), "rollout", 0, Params(8, temperature=0.7))
    micros = measurement.micro_batches(rollouts, 4096, policy.tokenizer.pad_id, policy.world.device)
    found = measurement.measure(policy, policy.reference(), micros, (400, 8), 0.7)
    k1, kl = found.k1.sum(-1).double(), found.kl.sum(-1).double()
    assert kl.mean() > 0.1 and (found.kl >= -1e-6).all()
    assert (kl - k1).mean().abs() < 4 * (kl - k1).std() / 20
    assert kl.var() < 0.7 * k1.var()
    mask = measurement.answer_mask(rollouts, policy.world.device)
    for name in ("log_probs", "k1", "kl", "entropy"):
        assert (getattr(found, name)[:, : mask.shape[1]][~mask] == 0).all(), name
