"""The mathematics against worked numbers and closed forms."""

import math

import pytest
import torch

from preferent.models import vocabulary
from preferent.training import losses
from preferent.training.losses import policy_loss

F64 = torch.float64


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [(0.95, [0.71840875, 0.598325, 0.5035, 0.33]), (1.0, [0.79, 0.64, 0.52, 0.33]), (0.0, [0.15, 0.12, 0.19, 0.33])],
)
def test_gae_worked_example(gae_lambda: float, expected: list[float]) -> None:
    rewards, values = t(-0.05, 0.02, -0.01, 1.03)[None], t(0.2, 0.4, 0.5, 0.7)[None]
    advantages, returns = losses.gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), 1.0, gae_lambda)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert (returns - values)[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_gae_of_public_tests() -> None:
    # NVIDIA-NeMo/RL test_ppo.py: lambda 0, gamma 1, R = 5 at the end; torchtune test_rewards.py: gamma .9, lambda .95.
    whole = torch.ones(1, 3, dtype=torch.bool)
    advantages, _ = losses.gae(t(0, 0, 5)[None], t(1, 2, 3)[None], whole, 1.0, 0.0)
    assert advantages[0].tolist() == [1, 1, 2]
    _, returns = losses.gae(t(0, 0, 0, 1)[None], t(0, 0, 0, 1)[None], torch.ones(1, 4, dtype=torch.bool), 0.9, 0.95)
    assert returns[0].tolist() == pytest.approx([0.657923, 0.7695, 0.9, 1], abs=1e-6)


def test_gae_ignores_padding() -> None:
    mask = torch.tensor([[True, True, False, False]])
    rewards, values = t(0.1, 1.0, 77.0, 5.0)[None], t(0.2, 0.4, 999.0, -3.0)[None]
    advantages, returns = losses.gae(rewards, values, mask, 1.0, 0.95)
    short, short_returns = losses.gae(rewards[:, :2], values[:, :2], mask[:, :2], 1.0, 0.95)
    assert torch.equal(advantages[:, :2], short) and torch.equal(returns[:, :2], short_returns)
    assert advantages[0, 2:].tolist() == [0, 0] and returns[0, 2:].tolist() == [0, 0]


def test_shaped_rewards_put_the_score_at_the_last_token() -> None:
    # torchtune test_rewards.py: beta .5, log pi - log ref = -.1, -.2, -.3.
    k1 = t(-0.1, -0.2, -0.3)[:, None].expand(3, 3)
    rewards = losses.shaped_rewards(t(1, 2, 3), k1, torch.ones(3, 3, dtype=torch.bool), 0.5)
    expected = [[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]]
    assert torch.allclose(rewards, torch.tensor(expected, dtype=F64))
    mask = torch.tensor([[True, True, False]])
    assert losses.shaped_rewards(t(1), t(0.2, 0.2, 9)[None], mask, 1.0)[0].tolist() == pytest.approx([-0.2, 0.8, 0])


def test_whiten_is_biased_and_masked() -> None:
    x = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], dtype=F64)
    everything = torch.ones(3, 3, dtype=torch.bool)
    expected = [
        [0.05080678, 0.43810508, 0.82540339],
        [1.21270169, 1.6, 1.98729831],
        [2.37459661, 2.76189492, 3.14919322],
    ]
    assert torch.allclose(losses.whiten(x, everything) + x.mean(), torch.tensor(expected, dtype=F64), atol=1e-7)
    mask = torch.tensor([[True, True, False]])
    whitened = losses.whiten(t(1, 3, 100)[None], mask)
    assert whitened[0].tolist() == pytest.approx([-1, 1, 0], abs=1e-7)


