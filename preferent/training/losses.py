"""The mathematics of the training stages: tensors in, sums and counts out.

No function here takes a mean over tokens. The caller divides by the number of valid tokens of the whole minibatch, so a
loss does not depend on how the minibatch was cut into micro-batches.

Shapes: B rows, A answer positions (padded), N tokens (flat), V vocabulary, D hidden size. Masks name what they keep.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Number = Tensor | float
"""One number for every row, or one for all."""


def shaped_rewards(scores: Tensor, k1: Tensor, answer_mask: Tensor, kl_coeff: float) -> Tensor:
    """Return rewards per token [B, A]: -kl_coeff * k1 everywhere, plus the score [B] at the last answer token.

    `k1` [B, A] is log pi - log pi_ref of the sampled tokens, the only unbiased estimator of the KL in a reward
    (Stiennon et al. 2020; Ziegler et al. 2019).
    """
    rewards = torch.where(answer_mask, -kl_coeff * k1, 0.0)
    last = answer_mask.sum(-1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, answer_mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both [B, A], zero off the mask, by generalized advantage estimation.

    A_t = delta_t + gamma * lambda * A_{t+1}, delta_t = r_t + gamma * V_{t+1} - V_t (Schulman et al. 2016). After the
    last token everything is 0: the episode ends with the answer. Returns are advantages + values, before whitening.
    """
    keep = answer_mask.to(values.dtype)
    values, rewards = values * keep, rewards * keep
    advantages = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * gae_lambda * following) * keep[:, t]
        advantages[:, t], next_value = following, values[:, t]
    return advantages, advantages + values


def whiten(x: Tensor, keep_mask: Tensor) -> Tensor:
    """Return (x - mean) / sqrt(var + 1e-8) over kept entries, biased variance (Ziegler et al. 2019); zero elsewhere.

    The sums are float64 on the CPU, because some devices have none.
    """
    wide, kept = x.cpu().double(), x[keep_mask].cpu().double()
    whitened = (wide - kept.mean()) * (kept.var(unbiased=False) + 1e-8).rsqrt()
    return torch.where(keep_mask, whitened.to(x.dtype).to(x.device), 0.0)


