"""The cells of the course, with the import changed and data that are here: compile, fill in, run, and look at it.

Two kills lie between its cells, in the training of the reward model and of the policy. The run ends with the weights
of `preferent run`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("kfp")

from work import folder, parameter_values  # noqa: F401

from preferent import files


@pytest.fixture(scope="module")
def job(folder, tiny):
    """The job of the course after its `run`; killed twice on the way."""
    from kfp import compiler

    from preferent.kubeflow import PipelineJob, rlhf_pipeline

    compiler.Compiler().compile(pipeline_func=rlhf_pipeline, package_path="rlhf_pipeline.yaml")
    job = PipelineJob(
        display_name="tutorial-rlhf-tuning",
        pipeline_root="bucket",
        template_path="rlhf_pipeline.yaml",
        parameter_values=parameter_values(tiny, project="my-project", location="europe-west4"),
    )
    for stage in ("reward", "policy"):
        job.submit()
        killed_when(job, folder / "bucket/tutorial-rlhf-tuning" / stage / "metrics.jsonl", 3)
    job.run()
    return job


def killed_when(job, metrics: Path, steps: int) -> None:
    """Kill all processes of a job when a stage has made so many steps."""
    process = job._process
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, job.log.read_text()[-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (metrics.parent / "DONE").exists(), "killed too late"


def test_it_ends_as_the_course_expects(job):
    from preferent.kubeflow import PipelineState

    assert job.state is PipelineState.PIPELINE_STATE_SUCCEEDED
    assert set(job.outputs) == {"model_resource_name", "endpoint_resource_name"}
    assert Path(job.outputs["model_resource_name"], "model.safetensors").exists()
    assert {task.state for task in job.task_details} == {"SUCCESS"}


def test_tensorboard_finds_the_curves(job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {"reward-model-trainer": {"rank_loss"}, "reinforcer": {"reward", "kl_loss", "rl_loss"}}
    for name, wanted in tags.items():
        details = next(task for task in job.task_details if task.task_name == name)
        places = [details.outputs["tensorboard_metrics"].artifacts[0].uri]
        places.append(f"bucket/tutorial-rlhf-tuning-artifacts/{name}/tensorboard_metrics")
        for place in places:
            events = EventAccumulator(f"{place}/train")
            events.Reload()
            assert wanted <= set(events.Tags()["scalars"])


def test_the_answers_stand_side_by_side_in_a_table(job):
    pd = pytest.importorskip("pandas")
    root = Path("bucket/tutorial-rlhf-tuning-artifacts/bulk-inferrer")
    details = next(task for task in job.task_details if task.task_name == "bulk-inferrer")
    assert [path.name for path in Path(details.parameters["output_prediction_gcs_path"]).iterdir()] == ["text.jsonl"]
    eval_data_tuned, eval_data_untuned = (
        [json.loads(line) for line in (root / f"eval_results_{name}.jsonl").read_text().splitlines()]
        for name in ("tuned", "untuned")
    )
    prompts = [sample["inputs"]["inputs_pretokenized"] for sample in eval_data_tuned]
    untuned_completions = [sample["prediction"] for sample in eval_data_untuned]
    tuned_completions = [sample["prediction"] for sample in eval_data_tuned]
    results = pd.DataFrame(
        data={"prompt": prompts, "base_model": untuned_completions, "tuned_model": tuned_completions}
    )
    assert len(results) == 4, "half of the eight prompts of eval_dataset are the test part"
    assert all(prompt.startswith("Go on.\n\n\n") for prompt in results["prompt"])
    assert all(prompt.count("Go on.") == 1 for prompt in results["prompt"]), "the instruction is applied once"
    assert all(isinstance(answer, str) for name in ("base_model", "tuned_model") for answer in results[name])


def test_the_page_of_kubeflow_gets_figures_and_the_report(job):
    metrics = {task.task_name: task.outputs["metrics"].artifacts[0].metadata for task in job.task_details
               if "metrics" in task.outputs}  # fmt: skip
    assert {"win_rate", "win_rate_low", "win_rate_high", "kl"} <= set(metrics["side-by-side"])
    assert "rank_loss" in metrics["reward-model-trainer"] and "reward" in metrics["reinforcer"]
    report = next(task for task in job.task_details if task.task_name == "run-report").outputs["report"].artifacts[0]
    assert "<title>" in Path(report.uri).read_text()


def test_the_weights_are_those_of_preferent_run(job, folder):
    run = folder / "bucket/tutorial-rlhf-tuning"
    argv = [sys.executable, "-m", "preferent", "run", str(run / "recipe.yaml"), "--out", "straight"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("reward/model", "judge/model", "policy/model"):
        assert files.fingerprint(run / name) == files.fingerprint(folder / "straight" / name), name
    for name in ("predictions/tuned/text.jsonl", "comparison/judgments.jsonl", "policy/metrics.jsonl"):
        assert (run / name).read_bytes() == (folder / "straight" / name).read_bytes(), name


def test_the_same_job_again_starts_no_stage(job, folder):
    marks = {path: path.stat().st_mtime_ns for path in (folder / "bucket/tutorial-rlhf-tuning").rglob("DONE")}
    job.run()
    assert marks == {path: path.stat().st_mtime_ns for path in marks} and len(marks) == 7


def test_other_parameters_are_refused_in_the_same_run(job, tiny):
    from preferent.errors import PreferentError
    from preferent.kubeflow import PipelineJob

    values = parameter_values(tiny, kl_coeff=0.2)
    other = PipelineJob("tutorial-rlhf-tuning", "rlhf_pipeline.yaml", "bucket", values)
    with pytest.raises(PreferentError, match=r"validate-pipeline failed: .*was made from other parameters"):
        other.run()
    assert "kl_coeff: was 0.1, is now 0.2" in other.log.read_text()
