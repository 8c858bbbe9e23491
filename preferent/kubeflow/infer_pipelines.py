"""`infer_pipeline`: answers of a model or a checkpoint to every prompt of a dataset, under the names of GCPC 2.22.0."""

from typing import Any, NamedTuple, Optional

from kfp import dsl

from preferent.kubeflow import components
from preferent.kubeflow.pods import PodSettings
from preferent.kubeflow.rlhf_pipelines import LOCATION, PROJECT


class Predictions(NamedTuple):
    """The output of `infer_pipeline`: a folder with one file, `text.jsonl`."""

    output_prediction_gcs_path: str


def infer(pods: PodSettings, side: str = "") -> Any:
    """Return the pipeline whose components run in pods of these settings; `side` tells two of them apart."""

    @dsl.pipeline(
        name="infer-eval-template", description="Performs bulk inference on a dataset using a model checkpoint."
    )
    def infer_pipeline(
        large_model_reference: str,
        prompt_dataset: str,
        model_checkpoint: Optional[str] = None,
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        sampling_strategy: str = "greedy",
        instruction: Optional[str] = None,
        project: str = PROJECT,
        accelerator_type: str = "GPU",
        location: str = LOCATION,
        encryption_spec_key_name: str = "",
        recipe: str = "",
    ) -> Predictions:
        values = dict(locals())
        run = pods.task(
            components.infer_preprocessor,
            "Preprocess Inputs",
            values,
            pipeline_root=dsl.PIPELINE_ROOT_PLACEHOLDER,
            side=side,
        ).output
        answers = pods.task(components.prompt_inferrer, "Bulk Inferrer", values, run=run, side=side)
        return Predictions(answers.outputs["output_prediction_gcs_path"])

    return infer_pipeline
