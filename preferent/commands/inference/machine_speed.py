"""How fast this machine computes what the stages of a run do: their own functions, timed on models of the recipe's
shapes whose weights mean nothing."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from preferent.data.types import Rollout
from preferent.models import adapters, language_models
from preferent.models.language_models import Policy, Scorer
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler
from preferent.training import sequences
from preferent.training.optimizer import Optimizer, Schedule

LARGE = 1 << 26
"""Parameters above which a model is timed by its layers: two models of few of them are."""
FEW = 3
"""Layers of the larger of these two; the smaller has one."""
SECONDS = 0.4
"""About how long a timed call may take: it has as many rows as that allows."""
MOST = 1.5
"""Seconds of one row above which its sequence is cut."""
TOKENS = 8
"""Tokens that are decoded after the first one."""
START = time.process_time()
"""Seconds until the libraries are there, as in any process of a stage."""


@dataclass(frozen=True)
class Job:
    """What is timed: `rows` sequences of a prompt and an answer, on these models."""

    policy: Policy
    scorer: Scorer
    prompt: int
    answer: int
    rows: int

    @property
    def rollouts(self) -> list[Rollout]:
        ids = np.ones(self.prompt, np.int32), np.ones(self.answer, np.int32), np.zeros(self.answer, np.float32)
        return [Rollout(i, 0, 0, *ids, False) for i in range(self.rows)]


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
    first, several = (list(_timed(facts, work, world, (count, count))) for count in (1, FEW))
    scored = "learn_critic", "learn_reward", "value", "score", "step_scorer"
    further = [counts[name in scored] - 1 for name in Speeds._fields[:-1]]
    each = zip(first, several, further, strict=True)
    return Speeds._make([*(one + max(0.0, more - one) * count / (FEW - 1) for one, more, count in each), START])


def _timed(facts: ModelFacts, work: Work, world: World, layers: tuple[int, int]) -> Iterator[float]:
    """Yield the seconds of all speeds but the last, in their order, of models with so many layers."""
    recipe = facts.recipe
    policy = _policy(replace(facts.shape, layers=layers[0]), world, facts)
    scorer = _scorer(replace(facts.reward_shape, layers=layers[1]), world, facts)
    networks = policy, scorer
    whole = work.prompt + work.answer
    cut = max(1.0, _seconds(_learn_policy(Job(policy, scorer, 24, 8, 1)), world, networks) / 32 * whole / MOST)
    job = Job(policy, scorer, math.ceil(work.prompt / cut), math.ceil(work.answer / cut), 1)
    once = _seconds(_learn_policy(job), world, networks)
    most = max(1, decided(recipe.ppo.micro_batch_tokens) // whole)
    job = replace(job, rows=max(1, min(most, recipe.ppo.batch_size, int(SECONDS / once))))
    for run in (_learn_policy, _learn_critic, _learn_reward, _measure, _value, _score):
        yield _seconds(run(job), world, networks) / job.rows * cut
    answers = replace(job, rows=min(recipe.ppo.batch_size, decided(recipe.sampler.rows), max(16, 4 * job.rows)))
    read, decoded = (_seconds(_decode(recipe, answers, tokens), world, networks) for tokens in (1, 1 + TOKENS))
    yield read / answers.rows * cut
    yield max(0.0, decoded - read) / TOKENS / answers.rows
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
        if (attempt and spent > 3 * SECONDS) or spent > 3 * MOST:
            break
    return least


def _learn_policy(job: Job) -> Callable[[], object]:
    rows = [np.ones(job.prompt + job.answer, np.int32)] * job.rows
    chosen = sequences.Sequences(rows, [job.prompt] * job.rows)
    return lambda: sequences.loss_sum(job.policy, chosen).backward()


def _learn_critic(job: Job) -> Callable[[], object]:
    micro = _micro(job)
    return lambda: job.scorer.scores(micro.states(job.scorer)).sum().backward()


def _learn_reward(job: Job) -> Callable[[], object]:
    rows = [np.ones(job.prompt + job.answer, np.int32)] * job.rows
    return lambda: measurement.scores_at_end(job.scorer, rows).sum().backward()


def _measure(job: Job) -> Callable[[], object]:
    micros, shape, reference = [_micro(job)], (job.rows, job.answer), replace(job.policy, adapter=None)
    return lambda: measurement.measure(job.policy, reference, micros, shape, 1.0)


def _value(job: Job) -> Callable[[], object]:
    micros, shape = [_micro(job)], (job.rows, job.answer)
    return lambda: measurement.values_of(job.scorer, micros, shape)


def _score(job: Job) -> Callable[[], object]:
    rows = [np.ones(job.prompt + job.answer, np.int32)] * job.rows
    return lambda: measurement.last_scores(job.scorer, rows, 1 << 62)


def _decode(recipe: Any, job: Job, tokens: int) -> Callable[[], object]:
    engine = LocalSampler(job.policy, 0, decided(recipe.sampler.rows), decided(recipe.sampler.prefill_tokens))
    prompts, params = [np.ones(job.prompt, np.int32)] * job.rows, Params(tokens, stop_at_eos=False)
    return lambda: engine.sample(prompts, range(job.rows), "calibration", 0, params)


def _step(network: Policy | Scorer) -> Callable[[], object]:
    optimizer = Optimizer(network.trainable(), Schedule(1e-5), 1.0)

    def step() -> None:
        for master in optimizer.masters.values():
            master.grad = torch.zeros_like(master)
        optimizer.step(0)

    return step


def _micro(job: Job) -> measurement.MicroBatch:
    return measurement.micro_batch(job.rollouts, np.arange(job.rows), 0, job.policy.world.device)


def _policy(shape: Shape, world: World, facts: ModelFacts) -> Policy:
    body = _body(AutoModelForCausalLM, shape, world)
    peft = language_models.make_trainable(body, tuned_rank(facts), TaskType.CAUSAL_LM)
    masked = torch.zeros(1, dtype=torch.long, device=world.device)
    adapter = language_models.REWARD if peft else None
    return Policy(Path("policy"), body, peft, adapter, _tokenizer(shape), world, masked_ids=masked)


def _scorer(shape: Shape, world: World, facts: ModelFacts) -> Scorer:
    body = _body(AutoModelForSequenceClassification, shape, world)
    body.get_submodule(adapters.HEAD).float()
    rank = decided(facts.recipe.reward.lora_dim)
    peft = language_models.make_trainable(body, rank, TaskType.SEQ_CLS)
    return Scorer(Path("reward"), body, peft, language_models.REWARD if peft else None, _tokenizer(shape), world)


def _tokenizer(shape: Shape) -> Any:
    return SimpleNamespace(pad_id=0, end_ids={0}, vocab_size=shape.vocab_size)


def _body(kind: Any, shape: Shape, world: World) -> Any:
    """Return a model of a shape, whose weights are all alike."""
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
    with torch.device("meta"):
        body = kind.from_config(config, dtype=world.dtype, attn_implementation=world.attention)
    body.to_empty(device=world.device)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.fill_(0.01)
    body.tie_weights()
    body.base_model.rotary_emb = type(body.base_model.rotary_emb)(config).to(world.device)
    return body.eval()
