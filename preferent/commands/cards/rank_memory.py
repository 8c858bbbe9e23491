"""What one rank of several holds of a stage: its share of the rows, and the networks whole or in shards.

Replicated, a rank is a process with its share of the rows, and every formula of `preferent.config.memory_estimate` is
that of such a process; `preferent.runs.rank_shares` has those of shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from preferent.commands import memory_fit
from preferent.commands.memory_fit import StageFit
from preferent.commands.time_estimate import Work
from preferent.config import defaults, memory_estimate
from preferent.config.memory_estimate import ModelFacts
from preferent.config.recipe import Recipe, pick
from preferent.config.stage_graph import Task
from preferent.runs import memory_choice
from preferent.runs.rank_shares import is_sharded, shard, share

MOST_RANKS = 1024
"""Ranks that are tried where a stage does not fit."""


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


def fits(facts: ModelFacts, tasks: Sequence[Task], memory: int, ranks: int) -> list[StageFit]:
    """Return how a rank's share of each stage fits its device, in the layout that the stage has."""
    return [in_layout(facts, fit, ranks) for fit in memory_fit.fits(facts_of_a_rank(facts, ranks), tasks, memory)]


def stage_of(fit: StageFit) -> str:
    return "reward" if fit.need.stage == "judge" else fit.need.stage


def in_layout(facts: ModelFacts, whole: StageFit, ranks: int) -> StageFit:
    """Return how a stage fits in its layout, from how the share of a rank fits replicated."""
    stage, one = stage_of(whole), facts_of_a_rank(facts, ranks)
    if ranks == 1 or not is_sharded(facts, stage):
        return whole
    values = memory_choice.chosen(one, stage, whole.memory, ranks)
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
