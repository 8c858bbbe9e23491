"""Ranks that are threads of this process: one computes at a time, and they take turns where ranks wait for each other.

They show what is shared and summed and decided in milliseconds, and see the source as it is in this process. Real
processes are in tests/distributed/test_ranks.py.
"""

import threading
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import torch

from preferent import ranks

SECONDS = 20.0


class Meeting:
    """Where the threads meet: what each brought, and the right to compute."""

    def __init__(self, size: int) -> None:
        self.brought: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=SECONDS)
        self.turn = threading.Lock()

    def exchanged(self, rank: int, thing: Any) -> list[Any]:
        """Bring a thing; return what all brought, in the order of ranks."""
        self.brought[rank] = thing
        self._wait()
        together = list(self.brought)
        self._wait()
        return together

    def _wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait()
        finally:
            self.turn.acquire()


@dataclass(frozen=True)
class ThreadRank:
    """One of the threads, as `preferent.ranks` sees it."""

    rank: int
    size: int
    meeting: Meeting

    def gathered(self, text: str) -> list[str]:
        return self.meeting.exchanged(self.rank, text)

    def add(self, tensor: torch.Tensor) -> None:
        parts = self.meeting.exchanged(self.rank, tensor.clone())
        tensor.copy_(torch.stack(parts).sum(0).to(tensor.dtype))


def together(size: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what `work(rank)` returns on each rank, or raise the error of the first that failed by itself."""
    if size == 1:
        return [work(0)]
    meeting, returned, errors = Meeting(size), [None] * size, list[BaseException]()

    def one(rank: int) -> None:
        ranks.enter(ThreadRank(rank, size, meeting))
        with meeting.turn:
            try:
                returned[rank] = work(rank)
            except threading.BrokenBarrierError:
                pass
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
                meeting.barrier.abort()

    threads = [threading.Thread(target=Context().run, args=(one, rank)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert not meeting.barrier.broken, "a rank waited for one that never came"
    return returned
