"""How much a stage computes at once: chosen by the device's memory when it begins, written down, and kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SENTENCES, quiet_recipe
from safetensors.numpy import load_file

from preferent.config import defaults, memory_estimate, model_shape, recipe
from preferent.config.defaults import AT_ONCE
from preferent.config.memory_estimate import BASELINE, ModelFacts
from preferent.config.recipe import Recipe, pick
from preferent.runs import environment, memory_choice, stages
from preferent.runs.memory_choice import FIELDS, SHARE, Machine
from preferent.runs.stages import Stage
from preferent.training import sft

GIB = 1 << 30
LLAMA = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
SMALL = Machine(round(BASELINE / SHARE), 4, False)
"""A machine on which nothing fits, so that every value is as small as helps."""


def open_recipe(**values: Any) -> Recipe:
    given = {"large_model_reference": "model", "preference_dataset": "p", "precision": "fp32"} | values
    return recipe.parse(given)[0]


def facts(bytes: int = 2, **values: Any) -> ModelFacts:
    found, _ = defaults.resolve(open_recipe(**values), LLAMA.policy, LLAMA.policy)
    return ModelFacts(found, LLAMA, LLAMA, bytes, 512, memory_choice.MANY, on_gpu=True)


def test_llama_2_7b_with_nothing_set_fits_a_card_of_80_gib():
    for stage in ("reward", "ppo", "dpo", "rejection", "infer", "compare"):
        for memory in (80, 40):
            values = memory_choice.chosen(facts(), stage, memory * GIB)
            assert memory_choice.peak(facts(), stage, values) <= 0.75 * memory * GIB, stage
    values = memory_choice.chosen(facts(), "ppo", 80 * GIB)
    assert values == {key: AT_ONCE[key] for key in FIELDS["ppo"]} | {"sampler.rows": 128}
    assert (
        memory_choice.chosen(facts(), "ppo", 40 * GIB)["sampler.rows"]
        < 128
        < memory_choice.chosen(facts(), "ppo", 141 * GIB)["sampler.rows"]
    )


@pytest.mark.parametrize(
    ("limit", "values"),
    [
        (60, {}),
        (40, {"sampler": {"rows": 64}}),
        (16, {"sampler": {"rows": 16}, "gradient_checkpointing": True, "quantize": "nf4"}),
    ],
)
def test_ppo_on_llama_2_7b_with_one_backbone(limit, values):
    """Prompts of 512 tokens and answers of 64: with nothing set, with fewer rows, and in 4 bits."""
    given = facts(prompt_sequence_length=512, target_sequence_length=64, **values)
    needed = memory_choice.peak(given, "ppo", memory_choice.chosen(given, "ppo", 80 * GIB))
    print(f"{needed / GIB:.1f} GiB")
    assert given.one_backbone and 0.5 * limit < needed / GIB <= limit


def test_with_memory_for_it_the_most_is_chosen_and_what_the_recipe_says_stays():
    assert all(
        memory_choice.chosen(facts(), stage, 1 << 50) == {key: AT_ONCE[key] for key in FIELDS[stage]}
        for stage in FIELDS
        if stage != "sft"
    )
    asked = facts(sampler={"rows": 200}, ppo={"micro_batch_tokens": 9000})
    assert set(memory_choice.chosen(asked, "ppo", GIB)) == {"reward.micro_batch_tokens", "sampler.prefill_tokens"}


def test_where_nothing_fits_the_values_are_as_small_as_helps():
    values = memory_choice.chosen(facts(), "ppo", GIB)
    one = memory_choice.peak(facts(), "ppo", dict.fromkeys(values, 1))
    assert memory_choice.peak(facts(), "ppo", values) == one and min(values.values()) > 1


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo", "rejection", "infer", "compare"])
def test_halving_any_field_of_a_stage_never_needs_more(stage):
    given = facts(sft={"dataset": "t"}, infer={"best_of": 4, "sampling_strategy": "temperature_sampling"})
    most = {key: AT_ONCE[key] for key in FIELDS[stage]}
    before = memory_choice.peak(given, stage, most)
    for key in most:
        assert memory_choice.peak(given, stage, most | {key: most[key] // 2}) <= before


def opened(folder: Path, model: Path, name: str = "sft", **values: Any) -> tuple[Stage, Recipe]:
    found = open_recipe(sft={"dataset": "t"}, prompt_sequence_length=32, target_sequence_length=12, **values)
    return stages.open_stage(name, folder, {}, {"model": model}), found


def test_what_a_stage_began_with_is_kept_on_another_machine_and_the_recipe_comes_first(tmp_path, tiny):
    for name in ("sft", "reward", "ppo"):
        stage, found = opened(tmp_path / name, tiny, name)
        small = pick(memory_choice.settled(found, stage, SMALL), *FIELDS[name])
        assert min(small.values()) < 256
        assert stages.read_stage(tmp_path / name)["facts"]["at_once"] == small
        again, found = opened(tmp_path / name, tiny, name)
        assert pick(memory_choice.settled(found, again, Machine(1 << 50, 4, False)), *FIELDS[name]) == small
    again, found = opened(tmp_path / "ppo", tiny, "ppo", sampler={"rows": 7})
    assert memory_choice.settled(found, again, SMALL).sampler.rows == 7


def test_a_small_model_computes_the_most_at_once(tmp_path, tiny):
    stage, found = opened(tmp_path / "ppo", tiny, "ppo")
    settled = memory_choice.settled(found, stage, Machine(GIB, 4, False))
    assert pick(settled, *FIELDS["ppo"]) == {key: AT_ONCE[key] for key in FIELDS["ppo"]}


def test_a_stage_of_an_earlier_version_goes_on_with_what_that_computed(tmp_path, tiny):
    stage, found = opened(tmp_path / "ppo", tiny, "ppo")
    stage.place(device="cpu")
    again, _ = opened(tmp_path / "ppo", tiny, "ppo")
    assert memory_choice.settled(found, again, SMALL).sampler.rows == AT_ONCE["sampler.rows"]


def test_a_model_of_unknown_shape_computes_the_most_at_once(tmp_path, tiny):
    (tmp_path / "model").mkdir()
    values = json.loads((tiny / "config.json").read_text()) | {"model_type": "gpt_neox"}
    (tmp_path / "model/config.json").write_text(json.dumps(values))
    stage, found = opened(tmp_path / "out", tmp_path / "model")
    assert memory_choice.settled(found, stage, SMALL).sft.micro_batch_tokens == 4096


def test_a_stage_resumed_with_other_memory_makes_the_same_bits(tmp_path, tiny, monkeypatch):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 10))

    def weights(name: str, *parts: tuple[int, int]) -> dict[str, Any]:
        for memory, steps in parts:
            monkeypatch.setattr(environment, "memory", lambda memory=memory: memory)
            section = {"dataset": str(tmp_path / "t.jsonl"), "train_steps": steps, "batch_size": 8, "lora_dim": 0}
            values = quiet_recipe(sft=section | {"learning_rate": 3e-3}).model_dump(mode="json")
            values["sft"]["micro_batch_tokens"] = None
            sft.main(recipe.parse(values)[0], {"model": tiny}, tmp_path / name)
        return load_file(tmp_path / name / "model/model.safetensors")

    whole, resumed = weights("whole", (SMALL.memory, 4)), weights("resumed", (SMALL.memory, 2), (1 << 50, 4))
    other = weights("other", (1 << 50, 4))
    assert all((whole[name] == resumed[name]).all() for name in whole)
    assert any((whole[name] != other[name]).any() for name in whole), "the cut changes the last bits"


def test_advice_halves_what_the_stage_had(tmp_path, tiny):
    stage, found = opened(tmp_path / "ppo", tiny, "ppo", sampler={"rows": 64})
    memory_choice.settled(found, stage, Machine(1 << 50, 4, False))
    said = memory_choice.smaller("ppo", tmp_path / "ppo")
    assert "--set sampler.rows=32 " in said and "--set ppo.micro_batch_tokens=2048 " in said and "(now: 64)" in said
    assert "--set dpo.micro_batch_tokens=2048 " in memory_choice.smaller("dpo", tmp_path / "elsewhere")
    assert "sampler" not in memory_choice.smaller("dpo", None)


def test_every_stage_that_holds_models_has_its_fields():
    assert set(FIELDS) == set(memory_estimate.NEEDS)
    assert {key for keys in FIELDS.values() for key in keys} == set(AT_ONCE)
