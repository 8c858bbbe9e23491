"""How fast this machine computes what the stages of a run do: their own functions, timed on models of the recipe's
shapes whose weights mean nothing."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from preferent.commands.time_estimate import Speeds, Work
from preferent.config import defaults
from preferent.config.defaults import decided
from preferent.config.memory_estimate import ModelFacts, tuned_rank
from preferent.config.model_shape import Shape
from preferent.config.recipe import Recipe
from preferent.data.types import Rollout
from preferent.models import adapters, batching, language_models
from preferent.models.language_models import Policy, Scorer
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler
from preferent.rollouts.measurement import MicroBatch
from preferent.training import sequences
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.sequences import Sequences

LARGE = 1 << 26
"""Parameters above which a model is timed by its layers: two models are, of one layer and of as many as have so many
parameters."""
FEWEST = 3
"""Layers of the larger of these two at least."""
SECONDS = 0.7
"""About how long a timed call may take: rows are added while it takes less than half of that."""
MOST = 1.5
"""Seconds of one row above which its sequence is cut."""
TOKENS = 8
"""Tokens that are decoded after the first one."""
START = time.process_time()
"""Seconds until the libraries are there, as in any process of a stage."""


@dataclass(frozen=True)
class Job:
    """What is timed on these models: sequences of a prompt and an answer of these lengths, at most `limit` tokens at
    once."""

    policy: Policy
    scorer: Scorer
    lengths: Sequence[tuple[int, int]]
    limit: int

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """The sequences, of tokens that mean nothing."""
        draw = np.random.default_rng(0)
        size = self.policy.vocab_size
        return [
            Rollout(i, 0, 0, _ids(draw, size, prompt), _ids(draw, size, answer), np.zeros(answer, np.float32), False)
            for i, (prompt, answer) in enumerate(self.lengths)
        ]

    @cached_property
    def whole(self) -> list[np.ndarray]:
        """Prompts with their answers."""
        return [np.concatenate([one.prompt_ids, one.ids]) for one in self.rollouts]

    @cached_property
    def micros(self) -> list[MicroBatch]:
        device = self.policy.world.device
        return measurement.micro_batches(self.rollouts, self.limit, self.policy.tokenizer.pad_id, device)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), max(answer for _, answer in self.lengths)

    def first(self, rows: int) -> "Job":
        """Return the job of so many sequences, from the beginning again where there are fewer."""
        return replace(self, lengths=[self.lengths[i % len(self.lengths)] for i in range(rows)])

    def cut(self, factor: float) -> "Job":
        """Return the job of sequences that are shorter by a factor."""
        return replace(self, lengths=[(math.ceil(a / factor), math.ceil(b / factor)) for a, b in self.lengths])


def _ids(draw: np.random.Generator, size: int, count: int) -> np.ndarray:
    return draw.integers(1, size, count, dtype=np.int32)


def measure(facts: ModelFacts, work: Work) -> Speeds:
    """Return the speeds of this machine for a recipe with its defaults resolved, within about half a minute.

    A large model's time is that of its first layer, embedding and head, and of each further layer; a long sequence's is
    taken to grow with its length.
    """
    facts = replace(facts, recipe=defaults.filled(facts.recipe, defaults.AT_ONCE)[0])
    world = World.of(facts.recipe)
    counts = facts.shape.layers, facts.reward_shape.layers
    if max(facts.shape.policy, facts.reward_shape.policy) <= LARGE:
        return Speeds._make([*_timed(facts, work, world, counts), START])
    of_a_layer = facts.shape.linear // facts.shape.layers
    few = max(FEWEST, min(*counts, LARGE // of_a_layer))
    first, several = (list(_timed(facts, work, world, (count, count))) for count in (1, few))
    scored = "learn_critic", "learn_reward", "value", "score", "step_scorer"
    further = [counts[name in scored] - 1 for name in Speeds._fields[:-1]]
    each = zip(first, several, further, strict=True)
    return Speeds._make([*(one + max(0.0, more - one) * count / (few - 1) for one, more, count in each), START])


def _timed(facts: ModelFacts, work: Work, world: World, layers: tuple[int, int]) -> Iterator[float]:
    """Yield the seconds of all speeds but the last, in their order, of models with so many layers."""
    recipe = facts.recipe
    policy = _policy(replace(facts.shape, layers=layers[0]), world, facts)
    scorer = _scorer(replace(facts.reward_shape, layers=layers[1]), world, facts)
    networks, limit = (policy, scorer), decided(recipe.ppo.micro_batch_tokens)
    short = _seconds(_learn_policy(Job(policy, scorer, [(24, 8)], limit)), world, networks)
    factor = max(1.0, short / 32 * (work.prompt + work.answer) / MOST)
    job = Job(policy, scorer, work.lengths, limit).cut(factor)
    rows = 1
    while rows < recipe.ppo.batch_size and _seconds(_learn_policy(job.first(rows)), world, networks) < SECONDS / 2:
        rows = min(4 * rows, recipe.ppo.batch_size)
    job = job.first(rows)
    for run in (_learn_policy, _learn_critic, _learn_reward, _measure, _value, _score):
        yield _seconds(run(job), world, networks) / rows * factor
    rows = min(recipe.ppo.batch_size, decided(recipe.sampler.rows), max(16, 4 * rows))
    answers = job.first(rows)
    read, decoded = (_seconds(_decode(recipe, answers, tokens), world, networks) for tokens in (1, 1 + TOKENS))
    yield read / rows * factor
    yield max(0.0, decoded - read) / TOKENS / rows
    yield from (_seconds(_step(network), world, ()) for network in networks)


def _seconds(run: Callable[[], object], world: World, networks: tuple[Policy | Scorer, ...]) -> float:
    """Return the least seconds of three calls, after one that is not counted; of fewer where they are long."""
    least, spent = math.inf, 0.0
    for attempt in range(4):
        began = time.perf_counter()
        run()
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - began
        for network in networks:
            network.body.zero_grad(set_to_none=True)
        least, spent = taken if attempt < 2 else min(least, taken), spent + taken
        if (attempt and spent > SECONDS) or spent > 3 * MOST:
            break
    return least


def _learn_policy(job: Job) -> Callable[[], object]:
    chosen = Sequences(job.whole, [prompt for prompt, _ in job.lengths])
    return lambda: sequences.accumulate_gradients(job.policy, chosen, job.limit)


def _learn_critic(job: Job) -> Callable[[], object]:
    def learn() -> None:
        for micro in job.micros:
            job.scorer.scores(micro.states(job.scorer)).sum().backward()

    return learn


def _learn_reward(job: Job) -> Callable[[], object]:
    def learn() -> None:
        for rows in batching.plan([len(ids) for ids in job.whole], job.limit):
            measurement.scores_at_end(job.scorer, [job.whole[i] for i in rows]).sum().backward()

    return learn


def _measure(job: Job) -> Callable[[], object]:
    reference = replace(job.policy, adapter=None)
    return lambda: measurement.measure(job.policy, reference, job.micros, job.shape, 1.0)


def _value(job: Job) -> Callable[[], object]:
    return lambda: measurement.values_of(job.scorer, job.micros, job.shape)


def _score(job: Job) -> Callable[[], object]:
    return lambda: measurement.last_scores(job.scorer, job.whole, job.limit)


def _decode(recipe: Recipe, job: Job, tokens: int) -> Callable[[], object]:
    engine = LocalSampler(job.policy, 0, decided(recipe.sampler.rows), decided(recipe.sampler.prefill_tokens))
    prompts, params = [one.prompt_ids for one in job.rollouts], Params(tokens, stop_at_eos=False)
    return lambda: engine.sample(prompts, range(len(prompts)), "calibration", 0, params)


def _step(network: Policy | Scorer) -> Callable[[], object]:
    optimizer = Optimizer(network.trainable(), Schedule(1e-5), 1.0)

    def step() -> None:
        for master in optimizer.masters.values():
            master.grad = torch.zeros_like(master)
        optimizer.step(0)

    return step


def _policy(shape: Shape, world: World, facts: ModelFacts) -> Policy:
    body = _body(AutoModelForCausalLM, shape, world)
    peft = adapters.make_trainable(body, tuned_rank(facts), TaskType.CAUSAL_LM)
    masked = torch.zeros(1, dtype=torch.long, device=world.device)
    adapter = language_models.REWARD if peft else None
    return Policy(Path("policy"), body, peft, adapter, _tokenizer(shape), world, masked_ids=masked)


def _scorer(shape: Shape, world: World, facts: ModelFacts) -> Scorer:
    body = _body(AutoModelForSequenceClassification, shape, world)
    body.get_submodule(adapters.HEAD).float()
    rank = decided(facts.recipe.reward.lora_dim)
    peft = adapters.make_trainable(body, rank, TaskType.SEQ_CLS)
    return Scorer(Path("reward"), body, peft, language_models.REWARD if peft else None, _tokenizer(shape), world)


def _tokenizer(shape: Shape) -> Any:
    return SimpleNamespace(pad_id=0, end_ids={0}, vocab_size=shape.vocab_size)


def _body(kind: Any, shape: Shape, world: World) -> Any:
    """Return a model of a shape, whose weights are all alike."""
    config = config_of(shape)
    with torch.device("meta"):
        body = kind.from_config(config, dtype=world.dtype, attn_implementation=world.attention)
    body.to_empty(device=world.device)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.fill_(0.01)
    body.tie_weights()
    body.base_model.rotary_emb = type(body.base_model.rotary_emb)(config).to(world.device)
    return body.eval()


def config_of(shape: Shape) -> LlamaConfig:
    """Return the configuration of a model of a shape, with one label if it scores."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.intermediate_size,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
    )
    config.num_labels = 1
    return config
