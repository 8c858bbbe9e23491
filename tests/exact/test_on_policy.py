"""The on-policy algorithms by enumeration: their expected gradients, their fixed points, and the values others publish.

The problem is a table policy over the answers EOS, a EOS, b EOS, aa, ab, ba, bb with J = E[r] - beta KL(pi || pi_ref).
Every group of K answers is enumerated with its probability, and the gradient goes through the project's own rewards,
advantages and loss, in fp64.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch import Tensor

from preferent.models import vocabulary
from preferent.training import advantages, losses

F64 = torch.float64
EOS = 2
ANSWERS = [(EOS,), (0, EOS), (1, EOS), (0, 0), (0, 1), (1, 0), (1, 1)]
BETA = 0.3


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


IDS = torch.tensor([(*answer, EOS)[:2] for answer in ANSWERS])
MASK = torch.tensor([[True, len(answer) == 2] for answer in ANSWERS])
STATES = torch.tensor([(0, 1 + min(answer[0], 1)) for answer in ANSWERS])
SCORES = t(0.3, -1.0, 2.0, 0.5, 1.5, -0.7, 3.0)


def tables() -> tuple[Tensor, Tensor]:
    """Logits [3, 3] of the policy (which learns) and of the reference: a row a state (nothing, a, b)."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 3, 3, generator=generator, dtype=F64)
    return policy.requires_grad_(), reference


def token_log_probs(logits: Tensor) -> Tensor:
    """[7, 2], zero after an answer's end."""
    found = logits.log_softmax(-1)[STATES, IDS]
    return torch.where(MASK, found, 0.0)


def exact_gradient(policy: Tensor, reference: Tensor, beta: float = BETA) -> Tensor:
    """Of J, by differentiating the sum over all answers."""
    ours, theirs = token_log_probs(policy).sum(-1), token_log_probs(reference).sum(-1)
    value = (ours.exp() * (SCORES - beta * (ours - theirs))).sum()
    return torch.autograd.grad(value, policy)[0]


Advantages = Callable[[Tensor, Tensor, int], Tensor]


def expected_gradient(make: Advantages, samples: int) -> Tensor:
    """Of J as the algorithm estimates it: minus the expected gradient of the policy's loss, an answer."""
    policy, reference = tables()
    log_probs = token_log_probs(policy)
    k1 = (log_probs - token_log_probs(reference)).detach()
    rows = torch.tensor([*itertools.product(range(len(ANSWERS)), repeat=samples)]).flatten()
    mask = MASK[rows]
    rewards = losses.shaped_rewards(SCORES[rows], k1[rows], mask, BETA)
    chance = log_probs.detach().sum(-1)[rows].view(-1, samples).sum(-1).exp()
    weights = (chance / samples).repeat_interleave(samples)[:, None]
    advantages = weights * make(rewards, mask, samples)
    tokens = log_probs[rows][mask]
    loss, _ = losses.policy_loss(tokens, tokens.detach(), advantages[mask], 0.2)
    return -torch.autograd.grad(loss, policy)[0]


def greedy(rewards: Tensor, mask: Tensor, samples: int) -> Tensor:
    return advantages.remax(rewards, mask, torch.full((len(mask),), 1.5, dtype=F64))


@pytest.mark.parametrize(
    ("make", "samples", "factor"),
    [
        (advantages.rloo, 2, 1.0),
        (advantages.rloo, 3, 1.0),
        (advantages.dr_grpo, 2, 1 / 2),
        (advantages.dr_grpo, 3, 2 / 3),
        (advantages.reinforce_plus_plus, 1, 1.0),
        (greedy, 1, 1.0),
    ],
    ids=["rloo-2", "rloo-3", "dr_grpo-2", "dr_grpo-3", "reinforce_plus_plus", "remax"],
)
def test_the_expected_gradient_is_that_of_the_objective(make: Advantages, samples: int, factor: float) -> None:
    exact = exact_gradient(*tables())
    assert torch.allclose(expected_gradient(make, samples), factor * exact, rtol=0, atol=1e-13)


def test_with_a_group_mean_the_returns_to_go_keep_a_part_of_the_gradient() -> None:
    """The mean of the group contains the answer's own return R, of which E[R grad log pi] is the gradient of J."""
    exact, found = exact_gradient(*tables()), expected_gradient(advantages.reinforce_plus_plus, 3)
    assert torch.allclose(found, 2 / 3 * exact, rtol=0, atol=1e-13)


def test_dividing_by_the_deviation_turns_the_gradient() -> None:
    exact, found = exact_gradient(*tables()).flatten(), expected_gradient(advantages.grpo, 3).flatten()
    aside = found - exact * (exact @ found) / (exact @ exact)
    assert aside.norm() / found.norm() > 0.02


