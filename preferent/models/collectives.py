"""What the ranks of a stage compute together: shares, sums, and the process group behind `preferent.ranks`.

In a group of one every function returns what it was given, and torch.distributed is not imported. Every rank calls the
same functions in the same order. The group meets through a file that our launcher names, or as torchrun says.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from preferent import ranks
from preferent.errors import PlatformError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


class _Sliced(Protocol):
    def __getitem__(self, rows: slice, /) -> Any: ...


@runtime_checkable
class _Adding(Protocol):
    def add(self, tensor: Tensor) -> None: ...


Rows = TypeVar("Rows", bound=_Sliced)
Part = TypeVar("Part")

SECONDS = "PREFERENT_RANK_SECONDS"
"""Environment variable: how long a rank waits for the others."""
PATIENCE = 1800
SECONDS_TO_REPORT = 5.0
"""How long a rank that lost another waits for those that did, too."""
BUCKET_ELEMENTS = 16 << 20


def share(rows: Rows) -> Rows:
    """Return this rank's share of a list or an array that all ranks have."""
    own: Rows = rows[ranks.here().rank :: ranks.here().size]
    return own


def passes(parts: Sequence[Part]) -> Iterator[tuple[Part, float]]:
    """Yield this rank's share of the parts of a computation, each with weight 1.

    A rank that has one part less ends with the first one and weight 0, because weights in shards want all ranks to make
    as many passes.
    """
    own = share(parts)
    yield from ((part, 1.0) for part in own)
    if len(own) * ranks.here().size < len(parts):
        yield parts[0], 0.0


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks, in place; the bits are the same on all of them."""
    group = ranks.here()
    if isinstance(group, _Adding):
        group.add(tensor)
    return tensor


def total_of(tensors: Sequence[Tensor]) -> None:
    """Sum tensors of one dtype and device over the ranks, in place, many at a time."""
    waiting = list(tensors) if ranks.here().size > 1 else []
    while waiting:
        ends = np.cumsum([tensor.numel() for tensor in waiting])
        count = max(1, int(np.searchsorted(ends, BUCKET_ELEMENTS, side="right")))
        bucket, waiting = waiting[:count], waiting[count:]
        if count == 1:  # no second copy of what is large
            total(bucket[0])
            continue
        summed = total(torch.cat([tensor.flatten() for tensor in bucket]))
        for tensor, part in zip(bucket, summed.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def sums(values: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of the ranks' numbers by name, added in the order of ranks; a rank without a share has none."""
    if ranks.here().size == 1:
        return dict(values)
    totals: dict[str, float] = {}
    for text in ranks.here().gathered(json.dumps(dict(values))):
        totals |= {name: totals.get(name, 0.0) + number for name, number in json.loads(text).items()}
    return totals


def join() -> None:
    """Become one of the ranks that the environment names; nothing happens where it names none."""
    if ranks.wanted() == 1 or ranks.here().size > 1:
        return
    import torch.distributed as dist

    rank, size = ranks.environment("RANK", 0), ranks.wanted()
    here = ranks.environment("LOCAL_WORLD_SIZE", size)
    if here == size:  # all on this machine: nothing of ours listens elsewhere
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    patience = timedelta(seconds=ranks.environment(SECONDS, PATIENCE))
    store = _store(rank, size, patience)
    store.set_timeout(patience)
    group = ProcessGroup(rank, size, store)
    on_gpu = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= here else "gloo"
    backend = f"cpu:gloo,cuda:{on_gpu}" if torch.cuda.is_available() else "gloo"
    with group.together():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    ranks.enter(group)


def _store(rank: int, size: int, patience: timedelta) -> "Store":
    """Return the store through which ranks meet; with torchrun one for each of its attempts."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if file := os.environ.get(ranks.RENDEZVOUS):
        return dist.FileStore(file, size)  # type: ignore[attr-defined]
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=patience))
    except (RuntimeError, ValueError) as error:
        raise PlatformError(
            f"WORLD_SIZE is {size}, but rank {rank} finds no meeting point: {str(error).splitlines()[0]}; set "
            "processes in the recipe, or start the stage by torchrun, which sets MASTER_ADDR and MASTER_PORT"
        ) from None
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks that torch.distributed joins."""

    rank: int
    size: int
    store: "Store"

    def add(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        import torch.distributed as dist

        whole = (
            tensor if tensor.is_contiguous() and tensor.device.type in ("cpu", "cuda") else tensor.cpu().contiguous()
        )
        with self.together():
            dist.all_reduce(whole)
        if whole is not tensor:
            tensor.copy_(whole)

    def gathered(self, text: str) -> list[str]:
        """Return the texts of all ranks, in the order of ranks."""
        import torch.distributed as dist

        content = text.encode()
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(content)
        with self.together():
            dist.all_reduce(lengths)
            own = torch.zeros(int(lengths.max()), dtype=torch.uint8)
            own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else own[:0]
            parts = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(parts, own)
        return [bytes(part[:length].numpy()).decode() for part, length in zip(parts, lengths.tolist(), strict=True)]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Turn the failure of a collective into an error that names the ranks that did not take part."""
        try:
            yield
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            missing = self._missing()
            who = f"rank {', '.join(map(str, missing))} of {self.size}" if missing else "a rank"
            raise PlatformError(
                f"{who} ended, or did not answer within the {SECONDS} of {ranks.environment(SECONDS, PATIENCE)} "
                f"({first}); the same command goes on from the last checkpoint"
            ) from None

    def _missing(self) -> list[int]:
        """Return the ranks that do not know that one is lost, because they are."""
        keys: list[Any] = [f"lost/{rank}" for rank in range(self.size)]
        try:
            self.store.set(keys[self.rank], "")
            time.sleep(SECONDS_TO_REPORT)
            return [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        except RuntimeError:  # the rank that kept the store is gone
            return [0]
