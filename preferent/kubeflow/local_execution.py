"""A pipeline on this machine, by kfp.local: a process of its own that runs it, and what it left.

    python -m preferent.kubeflow.local_execution JOB

JOB is the folder of a job: `job.json` holds the pipeline's file, the root and the parameters; `outcome.json` is written
at the end.
"""

import json
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferent import files

STARTED = re.compile(r"Executing task \W*'?([\w-]+)'?")
ENDED = re.compile(r"Task \W*'?([\w-]+)'?\W* finished with status \W*(\w+)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MADE = re.compile(r"[\w-]+-\d{4}(-\d\d){5}-\d+")
"""The name that kfp gives the folder of a pipeline's outputs."""


@dataclass(frozen=True)
class OutputArtifact:
    """An artifact of a task: its folder or file, and its metadata, which hold the figures of metrics."""

    name: str
    uri: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArtifactList:
    """The artifacts of one output."""

    artifacts: list[OutputArtifact]


@dataclass(frozen=True)
class TaskDetail:
    """A task of a job: its name, its state, its artifacts by output, and its parameters."""

    task_name: str
    state: str
    outputs: Mapping[str, ArtifactList] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


def events(log: str) -> Iterator[tuple[str, str]]:
    """Yield each task that a log names, with `RUNNING` when it begins and its status when it ends."""
    for line in COLOUR.sub("", log).splitlines():
        if match := ENDED.search(line):
            yield match[1], match[2]
        elif match := STARTED.search(line):
            yield match[1], "RUNNING"


def task_details(log: str, root: Path) -> list[TaskDetail]:
    """Return the tasks that a log names, in the order in which they began, with what they left below `root`."""
    states: dict[str, str] = {}
    states.update(events(log))
    folders = [root / name for name in dict.fromkeys(match[0] for match in MADE.finditer(log))]
    folder = next((place for place in folders if place.is_dir()), root)
    return [_detail(name, state, folder / name) for name, state in states.items()]


def _detail(name: str, state: str, folder: Path) -> TaskDetail:
    path = folder / "executor_output.json"
    written = json.loads(path.read_text()) if path.exists() else {}
    outputs = {
        key: ArtifactList(
            [OutputArtifact(one["name"], one["uri"], one.get("metadata", {})) for one in listed["artifacts"]]
        )
        for key, listed in written.get("artifacts", {}).items()
    }
    parameters = dict(written.get("parameterValues", {}))
    for place in folder.glob("*"):
        if place.is_file() and place.name != path.name and place.name not in outputs and place.stat().st_size < 10_000:
            parameters.setdefault(place.name, place.read_text())
    return TaskDetail(name, state, outputs, parameters)


def main() -> None:
    """Run the pipeline of a job and write its outcome.

    SIGINT goes to the whole job. It ends the task that runs, and we read what that says until it has saved.
    """
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which tasks would inherit
    from kfp import components, local

    folder = Path(sys.argv[1])
    job = files.read_json(folder / "job.json")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=job["root"], raise_on_error=True)
    outputs = components.load_component_from_file(job["pipeline"])(**job["parameters"]).outputs
    files.write_json(
        folder / "outcome.json", {name: outputs[name] for name in outputs if not hasattr(outputs[name], "uri")}
    )


if __name__ == "__main__":
    main()
