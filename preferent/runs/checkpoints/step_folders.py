"""Folders `step-NNNNNN` of files with a manifest of hashes, written aside and renamed when complete: checkpoints."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preferent import ranks
from preferent.errors import DataError, UsageError
from preferent.files import read_sealed, sha256, sync_folder, write_sealed
from preferent.runs import ownership
from preferent.runs.directory import StageDirectory

SCHEMA = 1
NAME = re.compile(r"step-\d{6,}")


def path_of(folder: Path, step: int) -> Path:
    """Return the folder of a step."""
    return folder / f"step-{step:06d}"


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if NAME.fullmatch(path.name))


def begin(aside: Path) -> None:
    """Make the folder that a checkpoint is written to, and remove the incomplete ones of a killed process."""
    clean(aside.parent)
    aside.mkdir(parents=True)


def clean(folder: Path) -> None:
    """Remove the incomplete checkpoints of a killed process."""
    for path in folder.glob(".step-*.tmp-*"):
        if ownership.TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def facts(file: Path) -> dict[str, Any]:
    """Return what a manifest says of a file."""
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def complete(aside: Path, target: Path, step: int, scalars: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write the manifest, and rename the folder unless there is one with the same content."""
    manifest = {"schema": SCHEMA, "step": step, "scalars": dict(scalars), "files": dict(files)}
    write_sealed(aside / "manifest.json", manifest)
    if not _holds(target.parent, manifest):
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
        sync_folder(target.parent)


def keep(folder: Path, newest: int | None) -> None:
    """Remove all checkpoints but the newest ones (None: keep all)."""
    for old in steps(folder)[:-newest] if newest else []:
        shutil.rmtree(path_of(folder, old))


@ranks.first_only
def forget(out: Path) -> None:
    """Remove the best weights of a stage that no checkpoint of it refers to."""
    stage = StageDirectory(out)
    known = set()
    for step in steps(stage.checkpoints):
        with contextlib.suppress(DataError):
            known.add(_manifest(path_of(stage.checkpoints, step))["scalars"].get("best_step"))
    for other in steps(stage.best):
        if other not in known:
            shutil.rmtree(path_of(stage.best, other))


def newest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of the newest complete checkpoint, or None; remove damaged ones with a message."""
    for step in reversed(steps(folder)):
        try:
            return verify(folder, step)
        except DataError as damage:
            others = any(other < step for other in steps(folder))
            way = "going back to the checkpoint before it" if others else "there is none before it: starting again"
            print(f"{damage}; {way}", file=sys.stderr)
            shutil.rmtree(path_of(folder, step))
    return None


def verify(folder: Path, step: int) -> dict[str, Any]:
    """Return the manifest of a checkpoint; raise `DataError` if the checkpoint is incomplete or damaged."""
    path = path_of(folder, step)
    manifest = _manifest(path)
    if manifest["step"] != step:
        raise DataError(f"{path}: holds step {manifest['step']}")
    for name, stated in manifest["files"].items():
        if not (path / name).is_file():
            raise DataError(f"{path}: incomplete: {name} is missing")
        if sha256(path / name) != stated["sha256"]:
            raise DataError(f"{path}: {name} is damaged (its hash is not the manifest's)")
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest; raise `DataError` if it is missing or damaged.

    The seal is checked before the schema, because every schema has it in the same place.
    """
    try:
        manifest = read_sealed(path / "manifest.json")
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
