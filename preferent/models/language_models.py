"""Policy, reference, reward model and critic: Hugging Face models in and out, LoRA by PEFT.

A `Policy` is a causal language model, a `Scorer` a sequence classifier with one label. Both return hidden states, and
apply their head only on request. Dropout is off everywhere. With LoRA one frozen backbone serves all networks that
start from one model: policy, reference, reward models and critic.
"""

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import PeftModel, TaskType
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from preferent import randomness
from preferent.config import model_folder, model_reference
from preferent.config.model_reference import adapter_base
from preferent.config.recipe import Recipe
from preferent.data.tokenizer import Tokenizer
from preferent.errors import PlatformError, UsageError
from preferent.models import adapters, llama, pretrained, sharding, vocabulary
from preferent.models.world import World, to_device

CRITIC = "critic"
REWARD = "default"

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft calls it


@dataclass(frozen=True)
class Network:
    """A transformer with its tokenizer: `body` is the Hugging Face model, `peft` its LoRA wrapper if there is one.

    `adapter` names the LoRA adapter that is active in `hidden` (None: the bare backbone).
    """

    source: Path
    body: PreTrainedModel
    peft: PeftModel | None
    adapter: str | None
    tokenizer: Tokenizer
    world: World

    def activate(self) -> None:
        """Make this network's adapter the one that its backbone computes with."""
        if self.peft is not None:
            adapters.activate(self.peft, self.adapter)

    @cached_property
    def _checkpointed(self) -> list[Any]:
        """Return the modules whose activations are recomputed in the backward pass."""
        return [module for module in self.body.modules() if getattr(module, "gradient_checkpointing", False)]

    @contextlib.contextmanager
    def _without_checkpoints(self) -> Iterator[None]:
        """Turn gradient checkpointing off, because checkpointed layers get no KV cache and would see no context."""
        layers = self._checkpointed
        for layer in layers:
            layer.gradient_checkpointing = False
        try:
            yield
        finally:
            for layer in layers:
                layer.gradient_checkpointing = True

    def hidden(
        self,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return hidden states [B, T, D] of token ids [B, T] after the last norm.

        Rows padded on the right need no mask: no token attends to later ones. Activations are checkpointed only if a
        backward pass can follow.
        """
        learns = torch.is_grad_enabled() and cache is None
        self.activate()
        with contextlib.nullcontext() if learns else self._without_checkpoints():
            hidden: Tensor = self.body.base_model(
                input_ids=ids,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
        return hidden

    def states(self, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the hidden states [N, D] at `rows` and `columns` [N] of token ids [B, T], padded on the right.

        A decoder of Llama's shape is computed by `models.llama`, which leaves out what no chosen state depends on.
        """
        if not llama.applies(self.body.base_model):
            return self.hidden(ids)[rows, columns]
        checkpointed = torch.is_grad_enabled() and bool(self._checkpointed)
        self.activate()
        return llama.states(self.body.base_model, ids, rows, columns, checkpointed)

    def trainable(self) -> dict[str, Parameter]:
        """Return the trainable parameters by name; of a backbone that networks share, those of this one's adapter."""
        if self.peft is None:
            own = dict(self.body.named_parameters())
        else:
            own = {} if self.adapter is None else adapters.parameters(self.body, self.adapter)
        return {name: parameter for name, parameter in own.items() if parameter.requires_grad}


@dataclass(frozen=True)
class Policy(Network):
    """A causal language model. The pad id and ids without text are never sampled: their logits are -inf."""

    masked_ids: Tensor = dataclasses.field(kw_only=True)

    @property
    def vocab_size(self) -> int:
        return int(self.body.config.get_text_config().vocab_size)

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Return logits [n, V] of hidden states [n, D], divided by the temperature (then fp32), -inf at masked ids."""
        return self.tempered(raw_logits(self.body, hidden), temperature)

    def tempered(self, logits: Tensor, temperature: float) -> Tensor:
        """Divide raw logits [n, V] by the temperature (then fp32) and set masked ids to -inf.

        Logits are masked in place under no_grad: the gradient of a logit of -inf is zero.
        """
        if temperature != 1:
            logits = logits.float() / temperature
        with torch.no_grad():
            logits.index_fill_(-1, self.masked_ids, -math.inf)
        return logits

    def head(self, temperature: float) -> Callable[[Tensor], Tensor]:
        """Return `logits` at a temperature as a function of hidden states."""
        return lambda hidden: self.logits(hidden, temperature)

    def log_probs(self, tokens: Tensor, rows: Tensor, columns: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """Return log-probabilities [N] in nats of `ids` [N], each read at a row and a column of `tokens` [B, T]."""

        def compute() -> Tensor:
            states = self.states(tokens, rows, columns)
            return vocabulary.chunked_log_probs(states, ids, self.head(temperature), self.vocab_size)

        return sharding.passed(self.body, compute)

    def reference(self) -> "Policy":
        """Return the policy before tuning: the same backbone with the adapter off, or a frozen second copy."""
        if self.peft is not None:
            return dataclasses.replace(self, adapter=None)
        reference = load_policy(self.source, self.world, lora_dim=None)
        sharding.shard(reference.body, self.world, learns=False)
        return reference


@dataclass(frozen=True)
class Scorer(Network):
    """A sequence classifier with one label and an fp32 head."""

    def scores(self, hidden: Tensor) -> Tensor:
        """Return raw scores [...] of hidden states [..., D]."""
        self.activate()
        scores: Tensor = self.body.get_submodule(adapters.HEAD)(hidden.float()).squeeze(-1)
        return scores

    def critic(self) -> "Scorer":
        """Return a critic that starts as a copy of this reward model: a second adapter, or a second full copy."""
        if self.peft is None:
            if self.world.quantize:
                raise UsageError(
                    f"quantize: {self.world.quantize} is for frozen weights, but a critic that starts from "
                    f"{self.source} would train every weight, because that reward model is no LoRA adapter; drop "
                    "quantize, or set a ppo.algorithm without a critic"
                )
            if not sharding.is_sharded(self.body):
                return dataclasses.replace(self, body=copy.deepcopy(self.body).requires_grad_(True))
            critic = load_scorer(self.source, self.world, trainable=True, checkpointing=bool(self._checkpointed))
            sharding.copy(critic.body, self.body)
            return critic
        assert self.adapter is not None, "a reward model with LoRA has an adapter"
        adapters.add(self.peft, CRITIC, self.peft.peft_config[self.adapter], trainable=True)
        adapters.start_equal(self.peft, CRITIC, self.adapter)
        return dataclasses.replace(self, adapter=CRITIC)


def raw_logits(body: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return logits as the model's own forward pass computes them: output head, then its scaling or soft cap."""
    config = body.config.get_text_config()
    logits: Tensor = body.get_output_embeddings()(hidden)
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def load_policy(source: Path, world: World, lora_dim: int | None = None, checkpointing: bool = False) -> Policy:
    """Load a causal language model from a folder (a full model or an adapter).

    With `lora_dim` None it is frozen, with 0 every weight is trainable, above 0 a new LoRA adapter of that rank on all
    linear layers is.
    """
    config = read_config(source, world.trust_remote_code)
    model_reference.require_writer(source, config.architectures, config.is_encoder_decoder)
    base, body, tokenizer = _opened(AutoModelForCausalLM, source, config, world)
    _probe(body, tokenizer, source)
    peft = pretrained.open_adapter(body, source, base)
    body.requires_grad_(False)
    if lora_dim is not None:
        model_reference.require_full(source, "training")
        peft = adapters.make_trainable(body, lora_dim, TaskType.CAUSAL_LM)
    _checkpoint(body, checkpointing)
    if lora_dim is not None:
        sharding.shard(body, world, learns=True, peft=peft)
    size = body.config.get_text_config().vocab_size
    masked = to_device(np.array(sorted({tokenizer.pad_id, *range(tokenizer.vocab_size, size)})), world.device)
    return Policy(source, body, peft, REWARD if peft else None, tokenizer, world, masked_ids=masked)


def load_scorer(
    source: Path,
    world: World,
    lora_dim: int | None = None,
    seed: int | None = None,
    trainable: bool = False,
    checkpointing: bool = False,
    beside: Sequence[Network] = (),
    on: Policy | None = None,
) -> Scorer:
    """Load a reward model from a folder; only its adapter and head if one of the networks `beside` has its base.

    With a `seed` the folder holds a causal language model. It gets a new head, drawn from N(0, 1 / sqrt(D + 1))
    (Stiennon et al. 2020 as in their code); `lora_dim` is the rank of its adapter (0: every weight is trainable). With
    LoRA it takes over the frozen backbone of the same model `on` which answers were sampled, if there is one.
    Without a `seed` the folder holds a reward model, which is frozen unless `trainable`.
    """
    config = read_config(source, world.trust_remote_code)
    if seed is None:
        labels = 1 if (source / "adapter_config.json").exists() else config.num_labels
        model_reference.require_scorer(source, config.architectures, labels)
        for network in beside:
            if network.peft and network.adapter and network.world.dtype == world.dtype and _joins(network, source):
                return _joined(network, source, world)
    else:
        model_reference.require_full(source, "training")
    config.num_labels = 1
    if on is not None and seed is not None and lora_dim and pretrained.classifies_alike(on.body, source, config, world):
        _checkpoint(on.body, checkpointing)
        return _on_policy(on, lora_dim, seed)
    base, body, tokenizer = _opened(AutoModelForSequenceClassification, source, config, world)
    if "score" not in dict(body.named_children()):
        raise UsageError(
            f"{source}: is a {type(body).__name__}, which has no `score` head; a reward model must be a decoder "
            "with one (for example LlamaForSequenceClassification)"
        )
    body.config.get_text_config().pad_token_id = tokenizer.pad_id
    body.score.float()
    if seed is not None:
        _draw_head(body.get_parameter("score.weight"), seed)
    peft = pretrained.open_adapter(body, source, base)
    body.requires_grad_(trainable)
    if seed is not None:
        peft = adapters.make_trainable(body, lora_dim or 0, TaskType.SEQ_CLS)
    _checkpoint(body, checkpointing)
    sharding.shard(body, world, learns=trainable or seed is not None, peft=peft)
    return Scorer(source, body, peft, REWARD if peft else None, tokenizer, world)


def _joins(network: Network, source: Path) -> bool:
    """Return whether the reward model in a folder is an adapter on the backbone of a network."""
    assert network.peft is not None and network.adapter is not None
    return adapters.joins(network.peft, network.adapter, model_reference.examine(network.source), source)


def _joined(network: Network, source: Path, world: World) -> Scorer:
    """Put a reward model's adapter and head on the backbone of a network."""
    assert network.peft is not None
    tokenizer = _tokenizer(source, model_reference.adapter_base(source), world)
    pretrained.require_rows(network.body, source, tokenizer.vocab_size)
    adapter = f"{REWARD}-{len(network.peft.peft_config)}"
    adapters.add_head(network.body)
    pretrained.join_adapter(network.peft, adapter, source)
    return Scorer(source, network.body, network.peft, adapter, tokenizer, world)


def _on_policy(policy: Policy, lora_dim: int, seed: int) -> Scorer:
    adapters.add_head(policy.body)
    _draw_head(policy.body.get_parameter("score.weight"), seed)
    peft = adapters.make_trainable(policy.body, lora_dim, TaskType.SEQ_CLS)
    sharding.shard(policy.body, policy.world, learns=True, peft=peft)
    return Scorer(policy.source, policy.body, peft, REWARD, policy.tokenizer, policy.world)


def critic_from_policy(policy: Policy, checkpointing: bool = False) -> Scorer:
    """Return a critic without a reward model: the policy's start with a head of zeros (Ziegler et al. 2019)."""
    if policy.peft is None or policy.adapter is None:
        critic = load_scorer(policy.source, policy.world, lora_dim=0, seed=0, checkpointing=checkpointing)
        torch.nn.init.zeros_(critic.body.get_parameter("score.weight"))
        return critic
    adapters.add_head(policy.body)
    config: Any = policy.peft.peft_config[policy.adapter]
    config = dataclasses.replace(config, modules_to_save=[adapters.HEAD])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapters.add(policy.peft, CRITIC, config, trainable=True)
    return Scorer(policy.source, policy.body, policy.peft, CRITIC, policy.tokenizer, policy.world)


def check_length(source: Path, recipe: Recipe) -> None:
    """Raise `UsageError` if a prompt and its answer can be longer than the model's context."""
    longest = getattr(read_config(source, recipe.trust_remote_code).get_text_config(), "max_position_embeddings", None)
    model_reference.require_length(source, longest, recipe)


def read_config(source: Path, trust_remote_code: bool = False) -> Any:
    """Return the configuration of a model folder; for an adapter, that of its base with the adapter's task."""
    base = model_reference.examine(source)
    config = pretrained.open_config(base, trust_remote_code)
    if base != source and model_folder.check_adapter(source).get("task_type") == "SEQ_CLS":
        config.architectures = [(config.architectures or ["For"])[0].split("For")[0] + "ForSequenceClassification"]
    for name in vars(config.get_text_config()):
        if "dropout" in name or name.endswith("_pdrop"):
            setattr(config.get_text_config(), name, 0.0)
    return config


def has_base(policy: Policy, source: Path) -> bool:
    """Return whether a policy loaded from an adapter equals the model in `source`, bit for bit, with the adapter off.

    It does if its base has the same fingerprint and tokenizer, and the adapter changes neither biases nor the weights
    of the base.
    """
    return (
        policy.peft is not None
        and policy.adapter is not None
        and adapters.rests_on(policy.peft, policy.adapter, adapter_base(policy.source), source)
        and Tokenizer.load(source, policy.world.chat).fingerprint == policy.tokenizer.fingerprint
    )


def _opened(kind: Any, source: Path, config: Any, world: World) -> tuple[Path, PreTrainedModel, Tokenizer]:
    """Return the folder of the full model, the model itself, and the tokenizer, which has no ids beyond the model's."""
    base = pretrained.base_of(source)
    tokenizer = _tokenizer(source, base, world)
    body = pretrained.open_model(kind, base, config, world)
    pretrained.require_rows(body, source, tokenizer.vocab_size)
    return base, body, tokenizer


def _tokenizer(source: Path, base: Path, world: World) -> Tokenizer:
    return Tokenizer.load(source if (source / "tokenizer.json").exists() else base, world.chat)


def _checkpoint(body: PreTrainedModel, checkpointing: bool) -> None:
    if checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})
        body.train()


def _draw_head(weight: Parameter, seed: int) -> None:
    uniform = randomness.uniforms(seed, "head", np.arange(weight.numel()), np.array([[0], [1]]))
    normal = np.sqrt(-2 * np.log1p(-uniform[0])) * np.cos(2 * np.pi * uniform[1])
    with torch.no_grad():
        weight.copy_(torch.from_numpy(normal / math.sqrt(weight.shape[-1] + 1)).view_as(weight))


@torch.no_grad()
def _probe(body: PreTrainedModel, tokenizer: Tokenizer, source: Path) -> None:
    """Check that hidden states and head give the model's own logits; some families change them after the head."""
    ids = torch.arange(1, 5, device=body.device)[None] % tokenizer.vocab_size
    with pretrained.opening(source):
        own = body(input_ids=ids, use_cache=False).logits.float()
        ours = raw_logits(body, body.base_model(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not own.isfinite().all():
        raise PlatformError(f"{source}: its logits are not finite; the weights are damaged: copy the model again")
    if not torch.allclose(own, ours, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
        raise UsageError(f"{source}: {type(body).__name__} changes its logits in an unsupported way; please report it")
