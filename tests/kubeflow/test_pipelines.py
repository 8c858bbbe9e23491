"""Inference with a checkpoint, AI feedback and side by side, whole; and what a job refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import fake_endpoint
import pytest

pytest.importorskip("kfp")

from work import LENGTHS, RECIPE, folder, parameter_values  # noqa: F401

from preferent import files
from preferent.errors import PreferentError, UsageError

SMALL = "threads: 1\nprecision: fp32\n"


@pytest.fixture(scope="module")
def run(make_run):
    """A run with a policy and a reward model that differ from the base."""
    return make_run()


def test_an_adapter_is_merged_whole_and_again_when_it_changes(make_run):
    from preferent.kubeflow import component_work

    run = make_run(2)
    unfinished = run.with_name(f"{run.name}-artifacts") / "reinforcer/.merged.unfinished"
    files.write_atomic(unfinished / "config.json", "{}")
    first = Path(component_work.whole_model(str(run)))
    assert (first / "model.safetensors").exists() and not (first / "adapter_config.json").exists()
    assert not unfinished.exists() and component_work.whole_model(str(run)) == str(first)
    weights = run / "policy/model/adapter_model.safetensors"
    weights.write_bytes((make_run(2, seed=1) / "policy/model/adapter_model.safetensors").read_bytes())
    weights.with_name("README.md").write_text("changed")
    assert component_work.whole_model(str(run)) != str(first)


def answers(job):
    return files.read_jsonl(Path(job.outputs["output_prediction_gcs_path"]) / "text.jsonl")


def test_inference_honours_the_checkpoint_and_answers_every_prompt(folder, tiny, run):
    from preferent.kubeflow import PipelineJob, infer_pipeline

    (folder / "twice.jsonl").write_text((folder / "eval.jsonl").read_text() * 2)
    values = {"large_model_reference": str(tiny), "prompt_dataset": "twice.jsonl", "recipe": SMALL, **LENGTHS}
    jobs = [
        PipelineJob("infer", pipeline_root="bucket", pipeline_func=infer_pipeline, parameter_values=values | more)
        for more in ({}, {"model_checkpoint": str(run / "policy/model")})
    ]
    rows = []
    for job in jobs:
        job.run()
        rows.append(answers(job))
    assert [len(each) for each in rows] == [16, 16], "repeated prompts do not collapse"
    assert [row["prediction"] for row in rows[0]] != [row["prediction"] for row in rows[1]]


def test_a_judge_that_prefers_makes_the_preferences_that_are_learnt_from(folder, tiny, run):
    from preferent.kubeflow import PipelineJob, rlaif_pipeline

    values = parameter_values(tiny, reward_model_train_steps=2, reinforcement_learning_train_steps=1)
    del values["preference_dataset"]
    values |= {
        "preference_prompt_dataset": "prompts.jsonl",
        "task_type": "summarization@001",
        "large_model_a_reference": str(tiny),
        "large_model_b_reference": str(run / "policy/model"),
        "recipe": f"{RECIPE}autorater: {run / 'reward/model'}\n",
    }
    job = PipelineJob("feedback", pipeline_root="bucket", pipeline_func=rlaif_pipeline, parameter_values=values)
    job.run()
    details = {task.task_name: task for task in job.task_details}
    counts = details["format-preference-data"].outputs["counts"].artifacts[0].metadata
    assert counts["judgments"] == 32 == counts["preferences"] + counts["left out"]
    rows = files.read_jsonl(Path(details["format-preference-data"].parameters["Output"]))
    assert all("Go on." not in row["input_text"] for row in rows), "the instruction is applied once"
    assert Path(job.outputs["model_resource_name"], "model.safetensors").exists()


def test_two_columns_of_answers_side_by_side_with_peoples_choices(folder, run):
    from preferent.kubeflow import PipelineJob, autosxs_pipeline

    rows = [
        {
            "content": f"q{i}",
            "prompt": f"what {i}",
            "response_a": "yes " + "a" * i,
            "response_b": "no",
            "human": "AB"[i % 2],
        }
        for i in range(8)
    ]
    rows.append({"id_columns": {"content": "q8"}, "prompt": "what", "response_a": "x", "response_b": "y", "human": "?"})
    rows.append({"content": "q9"})
    (folder / "sxs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "evaluation_dataset": "sxs.jsonl",
        "task": "summarization@001",
        "id_columns": ["content"],
        "autorater_prompt_parameters": {
            "inference_instruction": {"template": "{{ default_instruction }} {{ prompt }}"},
            "inference_context": {"column": "prompt"},
        },
        "human_preference_column": "human",
        "recipe": f"{SMALL}autorater: {run / 'reward/model'}\n",
    }
    job = PipelineJob("sxs", pipeline_root="bucket", pipeline_func=autosxs_pipeline, parameter_values=values)
    job.run()
    assert int(job.outputs["evaluation_count"]) == 9
    details = {task.task_name: task for task in job.task_details}
    path = details["online-evaluation-pairwise"].outputs["judgments"].artifacts[0].uri
    judgments = files.read_jsonl(Path(path))
    assert {row["content"] for row in judgments} == {f"q{i}" for i in range(9)}
    assert all(row["id_columns"] == {"content": row["content"]} for row in judgments)
    assert judgments[0]["inference_instruction"] == "Summarize the text. what 0"
    metrics = details["model-evaluation-text-generation-pairwise"].outputs["autosxs_metrics"].artifacts[0].metadata
    wins = sum(row["choice"] == "A" for row in judgments) + sum(row["choice"] == "tie" for row in judgments) / 2
    assert metrics["autosxs_model_a_win_rate"] == pytest.approx(wins / 9)
    assert metrics["autosxs_model_a_win_rate_low"] < wins / 9 < metrics["autosxs_model_a_win_rate_high"]
    votes = {row["content"]: row["human"] for row in rows[:8]}
    right = sum(row["choice"] == votes.get(row["content"]) for row in judgments)
    assert (metrics["n"], metrics["accuracy"]) == (8, pytest.approx(right / 8))
    assert metrics["unusable_rows"] == 1 and metrics["unreadable_votes"] == 1 and "content" not in metrics


def longer_unless_muddled(request):
    """A judge that likes the longer answer; to answers with the word muddle it says nothing that can be read."""
    if any("muddle" in response for response in request.responses):
        return fake_endpoint.completion("Well, who knows.")
    choice = fake_endpoint.prefers(request, lambda first, second: len(first) > len(second))
    return fake_endpoint.completion(f"It is longer.\nVerdict: {choice}")


def test_a_language_model_judges_in_both_orders_and_what_cannot_be_read_is_counted(folder):
    from preferent.kubeflow import PipelineJob, autosxs_pipeline

    rows = [{"content": f"q{i}", "prompt": "p", "response_a": "yes" * (i + 1), "response_b": "no"} for i in range(5)]
    rows[4]["response_a"] = "a muddle"
    (folder / "spoken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with fake_endpoint.serving(longer_unless_muddled) as endpoint:
        values = {
            "evaluation_dataset": "spoken.jsonl",
            "task": "question_answering@001",
            "id_columns": ["content"],
            "autorater_prompt_parameters": {"inference_context": {"column": "prompt"}},
            "experimental_args": {"autorater": f"{endpoint.url}#judge"},
            "recipe": SMALL,
        }
        job = PipelineJob("spoken", pipeline_root="bucket", pipeline_func=autosxs_pipeline, parameter_values=values)
        job.run()
    details = {task.task_name: task for task in job.task_details}
    outputs = details["online-evaluation-pairwise"].outputs
    judgments = files.read_jsonl(Path(outputs["judgments"].artifacts[0].uri))
    assert [(row["content"], row["choice"]) for row in judgments] == [(f"q{i}", "A") for i in range(4)]
    assert [row["content"] for row in files.read_jsonl(Path(outputs["error_messages"].artifacts[0].uri))] == ["q4"]
    metrics = details["model-evaluation-text-generation-pairwise"].outputs["autosxs_metrics"].artifacts[0].metadata
    assert metrics["unreadable_verdicts"] == 1 and metrics["autosxs_model_a_win_rate"] == pytest.approx(1.0)


def test_a_model_answers_where_there_is_no_column(folder, tiny, run):
    from preferent.kubeflow import PipelineJob, autosxs_pipeline

    values = {
        "evaluation_dataset": "eval.jsonl",
        "task": "question_answer",
        "id_columns": ["input_text"],
        "autorater_prompt_parameters": {"inference_context": {"column": "input_text"}},
        "model_a": str(tiny),
        "model_b": str(run / "policy/model"),
        "model_a_prompt_parameters": {"prompt": {"template": "{{ default_instruction }}: {{ input_text }}"}},
        "model_b_parameters": {"temperature": 1.0, "max_output_tokens": 5},
        "recipe": f"{SMALL}autorater: {run / 'reward/model'}\n",
    }
    job = PipelineJob("models", pipeline_root="bucket", pipeline_func=autosxs_pipeline, parameter_values=values)
    job.run()
    assert int(job.outputs["evaluation_count"]) == 8


def test_a_mistake_is_told_in_the_words_of_the_stage(folder, tiny):
    from preferent.kubeflow import PipelineJob, rlhf_pipeline

    values = parameter_values(tiny)
    with pytest.raises(UsageError, match="unknown; the parameters are"):
        PipelineJob("a", pipeline_func=rlhf_pipeline, parameter_values=values | {"learning_rate": 1})
    with pytest.raises(UsageError, match="prompt_dataset: is missing"):
        PipelineJob("a", pipeline_func=rlhf_pipeline, parameter_values={})
    twice = PipelineJob("b", None, "bucket", values | {"recipe": "kl_coeff: 1"}, rlhf_pipeline)
    with pytest.raises(PreferentError, match="kl_coeff: is a parameter of the pipeline"):
        twice.run()
    missing = PipelineJob("c", None, "bucket", values | {"preference_dataset": "none.jsonl"}, rlhf_pipeline)
    with pytest.raises(PreferentError, match=r"failed: .*none\.jsonl"):
        missing.run()


def test_a_job_is_handed_to_kubeflow_with_its_parameters_and_without_cache(folder, monkeypatch):
    import kfp

    from preferent.kubeflow import PipelineJob, PipelineState, infer_pipeline

    calls = []

    class Client:
        def __init__(self, host):
            calls.append(host)

        def create_run_from_pipeline_package(self, path, **options):
            calls.append(options)
            return SimpleNamespace(run_id="r1")

        def wait_for_run_completion(self, run_id, timeout):
            return SimpleNamespace(state="SUCCEEDED" if run_id == "r1" else "FAILED")

        def get_run(self, run_id):
            tasks = [SimpleNamespace(display_name="Bulk Inferrer", state="SUCCEEDED")]
            return SimpleNamespace(run_details=SimpleNamespace(task_details=tasks))

    monkeypatch.setattr(kfp, "Client", Client)
    values = {"large_model_reference": "m", "prompt_dataset": "p.jsonl"}
    job = PipelineJob("far", None, "s3://bucket/runs", values, infer_pipeline, host="http://127.0.0.1:1")
    job.run(service_account="preferent")
    assert calls[0] == "http://127.0.0.1:1" and calls[1]["service_account"] == "preferent"
    assert calls[1]["enable_caching"] is False and calls[1]["pipeline_root"] == "s3://bucket/runs"
    assert calls[1]["arguments"] == values | {"model_checkpoint": "", "instruction": ""}
    assert job.state is PipelineState.PIPELINE_STATE_SUCCEEDED
    assert [task.task_name for task in job.task_details] == ["Bulk Inferrer"]


def test_a_job_is_handed_to_vertex(folder, monkeypatch):
    aiplatform = pytest.importorskip("google.cloud.aiplatform")
    from preferent.kubeflow import PipelineJob, infer_pipeline

    calls = []

    class Job:
        task_details = ()

        def __init__(self, **options):
            calls.append(options)

        def submit(self, service_account):
            calls.append(service_account)

        def wait(self):
            calls.append("waited")

    monkeypatch.setattr(aiplatform, "PipelineJob", Job)
    values = {"large_model_reference": "m", "prompt_dataset": "p.jsonl"}
    job = PipelineJob("far", None, "gs://bucket", values, infer_pipeline, where="vertex", project="p", location="l")
    job.run()
    assert calls[0]["enable_caching"] is False and (calls[0]["project"], calls[0]["location"]) == ("p", "l")
    assert calls[0]["parameter_values"]["model_checkpoint"] == "" and calls[1:] == [None, "waited"]