def test_k2_as_a_loss_has_the_gradient_of_the_kl_at_each_token_and_of_no_more() -> None:
    """Exactly that of KL(pi || pi_ref) where an answer is one token; where it is two, the gradient that takes for
    granted which tokens come first."""
    policy, reference = tables()
    log_probs, theirs = token_log_probs(policy), token_log_probs(reference)
    chance = log_probs.detach().sum(-1).exp()
    weights = chance[:, None].expand_as(log_probs)[MASK]
    loss = losses.kl_loss(log_probs[MASK], theirs[MASK], weights)
    found = torch.autograd.grad(loss, policy, retain_graph=True)[0]
    ours, fixed = policy.log_softmax(-1), reference.log_softmax(-1)
    visits = torch.cat([t(1.0), ours.detach()[0, :2].exp()])
    per_token = (visits * (ours.exp() * (ours - fixed)).sum(-1)).sum()
    assert torch.allclose(found, torch.autograd.grad(per_token, policy, retain_graph=True)[0], rtol=0, atol=1e-13)
    whole = (log_probs.sum(-1).exp() * (log_probs - theirs).sum(-1)).sum()
    exact = torch.autograd.grad(whole, policy)[0]
    assert torch.allclose(found[1:], exact[1:], rtol=0, atol=1e-13), "after the last choice nothing follows"
    assert not torch.allclose(found[0], exact[0], rtol=0, atol=1e-3)


def test_what_the_other_estimators_would_do_as_a_loss() -> None:
    """k1 has no gradient at all, k3 that of the KL the other way round (P3)."""
    logits, reference = t(0.3, -1.0, 0.5, 0.0).requires_grad_(), t(-0.2, 0.4, 0.0, 1.0)
    ours, fixed = logits.log_softmax(-1), reference.log_softmax(-1)
    chance, log_ratio = ours.detach().exp(), ours - fixed
    k1 = torch.autograd.grad((chance * log_ratio).sum(), logits, retain_graph=True)[0]
    assert k1.abs().max() < 1e-15
    k2 = torch.autograd.grad(losses.kl_loss(ours, fixed, chance), logits, retain_graph=True)[0]
    kl = torch.autograd.grad((ours.exp() * log_ratio).sum(), logits, retain_graph=True)[0]
    assert torch.allclose(k2, kl, rtol=0, atol=1e-15)
    k3 = torch.autograd.grad((chance * ((-log_ratio).exp() - 1 + log_ratio)).sum(), logits, retain_graph=True)[0]
    forward = torch.autograd.grad((fixed.exp() * (fixed - ours)).sum(), logits)[0]
    assert torch.allclose(k3, forward, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("shift", "bias", "spread"), [(0.1, 0.0025, 1.41774), (1.0, 0.25, 1.73205)])
