"""The run directory: atomic files, fingerprints, locks, stage folders, and leaving when asked to.

A stage folder holds `stage.json` (what was asked and of what) from the first moment and `DONE` at the end. Paths inside
a run are relative to it, so a moved run still loads.
"""

import contextlib
import fcntl
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferent import files, ranks
from preferent.config import run_schema
from preferent.errors import PlatformError, UsageError
from preferent.runs import ownership
from preferent.runs.directory import RunDirectory, StageDirectory


@contextlib.contextmanager
def locked(folder: Path, kind: ownership.Kind = "stage") -> Iterator[None]:
    """Hold the folder of a stage or a run against a second process; the lock dies with the process.

    A folder that holds something else is refused. Of several ranks the first holds it for all.
    """
    if ranks.here().rank:
        yield
        return
    ownership.check(folder, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - held until the end of the block
    except OSError as error:
        raise PlatformError(
            f"{folder}: cannot be used as a run directory: {error.strerror}; use another --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process is working here; wait for it, or use another --out") from None
        yield


def versions() -> dict[str, str]:
    """Return the versions that decide whether two runs can be equal to the last bit."""
    from importlib import metadata  # slow to import, and help does not need it

    packages = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("preferent", "numpy", "torch", "transformers", "peft", "tokenizers", "safetensors", "bitsandbytes"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    return packages


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


@dataclass
class Stage:
    """One stage's folder while the stage works in it."""

    name: str
    folder: Path
    asked: dict[str, Any]
    inputs: dict[str, Path]
    facts: dict[str, Any] = field(default_factory=dict)
    done: bool = False

    def record(self, **facts: Any) -> None:
        """Add what was found out (device, threads, counts) to `stage.json`."""
        self.facts.update(facts)
        files.write_sealed(StageDirectory(self.folder).description, self.asked | {"facts": self.facts})

    def place(self, **facts: Any) -> None:
        """Record where the stage computes (device, threads, precision), and say so when it is not where it began."""
        moved = [f"{k} was {self.facts[k]}, is {v}" for k, v in facts.items() if self.facts.get(k, v) != v]
        if moved:
            print(f"{self.folder}: {'; '.join(moved)}: the result may differ in the last bits", file=sys.stderr)
        self.record(**facts)

    @ranks.first_only
    def finish(self, outputs: Sequence[str] = ()) -> None:
        """Mark the stage done, with the fingerprints of its outputs; the marker is the last thing written."""
        self.record(outputs={name: files.fingerprint(self.folder / name) for name in outputs})
        files.write_atomic(StageDirectory(self.folder).done, "")


def open_stage(
    name: str,
    folder: Path,
    fields: Mapping[str, Any],
    inputs: Mapping[str, Path],
    extendable: Sequence[str] = (),
    rerun: bool = False,
    by_default: Mapping[str, Any] | None = None,
) -> Stage:
    """Open a stage's folder: start it, resume it, find it done, or refuse.

    `fields` are the recipe's fields that this stage depends on, `inputs` the files and folders it reads. Both are
    compared with what the folder was made from. A larger value of an `extendable` field reopens a finished stage.
    A stage with `rerun` (cheap, nothing to lose), or one that has made nothing yet, starts afresh on any change; any
    other refuses it. `by_default` are the recipe's values that nobody asked for, by dotted key.
    """
    description, facts, done = ranks.agreed(
        lambda: _opened(name, folder, flatten(fields), inputs, extendable, rerun, by_default or {})
    )
    return Stage(name, folder, description, dict(inputs), facts, done)


def _opened(
    name: str,
    folder: Path,
    flat: dict[str, Any],
    inputs: Mapping[str, Path],
    extendable: Sequence[str],
    rerun: bool,
    by_default: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Make a stage's folder ready; return its description, the facts known so far, and whether it is done."""
    previous = StageDirectory(folder).description
    description: dict[str, Any] = {
        "schema": run_schema.SCHEMA,
        "stage": name,
        "argv": sys.argv[1:],
        "owns": ownership.owned(name),
        "versions": versions(),
        "fields": flat,
        "defaults": [key for key in flat if key in by_default],
        "inputs": {key: files.fingerprint(path) for key, path in inputs.items()},
    }
    facts: dict[str, Any] = {}
    if previous.exists():
        recorded = read_stage(folder)
        if recorded["stage"] != name:
            raise UsageError(f"{folder}: holds the stage {recorded['stage']}, not {name}; name another folder")
        own = ownership.patterns_in(recorded)
        old = run_schema.translated(recorded, flat, description["defaults"])
        changes = _changes(old, description, extendable, inputs)
        if changes and not rerun and _has_made_something(folder, own):
            raise UsageError(_refusal(folder, changes))
        ownership.sweep(folder, own)
        extended = any(description["fields"].get(key) != old["fields"].get(key) for key in extendable)
        if changes or extended:
            StageDirectory(folder).done.unlink(missing_ok=True)
        if changes:
            ownership.remove(folder, [pattern for pattern in own if pattern != previous.name])
        else:
            facts = old.get("facts", {})
            if old.get("versions") != description["versions"] and not StageDirectory(folder).done.exists():
                print(f"{folder}: resumed with other versions; the result may differ in the last bits", file=sys.stderr)
    done = StageDirectory(folder).done.exists()
    if not done:
        files.write_sealed(previous, description | {"facts": facts})
    return description, facts, done


def read_stage(folder: Path) -> dict[str, Any]:
    """Return the `stage.json` of a folder."""
    stage = files.read_sealed(
        StageDirectory(folder).description, f"restore it, or remove {folder} to do this stage again"
    )
    run_schema.check(stage["schema"], StageDirectory(folder).description)
    return stage


def _has_made_something(folder: Path, patterns: Sequence[str]) -> bool:
    """Return whether a stage has made more than its description and hidden files."""
    paths = ownership.present(folder, patterns)
    return any(not path.name.startswith(".") and path.name != ownership.HERE.description.name for path in paths)


def _refusal(folder: Path, changes: Sequence[str]) -> str:
    """Return the message that a stage was made from something else, with the way out."""
    lines = "\n".join(f"  {change}" for change in changes)
    run = folder.parent
    if not RunDirectory(run).is_run():
        way = "name another folder with --out"
    elif folder.name == RunDirectory(run).data.folder.name:
        way = "start again in a new directory: preferent run RECIPE --out NEW_RUN"
    else:
        way = (
            "start again from here in a new directory, with the earlier stages of this run: "
            f"preferent run RECIPE --out NEW_RUN --from {folder.name} --of {run}"
        )
    return f"{folder}: was made from something else:\n{lines}\nGo back to the old values; or {way}"


def _changes(
    old: Mapping[str, Any], new: Mapping[str, Any], extendable: Sequence[str], inputs: Mapping[str, Path]
) -> list[str]:
    """Return what differs between two `stage.json`, one line each."""
    lines = []
    for key in sorted({*old["fields"], *new["fields"]}):
        before, after = old["fields"].get(key), new["fields"].get(key)
        if before != after and not (key in extendable and before is not None and after is not None and after > before):
            lines.append(f"{key}: was {before!r}, is now {after!r}")
    for key in sorted({*old["inputs"], *new["inputs"]}):
        if old["inputs"].get(key) != new["inputs"].get(key):
            path = inputs.get(key)
            what = " (weights, tokenizer or chat template)" if path is not None and path.is_dir() else ""
            lines.append(f"input {key}: its content changed{what}" + (f": {path}" if path is not None else ""))
    return lines
