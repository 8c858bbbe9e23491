"""The components: one per group of stages, each a function that a pod calls, with the names that GCPC gives its own.

Kubeflow copies the source of each function into the pipeline's YAML, so that each imports what it needs by itself.
"""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Metrics, Model, Output, OutputPath


def validate_pipeline(
    pipeline_root: str,
    large_model_reference: str,
    prompt_dataset: str,
    preference_dataset: str,
    eval_dataset: str,
    model_display_name: str,
    prompt_sequence_length: int,
    target_sequence_length: int,
    reward_model_learning_rate_multiplier: float,
    reinforcement_learning_rate_multiplier: float,
    reward_model_train_steps: int,
    reinforcement_learning_train_steps: int,
    kl_coeff: float,
    instruction: str,
    recipe: str,
    kind: str = "rlhf",
    reward_model_reference: str = "",
    reward_model: str = "",
    batch_size: int = 0,
    lora_dim: int = -1,
) -> str:
    """Check the parameters of a pipeline, write the recipe of its run, and return the run directory."""
    values = dict(locals())
    from preferent.kubeflow import component_work, parameters

    with component_work.told():
        fields = {name: value for name, value in values.items() if name in parameters.FIELDS}
        fields |= parameters.tuning_fields(kind, reward_model, batch_size, lora_dim)
        return component_work.begin(pipeline_root, model_display_name, kind, fields, recipe)


def rlhf_preprocessor(
    run: str, prompts: Output[Dataset], preferences: Output[Dataset], counts: Output[Metrics]
) -> bool:
    """Divide the data of a run by prompt into training, validation and test; return whether it is to be evaluated."""
    from preferent.kubeflow import component_work

    component_work.stages(run, lambda task: task.stage == "data")
    component_work.publish_data(run, prompts.path, preferences.path)
    component_work.log(counts, component_work.row_counts(run))
    return component_work.recipe_of(run).eval_dataset is not None


def supervised_fine_tuner(run: str, model: Output[Model]) -> None:
    """Tune the model on demonstrations, if the recipe has a section sft."""
    from preferent.kubeflow import component_work

    component_work.stages(run, lambda task: task.stage == "sft")
    component_work.publish_model(run, "sft", model.path)


