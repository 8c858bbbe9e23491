"""What a rank keeps of a stage that several ranks shard (FSDP2), from what one process needs.

This is the third stage of ZeRO (Rajbhandari 2020, section 5.3). Every rank keeps 1/R of what stays: of the fp32 masters
and moments of what learns, and of the frozen weights. It gathers a layer in the precision of computation when it needs
it, beside the one before, and the embeddings of input and output for a whole pass. The policy is gathered whole to
sample. Adapters are whole, with all that they learn with; the frozen weights below them are cut with `shard: full`.

Symbols as in `preferent.config.memory_estimate`, and R ranks.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from preferent.config import defaults
from preferent.config.algorithms import algorithm
from preferent.config.defaults import decided
from preferent.config.memory_estimate import MASTER, MemoryNeed, ModelFacts
from preferent.config.model_shape import Shape
from preferent.config.recipe import pick
from preferent.config.stage_graph import trains


class Learner(NamedTuple):
    """A network that learns in a stage: the part of `MemoryNeed` that has its weights, its shape, how many weights it
    has and how many of them learn, and whether it samples."""

    part: str
    shape: Shape
    weights: int
    trained: int
    samples: bool = False

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        return self.shape.linear // self.shape.layers

    @property
    def whole(self) -> bool:
        """Whether every weight learns."""
        return self.trained == self.weights

    @property
    def unit(self) -> int:
        """Weights of a network that learns whole whose gradients are added over the ranks at once: those of a layer, or
        of the embeddings."""
        return max(self.layer, self.embeddings)

    @property
    def embeddings(self) -> int:
        """Weights of the embedding and, where it has one of its own, the output head."""
        once = self.part != "policy" or self.shape.tied
        return self.shape.vocab_size * self.shape.hidden_size * (1 if once else 2)


def share(rows: int, ranks: int) -> int:
    """Return the most rows that a rank has."""
    return -(-rows // ranks)


def learners(facts: ModelFacts, stage: str) -> list[Learner]:
    """Return the networks that learn in a stage."""
    recipe, shape, scorer = facts.recipe, facts.shape, facts.reward_shape
    if stage == "reward":
        rank = decided(recipe.reward.lora_dim)
        return [Learner("reward", scorer, scorer.scorer, scorer.adapter(rank) if rank else scorer.scorer)]
    if stage not in defaults.TUNING:
        return []
    rank = decided(pick(recipe, f"{stage}.lora_dim")[f"{stage}.lora_dim"])
    policy = Learner("policy", shape, shape.policy, shape.lora(rank) if rank else shape.policy, samples=stage == "ppo")
    if stage == "rejection":
        return [policy._replace(samples=True)]
    if stage != "ppo" or not algorithm(recipe.ppo).critic:
        return [policy]
    if not any(part.kind == "reward" for part in recipe.reward.parts):
        return [policy, Learner("critic", shape, shape.scorer, shape.adapter(rank) if rank else shape.scorer)]
    rank = decided(recipe.reward.lora_dim) * (recipe.reward.members if recipe.reward.combine == "weights" else 1)
    return [policy, Learner("critic", scorer, scorer.scorer, scorer.adapter(rank) if rank else scorer.scorer)]


def is_cut(facts: ModelFacts, learner: Learner) -> bool:
    """Return whether ranks cut a network into shards: the weights that learn, or with `shard: full` those that do not,
    too."""
    return facts.recipe.shard == "full" or (facts.recipe.shard == "auto" and learner.whole)


def is_sharded(facts: ModelFacts, stage: str) -> bool:
    """Return whether several ranks shard a stage: a network that learns in it is cut."""
    return any(is_cut(facts, learner) for learner in learners(facts, stage))


def own_rewards(facts: ModelFacts) -> int:
    """Return the number of reward models that the run trains and then scores with."""
    section = facts.recipe.reward
    return trains(facts.recipe) * (1 if section.combine == "weights" else section.members)


def shard(facts: ModelFacts, need: MemoryNeed, stage: str, ranks: int) -> MemoryNeed:
    """Return the need of one of the ranks that shard a stage, from that of a process with its share of the rows.

    What stays: 1/R of it, without the copies that compute in bf16 beside masters; of adapters all. In every phase: b (2
    layers and the embeddings) of the largest network, or to sample b n of the policy. Gradients of what learns whole: 4
    t/R in fp32, and those of one unit before they are added over the ranks, in both precisions: (b + 4) of the larger
    of a layer and the embeddings. Those of adapters: 4 t.
    """
    learning, b = learners(facts, stage), facts.bytes
    cut = [learner for learner in learning if is_cut(facts, learner)]
    whole = [learner for learner in learning if learner.whole]
    kept = _kept(facts, need, stage, learning)
    copies = {learner.part: b * learner.trained if b < MASTER else 0 for learner in whole}
    parts = {part: share(max(0, held - copies.get(part, 0) - kept[part]), ranks) for part, held in need.parts.items()}
    used = b * max(2 * learner.layer + learner.embeddings for learner in cut)
    trained = share(MASTER * sum(learner.trained for learner in whole), ranks)
    trained += MASTER * sum(learner.trained for learner in learning if not learner.whole)
    changed = {}
    if whole:
        changed = {"gradients": trained + (b + MASTER) * max(learner.unit for learner in whole), "best": trained}
    phases = {}
    for name, held in need.phases.items():
        sampled = name == "sample" and any(learner.samples for learner in cut)
        gathered = facts.frozen(facts.shape, facts.shape.policy) if sampled else used
        phases[name] = {**held, **{part: changed[part] for part in held if part in changed}, "policy": gathered}
    if "step" in phases:
        phases["step"] = {"gradients": trained}
    return replace(need, parts={part: kept[part] + held for part, held in parts.items()}, phases=phases)


def _kept(facts: ModelFacts, need: MemoryNeed, stage: str, learning: Sequence[Learner]) -> Counter[str]:
    """Return the bytes of each part that every rank holds whole: adapters and what they learn with, and the frozen
    weights below them where these are not cut."""
    kept: Counter[str] = Counter()
    for learner in learning:
        if not learner.whole:
            below = 0 if is_cut(facts, learner) else facts.frozen(learner.shape, learner.weights)
            kept[learner.part] += min(need.parts[learner.part], below + facts.bytes * learner.trained)
            kept["optimizer"] += facts.optimizer(learner.trained)
            kept["average"] += need.parts.get("average", 0) if learner.part == "policy" else 0
    has_adapters = bool(decided(facts.recipe.reward.lora_dim))
    if stage in ("ppo", "rejection") and has_adapters and (facts.one_backbone or facts.recipe.shard == "auto"):
        kept["reward"] = facts.rewards() - sum(facts.frozen(other, other.scorer) for other in facts.others)
    return kept