def policy_loss(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the clipped surrogate of PPO (Schulman et al. 2017) summed over tokens [N], and sums for logging.

    sum max(-A * ratio, -A * clip(ratio, 1 - eps, 1 + eps_high)), ratio = exp(log_probs - old); eps_high defaults to eps
    (Yu et al. 2025). With `dual_clip` c the loss of a token with A < 0 is at most -A * c (Ye et al. 2020).
    """
    log_ratio = log_probs - old
    ratio = log_ratio.exp()
    high = clip_range if clip_range_high is None else clip_range_high
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + high)
    loss = torch.maximum(plain, clipped)
    if dual_clip is not None:
        loss = torch.where(advantages < 0, loss.minimum(-advantages * dual_clip), loss)
    with torch.no_grad():
        sums = {
            "ratio": ratio.sum(),
            "approxkl": 0.5 * log_ratio.square().sum(),
            "clipfrac": (clipped > plain).float().sum(),
        }
    return loss.sum(), sums


def kl_loss(log_probs: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """Return k2 = (log pi - log pi_ref)^2 / 2 summed over the sampled tokens [N].

    Its gradient is that of KL(pi || pi_ref) at each token. As a loss, k1 has the gradient zero, and k3 = pi_ref / pi -
    1 - log(pi_ref / pi) has that of KL(pi_ref || pi). None of the three accounts for the effect of a token on the
    tokens that follow; only a KL in the reward does.
    """
    return 0.5 * (weights * (log_probs - reference).square()).sum()


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip_range: float | None) -> Tensor:
    """Return 0.5 * squared error summed over the values [N]: the larger of plain and clipped around the old values."""
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old + (values - old).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error.sum()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - var(returns - values) / var(returns), all [N]; NaN where the returns are constant."""
    values, returns = values.cpu().double(), returns.cpu().double()
    variance = returns.var(unbiased=False)
    if variance <= 1e-12:
        return float("nan")
    return float(1 - (returns - values).var(unbiased=False) / variance)


def pair_loss(
    chosen: Tensor, rejected: Tensor, wrong: Number = 0.0, margins: Number = 0.0, weights: Number = 1.0
) -> Tensor:
    """Return the Bradley-Terry loss -log sigmoid(d - m) summed over pairs [B], d = r_chosen - r_rejected.

    `margins` m (Touvron et al. 2023) is the difference by which the chosen answer should win. `wrong` w is the
    probability that a label is wrong (Mitchell 2023, "A note on DPO with noisy preferences"; 1/2 for a tie). The loss
    is then -(1 - w) log sigmoid(d - m) - w log sigmoid(-d - m). Without a margin its minimum is at d = log((1 - w) /
    w). A thumb is a pair whose other side is an offset b: its loss is -log sigmoid(r - b) up, -log sigmoid(b - r) down.
    """
    difference = chosen - rejected
    loss = (1 - wrong) * logsigmoid(difference - margins) + wrong * logsigmoid(-difference - margins)
    return -(weights * loss).sum()


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return (r_chosen + r_rejected)^2 summed over pairs [B] (Eisenstein et al. 2023).

    `pair_loss` does not determine this sum, because it sees only differences of scores.
    """
    return (chosen + rejected).square().sum()


def dpo_loss(chosen: Tensor, rejected: Tensor, kl_coeff: float, wrong: Number = 0.0, weights: Number = 1.0) -> Tensor:
    """Return the loss of direct preference optimization (Rafailov et al. 2023) summed over pairs.

    It is the Bradley-Terry loss where the reward of an answer is kl_coeff * rho. `chosen` and `rejected` [B] are the
    log-ratios rho = log pi(y|x) - log pi_ref(y|x). `wrong` is as in `pair_loss`.
    """
    return pair_loss(kl_coeff * chosen, kl_coeff * rejected, wrong, weights=weights)


def ipo_loss(chosen: Tensor, rejected: Tensor, kl_coeff: float, weights: Number = 1.0) -> Tensor:
    """Return (h - 1 / (2 kl_coeff))^2 summed over pairs, h = rho_chosen - rho_rejected [B] (Azar et al. 2024)."""
    return (weights * (chosen - rejected - 1 / (2 * kl_coeff)).square()).sum()


def reference_free_loss(
    chosen: Tensor, rejected: Tensor, kl_coeff: float, target_margin: float = 0.0, weights: Number = 1.0
) -> Tensor:
    """Return -log sigmoid(kl_coeff * (m_chosen - m_rejected) - target_margin) summed over pairs.

    This is SimPO (Meng et al. 2024). `chosen` and `rejected` [B] are m, the mean log-probability per token of an answer
    under the policy.
    """
    return pair_loss(kl_coeff * chosen, kl_coeff * rejected, margins=target_margin, weights=weights)


def kto_anchor(mismatched: Tensor) -> Tensor:
    """Return max(0, mean rho) without a gradient: an estimate of KL(pi || pi_ref) in nats, not scaled by kl_coeff.

    The log-ratios rho [B] are of prompts with answers to other prompts (Ethayarajh et al. 2024).
    """
    return mismatched.detach().mean().clamp(min=0)


def kto_loss(
    chosen: Tensor, rejected: Tensor, anchor: Tensor, kl_coeff: float, desirable: Number = 1, undesirable: Number = 1
) -> Tensor:
    """Return the loss of Kahneman-Tversky optimization (Ethayarajh et al. 2024) summed over pairs.

    The loss of a pair is the mean over its two answers. A chosen answer costs desirable * (1 - sigmoid(kl_coeff * (rho
    - z))), a rejected one undesirable * (1 - sigmoid(kl_coeff * (z - rho))); rho [B] are log-ratios as in `dpo_loss`, z
    is the `anchor`. The weights may be tensors [B], zero where a row has no such answer.
    """
    gain, loss = kl_coeff * (chosen - anchor), kl_coeff * (anchor - rejected)
    return 0.5 * (desirable * (1 - gain.sigmoid()) + undesirable * (1 - loss.sigmoid())).sum()


def next_kl_coeff(kl_coeff: float, kl: float, target: float, horizon: int, episodes: int) -> float:
    """Return kl_coeff * (1 + clip(kl / target - 1, -.2, .2) * episodes / horizon) (Ziegler et al. 2019)."""
    return kl_coeff * (1 + min(max(kl / target - 1, -0.2), 0.2) * episodes / horizon)
