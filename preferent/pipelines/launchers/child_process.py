"""Run a command in a process of its own, which receives our signals and does not outlive us; or as several ranks.

The ranks are on this machine and meet through a file which only this user can read. One that fails ends all, with one
message. Nothing is started again: the same command goes on from the last checkpoint.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from preferent import ranks
from preferent.config.model_shape import HEAP_BELOW
from preferent.errors import ERROR_FILE, PreferentError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ALLOCATOR = {
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.tcache_count=0",
            "glibc.malloc.mxfast=0",
            f"glibc.malloc.mmap_threshold={HEAP_BELOW}",
            f"glibc.malloc.trim_threshold={1 << 30}",
        )
    )
}
"""Settings of glibc's allocator in a command; other C libraries do not read them. torch asks for memory at multiples of
64 bytes, for which glibc cuts a larger piece and keeps the ends in lists from which they never join the freed tensor
between them again: the next tensor of that size does not fit. Without those lists (tcache_count, mxfast) it does;
tensors from `HEAP_BELOW` on come from the system one by one, and the heap is kept between steps (trim_threshold), which
saves page faults. Training a reward model of 27M parameters with LoRA in fp32, one thread, a run each: peak 1142 MiB
and 31.4 processor seconds, without this 1630 MiB and 31.4. A `mmap_threshold` of 256 KiB alone saves as much, but with
more page faults: 62 processor seconds in a longer run of 44."""


LOOK_EVERY = 0.05
SECONDS_TO_FOLLOW = 1.0
"""How long ranks may take to end by themselves after the first that did."""
MOST_LINES = 40
"""Number of lines shown of what a rank printed that none saw."""

SAFE = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
"""Environment of a Python that is started: PYTHONSAFEPATH keeps modules of the working folder from being imported in
place of installed ones, by the command and by whatever it starts."""


def run_verb(words: Sequence[str], size: int = 1) -> PreferentError | None:
    """Run `preferent WORDS` in a process, or in `size` that compute together.

    Return None, or the error of a command that failed, with its message and exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "error"
        environment = os.environ | SAFE | {ERROR_FILE: str(path)}
        argv = [sys.executable, "-m", "preferent", *words]
        code = run_here(argv, env=environment) if size == 1 else run_ranks(argv, size, environment)
        if code == 0:
            return None
        error = PreferentError(path.read_text() if path.exists() else f"{words[0]} ended with exit code {code}")
        error.exit_code = code
        return error


def run_here(argv: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run a command with our own output streams and return its exit code.

    The exit code is 128 + n if signal n ended the command, or arrived when the command was at its end.

    SIGINT and SIGTERM are passed on, once each: the command is in a process group of its own, so that a Ctrl-C in the
    terminal does not reach it twice. On Linux the command dies with us, however we die. Its environment contains
    `ALLOCATOR`, unless `env` sets these variables.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with start(argv, cwd, env) as process, forwarded([process]) as signals:
        code = process.wait()
    if signals and code in (0, -signal.SIGALRM):  # it was at its end already, or could not leave by itself
        return 128 + signals[-1]
    return code if code >= 0 else 128 - code


def run_ranks(argv: Sequence[str], size: int, env: Mapping[str, str]) -> int:
    """Run a command `size` times, as the ranks of one group; return the exit code of the rank that decides it.

    The first rank has our output streams, the others a file of which the end is shown if they decide. What the ranks
    leave in their `ERROR_FILE` is copied to ours from the rank that decides.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory(prefix="preferent-") as folder:
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(size)]
        processes = [_start(argv, rank, size, env, logs[rank]) for rank in range(size)]
        with forwarded(processes) as signals:
            try:
                codes = _wait(processes)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
        rank, code = _deciding(codes)
        if code and rank:
            sys.stderr.write("".join(logs[rank].read_text(errors="replace").splitlines(True)[-MOST_LINES:]))
        if code < 0:
            print(f"rank {rank} of {size} was ended by {signal.Signals(-code).name}", file=sys.stderr)
        if (place := env.get(ERROR_FILE)) and (left := Path(f"{place}.{rank}")).exists():
            left.replace(place)
    if signals and code in (0, -signal.SIGALRM):
        return 128 + signals[-1]
    return code if code >= 0 else 128 - code


def _start(argv: Sequence[str], rank: int, size: int, env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    own = {name: str(number) for name, number in numbers.items()} | {ranks.RENDEZVOUS: str(log.with_name("meeting"))}
    if place := env.get(ERROR_FILE):
        own[ERROR_FILE] = f"{place}.{rank}"
    if rank == 0:
        return start(argv, env=dict(env) | own)
    with open(log, "wb") as file:
        return start(argv, env=dict(env) | own, output=file)


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> list[int | None]:
    """Wait until all have ended, or one has failed and the others had time to follow; return exit codes by rank.

    The code is None of those that have not ended.
    """
    end: float | None = None
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or (end is not None and time.monotonic() > end):
            return codes
        if end is None and any(codes):
            end = time.monotonic() + SECONDS_TO_FOLLOW
        time.sleep(LOOK_EVERY)


def _deciding(codes: Sequence[int | None]) -> tuple[int, int]:
    """Return the rank whose end says why all ended, and its exit code: one that was killed, else the first to fail."""
    failed = [(rank, code) for rank, code in enumerate(codes) if code]
    killed = [(rank, code) for rank, code in failed if code < 0]
    return (killed or failed or [(0, 0)])[0]


def start(
    argv: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a command in a process group of its own, which on Linux dies with us; `output` is for both its streams."""
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=ALLOCATOR | dict(os.environ if env is None else env),
        stdout=output,
        stderr=output,
        process_group=0,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )


def die_with_parent() -> None:
    """Let Linux kill this process when the one that started it is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def forwarded(processes: Sequence["subprocess.Popen[bytes]"]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to processes while they live, and list them; only the main thread can."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
