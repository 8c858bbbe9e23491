"""Rules about PPO: the KL, the ratio, the updates, the critic, the entropy, and the selected checkpoint."""

import math
from collections.abc import Iterator

import numpy as np

from preferent.doctor.findings import RELATIVE, SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import Curve, RunHistory
from preferent.evaluation.verdict_sentence import UNCHANGED, unchanged

STAGE = RELATIVE.policy.description.as_posix()
ROUNDING = 1e-3
"""Nats; the rounding error of fp32 sums over a vocabulary and an answer."""
EXACT = 1e-5
"""Rounding error of a mean of ones; the first update of a step divides equal log-probabilities."""
ERRORS = 5.0
ESTIMATES = 0.1
"""k1 is an unbiased estimate of the KL: five standard errors and a tenth of the KL are not noise."""
CLIPPED = 0.2
"""Mean share of clipped tokens; .07 in the fourth epoch in Huang et al. 2024."""
APPROXKL = 0.05
"""Nats per token between two steps; .008 in the fourth epoch in Huang et al. 2024."""
NATS_PER_TOKEN = 0.9
"""Two over-optimised seeds had a KL of 50 and 85 nats on answers of 53 tokens (Huang et al. 2024)."""
OFF = 1.5
"""Ratio to the KL target or budget."""
UNMOVED = 0.01
"""Nats per answer; the better of two answers is already 0.19 away (log 2 - 1/2)."""
COLLAPSED = 0.15
"""Share of the entropy at the beginning; healthy runs, which become more certain, keep more than a third."""
LOST = 0.5
"""Share of the gain on validation prompts that was lost again."""


def negative_kl(history: RunHistory) -> Iterator[Finding]:
    for figure in ("objective/kl", "validation/kl"):
        kl = history.curve("policy", figure)
        if len(kl) and kl.values.min() < -ROUNDING:
            yield Finding(
                "negative-kl",
                SICK,
                "The KL to the reference is below zero, which is impossible: it is not measured between the right "
                "distributions.",
                (kl.at(int(kl.values.argmin())),),
                "Report it as a bug; until it is corrected, trust neither the KL nor the objective.",
            )


def first_kl(history: RunHistory) -> Iterator[Finding]:
    for figure in ("objective/kl", "validation/kl"):
        kl = history.curve("policy", figure)
        if len(kl) and kl.steps[0] == (1 if figure == "objective/kl" else 0) and kl.values[0] > ROUNDING:
            yield Finding(
                "first-kl",
                SICK,
                "The policy differs from its reference before any update, although both start from the same model.",
                (kl.at(0),),
                "Check that model= and the reference are the same files, and that dropout is off.",
            )


def first_ratio(history: RunHistory) -> Iterator[Finding]:
    ratio = history.curve("policy", "val/first_ratio")
    off = np.flatnonzero(np.abs(ratio.values - 1) > EXACT)
    if len(off):
        yield Finding(
            "first-ratio",
            SICK,
            "The ratio of new to old probabilities is not 1 before the first update of a step: old and new "
            "probabilities were computed in different ways.",
            (ratio.at(int(off[0])), Evidence(ratio.file, "such steps", len(off))),
            "Check that nothing random (dropout) is on; otherwise report it as a bug.",
        )


def kl_estimates_disagree(history: RunHistory) -> Iterator[Finding]:
    kl, k1 = history.curve("policy", "objective/kl"), history.curve("policy", "objective/kl_k1")
    if not kl.long or len(kl) != len(k1):
        return
    apart = k1.values - kl.values
    error = float(apart.std(ddof=1)) / math.sqrt(len(apart))
    if abs(apart.mean()) > max(ERRORS * error, ESTIMATES * abs(float(kl.values.mean())), ROUNDING):
        everything = slice(None)
        yield Finding(
            "kl-estimates-disagree",
            SICK,
            "The KL of the sampled tokens differs systematically from the KL over the whole vocabulary: tokens were "
            "not drawn from the distribution that is trained.",
            (kl.mean(everything), k1.mean(everything)),
            "Check that sampler and training use the same temperature and the same weights.",
        )


def no_leash(history: RunHistory) -> Iterator[Finding]:
    if history.fields("policy").get("kl_coeff") == 0:
        yield Finding(
            "no-leash",
            SUSPICIOUS,
            "Nothing keeps the policy near its reference, and it will exploit the errors of the reward.",
            (Evidence(STAGE, "kl_coeff", 0),),
            "Set kl_coeff (0.1 is the default), unless the reward is exact.",
        )


def kl_explodes(history: RunHistory) -> Iterator[Finding]:
    kl, length = history.curve("policy", "objective/kl"), history.curve("policy", "tokens/length")
    if kl.long and len(length) and kl.late > NATS_PER_TOKEN * length.late:
        yield Finding(
            "kl-explodes",
            SICK,
            f"The policy is {kl.late / length.late:.1f} nats per token away from its reference; people disliked others "
            "from one nat on.",
            (kl.mean(kl.last), length.mean(length.last)),
            "Raise kl_coeff, set ppo.kl_target or ppo.kl_budget, or lower ppo.learning_rate.",
        )


