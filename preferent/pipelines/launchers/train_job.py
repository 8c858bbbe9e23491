"""A stage of a run as a TrainJob of Kubeflow Trainer: several nodes of a Kubernetes cluster compute it together.

The runtime `torch-distributed` of the cluster gives torchrun its numbers in the environment (`PET_NNODES`, …), and
torchrun runs the command that `preferent run` would. The nodes share the volume of the run directory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preferent.config import stage_graph
from preferent.config.recipe import Recipe
from preferent.config.stage_graph import Task
from preferent.errors import UsageError
from preferent.pipelines.launchers import child_process
from preferent.runs import environment

JOBSET = "jobset.sigs.k8s.io/jobset-name"
"""The label that the pods of a TrainJob share; its value is the job's name."""
LONGEST_NAME = 50
"""Characters of a job's name: the names of its pods are longer and have 63 at most."""
NODE = "node"
"""What the runtime calls the job of its nodes, and the container in it."""
USER = 10001
"""That of the image."""
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Nodes:
    """The nodes of a job. All of them mount the persistent volume claim `claim` at `folder`. `cpu` and `memory` are
    what a node needs, and `gpus` how many it has, with a process for each; without GPUs the recipe's `processes`
    counts."""

    image: str
    claim: str
    nodes: int = 2
    gpus: int | None = None
    cpu: str | None = None
    memory: str | None = None
    folder: Path = Path("/runs")
    runtime: str = "torch-distributed"


def text(recipe: Recipe, stage: str, out: Path, nodes: Nodes) -> str:
    """Return the manifest of a stage of a run in the directory `out` of the pods, as YAML for `kubectl apply`.

    It has two documents: a network policy that lets the pods of the job alone reach each other, since torchrun listens
    on all addresses, and the TrainJob (`trainer.kubeflow.org/v1alpha1`, of Kubeflow Trainer 2.2 and later).
    """
    task = _task(recipe, stage)
    if not out.is_absolute() or not out.is_relative_to(nodes.folder):
        raise UsageError(
            f"--out {out}: is not on the volume that the pods mount at {nodes.folder}; name a folder there"
        )
    name = _label(f"{out.name}-{task.name}")
    return yaml.safe_dump_all([_policy(name), _job(name, recipe, task, out, nodes)], sort_keys=False)


def _task(recipe: Recipe, stage: str) -> Task:
    """Return the task of a stage that several processes can share."""
    tasks = {task.name: task for task in stage_graph.build(recipe)}
    shared = [name for name, task in tasks.items() if task.stage not in environment.BY_ONE]
    if stage not in shared:
        why = "is done by one process" if stage in tasks else "is not a stage of this recipe"
        raise UsageError(f"train-job: {stage} {why}; several nodes can do {', '.join(shared)}")
    return tasks[stage]


def _label(name: str) -> str:
    """Return a name as a label of RFC 1035: lower case letters, digits and hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"run-{plain}")[:LONGEST_NAME].strip("-")


def _policy(name: str) -> dict[str, Any]:
    def pods() -> dict[str, Any]:
        return {"podSelector": {"matchLabels": {JOBSET: name}}}

    spec = {**pods(), "policyTypes": ["Ingress"], "ingress": [{"from": [pods()]}]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec}


def _job(name: str, recipe: Recipe, task: Task, out: Path, nodes: Nodes) -> dict[str, Any]:
    trainer = {
        "image": nodes.image,
        "command": ["torchrun", "-m", "preferent"],
        "args": list(task.command(str(out))),
        "env": [{"name": name, "value": setting} for name, setting in _environment(nodes).items()],
        "numNodes": nodes.nodes,
        "numProcPerNode": _processes(recipe, nodes),
        **_resources(nodes),
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": nodes.runtime},
            "trainer": trainer,
            "runtimePatches": [{"manager": "preferent", "trainingRuntimeSpec": _patch(nodes)}],
        },
    }


def _processes(recipe: Recipe, nodes: Nodes) -> int:
    """Return the processes of a node."""
    if nodes.gpus is not None:
        return nodes.gpus
    if recipe.processes == "auto":
        raise UsageError(
            "train-job: processes: auto counts GPUs where the command is; say how many a node has: --gpus N"
        )
    return recipe.processes


def _environment(nodes: Nodes) -> dict[str, str]:
    return {**child_process.SAFE, **child_process.ALLOCATOR, "HF_HOME": str(nodes.folder / ".huggingface")}


def _resources(nodes: Nodes) -> dict[str, Any]:
    gpus = str(nodes.gpus) if nodes.gpus else None
    wanted = {
        "requests": _known({"cpu": nodes.cpu, "memory": nodes.memory}),
        "limits": _known({"memory": nodes.memory, GPU: gpus}),
    }
    stated = {kind: amounts for kind, amounts in wanted.items() if amounts}
    return {"resourcesPerNode": stated} if stated else {}


def _known(amounts: Mapping[str, str | None]) -> dict[str, str]:
    return {name: amount for name, amount in amounts.items() if amount is not None}


def _patch(nodes: Nodes) -> dict[str, Any]:
    """Return what the pods have beside the runtime's own: the volume, room to write, and no rights that they do not
    need. Processes of one node share memory in /dev/shm."""
    volumes: dict[str, tuple[str, dict[str, Any]]] = {
        "runs": (str(nodes.folder), {"persistentVolumeClaim": {"claimName": nodes.claim}}),
        "scratch": ("/tmp", {"emptyDir": {}}),
        "shared-memory": ("/dev/shm", {"emptyDir": {"medium": "Memory"}}),
    }
    container = {
        "name": NODE,
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    nobody = {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
    pod: dict[str, Any] = {
        "containers": [container],
        "volumes": [{"name": name, **source} for name, (_, source) in volumes.items()],
        "securityContext": nobody,
    }
    node = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [node]}}}