def test_policy_loss_clips_on_the_pessimistic_side() -> None:
    # NeMo-RL test_loss_functions.py: A = [1, -1, 2], ratio = [.5, 1, 1.5] -> [-.5, 1, -2.4].
    ratio, advantages = t(0.5, 1, 1.5), t(1, -1, 2)
    each = [losses.policy_loss(ratio[i : i + 1].log(), t(0), advantages[i : i + 1], 0.2)[0].item() for i in range(3)]
    assert each == pytest.approx([-0.5, 1, -2.4])
    loss, sums = losses.policy_loss(ratio.log(), torch.zeros(3, dtype=F64), advantages, 0.2)
    assert loss.item() / 3 == pytest.approx(-0.6333333333)
    assert sums["clipfrac"].item() == 1 and sums["ratio"].item() == pytest.approx(3)


def test_policy_gradient_at_ratio_one_is_reinforce() -> None:
    # TRL's RLOO blog: logits [1, 2, 1, 1], action 1, A = 1.
    logits = t(1, 2, 1, 1).requires_grad_()
    log_prob = vocabulary.log_probs_of(logits[None], torch.tensor([1]))
    loss, _ = losses.policy_loss(log_prob, log_prob.detach(), torch.ones(1), 0.2)
    (gradient,) = torch.autograd.grad(-loss, logits)
    assert gradient.tolist() == pytest.approx([-0.1749, 0.5246, -0.1749, -0.1749], abs=1e-4)


def test_value_loss_takes_the_worse_of_plain_and_clipped() -> None:
    # value moved from 0 to 1, return 1: plain error 0, clipped value .2 -> error .64.
    assert losses.value_loss(t(1), t(0), t(1), 0.2).item() == pytest.approx(0.32)
    assert losses.value_loss(t(1), t(0), t(1), None).item() == 0


def test_kl_and_entropy_over_the_vocabulary() -> None:
    p, q = t(0.5, 0.3, 0.15, 0.05), t(0.25, 0.25, 0.25, 0.25)
    masked = [torch.cat([x.log(), t(-math.inf)])[None] for x in (p, q)]
    for logits, reference in ((p.log()[None], q.log()[None]), masked):
        _, k1, kl, entropy = vocabulary.measures(logits, reference, torch.tensor([1]))
        assert k1.item() == pytest.approx(math.log(0.3 / 0.25), abs=1e-12)
        assert kl.item() == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-12)
        assert entropy.item() == pytest.approx(float(-(p * p.log()).sum()), abs=1e-12)
        assert [x.item() for x in vocabulary.measures(logits, None, torch.tensor([1]))[1:3]] == [0, 0]


def test_log_probs_and_their_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(vocabulary, "CACHED_ELEMENTS", 15)
    logits, ids = torch.randn(7, 5, dtype=F64), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    logits[:, 4] = -math.inf
    weights = torch.randn(7, dtype=F64)
    results = []
    for function in (vocabulary.log_probs_of, lambda x, i: x.log_softmax(-1).gather(-1, i[:, None])[:, 0]):
        x = logits.clone().requires_grad_()
        log_probs = function(x, ids)
        results.append((log_probs.detach(), *torch.autograd.grad((log_probs * weights).sum(), x)))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-14)
    assert torch.allclose(results[0][1][:, :4], results[1][1][:, :4], atol=1e-14) and (results[0][1][:, 4] == 0).all()


def test_chunked_log_probs_equal_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(11, 6, dtype=torch.float32, requires_grad=True)
    hidden, ids = torch.randn(23, 6, requires_grad=True), torch.randint(11, (23,))
    results = []
    for elements in (1 << 25, 44):
        monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", elements)
        log_probs = vocabulary.chunked_log_probs(hidden, ids, lambda h: h @ weight.T, 11)
        results.append((log_probs, *torch.autograd.grad(log_probs.square().sum(), [hidden, weight])))
    for whole, chunked in zip(*results, strict=True):
        assert torch.allclose(whole, chunked, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.05, 0.2, 0.4])
