"""A disk and a process that fail at a chosen call, for a child that is forked for it; and a checkpoint to fail at.

Counted are Python's audit events for opening, making, renaming and removing files and folders, `fsync`, and writes, in
their middle. safetensors writes by itself: its calls, as strace shows them, are played in their order: a temporary file
created, made long, written, renamed. `bench/survival.py` lets strace do the same at the calls that the kernel sees.
"""

import builtins
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from preferent import files
from preferent.errors import PlatformError
from preferent.models import checkpoint

WRITES = ("open", "os.mkdir", "os.rename")
EVENTS = (*WRITES, "os.remove", "os.rmdir")
TOLD, CRASHED = 3, 1


def saved(folder: Path, step: int) -> None:
    """A checkpoint of a step: two shards' worth of tensors and some scalars, all functions of the step."""
    checkpoint.save(folder, step, tensors(step), {"kl_coeff": 0.1 * step, "best_step": step}, keep=2)


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"a": torch.randn(20, 30, generator=generator), "b": torch.tensor(step), "c": torch.randn(7)[:0]}


def whole(found: checkpoint.Checkpoint | None, steps: tuple[int, ...]) -> bool:
    """Whether a checkpoint is, to the last bit, that of one of some steps."""
    return (
        found is not None
        and found.step in steps
        and found.scalars == {"kl_coeff": 0.1 * found.step, "best_step": found.step}
        and found.tensors.keys() == tensors(0).keys()
        and all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors(found.step).items())
    )


def forked(work: Callable[[], object]) -> int:
    """The exit code of some work in a child: 0, -9 where it was killed, 3 where it told of a failure by its error."""
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            work()
            code = 0
        except PlatformError as error:
            code = TOLD if "make room" in str(error) or "fix that" in str(error) else CRASHED
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Fault:
    """Lets the `at`-th call below a folder fail by `act`; for the rest of this process's life."""

    def __init__(self, folder: Path, at: int, act: Callable[[], None]) -> None:
        self.folder, self.at, self.act, self.count = str(folder), at, act, 0
        fsync = os.fsync

        def synced(descriptor: int) -> None:
            self.call()
            fsync(descriptor)

        os.fsync = synced
        vars(files)["open"] = vars(checkpoint)["open"] = self._open
        vars(checkpoint)["save_file"] = self._save_file
        sys.addaudithook(self._event)

    def call(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    def _event(self, name: str, words: tuple[Any, ...]) -> None:
        counted = EVENTS if self.act is die else WRITES
        if name not in counted or (name != "os.remove" and self.folder not in str(words[0])):
            return
        harmless = {"open": not int(words[-1]) & (os.O_WRONLY | os.O_RDWR), "os.mkdir": os.path.isdir(str(words[0]))}
        if self.act is die or not harmless.get(name, False):
            self.call()

    def _open(self, path: Path, mode: str = "r", **options: Any) -> Any:
        file = builtins.open(path, mode, **options)  # noqa: SIM115 - the caller closes it
        if "w" in mode or "a" in mode:
            write = file.write

            def halved(data: Any) -> None:
                write(data[: len(data) // 2])
                file.flush()
                self.call()
                write(data[len(data) // 2 :])

            return _Written(file, halved)
        return file

    def _save_file(self, tensors: Any, path: Path) -> None:
        """What `safetensors.torch.save_file` does."""
        data = save(tensors)
        aside = path.with_name(".tmp123456")
        try:
            with builtins.open(aside, "wb") as file:
                os.ftruncate(file.fileno(), len(data))
                self.call()
                file.write(data[: len(data) // 2])
                file.flush()
                self.call()
                file.write(data[len(data) // 2 :])
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None


class _Written:
    """An open file whose writes are others."""

    def __init__(self, file: Any, write: Callable[[Any], None]) -> None:
        self._file, self.write = file, write

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