def kl_off_target(history: RunHistory) -> Iterator[Finding]:
    kl, target = history.curve("policy", "objective/kl"), history.fields("policy").get("ppo.kl_target")
    if target and kl.long and kl.late > OFF * target:
        yield Finding(
            "kl-off-target",
            SUSPICIOUS,
            "The controller of kl_coeff did not keep the KL at its target.",
            (kl.mean(kl.last), Evidence(STAGE, "ppo.kl_target", target)),
            "Lower ppo.kl_horizon so that it acts faster, or start with a larger kl_coeff.",
        )


def kl_over_budget(history: RunHistory) -> Iterator[Finding]:
    kl, budget = history.curve("policy", "validation/kl"), history.fields("policy").get("ppo.kl_budget")
    if budget and len(kl) and kl.values.max() > OFF * budget:
        yield Finding(
            "kl-over-budget",
            SUSPICIOUS,
            "The KL was far above its budget before a validation measured it.",
            (kl.at(int(kl.values.argmax())), Evidence(STAGE, "ppo.kl_budget", budget)),
            "Lower ppo.validation_every, or raise kl_coeff.",
        )


def policy_does_not_move(history: RunHistory) -> Iterator[Finding]:
    kl, coefficient = history.curve("policy", "objective/kl"), history.curve("policy", "objective/kl_coeff")
    leashed = len(coefficient) > 0 and coefficient.values.max() > 0
    if leashed and kl.long and abs(kl.late) < UNMOVED:
        yield Finding(
            "policy-does-not-move",
            SUSPICIOUS,
            "At the end of training the policy still equals its reference.",
            (kl.mean(kl.last), history.curve("policy", "learning_rate").at(-1)),
            "Raise ppo.learning_rate (small models trained in full need 1e-4 and more), or lower kl_coeff.",
        )


def clipped_too_often(history: RunHistory) -> Iterator[Finding]:
    yield from _too_large(history.curve("policy", "policy/clipfrac"), CLIPPED, "clipped-too-often", "are clipped")


def updates_too_large(history: RunHistory) -> Iterator[Finding]:
    yield from _too_large(history.curve("policy", "policy/approxkl"), APPROXKL, "updates-too-large", "move too far")


def critic_explains_nothing(history: RunHistory) -> Iterator[Finding]:
    explained = history.curve("policy", "val/explained_variance")
    if explained.long and explained.late < 0:
        yield Finding(
            "critic-explains-nothing",
            SUSPICIOUS,
            "The critic predicts returns worse than their mean does: the advantages are noise.",
            (explained.mean(explained.first), explained.mean(explained.last)),
            "Raise ppo.critic_learning_rate or ppo.batch_size, or set ppo.value_clip_range: null.",
        )


def entropy_collapse(history: RunHistory) -> Iterator[Finding]:
    entropy = history.curve("policy", "objective/entropy")
    if entropy.long and entropy.late < COLLAPSED * entropy.early:
        yield Finding(
            "entropy-collapse",
            SUSPICIOUS,
            "The policy has become nearly certain of every token and no longer explores.",
            (entropy.mean(entropy.first), entropy.mean(entropy.last)),
            "Raise kl_coeff, or lower ppo.learning_rate or ppo.epochs.",
        )


def reward_does_not_rise(history: RunHistory) -> Iterator[Finding]:
    reward = history.curve("policy", "objective/scores")
    if reward.long and reward.late <= reward.early:
        yield Finding(
            "reward-does-not-rise",
            SUSPICIOUS,
            "The score of the policy's answers is no higher at the end than at the beginning.",
            (reward.mean(reward.first), reward.mean(reward.last)),
            "Train longer, raise ppo.learning_rate or ppo.batch_size, or lower kl_coeff.",
        )


def never_better(history: RunHistory) -> Iterator[Finding]:
    facts = history.facts("policy")
    if unchanged(facts):
        yield Finding(
            "never-better",
            SICK,
            UNCHANGED,
            (Evidence(STAGE, "best_step", 0), Evidence(STAGE, "steps", facts["steps"])),
            "See the other findings; if there are none, train longer, lower kl_coeff, or validate more often "
            "(ppo.validation_every).",
        )


def past_its_best(history: RunHistory) -> Iterator[Finding]:
    objective = history.curve("policy", "validation/objective")
    if len(objective) < 4:
        return
    first, last, best = objective.values[0], objective.values[-1], float(np.max(objective.values))
    if best > first and best - last > LOST * (best - first):
        yield Finding(
            "past-its-best",
            SUSPICIOUS,
            "The policy lost more than half of what it had gained; the best checkpoint is kept.",
            (objective.at(0), objective.at(int(objective.values.argmax())), objective.at(-1)),
            "Lower ppo.learning_rate, raise kl_coeff, or set ppo.early_stopping_patience.",
        )


def _too_large(curve: Curve, bound: float, name: str, how: str) -> Iterator[Finding]:
    if len(curve) and curve.values.mean() > bound:
        yield Finding(
            name,
            SUSPICIOUS,
            f"In the updates the policy's tokens {how}: the steps are too large for their rollouts.",
            (curve.mean(slice(None)), curve.at(int(curve.values.argmax()))),
            "Lower ppo.learning_rate or ppo.epochs, or raise ppo.batch_size.",
        )


RULES = (
    negative_kl,
    first_kl,
    first_ratio,
    kl_estimates_disagree,
    no_leash,
    kl_explodes,
    kl_off_target,
    kl_over_budget,
    policy_does_not_move,
    clipped_too_often,
    updates_too_large,
    critic_explains_nothing,
    entropy_collapse,
    reward_does_not_rise,
    never_better,
    past_its_best,
)
