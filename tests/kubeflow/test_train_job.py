"""The manifest of a stage on several nodes: nothing in it that Kubeflow Trainer and Kubernetes do not know."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from preferent.cli import arguments
from preferent.config import recipe as recipes
from preferent.config import stage_graph
from preferent.errors import UsageError
from preferent.pipelines.launchers import train_job
from preferent.pipelines.launchers.train_job import Nodes

ASKED = {"large_model_reference": "llama-2-7b", "preference_dataset": "data/preference.jsonl"}
RECIPE = recipes.parse(ASKED)[0]
NODES = Nodes("registry.example/preferent:0.2.0", "preferent-runs", nodes=3, gpus=8, cpu="8", memory="64Gi")
OUT = Path("/runs/my")


def documents(stage: str = "ppo", nodes: Nodes = NODES, out: Path = OUT, **values: object) -> list[dict]:
    return list(yaml.safe_load_all(train_job.text(recipes.parse(ASKED | values)[0], stage, out, nodes)))


@pytest.mark.parametrize("nodes", [NODES, Nodes("image", "claim")], ids=["everything", "least"])
def test_kubeflow_trainer_knows_every_field(nodes):
    models = pytest.importorskip("kubeflow_trainer_api.models")
    _, job = documents(nodes=nodes)
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    wrong = json.loads(json.dumps(job).replace("numProcPerNode", "processesPerNode"))
    assert models.TrainerV1alpha1TrainJob.from_dict(wrong).to_dict() != wrong, "an unknown field is left out"


def test_kubernetes_knows_every_field_of_the_network_policy():
    client = pytest.importorskip("kubernetes.client")
    policy, _ = documents()
    api = client.ApiClient()
    read = api.deserialize(SimpleNamespace(data=json.dumps(policy)), "V1NetworkPolicy")
    assert api.sanitize_for_serialization(read) == policy


def test_the_pods_of_a_job_alone_reach_its_pods():
    policy, job = documents()
    pods = {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"]}}
    assert policy["spec"] == {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": pods}]}],
    }


@pytest.mark.parametrize("stage", ["reward", "judge", "ppo", "infer-tuned", "compare"])
def test_torchrun_runs_the_command_of_the_stage(stage):
    trainer = documents(stage)[1]["spec"]["trainer"]
    task = next(task for task in stage_graph.build(RECIPE) if task.name == stage)
    assert trainer["command"] == ["torchrun", "-m", "preferent"]
    assert trainer["args"] == list(task.command("/runs/my"))
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 8)
    assert trainer["resourcesPerNode"] == {
        "requests": {"cpu": "8", "memory": "64Gi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "8"},
    }
    assert not any(each["name"].startswith("PET_") for each in trainer["env"]), "the runtime sets them"


def test_the_pods_have_the_volume_room_to_write_and_no_rights_that_they_do_not_need():
    (patch,) = documents()[1]["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (node["name"], container["name"]) == ("node", "node")
    assert pod["volumes"][0] == {"name": "runs", "persistentVolumeClaim": {"claimName": "preferent-runs"}}
    assert container["volumeMounts"][0] == {"name": "runs", "mountPath": "/runs"}
    written = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert written == ["/runs", "/tmp", "/dev/shm"] and container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True and "env" not in container
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_without_gpus_a_node_has_the_processes_of_the_recipe():
    trainer = documents(nodes=Nodes("image", "claim"), processes=4)[1]["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4) and "resourcesPerNode" not in trainer
    with pytest.raises(UsageError, match="say how many a node has: --gpus N"):
        documents(nodes=Nodes("image", "claim"), processes="auto")


@pytest.mark.parametrize(
    ("out", "name"),
    [("my", "my-ppo"), ("My_Run.2", "my-run-2-ppo"), ("2026", "run-2026-ppo"), ("a" * 80, "a" * 50), ("ü", "ppo")],
)
def test_a_job_has_a_name_that_kubernetes_takes(out, name):
    for document in documents(out=OUT.with_name(out)):
        assert document["metadata"]["name"] == name
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_what_several_nodes_cannot_do_is_refused():
    for stage, why in (("data", "data is done by one process"), ("pppo", "pppo is not a stage of this recipe")):
        with pytest.raises(UsageError, match=f"train-job: {why}; several nodes can do reward, judge, ppo, "):
            documents(stage)
    for out in ("runs/my", "/data/my"):
        with pytest.raises(UsageError, match=f"--out {out}: is not on the volume that the pods mount at /runs"):
            documents(out=Path(out))


def test_the_command_line_prints_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(ASKED | {"processes": 2}))
    words = [str(path), "ppo", "--image", "image", "--claim", "claim", "--nodes", "3", "--folder", "/mnt"]
    monkeypatch.setitem(sys.modules, "kfp", None)  # the extra kubeflow is not needed
    parsed = arguments.parser().parse_args(["train-job", *words])
    parsed.do(parsed)
    found = list(yaml.safe_load_all(capsys.readouterr().out))
    assert found == documents(
        nodes=Nodes("image", "claim", nodes=3, folder=Path("/mnt")), out=Path("/mnt/my"), processes=2
    )
