"""What several ranks need, send, and take, as lines of a plan."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from preferent.commands import memory_fit, time_estimate
from preferent.commands.cards import card_speed, rank_memory
from preferent.commands.cards.hardware import Card, Machines
from preferent.commands.cards.rank_memory import facts_of_a_rank, work_of_a_rank
from preferent.commands.cards.traffic import traffic
from preferent.commands.memory_fit import StageFit, size
from preferent.commands.time_estimate import Speeds, StageTime, Work, duration
from preferent.config.memory_estimate import ModelFacts
from preferent.config.recipe import Recipe
from preferent.config.stage_graph import Task
from preferent.runs.rank_shares import is_sharded, learners

Speed = Callable[[ModelFacts, Work, str], Speeds]
"""How fast a stage is, of which one rank has these facts and this work."""


def layouts(facts: ModelFacts, fits: Sequence[StageFit], ranks: int) -> Iterator[str]:
    """Yield how the ranks hold what each stage learns, and where that does not fit, how many ranks would."""
    for fit in fits:
        name, stage, memory = fit.need.stage, rank_memory.stage_of(fit), fit.memory
        if not learners(facts, stage):
            continue
        if not is_sharded(facts, stage):
            yield f"{name:<9}replicated: every rank holds all weights, and the gradients of what learns are added up"
            continue
        whole = memory_fit.fit(facts_of_a_rank(facts, ranks), stage, name, memory)
        line = f"{name:<9}sharded: peak {size(fit.need.peak)}; replicated it would be {size(whole.need.peak)}"
        if not fit.fits:
            count = rank_memory.enough(facts, whole, ranks)
            line += "; no number of ranks makes it fit" if count is None else f"; fits with {count} ranks"
        yield line


def sent(facts: ModelFacts, names: dict[str, str], work: Work, machines: Machines) -> Iterator[str]:
    """Yield the bytes that a rank sends in a step of each stage that learns, and how long that takes."""
    for name, stage in names.items():
        if learners(facts, stage):
            moved = traffic(facts, stage, work, machines.ranks)
            parts = ", ".join(f"{part} {size(round(count))}" for part, count in moved._asdict().items() if count)
            taking = f", in {duration(moved.total / machines.bandwidth)}" if machines.bandwidth else ""
            yield f"{name:<9}sends in a step, and receives: {parts}{taking}"


def times(
    facts: ModelFacts, tasks: Sequence[Task], work: Work, machines: Machines, speed: Speed
) -> Iterator[StageTime]:
    """Yield the time of each stage that computes: a rank's share of what it does, and then what it sends."""
    one, shared = facts_of_a_rank(facts, machines.ranks), work_of_a_rank(work, machines.ranks)
    for task in tasks:
        seconds = 0.0
        if machines.bandwidth and learners(facts, task.stage):
            seconds = traffic(facts, task.stage, work, machines.ranks).total / machines.bandwidth
        for found in time_estimate.times(one.recipe, [task], shared, speed(one, shared, task.stage)):
            steps = _steps(facts.recipe, task.stage)
            yield found._replace(step=found.step + seconds, total=found.total + steps * seconds)


def speed(card: Card | None, measure: Callable[[ModelFacts, Work], Speeds] | None, machines: Machines) -> Speed | None:
    """Return how fast stages are on a card, or on this machine by one measurement; None where neither is asked."""
    if card is not None:
        return partial(card_speed.speeds, card, ranks=machines.ranks)
    if measure is None:
        return None
    measured: list[Speeds] = []

    def here(facts: ModelFacts, work: Work, stage: str) -> Speeds:
        if not measured:
            measured.append(measure(facts, work))
        return measured[0]

    return here


def _steps(recipe: Recipe, stage: str) -> int:
    """Return the steps of a stage that learns."""
    if stage == "sft" and recipe.sft is not None:
        return recipe.sft.train_steps
    return {
        "reward": recipe.reward_model_train_steps,
        "ppo": recipe.reinforcement_learning_train_steps,
        "dpo": recipe.dpo.train_steps,
        "rejection": recipe.rejection.rounds * recipe.rejection.train_steps,
    }.get(stage, 0)
