"""Checkpoints: folders of safetensors with a manifest of hashes, written aside and renamed when complete.

They do not depend on the number of ranks. Of tensors in shards every rank writes its rows, in their place in the file
that one process would write, and reads its rows from there.
"""

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from preferent import ranks
from preferent.errors import DataError, PlatformError
from preferent.files import refusal, share
from preferent.models import collectives, sharding
from preferent.runs.checkpoints import step_folders
from preferent.runs.checkpoints.row_files import RowFile
from preferent.runs.directory import StageDirectory

FILE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a stage after `step` steps: tensors by name and scalars."""

    step: int
    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], keep: int | None) -> None:
    """Write `folder/step-NNNNNN`; then remove all but the `keep` newest (None: keep all)."""
    target = step_folders.path_of(folder, step)
    aside = folder / f".{target.name}.tmp-{ranks.agreed(os.getpid)}"
    contents = {aside / f"{index:05d}.safetensors": content for index, content in enumerate(_contents(tensors))}
    try:
        ranks.at_first(lambda: step_folders.begin(aside))
        if any(map(sharding.is_cut, tensors.values())):
            facts = _write_rows(contents)
        else:
            facts = ranks.at_first(lambda: _write_whole(contents)) or {}
        ranks.at_first(lambda: step_folders.complete(aside, target, step, scalars, facts))
    except (OSError, SafetensorError, PlatformError) as error:
        raise PlatformError(
            f"{target}: the checkpoint cannot be written: {refusal(error) or error}; make room, then run the same "
            "command again: it resumes from the checkpoint before it"
        ) from None
    finally:
        ranks.at_first(lambda: shutil.rmtree(aside, ignore_errors=True))
    ranks.at_first(lambda: step_folders.keep(folder, keep))


def _write_whole(contents: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Write files of tensors; return what the manifest says of each."""
    facts = {}
    for file, content in contents.items():
        save_file({name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in content.items()}, file)
        share(file)
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        facts[file.name] = step_folders.facts(file)
    return facts


def _write_rows(contents: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Write this rank's rows of files of tensors; return what the manifest says of each, when all rows are there."""
    row_files = []
    for path, content in contents.items():
        assert all(tensor.dtype == torch.float32 for tensor in content.values()), "masters and moments are fp32"
        row_files.append(RowFile.of(path, {name: tuple(tensor.shape) for name, tensor in content.items()}))
    ranks.agreed(lambda: list(map(RowFile.create, row_files)))
    for file, content in zip(row_files, contents.values(), strict=True):
        file.write(sharding.rows_of(content))
    ranks.here().gathered("")
    own = {path.name: step_folders.facts(path) for path in collectives.share([*contents])}
    facts = {name: fact for text in ranks.here().gathered(json.dumps(own)) for name, fact in json.loads(text).items()}
    return {path.name: facts[path.name] for path in contents}


def resume(out: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a stage, or None; raise `DataError` if its best weights are damaged."""
    stage = StageDirectory(out)
    saved = latest(stage.checkpoints)
    if saved is not None and (best := saved.scalars.get("best_step")) is not None:
        try:
            ranks.agreed(lambda: step_folders.verify(stage.best, best))
        except DataError as damage:
            raise DataError(
                f"{damage}; it holds the best weights so far, and there is no other copy. Restore it from a backup, or "
                f"remove {stage.checkpoints} and {stage.best} to train this stage again from its beginning"
            ) from None
    return saved


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None; remove damaged ones with a message."""
    manifest = ranks.agreed(lambda: step_folders.newest(folder))
    return None if manifest is None else _loaded(folder, manifest)


def read(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step; raise `DataError` if a byte of it has changed.

    Its tensors are mapped from their files, so memory that was freed before is first returned to the system.
    """
    return _loaded(folder, ranks.agreed(lambda: step_folders.verify(folder, step)))


def _loaded(folder: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint of a manifest that was verified."""
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    path = step_folders.path_of(folder, manifest["step"])
    tensors = {name: tensor for file in manifest["files"] for name, tensor in load_file(path / file).items()}
    return Checkpoint(manifest["step"], tensors, manifest["scalars"])


def _contents(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the tensors by file."""
    contents: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        count = tensor.numel() * tensor.element_size()
        if contents[-1] and size + count > FILE_BYTES:
            contents.append({})
            size = 0
        contents[-1][name] = tensor
        size += count
    return contents
