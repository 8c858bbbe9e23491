"""At the optimum of KL-regularised reward nothing is left to learn: every advantage of every token is exactly zero.

With pi*(a|s) = ref(a|s) exp((V(s a) - V(s)) / beta) the charged reward, -beta log pi*/ref and the score at the end, is
the fall of the value from token to token. So a wrong sign, place, estimator or end shows in some advantage.
"""

import pytest
import torch

from exact.mdp import BETA, Mdp
from preferent.models import vocabulary
from preferent.training import losses

SEEDS = [0, 1, 2]


def measured(mdp: Mdp, logits: torch.Tensor, values: torch.Tensor, gae_lambda: float) -> tuple[torch.Tensor, ...]:
    """Rewards, advantages and returns [Y, A] of every answer, as PPO computes them."""
    k1 = mdp.log_probs(logits) - mdp.log_probs(mdp.reference)
    noise = torch.where(mdp.mask, k1, 77.0)
    rewards = losses.shaped_rewards(mdp.worth, noise, mdp.mask, BETA)
    beyond = torch.where(mdp.mask, values[mdp.states], -55.0)
    return rewards, *losses.gae(rewards, beyond, mdp.mask, 1.0, gae_lambda)


@pytest.mark.parametrize(
    ("beta", "reward", "kl", "best"),
    [
        (0.5, 2.5455559836, 1.6546156866, 1.7182481401),
        (1.0, 1.7633665836, 0.5313546332, 1.2320119504),
        (2.0, 1.2188279315, 0.1230184770, 0.9727909776),
    ],
)
def test_a_bandit_with_known_numbers(beta: float, reward: float, kl: float, best: float) -> None:
    """ref = [.5, .3, .15, .05], r = [0, 1, 2, 3]: pi* = ref exp(r / beta) / Z gains beta log Z, whatever is drawn."""
    reference = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log().expand(4, 4)
    worth, drawn = torch.arange(4, dtype=torch.float64), torch.arange(4)
    logits = reference + worth / beta
    log_probs = vocabulary.log_probs_of(logits, drawn)
    k1 = (log_probs - vocabulary.log_probs_of(reference, drawn))[:, None]
    mask = torch.ones(4, 1, dtype=torch.bool)
    rewards = losses.shaped_rewards(worth, k1, mask, beta)
    advantages, _ = losses.gae(rewards, torch.full((4, 1), best, dtype=torch.float64), mask, 1.0, 0.95)
    _, _, found, _ = vocabulary.measures(logits, reference, drawn)
    assert found.tolist() == pytest.approx([kl] * 4, abs=1e-9)
    assert (log_probs.exp() * worth).sum().item() == pytest.approx(reward, abs=1e-9)
    assert rewards[:, 0].tolist() == pytest.approx([best] * 4, abs=1e-9)
    assert advantages.abs().max() <= 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_the_optimum_is_a_policy(seed: int) -> None:
    mdp = Mdp.drawn(seed)
    logits, _ = mdp.optimum(BETA)
    assert torch.allclose(logits.logsumexp(-1), torch.zeros(len(logits), dtype=torch.float64), atol=1e-12)
    assert mdp.log_probs(logits).sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_every_advantage_is_zero_at_the_optimum(seed: int, gae_lambda: float) -> None:
    mdp = Mdp.drawn(seed)
    logits, values = mdp.optimum(BETA)
    rewards, advantages, returns = measured(mdp, logits, values, gae_lambda)
    assert advantages.abs().max() <= 1e-12
    assert torch.allclose(returns, torch.where(mdp.mask, values[mdp.states], 0.0), atol=1e-12)
    start = mdp.states[0, 0]
    assert torch.allclose(rewards.sum(-1), values[start].expand(len(rewards)), atol=1e-12), (
        "beta log Z for every answer"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_policy_gradient_is_that_of_the_objective_whatever_the_critic_says(seed: int) -> None:
    """At any policy, with lambda 1, the expected gradient over all answers is that of E[score] - beta KL(pi || ref),
    with the values of a random critic as with zeros."""
    mdp = Mdp.drawn(seed)
    generator = torch.Generator().manual_seed(seed + 10)
    logits = torch.randn(mdp.reference.shape, generator=generator, dtype=torch.float64).requires_grad_()
    sequence = mdp.log_probs(logits).sum(-1)
    distance = sequence - mdp.log_probs(mdp.reference).sum(-1)
    (expected,) = torch.autograd.grad((sequence.exp() * (mdp.worth - BETA * distance)).sum(), logits)
    chance = sequence.exp().detach()[:, None].expand(mdp.mask.shape)
    for values in (torch.zeros(len(logits)), torch.randn(len(logits), generator=generator, dtype=torch.float64) * 3):
        with torch.no_grad():
            _, advantages, _ = measured(mdp, logits, values.double(), 1.0)
        log_probs = mdp.log_probs(logits)[mdp.mask]
        loss, sums = losses.policy_loss(log_probs, log_probs.detach(), (advantages * chance)[mdp.mask], 0.2)
        (found,) = torch.autograd.grad(-loss, logits)
        assert torch.allclose(found, expected, atol=1e-13)
        assert sums["clipfrac"] == 0 and sums["approxkl"] == 0 and sums["ratio"] == mdp.mask.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_vanishes_at_the_optimum(seed: int) -> None:
    mdp = Mdp.drawn(seed)
    best, values = mdp.optimum(BETA)
    logits = best.clone().requires_grad_()
    log_probs = mdp.log_probs(logits)[mdp.mask]
    _, advantages, _ = measured(mdp, best, values * 0, 1.0)
    chance = mdp.log_probs(best).sum(-1).exp()[:, None].expand(mdp.mask.shape)
    loss, _ = losses.policy_loss(log_probs, log_probs.detach(), (advantages * chance)[mdp.mask], 0.2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() <= 1e-13
