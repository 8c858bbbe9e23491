"""The on-policy algorithms: what sets them apart, with the defaults of the paper that each comes from."""

from dataclasses import dataclass
from typing import Literal

from preferent.config.sections import PPOSection


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How `ppo` works: with a critic or without, answers to a prompt, passes over them, where the KL penalty stands,
    whether advantages are whitened over the batch, and whether every answer weighs alike, however long."""

    name: str
    critic: bool
    samples: int
    epochs: int
    kl_in: Literal["reward", "loss"]
    whiten: bool
    by_length: bool = False


ALGORITHMS = {
    found.name: found
    for found in (
        Algorithm("ppo", True, 1, 4, "reward", whiten=True),
        Algorithm("rloo", False, 4, 1, "reward", whiten=False),
        Algorithm("grpo", False, 8, 1, "loss", whiten=False, by_length=True),
        Algorithm("dr_grpo", False, 8, 1, "reward", whiten=False),
        Algorithm("reinforce_plus_plus", False, 1, 1, "reward", whiten=True),
        Algorithm("remax", False, 1, 1, "reward", whiten=False),
    )
}
"""Schulman et al. 2017 with Huang et al. 2024; Ahmadian et al. 2024; Shao et al. 2024 (who sample 64 answers); Liu et
al. 2025; Hu 2025; Li et al. 2023."""

GROUPED = ("rloo", "grpo", "dr_grpo")
"""These hold an answer against the others to its prompt, so there must be others."""


def algorithm(ppo: PPOSection) -> Algorithm:
    """Return the recipe's algorithm: its own settings where the section gives them, else the defaults."""
    default = ALGORITHMS[ppo.algorithm]
    return Algorithm(
        default.name,
        default.critic,
        ppo.samples_per_prompt or default.samples,
        ppo.epochs or default.epochs,
        ppo.kl_in or default.kl_in,
        default.whiten if ppo.whiten_advantages is None else ppo.whiten_advantages,
        default.by_length,
    )
