"""What a rank keeps of a stage that several ranks shard (FSDP2), from what one process needs.

This is the third stage of ZeRO (Rajbhandari 2020, section 5.3). Every rank keeps 1/R of what stays: of the fp32 masters
and moments of what learns, and of the frozen weights. It gathers a layer in the precision of computation when it needs
it, beside the one before, and the embeddings of input and output for a whole pass. The policy is gathered whole to
sample.

Symbols as in `preferent.config.memory_estimate`, and R ranks.
"""

from dataclasses import replace
from typing import NamedTuple

from preferent.config import defaults
from preferent.config.algorithms import algorithm
from preferent.config.defaults import decided
from preferent.config.memory_estimate import MASTER, MemoryNeed, ModelFacts
from preferent.config.model_shape import Shape
from preferent.config.recipe import pick


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
        """Weights whose gradients are added over the ranks at once: those of a layer, or of the embeddings."""
        return max(self.layer, self.embeddings) if self.whole else self.trained // self.shape.layers

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


def is_sharded(facts: ModelFacts, stage: str) -> bool:
    """Return whether several ranks shard a stage: every weight of a network learns in it, and the recipe allows it."""
    return facts.recipe.shard == "auto" and any(learner.whole for learner in learners(facts, stage))


def shard(facts: ModelFacts, need: MemoryNeed, stage: str, ranks: int) -> MemoryNeed:
    """Return the need of one of the ranks that shard a stage, from that of a process with its share of the rows.

    What stays: 1/R of it, without the copies that compute in bf16 beside masters. In every phase: b (2 layers and the
    embeddings) of the largest network, or to sample b n of the policy. Gradients: 4 t/R in fp32, and those of one unit
    before they are added over the ranks, in both precisions: (b + 4) of the larger of a layer and the embeddings.
    """
    learning, b = learners(facts, stage), facts.bytes
    trained = sum(learner.trained for learner in learning)
    copies = {learner.part: b * learner.trained if b < MASTER else 0 for learner in learning}
    parts = {part: share(max(0, held - copies.get(part, 0)), ranks) for part, held in need.parts.items()}
    used = b * max(2 * learner.layer + learner.embeddings for learner in learning)
    unit = max(learner.unit for learner in learning)
    changed = {
        "gradients": share(MASTER * trained, ranks) + (b + MASTER) * unit,
        "best": share(MASTER * trained, ranks),
    }
    phases = {}
    for name, held in need.phases.items():
        whole = name == "sample" and any(learner.samples for learner in learning)
        gathered = facts.frozen(facts.shape, facts.shape.policy) if whole else used
        phases[name] = {**held, **{part: changed[part] for part in held if part in changed}, "policy": gathered}
    if "step" in phases:
        phases["step"] = {"gradients": share(MASTER * trained, ranks)}
    return replace(need, parts=parts, phases=phases)
