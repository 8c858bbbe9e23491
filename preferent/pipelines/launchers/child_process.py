"""Run a command in a process of its own, which receives our signals and does not outlive us."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

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


SAFE = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
"""Environment of a Python that is started: PYTHONSAFEPATH keeps modules of the working folder from being imported in
place of installed ones, by the command and by whatever it starts."""


def run_verb(words: Sequence[str]) -> PreferentError | None:
    """Run `preferent WORDS`; return None, or the error of a command that failed, with its message and exit code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "error"
        environment = os.environ | SAFE | {ERROR_FILE: str(path)}
        code = run_here([sys.executable, "-m", "preferent", *words], env=environment)
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
    environment = ALLOCATOR | dict(os.environ if env is None else env)
    preparation = _die_with_parent if sys.platform == "linux" else None
    with (
        subprocess.Popen(argv, cwd=cwd, env=environment, process_group=0, preexec_fn=preparation) as process,
        _forwarded(process) as signals,
    ):
        code = process.wait()
    if signals and code in (0, -signal.SIGALRM):  # it was at its end already, or could not leave by itself
        return 128 + signals[-1]
    return code if code >= 0 else 128 - code


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _forwarded(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to a process while it lives, and list them; only the main thread can."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