def test_smoothed_pair_loss_is_least_where_the_label_is_as_sure_as_it_should_be(smoothing: float) -> None:
    best = math.log((1 - smoothing) / smoothing)
    chosen = t(best).requires_grad_()
    loss = losses.pair_loss(chosen, t(0), smoothing)
    loss.backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(0, abs=1e-12)
    entropy = -smoothing * math.log(smoothing) - (1 - smoothing) * math.log(1 - smoothing)
    assert loss.item() == pytest.approx(entropy)


@pytest.mark.parametrize(
    ("right", "margin", "best"),
    [(0.7, 0.0, 0.8472978604), (0.7, 1.0, 1.4308576437), (0.9, 1.0, 3.0979516564), (0.9, 3.0, 5.0797899341)],
)
def test_a_margin_moves_where_the_loss_is_least(right: float, margin: float, best: float) -> None:
    """Labels that are right with a probability: e^d = (a + sqrt(a^2 + 4 p (1 - p) e^-2m)) / (2 (1 - p) e^-m), a = 2 p -
    1; the same whether labels are drawn so or `wrong` says how often they are wrong."""
    for loss_at in (
        lambda d: right * losses.pair_loss(d, t(0), 0.0, margin) + (1 - right) * losses.pair_loss(t(0), d, 0.0, margin),
        lambda d: losses.pair_loss(d, t(0), t(1 - right), t(margin)),
    ):
        difference = t(best).requires_grad_()
        loss_at(difference).backward()
        assert difference.grad is not None and difference.grad.item() == pytest.approx(0, abs=1e-10)


def test_a_tie_is_least_where_both_score_alike_and_centering_where_they_are_opposite() -> None:
    chosen, rejected = t(0.3).requires_grad_(), t(0.3).requires_grad_()
    losses.pair_loss(chosen, rejected, 0.5).backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(0, abs=1e-15)
    assert losses.centering(t(1.5, -1.0), t(-1.5, 3.0)).item() == 4.0


def test_pair_loss() -> None:
    assert losses.pair_loss(t(0, 0), t(0, 0)).item() == pytest.approx(2 * math.log(2))
    chosen = t(1.0).requires_grad_()
    losses.pair_loss(chosen, t(0)).backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-1 / (1 + math.e))


def test_adaptive_kl_coefficient() -> None:
    # KL at 1.2 times its target, batches of 512, horizon 10,000: .15 * 1.01024 ** k.
    coefficient = 0.15
    seen = {}
    for k in range(1, 101):
        coefficient = losses.next_kl_coeff(coefficient, 7.2, 6.0, 10_000, 512)
        seen[k] = coefficient
    assert [seen[1], seen[10], seen[100]] == pytest.approx([0.151536, 0.1660875, 0.4154773], abs=1e-6)
    assert losses.next_kl_coeff(0.15, 6.0, 6.0, 10_000, 512) == 0.15
    assert losses.next_kl_coeff(0.15, 600.0, 6.0, 10_000, 512) == pytest.approx(0.151536)


def test_explained_variance() -> None:
    assert losses.explained_variance(t(1, 2, 3), t(1, 2, 3)) == 1
    assert losses.explained_variance(t(2, 2, 2), t(1, 2, 3)) == 0
    assert math.isnan(losses.explained_variance(t(1, 2), t(3, 3)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_losses_do_not_depend_on_how_the_batch_is_cut(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(40, dtype=dtype).mul_(0.1).requires_grad_()
    old, advantages = torch.randn(40, dtype=dtype) * 0.1, torch.randn(40, dtype=dtype)
    gradients = []
    for cuts in ([40], [7, 1, 20, 12]):
        losses = [
            policy_loss(*columns, 0.2)[0] / 40
            for columns in zip(log_probs.split(cuts), old.split(cuts), advantages.split(cuts), strict=True)
        ]
        gradients.append(torch.autograd.grad(sum(losses), log_probs)[0])
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() <= tolerance
