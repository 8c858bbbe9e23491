"""What several ranks send each other in a step, by rank, in bytes.

On a ring of R ranks, each of which sends as much as it receives, it takes (R - 1)/R S to gather S bytes or to add them
up in shards, and twice that to add them up everywhere (Patarasuk & Yuan 2009). Symbols as in
`preferent.config.memory_estimate`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from preferent.commands.cards.rank_memory import at_once
from preferent.commands.time_estimate import Work
from preferent.config.algorithms import algorithm
from preferent.config.defaults import decided, reference
from preferent.config.memory_estimate import MASTER, ModelFacts
from preferent.config.recipe import pick
from preferent.runs.rank_shares import Learner, is_cut, learners, own_rewards, share

ID = 4
"""Bytes of a token's id, and of a number in fp32."""
MEASURED = 5
"""Numbers that ranks measure of each token of an answer: log-probability, k1, KL, entropy, value."""


class Traffic(NamedTuple):
    """Bytes that a rank sends in a step: gradients, weights that are sharded, and rollouts."""

    gradients: float = 0.0
    weights: float = 0.0
    rollouts: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)


class Passes(NamedTuple):
    """What a rank does in a step: micro-batches that learn, those that are measured, and optimizer steps."""

    learnt: int
    measured: int
    updates: int


def gathered(size: float, ranks: int) -> float:
    """Return what a rank sends until every rank has the `size` bytes of which each has a share, or a share of their
    sum."""
    return (ranks - 1) / ranks * size


def added(size: float, ranks: int) -> float:
    """Return what a rank sends until every rank has the sum of `size` bytes of each."""
    return 2 * gathered(size, ranks)


def traffic(facts: ModelFacts, stage: str, work: Work, ranks: int) -> Traffic:
    """Return what a rank sends in a step of a stage that learns.

    Replicated: gradients in fp32, 4 t, once for each optimizer step; those of adapters always. Sharded: b n of each
    network for the forward pass of each micro-batch and again for its backward pass, its gradients 4 t after that where
    all of it learns, b n of each network for measuring a micro-batch, and b n of the policy to sample.
    """
    facts = at_once(facts)
    learning, done = learners(facts, stage), passes(facts, stage, work, ranks)
    cut = [learner for learner in learning if is_cut(facts, learner)]
    sharded = MASTER * sum(learner.trained for learner in cut if learner.whole)
    replicated = MASTER * sum(learner.trained for learner in learning) - sharded
    gradients = gathered(done.learnt * sharded, ranks) + added(done.updates * replicated, ranks)
    rollouts = _rollouts(facts, work, ranks) if stage == "ppo" else 0.0
    weights = 2 * done.learnt * sum(_size(facts, learner) for learner in cut)
    weights += done.measured * sum(_measured(facts, stage, cut))
    weights += sum(_size(facts, learner) for learner in cut if learner.samples)
    return Traffic(gradients, gathered(weights, ranks), rollouts)


def passes(facts: ModelFacts, stage: str, work: Work, ranks: int) -> Passes:
    """Return the passes of a rank in a step; every rank has as many, the last with padding."""
    recipe = facts.recipe
    sequences = max(1, decided(pick(recipe, key := f"{stage}.micro_batch_tokens")[key]) // (work.prompt + work.answer))
    if stage == "ppo":
        rows = max(1, recipe.ppo.batch_size // recipe.ppo.minibatches)
        micros = recipe.ppo.minibatches * share(share(rows, ranks), sequences)
        epochs = algorithm(recipe.ppo).epochs
        return Passes(epochs * micros, micros, epochs * recipe.ppo.minibatches)
    rows = pick(recipe, key := f"{stage}.batch_size")[key] * (2 if stage in ("reward", "dpo") else 1)
    return Passes(share(share(rows, ranks), sequences), 0, 1)


def _size(facts: ModelFacts, learner: Learner) -> int:
    return facts.bytes * learner.weights


def _measured(facts: ModelFacts, stage: str, cut: Sequence[Learner]) -> Iterator[int]:
    """Yield the bytes of each network in shards that measures the rollouts of a step: policy, reference, critic, and
    what scores."""
    if stage != "ppo" or not cut:
        return
    yield from (_size(facts, learner) for learner in cut)
    if reference(facts.recipe, stage) != "none" and cut[0].part == "policy":
        yield facts.bytes * facts.shape.policy
    if facts.recipe.shard == "full" or not decided(facts.recipe.reward.lora_dim):
        yield own_rewards(facts) * facts.bytes * facts.reward_shape.scorer
    yield from (facts.bytes * other.scorer for other in facts.others)


def _rollouts(facts: ModelFacts, work: Work, ranks: int) -> float:
    """Return what a rank sends until all have a step's rollouts: ids of prompts and answers, log-probabilities of the
    sampler, and what each measured of its share, which is added up with zeros elsewhere."""
    rows = facts.recipe.ppo.batch_size
    told = rows * (ID * (work.prompt + work.answer) + ID * work.answer)
    return gathered(told, ranks) + added(rows * work.answer * ID * MEASURED, ranks)
