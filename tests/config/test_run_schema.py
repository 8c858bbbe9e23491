"""What a run writes about itself: read again as it was asked for, and in the layout of 0.1.0."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from preferent import files
from preferent.config import defaults, recipe, run_schema
from preferent.config.recipe import Recipe
from preferent.config.run_schema import MOVED
from preferent.errors import UsageError
from preferent.runs import stages

VALUES = {"large_model_reference": "m", "preference_dataset": "p.jsonl", "ppo": {"critic_learning_rate": 5e-6}}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The `recipe.yaml` of a run with a small model."""
    wanted = recipe.parse(VALUES)[0]
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump(wanted, defaults.resolve(wanted, 1000, 1000)[1]))
    return path


def of_0_1_0(values: dict[str, Any]) -> dict[str, Any]:
    """The `recipe.yaml` of 0.1.0 that says the same."""
    values = recipe.parse(values)[0].model_dump(mode="json")
    for old, new in MOVED.items():
        section, name = new.split(".")
        values["ppo"][old.removeprefix("ppo.")] = values[section].pop(name)
    del values["compare"]["micro_batch_tokens"]
    return values


def test_the_file_of_a_run_shows_values_and_is_read_as_it_was_asked(own: Path) -> None:
    written = yaml.safe_load(own.read_text())
    assert (written["schema"], written["ppo"]["learning_rate"], written["ppo"]["epochs"]) == (2, 1e-6, 4)
    assert written["defaults"]["ppo.learning_rate"] == 1e-6
    assert "ppo.critic_learning_rate" not in written["defaults"], "somebody asked for it"
    assert recipe.load(own)[0] == recipe.parse(VALUES)[0]
    assert recipe.defaults_in(own) == written["defaults"]


def test_values_that_nobody_asked_for_follow_what_is_set(own: Path) -> None:
    assert recipe.load(own, ["ppo.algorithm=grpo"])[0].ppo.samples_per_prompt is None
    resolved, _ = defaults.resolve(recipe.load(own, ["ppo.lora_dim=8"])[0], 1000, 1000)
    assert (resolved.ppo.learning_rate, resolved.ppo.critic_learning_rate) == (1e-4, 5e-6)


def test_a_value_changed_in_the_file_is_asked_for(own: Path) -> None:
    own.write_text(own.read_text().replace("learning_rate: 1.0e-06", "learning_rate: 3.0e-06", 1))
    resolved, by_default = defaults.resolve(recipe.load(own)[0], 1000, 1000)
    assert resolved.ppo.learning_rate == 3e-6 and "ppo.learning_rate" not in by_default
    again = recipe.dump(recipe.load(own)[0], recipe.defaults_in(own))
    assert yaml.safe_load(again)["ppo"]["learning_rate"] == 3e-6


def test_another_schema_is_refused(own: Path) -> None:
    own.write_text(own.read_text().replace("schema: 2", "schema: 3"))
    with pytest.raises(UsageError, match=r"recipe\.yaml: schema 3 is not known here, the newest is 2"):
        recipe.load(own)
    files.write_sealed(own.parent / "stage.json", {"schema": 3, "fields": {}})
    with pytest.raises(UsageError, match=r"stage\.json: schema 3 is not known here"):
        stages.read_stage(own.parent)
    own.write_text("schema: 2\nlarge_model_reference: m\ndefaults: [1]\n")
    with pytest.raises(UsageError, match=r"recipe\.yaml: defaults: is not a mapping"):
        recipe.load(own)


def test_the_file_of_a_run_of_0_1_0_is_translated(tmp_path: Path) -> None:
    section = {"sources": "m:f", "clip": 2.0, "missing_eos_score": None, "overlong_tokens": 3, "normalize_prompts": 7}
    wanted = recipe.parse(VALUES | {"reward": section, "compare": {"micro_batch_tokens": 512}})[0]
    values = of_0_1_0(VALUES | {"reward": section, "ppo": VALUES["ppo"] | {"micro_batch_tokens": 512}})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    resolved = recipe.load(path)[0]
    assert resolved.reward == wanted.reward and resolved.compare == wanted.compare
    assert recipe.load(path, ["reward.clip=3"])[0].reward.clip == 3
    with pytest.raises(UsageError, match=r"'ppo\.reward_clip' is now 'reward\.clip'"):
        recipe.load(path, ["ppo.reward_clip=3"])


@pytest.mark.parametrize("key", MOVED)
def test_an_old_key_is_an_error_that_names_the_new_one(tmp_path: Path, key: str) -> None:
    expected = f"r.yaml: '{key}' is now '{MOVED[key]}'; rename it"
    path = tmp_path / "r.yaml"
    path.write_text("large_model_reference: m\n")
    with pytest.raises(UsageError) as error:
        recipe.load(path, [f"{key}=1"])
    assert str(error.value).endswith(expected)
    path.write_text(f"large_model_reference: m\nppo: {{{key.removeprefix('ppo.')}: 1}}\n")
    with pytest.raises(UsageError) as error:
        recipe.load(path)
    assert str(error.value).endswith(expected)


def test_every_moved_key_is_a_field() -> None:
    every = set(recipe.names())
    assert set(MOVED.values()) <= every and not set(MOVED) & every
    assert {key.partition(".")[0] for key in MOVED} <= set(Recipe.model_fields)


def test_a_stage_of_0_1_0_is_translated() -> None:
    old = {"schema": 1, "fields": {"ppo.reward_clip": None, "ppo.epochs": None, "ppo.learning_rate": None, "seed": 3}}
    now = {"reward.clip": None, "ppo.epochs": 4, "ppo.learning_rate": 3e-6, "seed": 4}
    assert run_schema.translated(old)["fields"] == {
        "reward.clip": None, "ppo.epochs": None, "ppo.learning_rate": None, "seed": 3,
    }  # fmt: skip
    assert run_schema.translated(old, now, ["ppo.epochs"])["fields"] == {
        "reward.clip": None, "ppo.epochs": 4, "ppo.learning_rate": None, "seed": 3,
    }  # fmt: skip
    assert run_schema.translated(old | {"schema": 2}, now, ["ppo.epochs"]) == old | {"schema": 2}


def test_a_stage_that_0_1_0_began_goes_on(tmp_path: Path) -> None:
    fields = {"ppo.reward_clip": 2.0, "ppo.epochs": None}
    began = {"schema": 1, "stage": "ppo", "argv": [], "versions": {}, "fields": fields, "inputs": {}}
    files.write_sealed(tmp_path / "stage.json", began | {"facts": {"device": "cpu"}})
    (tmp_path / "metrics.jsonl").write_text("kept")
    now = {"reward": {"clip": 2.0}, "ppo": {"epochs": 4}}
    stage = stages.open_stage("ppo", tmp_path, now, {}, by_default={"ppo.epochs": 4, "ppo.lora_dim": 0})
    assert stage.facts == {"device": "cpu"} and (tmp_path / "metrics.jsonl").read_text() == "kept"
    written = stages.read_stage(tmp_path)
    assert (written["schema"], written["defaults"]) == (2, ["ppo.epochs"])
    assert written["fields"] == {"reward.clip": 2.0, "ppo.epochs": 4}