def test_moments_of_k2(shift: float, bias: float, spread: float) -> None:
    """x ~ N(0, 1) against N(shift, 1), whose KL is shift^2 / 2 (P3); integrated by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    one = torch.ones(1, dtype=F64)
    k2 = torch.stack([losses.kl_loss(-(v**2)[None] / 2, -((v - shift) ** 2)[None] / 2, one) for v in x])
    true = shift**2 / 2
    mean = float((w * k2).sum())
    assert mean / true - 1 == pytest.approx(bias, abs=1e-9)
    assert math.sqrt(float((w * (k2 - mean) ** 2).sum())) / true == pytest.approx(spread, abs=1e-5)


def test_kl_loss_of_public_tests() -> None:
    """NeMo-RL test_loss_functions.py: log-prob -1, reference 0, -15, -30."""
    found = [losses.kl_loss(t(-1.0), t(r), t(1.0)).item() for r in (0.0, -15.0, -30.0)]
    assert found == [0.5, 98.0, 420.5]
    assert losses.kl_loss(t(-1.0, -1.0), t(0.0, 1.0), t(2.0, 0.5)).item() == 2.0


def alone(*scores: float) -> tuple[Tensor, Tensor]:
    """Answers of one token with these returns."""
    return t(*scores)[:, None], torch.ones(len(scores), 1, dtype=torch.bool)


def test_leave_one_out_of_public_tests() -> None:
    """TRL test_rloo_trainer.py: three answers to each of four prompts; NeMo-RL test_utils.py: returns 1, 2, 3."""
    found = advantages.rloo(*alone(1, 2, 5, 8, 2, 3, 6, 9, 3, 4, 7, 10), 4)[:, 0].tolist()
    assert found[0] == pytest.approx(1 - 5) and found[5] == pytest.approx(3 - 17 / 3)
    assert advantages.rloo(*alone(1, 2, 3), 3)[:, 0].tolist() == [1 - 2.5, 0, 3 - 1.5]
    assert advantages.dr_grpo(*alone(1, 2, 3), 3)[:, 0].tolist() == [-1, 0, 1]
    assert advantages.grpo(*alone(1, 2, 3), 3)[:, 0].tolist() == pytest.approx([-1, 0, 1], abs=2e-6)
    assert advantages.grpo(*alone(1, 3, 9, 5), 2)[:, 0].tolist() == pytest.approx(
        [-math.sqrt(0.5), math.sqrt(0.5), math.sqrt(0.5), -math.sqrt(0.5)], abs=2e-6
    )
    assert advantages.grpo(*alone(4, 4, 4), 3).abs().max() == 0


def test_returns_to_go() -> None:
    rewards, mask = torch.stack([t(1.0, 2.0, 4.0), t(3.0, 5.0, 99.0)]), torch.tensor([[True] * 3, [True, True, False]])
    assert advantages.returns_to_go(rewards, mask).tolist() == [[7, 6, 4], [8, 5, 0]]
    assert advantages.returns_to_go(rewards, mask, 0.5).tolist() == [[3, 4, 4], [5.5, 5, 0]]
    assert advantages.reinforce_plus_plus(rewards, mask, 1).tolist() == [[7, 6, 4], [8, 5, 0]]
    assert advantages.reinforce_plus_plus(rewards, mask, 2).tolist() == [[-0.5, -1.5, -3.5], [0.5, -2.5, 0]]
    assert advantages.remax(rewards, mask, t(1.0, 2.0)).tolist() == [[6, 5, 3], [6, 3, 0]]
    for make in (advantages.rloo, advantages.dr_grpo):
        assert (make(rewards, mask, 2)[~mask] == 0).all()


def test_dual_clip_of_public_tests() -> None:
    """NeMo-RL test_loss_functions.py: A = 1, -1, -4, ratio = .5, 1, 10, c = 3 -> -.5, 1, 12."""
    advantages, ratio = t(1, -1, -4), t(0.5, 1, 10)
    each = [
        losses.policy_loss(ratio[i : i + 1].log(), t(0), advantages[i : i + 1], 0.2, None, 3.0)[0].item()
        for i in range(3)
    ]
    assert each == pytest.approx([-0.5, 1, 12])
    assert losses.policy_loss(ratio.log(), t(0, 0, 0), advantages, 0.2)[0].item() == pytest.approx(40.5)
    good = losses.policy_loss(t(math.log(0.1)), t(0), t(1), 0.2, None, 3.0)[0].item()
    assert good == pytest.approx(-0.1), "a good token's loss is never bounded by it"


def test_the_upper_clip_may_be_higher() -> None:
    for ratio, advantage_, loss in ((1.5, 1, -1.28), (1.25, 1, -1.25), (0.5, -1, 0.8), (1.5, -1, 1.5)):
        found = losses.policy_loss(t(math.log(ratio)), t(0), t(advantage_), 0.2, 0.28)[0].item()
        assert found == pytest.approx(loss)


def test_the_entropy_and_its_gradient() -> None:
    """d H / d logit_i = -p_i (log p_i + H); a token that is masked has no part in it."""
    logits = t(0.3, -1.0, 0.5, -math.inf)[None].requires_grad_()
    found = vocabulary.chunked_entropy(torch.ones(1, 1, dtype=F64), lambda h: logits * h, 4)
    p = logits.detach()[0, :3].softmax(-1)
    entropy = float(-(p * p.log()).sum())
    assert found.item() == pytest.approx(entropy, abs=1e-14)
    gradient = torch.autograd.grad(found.sum(), logits)[0][0]
    assert torch.allclose(gradient[:3], -p * (p.log() + entropy), atol=1e-14)


P1 = t(0.5, 0.3, 0.15, 0.05), t(0, 1, 2, 3)


def bandit_gradient(logits: Tensor, make: Advantages, samples: int, beta: float, in_loss: bool) -> Tensor:
    """The algorithm's expected gradient [4] on P1: over every multiset of K answers, with the ways to draw it."""
    reference, rewards = P1
    groups = [*itertools.combinations_with_replacement(range(4), samples)]
    rows = torch.tensor(groups).flatten()
    ways = t(*[math.factorial(samples) / math.prod(math.factorial(g.count(k)) for k in range(4)) for g in groups])
    mask = torch.ones(len(rows), 1, dtype=torch.bool)
    log_probs = logits.clone().requires_grad_().log_softmax(-1)
    k1 = (log_probs - reference.log()).detach()
    shaped = losses.shaped_rewards(rewards[rows], k1[rows][:, None], mask, 0.0 if in_loss else beta)
    chance = ways * log_probs.detach()[rows].view(-1, samples).sum(-1).exp()
    weights = (chance / samples).repeat_interleave(samples)
    tokens = log_probs[rows]
    loss, _ = losses.policy_loss(tokens, tokens.detach(), weights * make(shaped, mask, samples)[:, 0], 0.2)
    if in_loss:
        loss = loss + beta * losses.kl_loss(tokens, reference.log()[rows], weights)
    slope = torch.autograd.grad(loss, log_probs)[0]
    return slope - log_probs.detach().exp() * slope.sum()


