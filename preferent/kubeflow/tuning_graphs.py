"""`reward_model_graph` and `reinforcement_learning_graph`: the two halves of `rlhf_pipeline`, each by itself."""

from typing import Any, NamedTuple, Optional

from kfp import dsl

from preferent.kubeflow import components
from preferent.kubeflow.pods import PodSettings
from preferent.kubeflow.rlhf_pipelines import LOCATION, PROJECT


class RewardOutputs(NamedTuple):
    """The folder of the divided preferences, and that of the reward model."""

    reward_dataset_path: str
    reward_model_adapter_path: str


class PolicyOutputs(NamedTuple):
    """The folders of the tuned model, whole and as the stage left it (an adapter, if LoRA tuned it)."""

    output_model_path: str
    output_adapter_path: str


def reward(pods: PodSettings) -> Any:
    """Return the graph that trains a reward model; its components run in pods of these settings."""

    @dsl.pipeline(name="reward-model-graph", description="Prepares preference data and trains a reward model.")
    def reward_model_graph(
        preference_dataset: str,
        large_model_reference: str,
        reward_model_reference: str,
        reward_model_path: str,
        machine_type: str,
        tuning_location: str,
        accelerator_type: str,
        accelerator_count: int,
        reward_model_image_uri: str,
        comma_separated_candidates_field_names: str,
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        batch_size: int = 64,
        lora_dim: int = 4,
        reward_model_learning_rate_multiplier: float = 1.0,
        reward_model_train_steps: int = 1000,
        eval_dataset: Optional[str] = None,
        instruction: Optional[str] = None,
        project: str = PROJECT,
        location: str = LOCATION,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
        num_microbatches: int = 0,
        recipe: str = "",
    ) -> RewardOutputs:
        values = dict(locals())
        run = pods.task(
            components.validate_pipeline,
            "Validate Inputs",
            values,
            pipeline_root=dsl.PIPELINE_ROOT_PLACEHOLDER,
            reward_model_reference=reward_model_path,
            prompt_dataset="",
            model_display_name="",
            reinforcement_learning_rate_multiplier=1.0,
            reinforcement_learning_train_steps=1000,
            kl_coeff=0.1,
            kind="reward",
        ).output
        divided = pods.task(components.rlhf_preprocessor, "Import Preference Dataset", run=run)
        trained = pods.task(components.reward_model_trainer, "Reward Model Trainer", run=run).after(divided)
        trained.set_accelerator_type(accelerator_type).set_accelerator_limit(accelerator_count)
        return RewardOutputs(trained.outputs["reward_dataset_path"], trained.outputs["output_adapter_path"])

    return reward_model_graph


def reinforcement(pods: PodSettings) -> Any:
    """Return the graph that tunes a policy against a reward model; its components run in pods of these settings."""

    @dsl.pipeline(name="reinforcement-learning-graph", description="Prepares prompt data and trains an RL model.")
    def reinforcement_learning_graph(
        prompt_dataset: str,
        input_reward_model_path: str,
        input_reward_adapter_path: str,
        input_preference_dataset_path: str,
        large_model_reference: str,
        reward_model_reference: str,
        policy_model_reference: str,
        policy_model_path: str,
        machine_type: str,
        tuning_location: str,
        accelerator_type: str,
        accelerator_count: int,
        rl_image_uri: str,
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        lora_dim: int = 1,
        reward_lora_dim: int = 4,
        batch_size: int = 64,
        reinforcement_learning_rate_multiplier: float = 1.0,
        reinforcement_learning_train_steps: int = 1000,
        kl_coeff: float = 0.1,
        instruction: Optional[str] = None,
        project: str = PROJECT,
        location: str = LOCATION,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
        num_microbatches: int = 0,
        recipe: str = "",
    ) -> PolicyOutputs:
        values = dict(locals())
        run = pods.task(
            components.validate_pipeline,
            "Validate Inputs",
            values,
            pipeline_root=dsl.PIPELINE_ROOT_PLACEHOLDER,
            large_model_reference=policy_model_path,
            reward_model=input_reward_adapter_path,
            preference_dataset="",
            eval_dataset="",
            model_display_name="",
            reward_model_learning_rate_multiplier=1.0,
            reward_model_train_steps=1000,
            kind="reinforcement",
        ).output
        divided = pods.task(components.rlhf_preprocessor, "Import Prompt Dataset", run=run)
        tuned = pods.task(components.reinforcer, "Reinforcer", run=run).after(divided)
        tuned.set_accelerator_type(accelerator_type).set_accelerator_limit(accelerator_count)
        return PolicyOutputs(tuned.outputs["output_model_path"], tuned.outputs["output_adapter_path"])

    return reinforcement_learning_graph
