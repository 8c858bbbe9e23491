"""The pipelines have the parameters, types, defaults, outputs and names of Google Cloud Pipeline Components 2.22.0."""

import json
from pathlib import Path

import pytest

pytest.importorskip("kfp")

from interfaces import NAMES, gcpc, ours, specification

from preferent.errors import UsageError

FILE = Path(__file__).parent / "gcpc_2_22_0.json"
COURSE = (
    *("prompt_dataset", "preference_dataset", "large_model_reference", "model_display_name", "prompt_sequence_length"),
    *("target_sequence_length", "reward_model_learning_rate_multiplier", "reinforcement_learning_rate_multiplier"),
    *("reward_model_train_steps", "reinforcement_learning_train_steps", "kl_coeff", "instruction", "deploy_model"),
    *("eval_dataset", "project", "location", "tensorboard_resource_id"),
)
"""The parameters of `rlhf_pipeline` in 2.5.0, which the course used."""


@pytest.fixture(scope="module")
def known():
    return json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def compiled():
    return ours()


def test_the_file_is_what_gcpc_compiles_to(known):
    pytest.importorskip("google_cloud_pipeline_components")
    assert gcpc() == known


@pytest.mark.parametrize("name", NAMES)
def test_parameters_outputs_and_name_are_gcpcs(known, compiled, name):
    assert compiled[name]["name"] == known[name]["name"]
    assert compiled[name]["outputs"] == known[name]["outputs"]
    assert compiled[name]["inputs"] == known[name]["inputs"] | {"recipe": ["STRING", True, ""]}


def test_the_parameters_of_the_course_are_accepted(compiled):
    assert set(COURSE) <= set(compiled["rlhf_pipeline"]["inputs"])


def test_tasks_are_called_as_there(known, compiled):
    here, there = ({title for each in of.values() for title in each["titles"]} for of in (compiled, known))
    assert here & there >= {
        *("Validate Inputs", "Preprocess Inputs", "Train Reward Model", "Reward Model Trainer", "Reinforcer"),
        *("Reinforcement Learning", "Perform Inference", "Bulk Inferrer", "Upload Model", "Inferrer A", "Inferrer B"),
        *("Build AI Feedback", "Reinforcement Learning From AI Feedback", "AutoSxS Batch Prediction"),
        *("AutoSxS Autorater", "AutoSxS Metrics", "Import Preference Dataset", "Import Prompt Dataset"),
    }
    assert here - there == {
        *("Supervised Fine Tuner", "Judge Model Trainer", "Side by Side", "Report", "No Inference"),
        "condition-branches-1",
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_cached_and_kfp_loads_it(name, tmp_path):
    from kfp import compiler, components

    from preferent import kubeflow

    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline_func=getattr(kubeflow, name), package_path=str(path))
    assert (
        components.load_component_from_file(str(path)).name
        == specification(getattr(kubeflow, name))["pipelineInfo"]["name"]
    )
    assert "enableCache: true" not in path.read_text()


def test_pods_get_what_is_asked_for():
    from preferent.kubeflow import PodSettings
    from preferent.kubeflow.rlhf_pipelines import rlhf

    settings = PodSettings(
        image="registry/preferent:1", volume="runs", memory="40G", cpu="8", accelerators=2,
        node_selector={"pool": "gpu"}, retries=3,
        components={"reward_model_trainer": {"accelerators": 1}, "rlhf_preprocessor": {"memory": "8G"}},
    )  # fmt: skip
    compiled = specification(rlhf(settings))
    executors = compiled["deploymentSpec"]["executors"]
    trainer = executors["exec-reinforcer"]["container"]
    assert trainer["image"] == "registry/preferent:1"
    assert {"name": "PREFERENT_ROOT", "value": "/runs"} in trainer["env"]
    resources = trainer["resources"]
    assert resources["accelerator"]["resourceCount"] == "2" and resources["resourceMemoryLimit"] == "40G"
    assert "resources" not in executors["exec-run-report"]["container"]
    single = executors["exec-reward-model-trainer"]["container"]["resources"]
    assert single["accelerator"]["resourceCount"] == "1" and single["resourceMemoryLimit"] == "40G"
    assert executors["exec-rlhf-preprocessor"]["container"]["resources"]["resourceMemoryLimit"] == "8G"
    with pytest.raises(UsageError, match="no such component"):
        PodSettings(components={"trainer": {}})
    tasks = compiled["components"]["comp-reinforcement-learning-graph"]["dag"]["tasks"]
    assert tasks["reinforcer"]["retryPolicy"]["maxRetryCount"] == 3
