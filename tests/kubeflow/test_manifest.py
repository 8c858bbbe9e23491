"""The example manifest: nothing in it that Kubernetes does not know, and no more rights than a run needs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

client = pytest.importorskip("kubernetes.client")

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = {"PersistentVolumeClaim": "V1PersistentVolumeClaim", "Job": "V1Job"}
MANIFEST = list(yaml.safe_load_all((ROOT / "examples/kubeflow/run.yaml").read_text()))


@pytest.mark.parametrize("document", MANIFEST, ids=lambda document: document["kind"])
def test_kubernetes_knows_every_field(document):
    api = client.ApiClient()
    read = api.deserialize(SimpleNamespace(data=json.dumps(document)), KINDS[document["kind"]])
    assert api.sanitize_for_serialization(read) == document


def test_a_pod_has_no_rights_that_it_does_not_need():
    pod = next(document for document in MANIFEST if document["kind"] == "Job")["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    container = pod["containers"][0]["securityContext"]
    assert container["readOnlyRootFilesystem"] is True and container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}


def test_the_image_runs_as_nobody_in_particular_and_is_pinned():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert any(line.startswith("FROM python:3.11.") and "slim" in line for line in lines)
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]
    assert any("--constraint constraints-kubeflow.txt" in line for line in lines)
