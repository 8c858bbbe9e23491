"""Advantages without a critic: the baseline is the other answers to the prompt, the batch, or the greedy answer.

Shapes: B answers, K per prompt, one group after the other; A answer positions (padded). `rewards` [B, A] are per token,
with the score at the last. Advantages are [B, A], zero off the mask. The caller whitens them where an algorithm
requires it.
"""

import torch
from torch import Tensor


def returns_to_go(rewards: Tensor, answer_mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Return the discounted sum of the rewards from each token to the end, [B, A]."""
    kept = torch.where(answer_mask, rewards, 0.0)
    returns, following = torch.zeros_like(kept), torch.zeros_like(kept[:, 0])
    for t in reversed(range(kept.shape[1])):
        following = kept[:, t] + gamma * following
        returns[:, t] = following
    return torch.where(answer_mask, returns, 0.0)


def rloo(rewards: Tensor, answer_mask: Tensor, samples: int) -> Tensor:
    """Return R - mean of the other K - 1 returns: REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024).

    The answer is one action, and R is the sum of its rewards. The other returns do not depend on it, so the gradient is
    unbiased.
    """
    groups = _returns(rewards, answer_mask).view(-1, samples)
    others = (groups.sum(-1, keepdim=True) - groups) / (samples - 1)
    return _on_every_token(groups - others, answer_mask)


def grpo(rewards: Tensor, answer_mask: Tensor, samples: int) -> Tensor:
    """Return group-relative advantages (Shao et al. 2024): (R - mean) / (sd + 1e-6), unbiased sd of the K returns.

    Dividing by the deviation weights prompts by how certain the policy is of them. Its optimum differs from that of the
    KL-regularised reward.
    """
    groups = _returns(rewards, answer_mask).view(-1, samples)
    centered = groups - groups.mean(-1, keepdim=True)
    return _on_every_token(centered / (groups.std(-1, keepdim=True) + 1e-6), answer_mask)


def dr_grpo(rewards: Tensor, answer_mask: Tensor, samples: int) -> Tensor:
    """Return R - mean of the K returns (Liu et al. 2025): `rloo` times (K - 1) / K."""
    groups = _returns(rewards, answer_mask).view(-1, samples)
    return _on_every_token(groups - groups.mean(-1, keepdim=True), answer_mask)


def reinforce_plus_plus(rewards: Tensor, answer_mask: Tensor, samples: int, gamma: float = 1.0) -> Tensor:
    """Return the returns to go (Hu 2025), which the caller whitens over the batch.

    With K > 1 the mean return of the prompt's answers is subtracted.
    """
    returns = returns_to_go(rewards, answer_mask, gamma)
    if samples == 1:
        return returns
    groups = _returns(rewards, answer_mask).view(-1, samples)
    mean = groups.mean(-1, keepdim=True).expand_as(groups).reshape(-1, 1)
    return torch.where(answer_mask, returns - mean, 0.0)


def remax(rewards: Tensor, answer_mask: Tensor, greedy_scores: Tensor, gamma: float = 1.0) -> Tensor:
    """Return the returns to go minus the score [B] of the greedy answer to the same prompt (Li et al. 2023)."""
    return torch.where(answer_mask, returns_to_go(rewards, answer_mask, gamma) - greedy_scores[:, None], 0.0)


def _returns(rewards: Tensor, answer_mask: Tensor) -> Tensor:
    return torch.where(answer_mask, rewards, 0.0).sum(-1)


def _on_every_token(advantages: Tensor, answer_mask: Tensor) -> Tensor:
    return torch.where(answer_mask, advantages.reshape(-1, 1), 0.0)
