"""A graphics card simulated on the CPU: tensors of device `meta` that hold their numbers.

What a real card refuses is refused here: operations on tensors of two devices, operations without a deterministic
implementation (`RAISING`), and, as Apple's GPUs do, float64.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from preferent.models import world

CARD = torch.device("meta", 0)

RAISING = (
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "reflection_pad1d_backward"),
    *("reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss_forward", "nll_loss2d_forward"),
    *("nll_loss_backward", "nll_loss2d_backward", "_ctc_loss_backward", "_embedding_bag_backward", "put", "put_"),
    *("histc", "bincount", "median", "nanmedian", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    *("kthvalue", "scatter_reduce", "scatter_reduce_", "cumprod", "cumsum", "cumsum_"),
)
"""Operations that raise on CUDA under `torch.use_deterministic_algorithms(True)`, by that function's documentation in
torch 2.13 (https://docs.pytorch.org/docs/2.13/generated/torch.use_deterministic_algorithms.html); cumulative sums of
floats only, and those of integers are allowed. cumprod and kthvalue are not on the list, but are refused with them."""

ANYWHERE = ("copy_", "_to_copy", "set_", "_has_compatible_shallow_copy_type")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class OnCard(torch.Tensor):
    """A tensor of the card; `held` are its numbers."""

    held: torch.Tensor
    is_meta = False

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnCard":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CARD
        )

    def __init__(self, held: torch.Tensor) -> None:
        if held.dtype == torch.float64:
            raise TypeError("the card has no float64")
        self.held = held

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.held!r})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """While it is active, what is made on the card holds numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU; what it returns is on the card if its arguments are."""
    name = func._schema.name.removeprefix("aten::")
    leaves, tree = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    from_card = any(isinstance(tensor, OnCard) for tensor in tensors)
    if from_card:
        refuse(name, tensors, args)
    placed = kwargs.get("device", CARD if from_card else None)
    raw = [leaf.held if isinstance(leaf, OnCard) else leaf for leaf in leaves]
    raw = [torch.device("cpu") if isinstance(leaf, torch.device) and leaf == CARD else leaf for leaf in raw]
    raw_args, raw_kwargs = tree_unflatten(raw, tree)
    answer = func(*raw_args, **raw_kwargs)
    if placed != CARD:
        return answer
    known = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, OnCard)}

    def on_card(t: Any) -> Any:
        if not isinstance(t, torch.Tensor):
            return t
        return known[id(t)] if id(t) in known else OnCard(t)

    return tree_map(on_card, answer)


def refuse(name: str, tensors: list[torch.Tensor], args: Any) -> None:
    """Raise as a card would on tensors of the host, and on an operation without a deterministic implementation."""
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnCard)]
    if not name.startswith("_fused_"):
        strangers = [tensor for tensor in strangers if tensor.dim()]
    allowed = name in ANYWHERE or (name in INDEXING and isinstance(args[0], OnCard))
    if strangers and not allowed:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    if name in RAISING and not (name.startswith("cumsum") and not tensors[0].is_floating_point()):
        raise RuntimeError(f"{name}: has no deterministic implementation on CUDA")


@contextmanager
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every `World` compute on the card."""
    monkeypatch.setattr(world, "_device", lambda name, place: CARD)
    optimizers = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: [CARD.type])
    clipping = sys.modules["torch.nn.utils.clip_grad"]
    monkeypatch.setattr(clipping, "_device_has_foreach_support", lambda device: True)
    with Card():
        yield
