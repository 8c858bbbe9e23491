"""Weights in shards: every rank holds some rows of each tensor, and all gather what they compute with (FSDP2).

A sharded network is cut by `torch.distributed.fsdp.fully_shard`: each layer is a unit, the head of scores another, and
embeddings, norms and output head are the root, which is whole during a pass. All ranks make the same passes. Weights
that learn are fp32 masters; where computation is bf16 the gathered ones are rounded. Gradients are summed in fp32. Of a
network with adapters only the frozen weights are cut: adapters and heads stay whole on every rank, also those that join
later. In a group of one nothing here changes anything, and torch.distributed is not imported.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from preferent import ranks
from preferent.models import adapters
from preferent.models.world import World

T = TypeVar("T")

warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)  # nothing here changes a view in place


def shard(body: PreTrainedModel, world: World, learns: bool, peft: PeftModel | None = None) -> None:
    """Cut a network into shards where the world does: all weights, fp32 if it `learns`, or those below its adapters.
    They are DTensors from now on."""
    if world.shard == "none" or (world.shard == "auto" and peft is not None):
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    layers = set(body._no_split_modules or ())
    units = [module for module in body.modules() if type(module).__name__ in layers]
    heads: list[Any] = [module for name, module in body.named_children() if name == adapters.HEAD and peft is None]
    kept = set() if peft is None else adapters.kept_whole(peft)
    for unit in [*heads, *units, body]:
        precision = MixedPrecisionPolicy()
        if learns and peft is None and unit not in heads:
            precision = MixedPrecisionPolicy(param_dtype=world.dtype, reduce_dtype=torch.float32)
            unit.float()
        fully_shard(unit, mesh=mesh, mp_policy=precision, reshard_after_forward=True, ignored_params=kept)
        unit.set_gradient_divide_factor(1.0)  # sums, not means
        unit.set_force_sum_reduction_for_comms(True)
        unit.computed = _computed
        register_fsdp_forward_method(unit, "computed")
    with torch.no_grad():
        passed(body, int)  # the root has to be the first that computes


def _computed(compute: Callable[..., T], *inputs: Any) -> T:
    return compute(*inputs)


def is_sharded(module: Any) -> bool:
    """Return whether a network, or a layer of it, is a unit of shards."""
    if ranks.here().size == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def kind(module: Any) -> type:
    """Return the class that a module has apart from being sharded."""
    return next(each for each in type(module).__mro__ if not each.__module__.startswith("torch.distributed"))


def passed(module: Any, compute: Callable[..., T], *inputs: Any) -> T:
    """Return what a network, or a layer of it, computes from its `inputs`; its own weights are whole meanwhile.

    What needs a gradient must come in by `inputs`, and go out as a tensor or a tuple of them.
    """
    returned: T = module.computed(compute, *inputs) if is_sharded(module) else compute(*inputs)
    return returned


@contextlib.contextmanager
def whole(body: PreTrainedModel) -> Iterator[None]:
    """Hold all weights of a network whole within the block, without gradients, where ranks make different passes."""
    units: list[Any] = [module for module in body.modules() if is_sharded(module)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)


@torch.no_grad()
def copy(to: PreTrainedModel, source: PreTrainedModel) -> None:
    """Set the weights of a network to those of another that is cut alike."""
    for parameter, other in zip(to.parameters(), source.parameters(), strict=True):
        own(parameter).copy_(own(other))


def is_cut(tensor: Tensor) -> bool:
    """Return whether a rank holds some rows of a tensor only."""
    if ranks.here().size == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own(tensor: Any) -> Tensor:
    """Return what this rank holds of a tensor: its rows, or all."""
    rows: Tensor = tensor.to_local() if is_cut(tensor) else tensor
    return rows


def first_row(tensor: Tensor) -> int:
    """Return the number of the first row that this rank holds of a cut tensor: all hold as many, but the last ones."""
    return min(len(tensor), ranks.here().rank * -(-len(tensor) // ranks.here().size))


def rows_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, np.ndarray]]:
    """Return what this rank writes of tensors: the number of elements before its rows, and these.

    What is not cut the first rank writes.
    """
    written = {}
    for name, tensor in tensors.items():
        if is_cut(tensor):
            before = first_row(tensor) * (tensor.numel() // max(1, len(tensor)))
            written[name] = before, own(tensor).detach().cpu().numpy()
        elif ranks.here().rank == 0:
            written[name] = 0, tensor.detach().cpu().numpy()
    return written


def cut_as(source: Tensor, like: Any) -> Tensor:
    """Return a tensor that is whole as this rank holds `like`: the same rows of it, or all."""
    if not is_cut(like) or is_cut(source) or source.dim() == 0:
        return source
    from torch.distributed.tensor import DTensor

    start = first_row(like)
    rows = source[start : start + len(own(like))].to(like.device)
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def collected(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the CPU of the first rank, where some are cut; the others get none of these."""
    if not any(map(is_cut, tensors.values())):
        return dict(tensors)
    pairs = ((name, _full(tensor)) for name, tensor in tensors.items())
    return {name: tensor for name, tensor in pairs if tensor is not None}


def _full(tensor: Tensor) -> Tensor | None:
    gathered = whole_of(tensor.detach())
    return None if ranks.here().rank else gathered.cpu()


def whole_of(tensor: Any) -> Tensor:
    """Return a tensor with the rows of all ranks, which all of them ask for."""
    gathered: Tensor = tensor.full_tensor() if is_cut(tensor) else tensor
    return gathered
