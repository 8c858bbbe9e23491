"""Run the stages of a run as actors of a Ray cluster whose nodes share the folders of the run, its data and its models.

A stage is a plain actor, in which the command of the stage runs as it does here. Where a node or the actor is lost, the
stage goes on from its last checkpoint in another actor. Every message in the cluster carries its token; nothing is
reported to Ray's makers. A cluster of this machine has no dashboard and listens on 127.0.0.1 alone.
"""

import contextlib
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from preferent.errors import PlatformError, PreferentError, UsageError
from preferent.pipelines.launchers import child_process

ATTEMPTS = 5
"""Actors that a stage may have, one after the other."""
LOOK_EVERY = 0.5
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_DEDUP_LOGS": "0"}
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
"""Settings of a cluster of this machine. The first makes 127.0.0.1 its address, on Linux too; there is no argument for
that. Ray gives stages the niceness 15, with which a busy machine hardly lets them run."""
TOKENS = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
THREADS = "OMP_NUM_THREADS"

Launch = Callable[[Sequence[str], int], PreferentError | None]
"""Runs the command of a stage in a number of processes that compute together."""


@contextlib.contextmanager
def joined(address: str | None, on_gpu: bool) -> Iterator[Launch]:
    """Join the cluster at an address, or begin one of this machine; yield what runs the command of a stage there, on
    GPUs if there are any and they are wanted."""
    _prepare(address)
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError as error:
        raise PlatformError("--launcher ray needs Ray: pip install 'preferent[ray]'") from error
    alone = {} if address else {"include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.chdir("/"):  # Ray lets the processes of a cluster import modules from the working folder
            ray.init(address or "local", logging_level="error", **alone)
    except Exception as error:  # Ray raises the bare one where a node is slow
        raise PlatformError(f"--launcher ray: {str(error).splitlines()[0]}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has set its own
    try:
        gpus = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]) if on_gpu else 0
        yield lambda words, size: _run(ray, words, size, int(gpus))
    finally:
        ray.shutdown()


def _prepare(address: str | None) -> None:
    """Set the environment that Ray reads when it is imported; refuse a cluster without a token."""
    token = any(os.environ.get(name) for name in TOKENS) or (Path.home() / ".ray" / "auth_token").is_file()
    if address and not token:
        raise UsageError(
            f"--address {address}: a cluster without a token lets anybody run code; start it with RAY_AUTH_MODE=token, "
            f"and give its token here, in {' or '.join(TOKENS)}"
        )
    wanted = SETTINGS if address else SETTINGS | ALONE
    if "ray" in sys.modules and any(os.environ.get(name) != text for name, text in wanted.items()):
        raise UsageError("launcher ray: Ray is imported already, with other settings; do this in a new process")
    os.environ.update(wanted)
    if not token:
        os.environ[TOKENS[0]] = secrets.token_hex(32)
    if path := os.environ.get(TOKENS[1]):
        os.environ[TOKENS[1]] = str(Path(path).absolute())


class StageActor:
    """A process of the cluster in which the command of a stage runs; it ends with its node."""

    def place(self) -> tuple[int, str]:
        """Return the process and its node."""
        if sys.platform == "linux":  # else it goes on until the command is done
            child_process.die_with_parent()
        return os.getpid(), import_module("ray").get_runtime_context().get_node_id()

    def run(self, words: Sequence[str], size: int, folder: str, threads: str | None) -> tuple[int, str]:
        """Run `preferent WORDS` in a folder, in `size` processes; return its exit code and its message."""
        try:
            os.chdir(folder)
        except OSError as error:
            return PlatformError.exit_code, f"{folder}: a node of the cluster does not share it: {error.strerror}"
        os.environ.pop(THREADS, None)  # Ray's own
        os.environ.update({} if threads is None else {THREADS: threads})
        failure = child_process.run_verb(words, size)
        return (0, "") if failure is None else (failure.exit_code, str(failure))


def _run(ray: Any, words: Sequence[str], size: int, gpus: int) -> PreferentError | None:
    """Run the command of a stage in an actor, and again in another where it is lost; `gpus` has the largest node."""
    if gpus and size > gpus:
        return _failure(PlatformError.exit_code, f"processes: {size}, but no node of the cluster has over {gpus} GPUs")
    reason = ""
    with _noted() as signals:
        for losses in range(ATTEMPTS):
            _pause(losses, signals)
            actor = ray.remote(num_cpus=1, num_gpus=min(size, gpus), max_restarts=0)(StageActor).remote()
            try:
                code, message = _wait(ray, actor, words, size, signals)
            except ray.exceptions.RayActorError as error:
                reason = str(error).splitlines()[-1]
                print(f"{words[0]}: its actor or node was lost; it goes on from its last checkpoint", file=sys.stderr)
            except ray.exceptions.RayTaskError as error:
                return _failure(PlatformError.exit_code, f"a node cannot run preferent: {str(error).splitlines()[-1]}")
            else:
                if not losses or code != UsageError.exit_code:  # the lost process may still hold the folder
                    return None if code == 0 else _failure(code, message)
            finally:
                ray.kill(actor)
    return _failure(PlatformError.exit_code, f"{words[0]} lost {ATTEMPTS} actors or nodes; the last: {reason}")


def _failure(code: int, message: str) -> PreferentError:
    error = PreferentError(message)
    error.exit_code = code
    return error


def _wait(ray: Any, actor: Any, words: Sequence[str], size: int, signals: list[int]) -> tuple[int, str]:
    """Return the exit code and message of a command in an actor, to whose process the `signals` are sent that come."""
    placed = actor.place.remote()
    while not signals and not ray.wait([placed], timeout=LOOK_EVERY)[0]:
        pass
    if signals:
        return 128 + signals[0], f"{words[0]} was stopped before it began"
    process, node = ray.get(placed)
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    post = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_send)
    running = actor.run.remote(list(words), size, os.getcwd(), os.environ.get(THREADS))
    sent = 0
    while not ray.wait([running], timeout=LOOK_EVERY)[0]:
        for number in signals[sent:]:
            post.remote(process, number)
            sent += 1
    code, message = ray.get(running)
    return (128 + signals[0], f"{words[0]} was done") if signals and code == 0 else (int(code), str(message))


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _pause(losses: int, signals: Sequence[int]) -> None:
    """Wait a while after a loss, longer after each, until what was lost has left the folder of its stage."""
    end = time.monotonic() + 2**losses
    while losses and not signals and time.monotonic() < end:
        time.sleep(LOOK_EVERY)


@contextlib.contextmanager
def _noted() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of obeying them; only the main thread can."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, lambda number, _frame: signals.append(number)) for number in numbers]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
