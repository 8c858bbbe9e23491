"""What one rank of several holds of a stage: its share of the rows, and the networks whole or in shards.

Replicated, a rank is a process with its share of the rows, and every formula of `preferent.config.memory_estimate` is
that of such a process. Sharded (FSDP2, `torch.distributed.fsdp.fully_shard`; the third stage of ZeRO, Rajbhandari 2020,
section 5.3), every rank keeps 1/R of what stays: of the fp32 masters and moments of what learns, and of the frozen
weights. It gathers a layer in the precision of computation when it needs it, beside the one before, and the embeddings
of input and output, which are units of their own. The policy is gathered whole to sample.

Symbols as in `preferent.config.memory_estimate`, and R ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from preferent.commands import memory_fit
from preferent.commands.memory_fit import StageFit
from preferent.commands.time_estimate import Work
from preferent.config import defaults, memory_estimate
from preferent.config.algorithms import algorithm
from preferent.config.defaults import decided
from preferent.config.memory_estimate import MASTER, MemoryNeed, ModelFacts
from preferent.config.model_shape import Shape
from preferent.config.recipe import Recipe, pick
from preferent.config.stage_graph import Task
from preferent.runs import memory_choice

MOST_RANKS = 1024
"""Ranks that are tried where a stage does not fit."""


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
        """Weights whose gradients are added over the ranks at once: those of a layer, or of an embedding."""
        embedding = self.shape.vocab_size * self.shape.hidden_size
        return max(self.layer, embedding) if self.whole else self.trained // self.shape.layers

    @property
    def embeddings(self) -> int:
        """Weights of the embedding and, where it has one of its own, the output head."""
        once = self.part != "policy" or self.shape.tied
        return self.shape.vocab_size * self.shape.hidden_size * (1 if once else 2)


def share(rows: int, ranks: int) -> int:
    """Return the most rows that a rank has."""
    return -(-rows // ranks)


def work_of_a_rank(work: Work, ranks: int) -> Work:
    """Return a rank's share of the rows of data."""
    rows = {kind: _shares(parts, ranks) for kind, parts in work.rows.items()}
    return Work(work.lengths, rows)


def facts_of_a_rank(facts: ModelFacts, ranks: int) -> ModelFacts:
    """Return the facts of a process that has a rank's share of the rows."""
    return replace(facts, recipe=recipe_of_a_rank(facts.recipe, ranks), prompts=_shares(facts.prompts, ranks))


def recipe_of_a_rank(recipe: Recipe, ranks: int) -> Recipe:
    """Return the recipe of a process that does a rank's share of all that the recipe asks for."""
    ppo, rejection = recipe.ppo, recipe.rejection
    minibatch = share(max(1, ppo.batch_size // ppo.minibatches), ranks)
    prompts, most = share(ppo.validation_prompts, ranks), recipe.infer.max_prompts
    learnt = {"batch_size": share(recipe.reward.batch_size, ranks)}
    sections = {
        "reward": recipe.reward.model_copy(
            update=learnt | {"normalize_prompts": share(recipe.reward.normalize_prompts, ranks)}
        ),
        "ppo": ppo.model_copy(update={"batch_size": ppo.minibatches * minibatch, "validation_prompts": prompts}),
        "dpo": recipe.dpo.model_copy(update={"batch_size": share(recipe.dpo.batch_size, ranks)}),
        "rejection": rejection.model_copy(
            update={"batch_size": share(rejection.batch_size, ranks), "prompts": share(rejection.prompts, ranks)}
        ),
        "infer": recipe.infer.model_copy(update={"max_prompts": None if most is None else share(most, ranks)}),
    }
    if recipe.sft is not None:
        sections["sft"] = recipe.sft.model_copy(update={"batch_size": share(recipe.sft.batch_size, ranks)})
    return recipe.model_copy(update=sections)


def _shares(rows: Mapping[str, int], ranks: int) -> dict[str, int]:
    return {part: share(count, ranks) for part, count in rows.items()}


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
    """Return whether several ranks shard a stage: every weight of a network learns in it."""
    return any(learner.whole for learner in learners(facts, stage))


def shard(facts: ModelFacts, need: MemoryNeed, stage: str, ranks: int) -> MemoryNeed:
    """Return the need of one of the ranks that shard a stage, from that of a process with its share of the rows.

    What stays: 1/R of it, without the copies that compute in bf16 beside masters. In every phase: b (2 layers and the
    embeddings) of the largest network, or to sample b n of the policy. Gradients: 4 t/R in fp32, and those of one unit
    before they are added over the ranks, in both precisions: (b + 4) of the larger of a layer and the embedding.
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


def fits(facts: ModelFacts, tasks: Sequence[Task], memory: int, ranks: int, shards: bool = True) -> list[StageFit]:
    """Return how a rank's share of each stage fits its device, in the layout that the stage has."""
    whole = memory_fit.fits(facts_of_a_rank(facts, ranks), tasks, memory)
    return [in_layout(facts, fit, ranks) for fit in whole] if shards else whole


def stage_of(fit: StageFit) -> str:
    return "reward" if fit.need.stage == "judge" else fit.need.stage


def in_layout(facts: ModelFacts, whole: StageFit, ranks: int) -> StageFit:
    """Return how a stage fits in its layout, from how the share of a rank fits replicated.

    How much it computes at once is chosen as if the device had what sharding frees beside its memory.
    """
    stage, one = stage_of(whole), facts_of_a_rank(facts, ranks)
    if ranks == 1 or not is_sharded(facts, stage):
        return whole
    freed = max(0, whole.need.peak - shard(one, whole.need, stage, ranks).peak)
    values = memory_choice.chosen(one, stage, whole.memory + round(freed / memory_choice.SHARE))
    chosen = replace(one, recipe=defaults.filled(one.recipe, values)[0])
    need = replace(memory_estimate.need(chosen, stage), stage=whole.need.stage)
    at_once = pick(chosen.recipe, *memory_choice.FIELDS[stage])
    return StageFit(shard(chosen, need, stage, ranks), at_once, whole.memory)


def enough(facts: ModelFacts, whole: StageFit, ranks: int) -> int | None:
    """Return the fewest ranks, doubled from those that there are, with which a stage fits sharded; None: none do."""
    while ranks < MOST_RANKS:
        ranks *= 2
        share_of_it = memory_fit.fit(facts_of_a_rank(facts, ranks), stage_of(whole), whole.need.stage, whole.memory)
        if in_layout(facts, share_of_it, ranks).fits:
            return ranks
    return None


def at_once(facts: ModelFacts) -> ModelFacts:
    """Return the facts with the most that a stage chooses to compute at once, where the recipe is silent."""
    return replace(facts, recipe=defaults.filled(facts.recipe, defaults.AT_ONCE)[0])
