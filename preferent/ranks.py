"""The processes that compute a stage together, its ranks: which of them this is, and what they do as one.

`RANK` and `WORLD_SIZE` in the environment say it, whoever set them. A process without them is a group of one: it writes
its files, and what it decides is decided. Of several, the first rank writes the files, and decides what depends on a
file, for all. While it does what only the first rank does it is a group of one, so nothing there waits for others.
"""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from preferent.errors import PlatformError

RENDEZVOUS = "PREFERENT_RENDEZVOUS"
"""Environment variable: the file through which ranks on one machine meet."""

SECONDS_TO_BE_ENDED = 3.0
"""How long a rank that fails waits before it speaks."""

P = ParamSpec("P")
T = TypeVar("T")


class Ranks(Protocol):
    """A group of ranks, seen from one of them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gathered(self, text: str) -> list[str]:
        """Return the texts of all ranks, in the order of ranks; every rank calls it with its own."""


@dataclass(frozen=True)
class Alone:
    """A group of one."""

    rank: int = 0
    size: int = 1

    def gathered(self, text: str) -> list[str]:
        return [text]


_group: ContextVar[Ranks] = ContextVar("group", default=Alone())  # noqa: B039 - frozen


def here() -> Ranks:
    """Return the group of this process."""
    return _group.get()


def enter(group: Ranks) -> None:
    """Make this process one of a group."""
    _group.set(group)


def environment(name: str, default: int) -> int:
    """Return a number that a launcher set in the environment; raise `PlatformError` if it is none."""
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise PlatformError(f"{name}={text!r} in the environment is not a whole number; unset it, or use torchrun")
    return int(text)


def launched() -> bool:
    """Return whether a launcher started this process, as one of several or alone."""
    return "WORLD_SIZE" in os.environ


def wanted() -> int:
    """Return the number of ranks that the environment says this process is one of."""
    return environment("WORLD_SIZE", 1)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Be a group of one within the block."""
    token = _group.set(Alone())
    try:
        yield
    finally:
        _group.reset(token)


def at_first(make: Callable[[], T]) -> T | None:
    """Return what `make` returns at the first rank; the others get None and go on at once."""
    if here().rank:
        return None
    with alone():
        return make()


def first_only(write: Callable[P, None]) -> Callable[P, None]:
    """Make a function that only the first rank performs; the others go on at once."""

    @functools.wraps(write)
    def performed(*arguments: P.args, **named: P.kwargs) -> None:
        at_first(lambda: write(*arguments, **named))

    return performed


def agreed(make: Callable[[], T]) -> T:
    """Return what `make` returns at the first rank, on all ranks; of several ranks it must be JSON.

    It also waits: what the first rank wrote before is there when this returns.
    """
    if here().size == 1:
        return make()
    decided: T = json.loads(here().gathered(json.dumps(at_first(make)))[0])
    return decided


def highest(number: int) -> int:
    """Return the largest of the ranks' numbers."""
    return max(int(text) for text in here().gathered(str(number)))


def quiet() -> None:
    """Print nothing from now on, unless this is the first of several ranks, or the only one."""
    if wanted() > 1 and environment("RANK", 0):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - held until the process ends


def speak() -> str:
    """Let this rank print again, because it fails; return the words by which its message names it.

    It waits first: where all fail alike, the first says it, and whoever started them ends the others.
    """
    rank = environment("RANK", 0) if wanted() > 1 else 0
    if rank == 0:
        return ""
    time.sleep(SECONDS_TO_BE_ENDED)
    sys.stdout, sys.stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
    return f"rank {rank}: "


def leave(code: int) -> None:
    """End one of several ranks at once: an interpreter that is taken down may meet threads of its collectives."""
    if here().size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
