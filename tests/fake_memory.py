"""Models of real shapes without storage, and the bytes that tensors would take: torch's fake tensors.

Every operation of the stages' own functions runs on shapes alone; `LiveBytes` counts each storage from the operation
that makes it until nothing refers to it any more, which is what an allocator without gaps would hold.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from preferent.commands.inference.machine_speed import config_of
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape
from preferent.data.types import Rollout
from preferent.models import adapters, language_models, llama
from preferent.models.language_models import Policy, Scorer
from preferent.models.world import World
from preferent.rewards.normalization import Normalizer
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params, choose
from preferent.rollouts.local_sampler import LocalSampler
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.ppo import update

CPU = torch.device("cpu")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are alive: `now`, and `peak` since it was last set back."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.see(tensor.untyped_storage())
        return made

    def see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key)

    def gone(self, key: int) -> None:
        self.now -= self.storages.pop(key, 0)


def every_token(tokens: Tensor, rows: Tensor, columns: Tensor) -> llama._Places:
    """The places of sequences of one length; how many tokens count in others is not known of fake tensors."""
    counted = torch.arange(tokens.numel(), device=tokens.device)
    shape = tokens.shape[0], tokens.shape[1]
    return llama._Places(counted, rows * tokens.shape[1] + columns, shape, False)


@dataclass
class FakeNetworks:
    """What `ppo` holds of a shape, and the bytes when all is loaded and at the peaks of its phases, one after the
    other."""

    policy: Policy
    reference: Policy
    scorer: Scorer
    critic: Scorer
    live: LiveBytes = field(default_factory=LiveBytes)
    optimizers: list[Optimizer] = field(default_factory=list)
    loaded: int = 0
    peaks: dict[str, int] = field(default_factory=dict)

    def measured(self, name: str, phase: Callable[[], object]) -> None:
        """Run a phase; keep the peak of all that is there meanwhile."""
        self.live.peak = self.live.now
        kept = phase()
        self.peaks[name] = self.live.peak
        del kept

    def materialize(self) -> None:
        """Put fake tensors on the CPU in the place of parameters and buffers on the meta device."""
        for body in {
            id(each.body): each.body for each in (self.policy, self.reference, self.scorer, self.critic)
        }.values():
            for module in body.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=CPU)
                        module._parameters[name] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CPU)


@contextmanager
def dtype_of(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def bodies(shape: Shape, dtype: torch.dtype, *kinds: Any) -> list[PreTrainedModel]:
    """Frozen models without storage."""
    with torch.device("meta"), dtype_of(dtype):
        made = [kind.from_config(config_of(shape)) for kind in kinds]
    for body in made:
        body.requires_grad_(False).eval()
        if hasattr(body, "score"):
            body.score = torch.nn.Linear(shape.hidden_size, 1, bias=False, device="meta").requires_grad_(False)
    return made


def networks(facts: ModelFacts) -> FakeNetworks:
    """Policy, reference, reward model and critic as `ppo` loads them, on the meta device."""
    recipe, shape = facts.recipe, facts.shape
    rank, reward_rank = recipe.ppo.lora_dim or 0, recipe.reward.lora_dim or 0
    dtype = torch.bfloat16 if facts.bytes == 2 else torch.float32
    world = World(0, 1, CPU, dtype, 1)
    tokenizer: Any = SimpleNamespace(pad_id=0, end_ids={2}, vocab_size=shape.vocab_size)
    causal, scoring = AutoModelForCausalLM, AutoModelForSequenceClassification
    body, reward, other, second = bodies(shape, dtype, causal, scoring, causal, scoring)
    peft = adapters.make_trainable(body, rank, TaskType.CAUSAL_LM)
    masked = torch.zeros(1, dtype=torch.long, device=CPU)
    policy = Policy(Path("policy"), body, peft, "default" if rank else None, tokenizer, world, masked_ids=masked)
    if facts.one_backbone:
        adapters.add_head(body)
        head = LoraConfig(
            r=reward_rank, target_modules="all-linear", modules_to_save=[adapters.HEAD], task_type="SEQ_CLS"
        )
        adapters.add(policy.peft, "reward", head)
        scorer = Scorer(Path("reward"), body, policy.peft, "reward", tokenizer, world)
    else:
        adapter = "default" if reward_rank else None
        peft_reward = adapters.make_trainable(reward, reward_rank, TaskType.SEQ_CLS) if reward_rank else None
        scorer = Scorer(Path("reward"), reward, peft_reward, adapter, tokenizer, world)
    if rank:
        reference = policy.reference()
    else:
        body.requires_grad_(True)
        reference = Policy(Path("policy"), other, None, None, tokenizer, world, masked_ids=masked)
    if reward_rank:
        critic = scorer.critic()
    else:
        second.requires_grad_(True)
        critic = Scorer(Path("reward"), second, None, None, tokenizer, world)
    for each in (policy, critic):
        for name, parameter in each.body.named_parameters():
            if ".lora_" in name:  # peft leaves the precision of what is on the meta device
                parameter.data = parameter.data.to(dtype)
        language_models._checkpoint(each.body, recipe.gradient_checkpointing)
    return FakeNetworks(policy, reference, scorer, critic)


def ppo_peaks(facts: ModelFacts) -> FakeNetworks:
    """The peaks of the phases of `ppo` for prompts and answers of the longest lengths."""
    with torch.device("meta"):
        recipe, parts = facts.recipe, networks(facts)
    with FakeTensorMode(allow_non_fake_inputs=True), parts.live:
        parts.materialize()
        learning = (parts.policy, parts.critic)
        parts.optimizers = [Optimizer(network.trainable(), Schedule(1e-4), 1.0) for network in learning]
        rows = (recipe.ppo.micro_batch_tokens or 0) // facts.length
        answer = recipe.target_sequence_length
        rollouts = [_rollout(facts.prompt, answer) for _ in range(rows)]
        micros = measurement.micro_batches(rollouts, recipe.ppo.micro_batch_tokens or 0, 0, CPU)
        for optimizer in parts.optimizers:
            _step(optimizer)
        parts.loaded = parts.live.now
        parts.measured(
            "measure", lambda: measurement.measure(parts.policy, parts.reference, micros, (rows, answer), 1.0)
        )
        parts.measured("learn", lambda: _learn(recipe, parts, micros, (rows, answer)))
        for optimizer in parts.optimizers:
            optimizer.discard()
        parts.measured("sample", lambda: _decode(facts, parts.policy))
        return parts


def _rollout(prompt: int, answer: int) -> Rollout:
    return Rollout(0, 0, 0, np.ones(prompt, np.int32), np.ones(answer, np.int32), np.zeros(answer, np.float32), False)


def _step(optimizer: Optimizer) -> None:
    """A step of Adam, after which there are moments; its norm, a number, is not known of fake tensors."""
    for master in optimizer.masters.values():
        master.grad = torch.zeros_like(master)
    optimizer._adam.step()
    optimizer.discard()


def _learn(recipe: Any, parts: FakeNetworks, micros: Any, shape: tuple[int, int]) -> None:
    arrays = SimpleNamespace(log_probs=torch.zeros(shape), k1=torch.zeros(shape))
    batch: Any = SimpleNamespace(
        measured=arrays,
        weights=torch.ones(shape),
        advantages=torch.zeros(shape),
        values=torch.zeros(shape),
        returns=torch.zeros(shape),
        kl_loss_coeff=0.0,
    )
    given: Any = SimpleNamespace(policy=parts.policy, critic=parts.critic, normalizer=Normalizer())
    for _ in range(2):  # the second micro-batch comes on top of the gradients of the first
        update.policy_gradients(recipe, batch, micros[0], given, 1)
        update.critic_gradients(recipe, batch, micros[0], given, 1)


@torch.no_grad()
def _decode(facts: ModelFacts, policy: Policy) -> None:
    """What `LocalSampler.sample` does until the last token of a batch: all prompts are read, and one token more."""
    recipe = facts.recipe
    rows, prefill = recipe.sampler.rows or 0, recipe.sampler.prefill_tokens or 0
    params = Params(recipe.target_sequence_length)
    prompts = [np.ones(facts.prompt, np.int32)] * rows
    decoder = LocalSampler(policy, 0, rows, prefill).decoder(prompts, params)
    numbers = torch.zeros(rows, dtype=torch.long)
    chosen, _ = choose(decoder.logits(decoder.admit(prompts), 1.0), numbers, params)
    for _ in range(2):
        decoder.lengths[:] = facts.length - 1
        chosen, _ = choose(decoder.logits(decoder.step(chosen), 1.0), numbers, params)
