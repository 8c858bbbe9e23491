"""`rlhf_pipeline`: reward model, reinforcement learning and verdict under the names of GCPC 2.22.0."""

from typing import Any, NamedTuple, Optional

from kfp import dsl

from preferent.kubeflow import components
from preferent.kubeflow.pods import PodSettings

PROJECT = "{{$.pipeline_google_cloud_project_id}}"
LOCATION = "{{$.pipeline_google_cloud_location}}"


class Outputs(NamedTuple):
    """The outputs of `rlhf_pipeline`: the folder of the tuned model, and an empty text, since nothing is deployed."""

    model_resource_name: str
    endpoint_resource_name: str


def _graphs(pods: PodSettings) -> tuple[Any, Any, Any]:
    """Return the graphs inside of the pipeline: reward models, policy, and answers with their verdict."""

    @dsl.pipeline(name="reward-model-graph", description="Trains a reward model, and one that judges.")
    def train_reward_model(run: str) -> None:
        pods.task(components.reward_model_trainer, "Reward Model Trainer", run=run)
        pods.task(components.judge_model_trainer, "Judge Model Trainer", run=run)

    @dsl.pipeline(name="reinforcement-learning-graph", description="Tunes the policy.")
    def reinforcement_learning(run: str) -> str:
        tuned = pods.task(components.reinforcer, "Reinforcer", run=run)
        return tuned.outputs["output_model_path"]

    @dsl.pipeline(name="infer-eval-template", description="Answers the test prompts, tuned and untuned, and judges.")
    def perform_inference(run: str) -> str:
        answers = pods.task(components.bulk_inferrer, "Bulk Inferrer", run=run)
        verdict = pods.task(components.side_by_side, "Side by Side", run=run).after(answers)
        pods.task(components.run_report, "Report", run=run).after(verdict)
        return answers.outputs["output_prediction_gcs_path"]

    return train_reward_model, reinforcement_learning, perform_inference


def rlhf(pods: PodSettings) -> Any:
    """Return the pipeline whose components run in pods of these settings."""
    train_reward_model, reinforcement_learning, perform_inference = _graphs(pods)

    @dsl.pipeline(name="rlhf-train-template", description="Performs reinforcement learning from human feedback.")
    def rlhf_pipeline(
        prompt_dataset: str,
        preference_dataset: str,
        large_model_reference: str,
        model_display_name: Optional[str] = None,
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        reward_model_learning_rate_multiplier: float = 1.0,
        reinforcement_learning_rate_multiplier: float = 1.0,
        reward_model_train_steps: int = 1000,
        reinforcement_learning_train_steps: int = 1000,
        kl_coeff: float = 0.1,
        instruction: Optional[str] = None,
        deploy_model: bool = True,
        eval_dataset: Optional[str] = None,
        project: str = PROJECT,
        accelerator_type: str = "GPU",
        location: str = LOCATION,
        encryption_spec_key_name: str = "",
        tensorboard_resource_id: str = "",
        recipe: str = "",
    ) -> Outputs:
        values = dict(locals())
        begun = pods.task(
            components.validate_pipeline,
            "Validate Inputs",
            values,
            pipeline_root=dsl.PIPELINE_ROOT_PLACEHOLDER,
        )
        run = begun.output
        divided = pods.task(components.rlhf_preprocessor, "Preprocess Inputs", run=run)
        base = pods.task(components.supervised_fine_tuner, "Supervised Fine Tuner", run=run).after(divided)
        reward = (
            train_reward_model(run=run).after(base).set_display_name("Train Reward Model").set_caching_options(False)
        )
        policy = (
            reinforcement_learning(run=run)
            .after(reward)
            .set_display_name("Reinforcement Learning")
            .set_caching_options(False)
        )
        with dsl.If(divided.outputs["Output"] == True, name="Perform Inference"):  # noqa: E712
            perform_inference(run=run).after(policy).set_caching_options(False)
        with dsl.Else(name="No Inference"):
            pods.task(components.run_report, "Report", run=run).after(policy)
        model = pods.task(components.refined_upload_llm_model, "Upload Model", run=run).after(policy)
        return Outputs(model.outputs["model_resource_name"], model.outputs["endpoint_resource_name"])

    return rlhf_pipeline
