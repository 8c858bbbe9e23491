"""Adapters by PEFT on one frozen backbone: which of them is active, and how further ones join."""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch.nn import Linear, Parameter
from transformers import PreTrainedModel

from preferent import files
from preferent.config import model_folder, model_reference

HEAD = "score"
"""The module that reads a score from hidden states, in fp32."""
PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's parameters."""

_switched: WeakKeyDictionary[PeftModel, list[Any]] = WeakKeyDictionary()
"""The modules of a model that hold adapters: to look for them takes ten times as long as to switch them."""


def make_trainable(body: PreTrainedModel, rank: int, task: TaskType) -> PeftModel | None:
    """Let every weight learn if `rank` is 0; else freeze them, and return the model with a new adapter of that rank on
    all linear layers, and with a score head that learns where the task has one."""
    body.requires_grad_(not rank)
    if not rank:
        return None
    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=[HEAD] if task is TaskType.SEQ_CLS else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peft = get_peft_model(body, config, autocast_adapter_dtype=False)
    assert isinstance(config.target_modules, set)
    config.target_modules.discard(HEAD)  # a causal language model's linear layers include it
    return peft


def activate(peft: PeftModel, adapter: str | None) -> None:
    """Make one adapter active, or none; which parameters are trainable stays as it is."""
    if peft.base_model.active_adapters != ([] if adapter is None else [adapter]):
        _set_active(peft, adapter)


def _set_active(peft: PeftModel, adapter: str | None) -> None:
    tuner: Any = peft.base_model
    tuner.active_adapter = [] if adapter is None else adapter
    if peft not in _switched:
        _switched[peft] = [m for m in tuner.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    for module in _switched[peft]:
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = tuner.active_adapter
        else:
            module._active_adapter = adapter if adapter in module._adapters else []


def add(peft: PeftModel, adapter: str, config: PeftConfig, trainable: bool = False) -> None:
    """Put a new adapter beside those of a backbone and make it active; the others learn or rest as before."""
    activate(peft, next(iter(peft.peft_config)))
    learning = {id(parameter) for parameter in peft.parameters() if parameter.requires_grad}
    peft.add_adapter(adapter, config, autocast_adapter_dtype=False)
    own = parameters(peft, adapter)
    for name, parameter in peft.named_parameters():
        parameter.requires_grad_(trainable if name in own else id(parameter) in learning)
    _switched.pop(peft, None)
    _set_active(peft, adapter)


def parameters(model: torch.nn.Module, adapter: str) -> dict[str, Parameter]:
    """Return the parameters of an adapter and of the head that it brings, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if adapter in name.split(".")}


def kept_whole(peft: PeftModel) -> set[Parameter]:
    """Return the parameters that are not the backbone's: those of all adapters, and of the head of scores."""
    parts = {*peft.peft_config, HEAD}
    return {parameter for name, parameter in peft.named_parameters() if not parts.isdisjoint(name.split("."))}


def start_equal(peft: PeftModel, adapter: str, origin: str) -> None:
    """Set an adapter's parameters to those of another adapter of the same shape."""
    origins = parameters(peft, origin)
    for name, parameter in parameters(peft, adapter).items():
        twin = ".".join(origin if part == adapter else part for part in name.split("."))
        parameter.data = origins[twin].detach().clone()


def add_head(body: PreTrainedModel) -> None:
    """Put a head of zeros beside the output layer of a causal language model, unless it has one."""
    if HEAD not in dict(body.named_children()):
        size = body.config.get_text_config().hidden_size
        head = Linear(size, 1, bias=False, dtype=torch.float32, device=body.device)
        body.add_module(HEAD, head.requires_grad_(False))
        torch.nn.init.zeros_(head.weight)


def rests_on(peft: PeftModel, adapter: str, own: Path, base: Path) -> bool:
    """Return whether a network whose full model is in the folder `own` is the model in `base`, bit for bit, with the
    adapter off.

    It is if that folder has the same content, and the adapter changes neither biases nor the weights below it.
    """
    return _leaves_base(peft.peft_config[adapter]) and same_content(own, base)


def joins(peft: PeftModel, adapter: str, own: Path, source: Path) -> bool:
    """Return whether the reward model in a folder is an adapter that can sit beside `adapter` on its backbone."""
    if not model_folder.is_adapter(source):
        return False
    config, beside = PeftConfig.from_pretrained(str(source)), peft.peft_config[adapter]
    if not (_leaves_base(config) and _heads(config) == {HEAD} and _heads(beside) <= {HEAD}):
        return False
    places = {name for name, _ in peft.get_base_model().named_modules()} | {HEAD}
    stored = [name.removeprefix(PREFIX) for name in model_folder.header(source / model_folder.ADAPTER_WEIGHTS)]
    fits = all(name.split(".lora_")[0].removesuffix(".weight") in places for name in stored)
    return fits and rests_on(peft, adapter, own, model_reference.adapter_base(source))


def same_content(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same files; they are read only where they are two."""
    return one.resolve() == other.resolve() or files.fingerprint(one) == files.fingerprint(other)


def _leaves_base(config: Any) -> bool:
    return (
        isinstance(config, LoraConfig)
        and config.bias == "none"
        and config.init_lora_weights is True
        and not config.layer_replication
    )


def _heads(config: Any) -> set[str]:
    """Return the modules that an adapter brings whole; PEFT adds `classifier`, which no decoder has."""
    return set(config.modules_to_save or ()) - {"classifier"}