def grpo_optimum(samples: int, beta: float) -> Tensor:
    """The policy [4] of P1, among those that give every answer a chance, where GRPO's expected gradient is zero."""
    reference, rewards = P1

    def slope(free: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(np.append(free, 0.0))
        return bandit_gradient(logits, advantages.grpo, samples, beta, in_loss=True)[:3].numpy()

    start = (reference.log() + rewards / (2 * beta)).numpy()
    free = root(slope, start[:3] - start[3], tol=1e-10).x
    return torch.from_numpy(np.append(free, 0.0)).softmax(-1)


def gap(policy: Tensor, beta: float) -> float:
    """(J* - J) / (J* - J_ref)."""
    reference, rewards = P1
    best = beta * float((reference * (rewards / beta).exp()).sum().log())
    value = float((policy * rewards - beta * torch.xlogy(policy, policy / reference)).sum())
    return (best - value) / (best - float((reference * rewards).sum()))


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize(
    ("make", "samples", "in_loss"),
    [
        (advantages.rloo, 4, False),
        (advantages.rloo, 2, True),
        (advantages.dr_grpo, 4, False),
        (advantages.reinforce_plus_plus, 1, False),
        (greedy, 1, False),
    ],
    ids=["rloo", "rloo with k2 as loss", "dr_grpo", "reinforce_plus_plus", "remax"],
)
def test_at_the_optimum_the_expected_gradient_is_zero(
    make: Advantages, samples: int, in_loss: bool, beta: float
) -> None:
    """At pi* = ref exp(r / beta) / Z (P1), whatever the group; an answer is one token here."""
    reference, rewards = P1
    best = reference.log() + rewards / beta
    assert bandit_gradient(best, make, samples, beta, in_loss).abs().max() < 1e-14
    assert bandit_gradient(best + t(0.1, 0, 0, 0), make, samples, beta, in_loss).abs().max() > 1e-4
    assert gap(best.softmax(-1), beta) == pytest.approx(0, abs=1e-12)


def test_grpo_has_another_optimum() -> None:
    """Its gradient at pi* is not zero, and where it is zero up to 39 % of the possible gain are lost."""
    reference, rewards = P1
    for beta in (0.5, 1.0):
        best = reference.log() + rewards / beta
        assert bandit_gradient(best, advantages.grpo, 8, beta, in_loss=True).abs().max() > 1e-3
    gaps = [gap(grpo_optimum(samples, 0.5), 0.5) for samples in (2, 4, 8)]
    assert gaps == pytest.approx([0.3870, 0.1113, 0.0335], abs=1e-4)


def test_with_many_answers_grpo_loses_its_leash() -> None:
    """The larger the group, the nearer is its optimum to pi = ref exp(r / (beta sd)) / Z with the deviation sd of r
    under pi itself; at beta = .5 on P1 every such policy is surer than it should be, so that none but the best answer
    is left."""
    reference, rewards = P1
    for deviation in np.linspace(0.02, 2, 100):
        p = (reference.log() + rewards / (0.5 * deviation)).softmax(-1)
        assert float((p * rewards**2).sum() - (p * rewards).sum() ** 2) < deviation**2
    assert gap(t(0, 0, 0, 1), 0.5) == pytest.approx(0.2232, abs=1e-4)


def test_a_group_of_equal_answers_has_no_advantage() -> None:
    """Deviation 0: GRPO divides by 1e-6, and the difference is 0; a group beside it is not touched."""
    rewards, mask = torch.tensor([[2.0]] * 4 + [[1.0], [3.0], [1.0], [3.0]], dtype=F64), torch.ones(8, 1).bool()
    for make in (advantages.rloo, advantages.grpo, advantages.dr_grpo):
        found = make(rewards, mask, 4)[:, 0]
        assert found[:4].tolist() == [0.0] * 4 and found[5] > 0
        assert found[4:].tolist() == pytest.approx([-float(found[5]), float(found[5])] * 2, abs=1e-12)
    assert advantages.grpo(rewards, mask, 4)[5].item() == pytest.approx(1 / (math.sqrt(4 / 3) + 1e-6), abs=1e-12)
