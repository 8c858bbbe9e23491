"""Runs in an object store that is not mounted: what is finished there is copied here before a task, and back after it.

A folder of a stage is stored when the stage is done, its mark last, so that a task which dies begins its stage again.
"""

import functools
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preferent.errors import DataError
from preferent.kubeflow.parameters import artifacts_folder
from preferent.runs import remote_files
from preferent.runs.directory import StageDirectory

SCRATCH = Path(tempfile.gettempdir()) / "preferent-runs"
"""The folder of the copies."""
SMALL = 1 << 20
"""Files below so many bytes are stored again whether or not their size has changed."""


def is_stored(place: str) -> bool:
    """Return whether a place is the address of an object store."""
    return place.startswith(("gs://", "s3://"))


def local(place: str) -> Path:
    """Return a path here for a place: the place itself, or the copy of what lies at an address.

    What lies beside a run is copied with it.
    """
    if not is_stored(place):
        return Path(place)
    folder = _copy_of(place)
    _fetch(place)
    return folder


def kept(place: str, path: str | Path) -> str:
    """Return where a file or folder of a run lies for other tasks: here, or in the object store, where it is stored."""
    if not is_stored(place):
        return str(path)
    folder, address = _copy_of(place), place.rstrip("/")
    _store(folder, address)
    _store(artifacts_folder(folder), f"{address}-artifacts")
    return address + str(path).removeprefix(str(folder))


def _copy_of(place: str) -> Path:
    address = place.rstrip("/")
    return SCRATCH / hashlib.sha256(address.encode()).hexdigest()[:12] / address.rpartition("/")[2]


@functools.cache
def _fetch(place: str) -> None:
    """Copy what lies at an address, and beside it, once in a process."""
    folder, address = _copy_of(place), place.rstrip("/")
    for source, target in ((address, folder), (f"{address}-artifacts", artifacts_folder(folder))):
        with remote_files.explained(source):
            system = remote_files.file_system(source)
            for name, facts in _listing(system, source).items():
                path = target / name
                if target.resolve() not in path.resolve().parents:
                    raise DataError(f"{source}: holds the name {name!r}, which leads out of its folder; remove it")
                if not path.exists() or path.stat().st_size != facts["size"] or facts["size"] < SMALL:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    unfinished = path.with_name(f".{path.name}.fetched")
                    system.get_file(f"{source}/{name}", str(unfinished))
                    unfinished.replace(path)


def _store(folder: Path, address: str) -> None:
    """Copy the finished files of a folder to an address, the marks of finished stages last."""
    with remote_files.explained(address):
        system = remote_files.file_system(address)
        listing = _listing(system, address)
        mark = StageDirectory(Path()).done.name
        for path in sorted(_finished(folder), key=lambda path: path.name == mark):
            name, size = path.relative_to(folder).as_posix(), path.stat().st_size
            if name not in listing or listing[name]["size"] != size or size < SMALL:
                system.put_file(str(path), f"{address}/{name}")


def _listing(system: Any, address: str) -> dict[str, dict[str, Any]]:
    """Return the files at an address by their names below it."""
    system.invalidate_cache()
    prefix = system._strip_protocol(address) + "/"
    try:
        found = system.find(address, detail=True)
    except FileNotFoundError:
        return {}
    return {name.removeprefix(prefix): facts for name, facts in found.items() if name.startswith(prefix)}


def _finished(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that no unfinished stage is working on; hidden ones are this machine's own."""
    for path in folder.rglob("*"):
        inside = [folder, *(folder / parent for parent in reversed(path.relative_to(folder).parents))]
        stages = [StageDirectory(parent) for parent in inside if StageDirectory(parent).description.exists()]
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and all(stage.done.exists() for stage in stages):
            yield path
