"""`rlaif_pipeline`: a judge prefers between the answers of two models, and `rlhf_pipeline` learns from it."""

from typing import Any, Optional

from kfp import dsl

from preferent.kubeflow import components
from preferent.kubeflow.infer_pipelines import infer
from preferent.kubeflow.pods import PodSettings, named
from preferent.kubeflow.rlhf_pipelines import LOCATION, PROJECT, Outputs, rlhf


def rlaif(pods: PodSettings) -> Any:
    """Return the pipeline whose components run in pods of these settings."""
    rlhf_pipeline, inferrers = rlhf(pods), {side: infer(pods, side) for side in "ab"}

    @dsl.pipeline(name="rlaif-pipeline", description="Performs reinforcement learning from AI feedback.")
    def rlaif_pipeline(
        prompt_dataset: str,
        preference_prompt_dataset: str,
        large_model_reference: str,
        task_type: str,
        model_display_name: Optional[str] = None,
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        large_model_a_reference: str = "text-bison@001",
        large_model_b_reference: str = "t5-small",
        reward_model_learning_rate_multiplier: float = 1.0,
        reinforcement_learning_rate_multiplier: float = 1.0,
        reward_model_train_steps: int = 1000,
        reinforcement_learning_train_steps: int = 1000,
        kl_coeff: float = 0.1,
        sampling_strategy: str = "temperature_sampling",
        instruction: Optional[str] = None,
        eval_dataset: Optional[str] = None,
        project: str = PROJECT,
        accelerator_type: str = "GPU",
        location: str = LOCATION,
        tensorboard_resource_id: Optional[str] = None,
        recipe: str = "",
    ) -> Outputs:
        values = dict(locals())
        answers = {
            side: inferrers[side](
                **named(inferrers[side].pipeline_func, values)
                | {"large_model_reference": model, "prompt_dataset": preference_prompt_dataset, "model_checkpoint": ""}
            )
            .set_display_name(f"Inferrer {side.upper()}")
            .set_caching_options(False)
            for side, model in (("a", large_model_a_reference), ("b", large_model_b_reference))
        }
        feedback = pods.task(
            components.format_preference_data,
            "Build AI Feedback",
            values,
            pipeline_root=dsl.PIPELINE_ROOT_PLACEHOLDER,
            answers_a=answers["a"].outputs["output_prediction_gcs_path"],
            answers_b=answers["b"].outputs["output_prediction_gcs_path"],
            prompts=preference_prompt_dataset,
        )
        model = (
            rlhf_pipeline(
                **named(rlhf_pipeline.pipeline_func, values) | {"preference_dataset": feedback.outputs["Output"]}
            )
            .set_display_name("Reinforcement Learning From AI Feedback")
            .set_caching_options(False)
        )
        return Outputs(model.outputs["model_resource_name"], model.outputs["endpoint_resource_name"])

    return rlaif_pipeline