def reward_model_trainer(
    run: str,
    reward_model: Output[Model],
    tensorboard_metrics: Output[Artifact],
    metrics: Output[Metrics],
    output_adapter_path: OutputPath(str),  # type: ignore[valid-type]
    reward_dataset_path: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Train the reward models that the policy is tuned against."""
    from preferent.kubeflow import component_work

    names = component_work.trained_rewards(run)
    component_work.stages(run, lambda task: task.name in names)
    path = component_work.publish_stage(
        run, "reward", "reward-model-trainer", reward_model.path, tensorboard_metrics.path
    )
    component_work.write_text(output_adapter_path, path)
    component_work.write_text(reward_dataset_path, component_work.preferences_of(run))
    component_work.log(metrics, component_work.last_values(run, "reward"))


def judge_model_trainer(run: str, judge: Output[Model], metrics: Output[Metrics]) -> None:
    """Train the independent reward model that judges, which the policy never sees."""
    from preferent.kubeflow import component_work

    component_work.stages(run, lambda task: task.name == "judge")
    component_work.publish_model(run, "judge", judge.path)
    component_work.log(metrics, component_work.last_values(run, "judge"))


def reinforcer(
    run: str,
    policy: Output[Model],
    tensorboard_metrics: Output[Artifact],
    metrics: Output[Metrics],
    output_model_path: OutputPath(str),  # type: ignore[valid-type]
    output_adapter_path: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Tune the policy by reinforcement learning, or by the other method that the recipe names."""
    from preferent.kubeflow import component_work

    component_work.stages(run, lambda task: task.folder == "policy")
    path = component_work.publish_stage(run, "policy", "reinforcer", policy.path, tensorboard_metrics.path)
    component_work.write_text(output_adapter_path, path)
    component_work.write_text(output_model_path, component_work.whole_model(run))
    component_work.log(metrics, component_work.last_values(run, "policy"))


def bulk_inferrer(
    run: str,
    output_prediction: Output[Dataset],
    untuned_prediction: Output[Dataset],
    output_prediction_gcs_path: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Answer the test prompts of a run with the tuned model and with what it started from."""
    from preferent.kubeflow import component_work

    component_work.stages(run, lambda task: task.stage == "infer")
    path = component_work.publish_predictions(run, output_prediction.path, untuned_prediction.path)
    component_work.write_text(output_prediction_gcs_path, path)


def side_by_side(run: str, judgments: Output[Dataset], metrics: Output[Metrics]) -> str:
    """Judge the tuned answers against those of the base; return the verdict in a sentence."""
    from preferent.kubeflow import component_work

    component_work.stages(run, lambda task: task.stage == "compare")
    component_work.publish_judgments(run, judgments.path)
    sentence, figures = component_work.verdict(run)
    component_work.log(metrics, figures)
    return sentence


def run_report(run: str, report: Output[HTML]) -> None:
    """Write the report of a run: one HTML file with the curves, the verdict if there is one, and the answers."""
    from preferent.kubeflow import component_work

    component_work.stages(run, lambda task: task.stage == "report")
    component_work.publish_report(run, report.path)


def refined_upload_llm_model(
    run: str,
    model_resource_name: OutputPath(str),  # type: ignore[valid-type]
    endpoint_resource_name: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Name the tuned model where GCPC names what it uploaded: a folder. Nothing is uploaded or deployed."""
    from preferent.kubeflow import component_work

    component_work.write_text(model_resource_name, component_work.whole_model(run))
    component_work.write_text(endpoint_resource_name, "")


def infer_preprocessor(
    pipeline_root: str,
    large_model_reference: str,
    prompt_dataset: str,
    prompt_sequence_length: int,
    target_sequence_length: int,
    sampling_strategy: str,
    instruction: str,
    recipe: str,
    side: str,
) -> str:
    """Check the parameters of an inference, write the recipe of its run, and return the run directory."""
    from preferent.kubeflow import component_work, parameters

    values = {name: value for name, value in locals().items() if name in parameters.FIELDS}
    values["infer"] = {"sampling_strategy": sampling_strategy}
    with component_work.told():
        return component_work.begin(pipeline_root, "", f"infer{side}", values, recipe)


def prompt_inferrer(
    run: str,
    large_model_reference: str,
    model_checkpoint: str,
    prompt_dataset: str,
    side: str,
    output_prediction: Output[Dataset],
    output_prediction_gcs_path: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Answer every prompt of a dataset with a checkpoint, or with the model itself where none is named."""
    from preferent.kubeflow import component_work

    answers = component_work.answer(run, model_checkpoint or large_model_reference, prompt_dataset, side)
    path = component_work.publish_answers(run, answers, output_prediction.path)
    component_work.write_text(output_prediction_gcs_path, path)


def format_preference_data(
    pipeline_root: str,
    answers_a: str,
    answers_b: str,
    prompts: str,
    task_type: str,
    recipe: str,
    judgments: Output[Dataset],
    counts: Output[Metrics],
) -> str:
    """Have a judge choose between the answers of two models, in both orders; return the file of preferences."""
    from preferent.kubeflow import autosxs_work, component_work

    with component_work.told():
        feedback = autosxs_work.preferences(pipeline_root, answers_a, answers_b, prompts, task_type, recipe)
    component_work.publish(feedback.judgments, judgments.path)
    component_work.log(counts, feedback.counts)
    return feedback.preferences


def batch_prediction_pairwise(
    pipeline_root: str,
    evaluation_dataset: str,
    task: str,
    id_columns: list,
    autorater_prompt_parameters: dict,
    model_a: str,
    model_b: str,
    model_a_prompt_parameters: dict,
    model_b_prompt_parameters: dict,
    response_column_a: str,
    response_column_b: str,
    model_a_parameters: dict,
    model_b_parameters: dict,
    human_preference_column: str,
    judgments_format: str,
    experimental_args: dict,
    recipe: str,
    preprocessed_evaluation_dataset: Output[Dataset],
    error_messages: Output[Dataset],
) -> str:
    """Read the rows to compare, have models answer where there are no answers, and return the run directory."""
    values = {name: value for name, value in locals().items() if isinstance(value, (str, list, dict))}
    from preferent.kubeflow import autosxs_work, component_work

    with component_work.told():
        run = autosxs_work.begin(values)
    component_work.publish(autosxs_work.rows_of(run), preprocessed_evaluation_dataset.path)
    component_work.publish(autosxs_work.errors_of(run), error_messages.path)
    return run


def online_evaluation_pairwise(run: str, judgments: Output[Dataset], error_messages: Output[Dataset]) -> str:
    """Have the judge choose between both answers of each row, in both orders; return the file of judgments."""
    from preferent.kubeflow import autosxs_work, component_work

    with component_work.told():
        place = autosxs_work.judge(run)
    component_work.publish(autosxs_work.judgments_of(run), judgments.path)
    component_work.publish(autosxs_work.unjudged_of(run), error_messages.path)
    return place


def model_evaluation_text_generation_pairwise(
    run: str,
    autosxs_metrics: Output[Metrics],
    evaluation_count: OutputPath(int),  # type: ignore[valid-type]
    evaluation_dataset_path: OutputPath(str),  # type: ignore[valid-type]
    model_a_evaluation_path: OutputPath(str),  # type: ignore[valid-type]
    model_b_evaluation_path: OutputPath(str),  # type: ignore[valid-type]
) -> None:
    """Say how often each model won, and how well the judge agrees with people, under the names of AutoSxS."""
    from preferent.kubeflow import autosxs_work, component_work

    figures = autosxs_work.figures(run)
    component_work.log(autosxs_metrics, figures)
    component_work.write_text(evaluation_count, str(int(figures["evaluation_count"])))
    component_work.write_text(evaluation_dataset_path, autosxs_work.place_of_judgments(run))
    for path in (model_a_evaluation_path, model_b_evaluation_path):
        component_work.write_text(path, "")


def component(function: object, image: str) -> object:
    """Return the component of a function, which runs in the container `image`."""
    return dsl.component(func=function, base_image=image, install_kfp_package=False)
