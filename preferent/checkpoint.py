"""Checkpoints: a folder of safetensors with a manifest of hashes, written aside and renamed when whole."""

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from preferent import run
from preferent.error import DataError, PlatformError, UsageError

SCHEMA = 1
SHARD_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a stage needs to go on after `step` steps: tensors by name and a few plain numbers."""

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], keep: int) -> None:
    """Write `folder/step-NNNNNN`; then remove all but the `keep` newest."""
    target = folder / f"step-{step:06d}"
    aside = folder / f".{target.name}.tmp-{os.getpid()}"
    clean(folder)
    try:
        aside.mkdir(parents=True)
        files = {}
        for index, shard in enumerate(_shards(tensors)):
            file = aside / f"{index:05d}.safetensors"
            save_file(shard, file)
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            files[file.name] = {"sha256": run.sha256(file), "bytes": file.stat().st_size}
        run.write_json(
            aside / "manifest.json", {"schema": SCHEMA, "step": step, "scalars": dict(scalars), "files": files}
        )
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
        run.sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise PlatformError(
            f"{target}: the checkpoint cannot be written: {error}; make room, then the same command goes on from the "
            "checkpoint before it"
        ) from None
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:06d}")


def keep_only(folder: Path, step: int | None) -> None:
    """Remove every checkpoint of a folder but that of `step`."""
    for other in steps(folder):
        if other != step:
            shutil.rmtree(folder / f"step-{other:06d}")


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, oldest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def clean(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are whole; says so when it passes over a damaged one. None: there is none.

    Its tensors are mapped from their files, so the memory that a finished loop has freed goes back to the system first.
    """
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    for step in reversed(steps(folder)):
        path = folder / f"step-{step:06d}"
        problem = _damage(path)
        if problem is None:
            manifest = run.read_json(path / "manifest.json")
            tensors = {name: t for file in manifest["files"] for name, t in load_file(path / file).items()}
            return Checkpoint(manifest["step"], tensors, manifest["scalars"])
        print(f"{path}: {problem}; going back to the checkpoint before it", file=sys.stderr)
        shutil.rmtree(path)
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = run.read_json(path / "manifest.json")
        schema = manifest["schema"]
        if schema == SCHEMA:
            bad = [name for name, facts in manifest["files"].items() if run.sha256(path / name) != facts["sha256"]]
            return f"{bad[0]} is damaged (its hash is not the manifest's)" if bad else None
    except (OSError, DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"incomplete or damaged ({type(error).__name__})"
    raise UsageError(
        f"{path}: checkpoint schema {schema}, this version reads {SCHEMA}; use the preferent that wrote it"
    )


def _shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        count = tensor.numel() * tensor.element_size()
        if shards[-1] and size + count > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().to("cpu", copy=False).contiguous()
        size += count
    return shards
