"""One side of a paired measurement: a process that does one iteration whenever a line on its standard input asks for
it.

The protocol, one line each way, in a process of its own so that each side has its own packages:

- after its set-up the worker writes `{"ready": {...facts: versions, settings...}}`;
- for each line it reads, it does one iteration and writes
  `{"seconds": float, "phases": {name: seconds}, "updates": int, "answer_tokens": int, ...}`;
- at the end of its input it leaves.

`seconds` is wall clock between reading the request and having the result, `cpu_seconds` what all threads used
meanwhile (on an idle machine about `threads` times the seconds; much less says that other programs took the
processor). `updates` (optimiser steps of the policy) and
`answer_tokens` (sampled and learnt from) let the driver check that both sides did the same work. Whatever else a
library prints to standard output goes to standard error, so that the lines stay clean.
"""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Line:
    """The worker's end of the line."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._began = self._cpu_began = 0.0
        self.phases: dict[str, float] = defaultdict(float)

    def ready(self, **facts: Any) -> None:
        self._write({"ready": facts})

    def wait(self) -> None:
        """Block until the next iteration is asked for and start its clock; leave at the end of the input."""
        if not sys.stdin.readline():
            os._exit(0)
        self.phases.clear()
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def report(self, **facts: Any) -> None:
        """Stop the clock and send the seconds, the phases (with the `other` that no phase covers) and `facts`."""
        seconds = time.perf_counter() - self._began
        phases = {**self.phases, "other": seconds - sum(self.phases.values())}
        cpu_seconds = time.process_time() - self._cpu_began
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self._write({"seconds": seconds, "phases": phases, "cpu_seconds": cpu_seconds, "peak_mib": peak_mib, **facts})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a block to phase `name`; phases do not nest."""
        began = time.perf_counter()
        yield
        self.phases[name] += time.perf_counter() - began

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time added to phase `name`."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return wrapped

    def _write(self, reply: dict[str, Any]) -> None:
        self._replies.write(json.dumps(reply) + "\n")
        self._replies.flush()
