"""The interface of compiled pipelines: parameters with types and defaults, outputs, names of pipelines and tasks."""

import tempfile
from pathlib import Path
from typing import Any

import yaml

NAMES = (
    *("rlhf_pipeline", "infer_pipeline", "rlaif_pipeline", "autosxs_pipeline"),
    *("reward_model_graph", "reinforcement_learning_graph"),
)


def specification(pipeline: Any) -> dict[str, Any]:
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline_func=pipeline, package_path=str(path))
        return next(yaml.safe_load_all(path.read_text()))


def titles(compiled: dict[str, Any], dag: dict[str, Any] | None = None) -> set[str]:
    """Return the display names of all tasks, those of inner graphs too."""
    names = set()
    for task in (dag or compiled["root"]["dag"])["tasks"].values():
        names.add(task["taskInfo"]["name"])
        inner = compiled["components"][task["componentRef"]["name"]].get("dag")
        names |= titles(compiled, inner) if inner else set()
    return names


def interface(pipeline: Any) -> dict[str, Any]:
    compiled = specification(pipeline)
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    outputs = compiled["root"]["outputDefinitions"]["parameters"]
    return {
        "name": compiled["pipelineInfo"]["name"],
        "inputs": {
            name: [of["parameterType"], bool(of.get("isOptional")), of.get("defaultValue")]
            for name, of in inputs.items()
        },
        "outputs": {name: of["parameterType"] for name, of in outputs.items()},
        "titles": sorted(titles(compiled)),
    }


def ours() -> dict[str, dict[str, Any]]:
    from preferent import kubeflow

    return {name: interface(getattr(kubeflow, name)) for name in NAMES}


def gcpc() -> dict[str, dict[str, Any]]:
    from google_cloud_pipeline_components._implementation.llm import (
        reinforcement_learning_graph,
        reward_model_graph,
    )
    from google_cloud_pipeline_components.preview.llm import infer_pipeline, rlaif_pipeline, rlhf_pipeline
    from google_cloud_pipeline_components.v1.model_evaluation import autosxs_pipeline

    graphs = reward_model_graph.pipeline, reinforcement_learning_graph.pipeline
    pipelines = rlhf_pipeline, infer_pipeline, rlaif_pipeline, autosxs_pipeline, *graphs
    return {name: interface(pipeline) for name, pipeline in zip(NAMES, pipelines, strict=True)}
