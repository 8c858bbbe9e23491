"""Checkpoints: folders of safetensors with a manifest of hashes, written aside and renamed when complete."""

import contextlib
import ctypes
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from preferent import files, ranks
from preferent.errors import DataError, PlatformError, UsageError
from preferent.files import refusal, sha256, share, sync_folder, write_sealed
from preferent.runs import ownership
from preferent.runs.directory import StageDirectory

SCHEMA = 1
NAME = re.compile(r"step-\d{6,}")
SHARD_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a stage after `step` steps: tensors by name and scalars."""

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


@ranks.first_only
def save(folder: Path, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], keep: int | None) -> None:
    """Write `folder/step-NNNNNN`; then remove all but the `keep` newest (None: keep all)."""
    target = _of(folder, step)
    aside = folder / f".{target.name}.tmp-{os.getpid()}"
    clean(folder)
    try:
        aside.mkdir(parents=True)
        files = {}
        for index, shard in enumerate(_shards(tensors)):
            file = aside / f"{index:05d}.safetensors"
            save_file(shard, file)
            share(file)
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            files[file.name] = {"sha256": sha256(file), "bytes": file.stat().st_size}
        manifest = {"schema": SCHEMA, "step": step, "scalars": dict(scalars), "files": files}
        write_sealed(aside / "manifest.json", manifest)
        if not _holds(folder, manifest):
            shutil.rmtree(target, ignore_errors=True)
            os.replace(aside, target)
            sync_folder(folder)
    except (OSError, SafetensorError, PlatformError) as error:
        raise PlatformError(
            f"{target}: the checkpoint cannot be written: {refusal(error) or error}; make room, then run the same "
            "command again: it resumes from the checkpoint before it"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in steps(folder)[:-keep] if keep else []:
        shutil.rmtree(_of(folder, old))


@ranks.first_only
def forget(out: Path) -> None:
    """Remove the best weights of a stage that no checkpoint of it refers to."""
    stage = StageDirectory(out)
    known = set()
    for step in steps(stage.checkpoints):
        with contextlib.suppress(DataError):
            known.add(_manifest(_of(stage.checkpoints, step))["scalars"].get("best_step"))
    for other in steps(stage.best):
        if other not in known:
            shutil.rmtree(_of(stage.best, other))


def resume(out: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a stage, or None; raise `DataError` if its best weights are damaged."""
    stage = StageDirectory(out)
    saved = latest(stage.checkpoints)
    if saved is not None and (best := saved.scalars.get("best_step")) is not None:
        try:
            ranks.agreed(lambda: verify(stage.best, best))
        except DataError as damage:
            raise DataError(
                f"{damage}; it holds the best weights so far, and there is no other copy. Restore it from a backup, or "
                f"remove {stage.checkpoints} and {stage.best} to train this stage again from its beginning"
            ) from None
    return saved


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if NAME.fullmatch(path.name))


def clean(folder: Path) -> None:
    """Remove the incomplete checkpoints of a killed process."""
    for path in folder.glob(".step-*.tmp-*"):
        if ownership.TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None; remove damaged ones with a message."""
    manifest = ranks.agreed(lambda: _newest(folder))
    return None if manifest is None else _loaded(folder, manifest)


def _newest(folder: Path) -> dict[str, Any] | None:
    for step in reversed(steps(folder)):
        try:
            return verify(folder, step)
        except DataError as damage:
            others = any(other < step for other in steps(folder))
            way = "going back to the checkpoint before it" if others else "there is none before it: starting again"
            print(f"{damage}; {way}", file=sys.stderr)
            shutil.rmtree(_of(folder, step))
    return None


def read(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step; raise `DataError` if a byte of it has changed.

    Its tensors are mapped from their files, so memory that was freed before is first returned to the system.
    """
    return _loaded(folder, ranks.agreed(lambda: verify(folder, step)))


def _loaded(folder: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint of a manifest that was verified."""
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    path = _of(folder, manifest["step"])
    tensors = {name: tensor for file in manifest["files"] for name, tensor in load_file(path / file).items()}
    return Checkpoint(manifest["step"], tensors, manifest["scalars"])


def verify(folder: Path, step: int) -> dict[str, Any]:
    """Return the manifest of a checkpoint; raise `DataError` if the checkpoint is incomplete or damaged."""
    path = _of(folder, step)
    manifest = _manifest(path)
    if manifest["step"] != step:
        raise DataError(f"{path}: holds step {manifest['step']}")
    for name, facts in manifest["files"].items():
        if not (path / name).is_file():
            raise DataError(f"{path}: incomplete: {name} is missing")
        if files.sha256(path / name) != facts["sha256"]:
            raise DataError(f"{path}: {name} is damaged (its hash is not the manifest's)")
    return manifest


def _of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest; raise `DataError` if it is missing or damaged.

    The seal is checked before the schema, because every schema has it in the same place.
    """
    try:
        manifest = files.read_sealed(path / "manifest.json")
    except FileNotFoundError:
        raise DataError(f"{path}: incomplete: manifest.json is missing") from None
    except DataError:
        raise DataError(f"{path}: manifest.json is damaged (its hash is not the one in it)") from None
    if manifest["schema"] != SCHEMA:
        raise UsageError(
            f"{path}: checkpoint schema {manifest['schema']}, this version reads {SCHEMA}; use the preferent that "
            "wrote it"
        )
    return manifest


def _holds(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether a folder has a complete checkpoint with exactly this manifest."""
    try:
        return verify(folder, manifest["step"]) == manifest
    except (DataError, UsageError):
        return False


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
