"""A job of pipelines heeds SIGINT and SIGTERM, also where a script started it in the background and it inherited
SIGINT as ignored. What its task has learned is saved before it ends.
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
from preferent.runs.checkpoints import step_folders

SCRIPT = """
import json, os, sys
print(os.getpid(), flush=True)
from preferent.kubeflow import PipelineJob, rlhf_pipeline
PipelineJob(sys.argv[1], None, "bucket", json.load(open("values.json")), rlhf_pipeline).run()
"""
SHELLS = {"foreground": 'exec "$@"', "background": '"$@" & wait $!'}


@pytest.mark.parametrize(
    ("place", "number"),
    [("foreground", signal.SIGINT), ("background", signal.SIGINT), ("background", signal.SIGTERM)],
)
def test_a_job_stops_when_it_is_told_to_and_has_saved(folder, tiny, place, number):
    name = f"{place}-{number.name}"
    (folder / "values.json").write_text(json.dumps(parameter_values(tiny, reward_model_train_steps=5000)))
    argv = ["sh", "-c", SHELLS[place], "sh", sys.executable, "-u", "-c", SCRIPT, name]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    job = int(process.stdout.readline())

    def curves() -> list[Path]:
        """The curves of reward model and judge; the order in which they are trained is kfp's."""
        return list((folder / "bucket" / name).glob("*/metrics.jsonl"))

    def steps() -> int:
        return sum(path.read_text().count("\n") for path in curves())

    while steps() < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(job, number)
    said = process.communicate(timeout=60)
    assert "-model-trainer: running" in said[0]
    assert f"{name}: stopped; the same job goes on from here" in said[1]
    assert process.returncode in (128 + number, -number)
    made = steps()
    time.sleep(1)
    assert steps() == made, "nothing trains on"
    (metrics,) = curves()
    log = (folder / f"bucket/{name}-job/log.txt").read_text()
    assert "preferent: stopped; the same command goes on from here" in log, "the last words of the task are read"
    saved = step_folders.steps(metrics.parent / "checkpoints")
    assert saved[-1] == files.read_jsonl(metrics)[-1]["step"], "what the last step learned is saved"
