"""`autosxs_pipeline`: two models or two columns of answers, compared by a judge, under the names of GCPC 2.22.0."""

from typing import Any, NamedTuple

from kfp import dsl

from preferent.kubeflow import components
from preferent.kubeflow.pods import PodSettings
from preferent.kubeflow.rlhf_pipelines import LOCATION, PROJECT


class Evaluation(NamedTuple):
    """The outputs of `autosxs_pipeline`: both resource names are empty, since nothing is registered."""

    model_a_evaluation_resource_name: str
    model_b_evaluation_resource_name: str
    evaluation_count: int
    evaluation_dataset_path: str


def autosxs(pods: PodSettings) -> Any:
    """Return the pipeline whose components run in pods of these settings."""

    @dsl.pipeline(name="autosxs-template", description="Determines the SxS winrate between two models.")
    def autosxs_pipeline(
        evaluation_dataset: str,
        task: str,
        id_columns: list[str],
        autorater_prompt_parameters: dict[str, dict[str, str]],
        model_a: str = "",
        model_b: str = "",
        model_a_prompt_parameters: dict[str, dict[str, str]] = {},  # noqa: B006 - GCPC's
        model_b_prompt_parameters: dict[str, dict[str, str]] = {},  # noqa: B006
        response_column_a: str = "",
        response_column_b: str = "",
        model_a_parameters: dict[str, str] = {},  # noqa: B006
        model_b_parameters: dict[str, str] = {},  # noqa: B006
        human_preference_column: str = "",
        project: str = PROJECT,
        location: str = LOCATION,
        judgments_format: str = "jsonl",
        bigquery_destination_prefix: str = "",
        experimental_args: dict[str, Any] = {},  # noqa: B006
        encryption_spec_key_name: str = "",
        recipe: str = "",
    ) -> Evaluation:
        values = dict(locals())
        begun = pods.task(
            components.batch_prediction_pairwise,
            "AutoSxS Batch Prediction",
            values,
            pipeline_root=dsl.PIPELINE_ROOT_PLACEHOLDER,
        )
        run = begun.outputs["Output"]
        judged = pods.task(components.online_evaluation_pairwise, "AutoSxS Autorater", run=run)
        measured = pods.task(components.model_evaluation_text_generation_pairwise, "AutoSxS Metrics", run=run).after(
            judged
        )
        return Evaluation(
            measured.outputs["model_a_evaluation_path"],
            measured.outputs["model_b_evaluation_path"],
            measured.outputs["evaluation_count"],
            measured.outputs["evaluation_dataset_path"],
        )

    return autosxs_pipeline
