"""The pipelines of Google Cloud Pipeline Components, open: on a laptop, on any Kubeflow Pipelines, on Vertex AI.

    from preferent.kubeflow import PipelineJob, rlhf_pipeline
    PipelineJob("my", pipeline_root="runs", pipeline_func=rlhf_pipeline, parameter_values={...}).run()

Names are imported when they are first used: a component, which needs none of them, runs where kfp cannot compile.
"""

import importlib
from typing import Any

PLACES = {
    "rlhf_pipeline": "gcpc_pipelines",
    "infer_pipeline": "gcpc_pipelines",
    "rlaif_pipeline": "gcpc_pipelines",
    "autosxs_pipeline": "gcpc_pipelines",
    "reward_model_graph": "gcpc_pipelines",
    "reinforcement_learning_graph": "gcpc_pipelines",
    "PipelineJob": "pipeline_job",
    "PipelineState": "pipeline_job",
    "PodSettings": "pods",
}
__all__ = list(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "kfp":
            raise
        raise ImportError("preferent.kubeflow needs a missing package: pip install 'preferent[kubeflow]'") from None
