"""How the components run on a cluster: image, volume, resources, retries."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from kfp import dsl

from preferent.config.gcpc_names import CLOUD_ONLY
from preferent.errors import UsageError
from preferent.kubeflow import components, parameters

IMAGE = "preferent:latest"
IGNORED = {*CLOUD_ONLY} - {"model_display_name"}
COMPUTE = (
    *("supervised_fine_tuner", "reward_model_trainer", "judge_model_trainer", "reinforcer", "bulk_inferrer"),
    *("prompt_inferrer", "batch_prediction_pairwise", "online_evaluation_pairwise", "format_preference_data"),
    "side_by_side",
)
"""The components that compute with models; accelerators, memory and processors are theirs."""


def named(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that a function has parameters for, without those that mean nothing here."""
    wanted = inspect.signature(function).parameters.keys() - IGNORED
    return {name: values[name] for name in values if name in wanted}


@dataclass(frozen=True)
class PodSettings:
    """The settings of all pods; `cpu`, `memory` and accelerators are those of the pods that compute with models.

    `volume` is the name of a persistent volume claim, mounted at `folder`: runs lie in it. `retries` is how often a
    failed task starts again; it goes on where it stopped. `components` has other values of these fields for single
    components, by the names of their functions: `{"reinforcer": {"accelerators": 4, "memory": "200G"}}`.
    """

    image: str = field(default_factory=lambda: os.environ.get("PREFERENT_IMAGE", IMAGE))
    volume: str = ""
    folder: str = "/runs"
    cpu: str = ""
    memory: str = ""
    accelerator: str = "nvidia.com/gpu"
    accelerators: int = 0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    retries: int = 0
    components: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {name for name, thing in vars(components).items() if inspect.isfunction(thing)} - {"component"}
        if unknown := sorted(self.components.keys() - known):
            raise UsageError(
                f"PodSettings: {', '.join(unknown)}: no such component; there are {', '.join(sorted(known))}"
            )

    def task(
        self, function: Callable[..., Any], title: str, values: Mapping[str, Any] = MappingProxyType({}), **more: Any
    ) -> Any:
        """Return the task of a component with these settings.

        Its arguments are `more`, and those of `values` that have the names of its parameters.
        """
        name = function.__name__
        own = replace(self, **self.components.get(name, {}), components={})
        made: Any = components.component(function, own.image)
        task: dsl.PipelineTask = made(**named(function, values) | more)
        task.set_display_name(title).set_caching_options(False)
        own._settle(task, name in COMPUTE or name in self.components)
        return task

    def _settle(self, task: Any, computes: bool) -> None:
        """Set retries, resources and the volume of a task."""
        if self.retries:
            task.set_retry(self.retries)
        if computes:
            self._compute(task)
        if self.volume:
            from kfp import kubernetes

            kubernetes.mount_pvc(task, pvc_name=self.volume, mount_path=self.folder)
            task.set_env_variable(parameters.ROOT, self.folder)

    def _compute(self, task: Any) -> None:
        if self.cpu:
            task.set_cpu_limit(self.cpu)
        if self.memory:
            task.set_memory_limit(self.memory)
        if self.accelerators:
            task.set_accelerator_type(self.accelerator).set_accelerator_limit(self.accelerators)
        if self.node_selector:
            from kfp import kubernetes

            for key, value in self.node_selector.items():
                kubernetes.add_node_selector(task, key, value)
