"""A run in an object store that is not mounted: whole stages are kept there, and another machine goes on with them.

moto's S3 on this machine; real buckets are not tried.
"""

import contextlib
import logging
import shutil

import pytest

pytest.importorskip("kfp")
pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

import s3fs
from work import LENGTHS, RECIPE, write_data

from preferent import files
from preferent.kubeflow import component_work, object_store


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(object_store, "SCRATCH", tmp_path / "scratch")
    another_machine(tmp_path)
    system = s3fs.S3FileSystem()
    if system.exists("bucket"):  # the servers of a process share what they hold
        system.rm("bucket", recursive=True)
    system.mkdir("bucket")
    yield system
    another_machine(tmp_path)
    server.stop()


def another_machine(tmp_path):
    """Forget everything that is not in the store."""
    object_store._fetch.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    shutil.rmtree(tmp_path / "scratch", ignore_errors=True)


def names(system):
    system.invalidate_cache()
    return {name.removeprefix("bucket/runs/") for name in system.find("bucket/runs")}


def test_stages_are_kept_whole_and_another_machine_goes_on(bucket, tiny, tmp_path):
    with contextlib.chdir(tmp_path):
        write_data(tmp_path)
        bucket.put_file("eval.jsonl", "bucket/data/eval.jsonl")
        values = {"large_model_reference": str(tiny), "preference_dataset": "preferences.jsonl", **LENGTHS}
        values |= {"prompt_dataset": "prompts.jsonl", "eval_dataset": "s3://bucket/data/eval.jsonl"}
        values |= {"reward_model_train_steps": 4}
        run = component_work.begin("s3://bucket/runs", "my", "rlhf", values, RECIPE)
        assert run == "s3://bucket/runs/my"
        component_work.stages(run, lambda task: task.stage == "data")
        assert {"my/recipe.yaml", "my/data/DONE", "my/data/stage.json", "my-artifacts/parameters.json"} <= names(bucket)

        another_machine(tmp_path)
        component_work.stages(run, lambda task: task.name == "reward")
        place = component_work.publish_stage(run, "reward", "reward-model-trainer", tmp_path / "m", tmp_path / "t")
        assert place == "s3://bucket/runs/my-artifacts/reward-model-trainer/model"
        assert {"my/reward/DONE", "my-artifacts/reward-model-trainer/model/model.safetensors"} <= names(bucket)
        assert not [name for name in names(bucket) if "/." in name], "locks stay here"
        made = files.fingerprint(object_store.local(run) / "reward/model")

        another_machine(tmp_path)
        description = (object_store.local(run) / "reward/stage.json").read_bytes()
        component_work.stages(run, lambda task: task.name in ("data", "reward"))
        assert files.fingerprint(object_store.local(run) / "reward/model") == made
        assert (object_store.local(run) / "reward/stage.json").read_bytes() == description, "no stage is done twice"


def test_what_a_stage_has_not_finished_is_not_kept(bucket, tmp_path):
    folder = object_store.local("s3://bucket/runs/my")
    for name in ("stage.json", "metrics.jsonl", "checkpoints/step-1/x.safetensors"):
        files.write_atomic(folder / "policy" / name, "1")
    files.write_atomic(folder / "predictions/base/DONE", "")
    files.write_atomic(folder / "predictions/base/stage.json", "2")
    assert object_store.kept("s3://bucket/runs/my", folder / "policy") == "s3://bucket/runs/my/policy"
    assert names(bucket) == {"my/predictions/base/DONE", "my/predictions/base/stage.json"}
    files.write_atomic(folder / "policy/DONE", "")
    object_store.kept("s3://bucket/runs/my", folder)
    assert "my/policy/checkpoints/step-1/x.safetensors" in names(bucket)


def test_a_name_that_leads_out_of_the_folder_is_refused(bucket):
    from preferent.errors import DataError

    bucket.pipe_file("bucket/runs/my/../../../evil", b"x")
    with pytest.raises(DataError, match="leads out of its folder"):
        object_store.local("s3://bucket/runs/my")


def test_a_place_that_cannot_be_reached_is_told(bucket, monkeypatch):
    from preferent.errors import PreferentError

    with pytest.raises(PreferentError, match="s3://none/runs"):
        component_work.begin("s3://none/runs", "my", "rlhf", {"large_model_reference": "m", "prompt_dataset": "p"}, "")
    with pytest.raises(PreferentError, match="runs lie in folders, gs:// and s3://"):
        component_work.begin("minio://a/b", "my", "rlhf", {"large_model_reference": "m", "prompt_dataset": "p"}, "")


def test_a_signed_address_is_refused_before_it_is_written_anywhere(tmp_path):
    from preferent.errors import UsageError
    from preferent.kubeflow import PipelineJob, infer_pipeline

    secret = "https://data.example/eval.jsonl?X-Amz-Signature=SECRET"
    values = {"large_model_reference": "m", "prompt_dataset": secret}
    with pytest.raises(UsageError) as error:
        PipelineJob("signed", None, tmp_path, values, infer_pipeline)
    assert "SECRET" not in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "SECRET" in path.read_text()]
