"""Leave in good order when a signal asks for it, or when something takes too long."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from preferent import ranks
from preferent.errors import Interrupted, PlatformError

SECONDS_TO_LEAVE = 4.0
SECONDS_TO_BE_ENDED = 6.0
LONGEST_OPENING = 600.0
"""Processor seconds that the description of a model or adapter may take, weights apart; minutes less is usual."""


@dataclass
class Stop:
    """Whether a signal asked the program to leave, and which."""

    signal_number: int = 0
    timer: threading.Timer | None = None

    def __bool__(self) -> bool:
        return self.signal_number != 0

    def obey(self) -> None:
        """Take the wish as fulfilled: what is left to do takes the time that it needs, and the exit code is 0."""
        self.signal_number = 0
        if self.timer is not None:
            self.timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def check(self, save: Callable[[], None] | None = None) -> None:
        """Save and raise `Interrupted` at a step boundary if a signal asked to stop, this rank or another."""
        number = ranks.highest(self.signal_number)
        if number:
            if save is not None:
                save()
                ranks.highest(number)  # the others leave when it is saved
            raise Interrupted("stopped; the same command goes on from here", number)


_stop: ContextVar[Stop] = ContextVar("stop", default=Stop())  # noqa: B039 - nobody writes to the default


def stop() -> Stop:
    """Return the stop flag of the enclosing `stoppable`; outside of one, a flag that is never set."""
    return _stop.get()


@contextlib.contextmanager
def heeded(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of each SIGINT and SIGTERM, also where SIGINT was inherited as ignored.

    A shell that is not interactive lets what it starts with `&` ignore SIGINT, and Python then raises no
    KeyboardInterrupt. A handler of the user's own stays; outside of the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if handler in usual}
    for number in ours:
        signal.signal(number, lambda number, _frame: act(number))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a wish that loops look at; leave anyway after 4 seconds, or at a second signal.

    Leaving at once is safe: whatever is on disk is whole, and the unfinished step is done again. A process that is held
    up in C code, where no Python can run, is ended by SIGALRM after 6 seconds.
    """
    wish = Stop()

    def leave() -> None:
        if wish:
            os._exit(128 + wish.signal_number)

    def handle(number: int, _frame: FrameType | None) -> None:
        if wish:
            leave()
        wish.signal_number = number
        print("\nstopping; the same command goes on from here (again: leave at once)", file=sys.stderr, flush=True)
        wish.timer = threading.Timer(SECONDS_TO_LEAVE, leave)
        wish.timer.daemon = True
        wish.timer.start()
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_BE_ENDED)  # ends us even where no Python code can run

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    token = _stop.set(wish)
    try:
        yield wish
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _stop.reset(token)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def limited(place: Path) -> Iterator[None]:
    """Refuse a folder whose description takes too long to read; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise PlatformError(f"{place}: to read its configuration takes over {LONGEST_OPENING:.0f} processor seconds")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_OPENING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
