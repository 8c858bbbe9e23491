"""The recipe: GCPC's dictionary is one, mistakes are named with their place and the way out."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from preferent.config import defaults, gcpc_names, recipe
from preferent.errors import PlatformError, UsageError

COURSE = {
    "preference_dataset": "data/preference/*.jsonl",
    "prompt_dataset": "data/prompt/*.jsonl",
    "eval_dataset": "data/eval/*.jsonl",
    "large_model_reference": "llama-2-7b",
    "reward_model_train_steps": 1410,
    "reinforcement_learning_train_steps": 320,
    "reward_model_learning_rate_multiplier": 1.0,
    "reinforcement_learning_rate_multiplier": 1.0,
    "kl_coeff": 0.1,
    "instruction": "Summarize in less than 50 words",
}


def refused(values: object) -> str:
    with pytest.raises(UsageError) as error:
        recipe.parse(values, "r.yaml")
    return str(error.value)


def test_the_parameter_values_of_gcpc_are_a_recipe():
    found, ignored = recipe.parse(COURSE)
    assert ignored == []
    assert {key: getattr(found, key) for key in COURSE} == COURSE


def test_what_means_something_only_on_google_cloud_is_ignored_by_name():
    cloud = {"project": "p", "location": "us", "deploy_model": False, "model_display_name": "m"}
    found, ignored = recipe.parse(COURSE | cloud)
    assert ignored == list(cloud)
    assert found == recipe.parse(COURSE)[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "dpo", "kl_coeff": 0}, "kl_coeff is beta of method: dpo, which must be above 0"),
        ({"method": "kto", "kl_coeff": 0}, "kl_coeff is beta of method: kto, which must be above 0"),
        ({"method": "kto", "dpo": {"loss": "ipo"}}, "dpo.loss: ipo is of method: dpo"),
        ({"method": "dpo", "dpo": {"loss": "ipo", "label_smoothing": 0.1}}, "dpo.label_smoothing is of"),
        ({"method": "kto", "dpo": {"label_smoothing": 0.1}}, "dpo.label_smoothing is of"),
        ({"method": "dpo", "dpo": {"target_margin": 0.1}}, "dpo.target_margin is of"),
        ({"method": "dpo", "dpo": {"desirable_weight": 2}}, "dpo.desirable_weight and dpo.undesirable_weight are of"),
        (
            {"method": "dpo", "reward": {"sources": "a:b"}},
            "reward.sources is a reward to optimise; method: dpo has none",
        ),
        ({"method": "kto", "compare": {"judge": "reward"}}, "compare.judge: reward judges by the reward"),
    ],
)
def test_what_a_direct_method_cannot_use_is_refused(values, said):
    assert said in refused(COURSE | values)


def test_a_written_recipe_of_a_direct_method_is_read_again():
    for values in ({"method": "kto", "dpo": {"desirable_weight": 2}}, {"method": "dpo", "dpo": {"loss": "ipo"}}):
        found = recipe.parse(COURSE | values)[0]
        assert recipe.parse(found.model_dump(mode="json"))[0] == found


def test_the_defaults_of_gcpc():
    found, _ = recipe.parse({"large_model_reference": "m"})
    assert (found.prompt_sequence_length, found.target_sequence_length, found.kl_coeff) == (512, 64, 0.1)
    assert (found.reward_model_train_steps, found.reinforcement_learning_train_steps) == (1000, 1000)
    assert (found.reward.batch_size, found.ppo.batch_size) == (64, 64)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("kl_coef", "kl_coeff"),
        ("reinforcement_learning_steps", "reinforcement_learning_train_steps"),
        ("prefrence_dataset", "preference_dataset"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, near):
    assert refused(COURSE | {key: 1}) == f"r.yaml: unknown key '{key}'; did you mean '{near}'?"


def test_an_unknown_key_in_a_section_is_named_with_its_path():
    assert refused(COURSE | {"ppo": {"epoch": 2}}) == "r.yaml: unknown key 'ppo.epoch'; did you mean 'ppo.epochs'?"


def test_every_problem_is_named_at_once():
    message = refused({"kl_coeff": -1, "ppo": {"clip_range": "wide"}})
    assert "'large_model_reference' is missing" in message
    assert "kl_coeff: Input should be greater than or equal to 0 (given: -1)" in message
    assert "ppo.clip_range: " in message
    assert "(given: 'wide')" in message


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_what_is_no_mapping_is_no_recipe(values):
    assert "a recipe is a mapping" in refused(values)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ppo": {"minibatches": 65}}, "ppo.minibatches is larger than ppo.batch_size"),
        ({"kl_coeff": 0, "ppo": {"kl_target": 6.0}}, "ppo.kl_target moves kl_coeff, which must start above 0"),
        ({"data": {"validation_share": 0.5, "test_share": 0.5}}, "leave nothing to train on"),
        ({"shard": "full", "quantize": "nf4"}, "shard: full cuts frozen weights, and those of quantize cannot be cut"),
        ({"large_model_reference": " "}, "large_model_reference: is empty"),
        ({"preference_dataset": ""}, "preference_dataset: a path is empty"),
    ],
)
def test_values_that_do_not_fit_together(change, expected):
    assert expected in refused(COURSE | change)


@pytest.mark.parametrize("address", ["gs://bucket/text_small/train/*.jsonl", "s3://bucket/a.csv", "https://host/a"])
def test_the_three_fields_of_data_may_be_remote_and_no_others(address):
    for key in ("preference_dataset", "prompt_dataset", "eval_dataset"):
        assert getattr(recipe.parse(COURSE | {key: [address]})[0], key) == [address]
    for change in (
        {"sft": {"dataset": address}},
        {"ppo": {"ptx_dataset": [address]}},
        {"chat_template": address},
        {"compare": {"judges": [{"name": "a", "model": "b", "template": address}]}},
    ):
        message = refused(COURSE | change)
        assert f"{address} is remote, which preference_dataset, prompt_dataset and eval_dataset alone may be" in message
        assert "copy it here and name the copy" in message


@pytest.mark.parametrize(
    "address", ["https://me:SECRET@host/a", "https://host/a?sig=SECRET", "s3://key:SEC/RET@bucket/a", "gs://b/a#SECRET"]
)
def test_the_secret_in_a_remote_address_is_not_printed(address):
    for change in (
        {"preference_dataset": address},
        {"preference_dataset": ["", address]},
        {"sft": {"dataset": [address]}},
        {"chat_template": address},
        {"large_model_reference": address},
    ):
        message = refused(COURSE | change)
        assert not {"SECRET", "SEC/", "RET@"} & {word for word in ("SECRET", "SEC/", "RET@") if word in message}


def test_a_model_in_google_cloud_storage_is_refused():
    assert "name the local folder" in refused(COURSE | {"large_model_reference": "gs://bucket/model"})


@pytest.mark.parametrize(
    ("reference", "model", "reward"),
    [
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("llama-2-13b", "meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-7b-hf"),
        ("llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
        ("LLAMA_2_13B_CHAT", "meta-llama/Llama-2-13b-chat-hf", "meta-llama/Llama-2-7b-hf"),
        ("owner/name@main", "owner/name@main", "owner/name@main"),
    ],
)
def test_aliases_and_their_reward_models(reference, model, reward):
    assert gcpc_names.resolve_model(reference) == model
    found, _ = recipe.parse({"large_model_reference": reference})
    assert gcpc_names.resolve_model(defaults.reward_reference(found)) == reward


def test_the_recipe_overrides_the_pairing():
    found, _ = recipe.parse({"large_model_reference": "llama-2-13b", "reward_model_reference": "owner/other"})
    assert defaults.reward_reference(found) == "owner/other"


def test_a_local_folder_goes_before_an_alias(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("llama-2-13b").mkdir()
    found, _ = recipe.parse({"large_model_reference": "llama-2-13b"})
    assert gcpc_names.resolve_model("llama-2-13b") == defaults.reward_reference(found) == "llama-2-13b"


@pytest.mark.parametrize("reference", ["t5-xl", "text-bison@001", "T5_SMALL"])
def test_gcpc_models_without_public_decoder_weights_are_refused(reference):
    assert f"{reference} is not a decoder-only model with public weights" in refused(
        {"large_model_reference": reference}
    )


def test_overrides_are_yaml_at_a_dotted_key():
    values = recipe.assign(COURSE, ["ppo.epochs=2", "kl_coeff=0.5", "ppo.kl_budget=null", "instruction=a=b: c"])
    assert values["ppo"] == {"epochs": 2, "kl_budget": None}
    assert values["kl_coeff"] == 0.5
    assert values["instruction"] == {"a=b": "c"}
    assert "ppo" not in COURSE
    assert COURSE["kl_coeff"] == 0.1


def test_an_override_without_a_value_is_refused():
    with pytest.raises(UsageError, match=r"--set ppo\.epochs: write it as key=value"):
        recipe.assign({}, ["ppo.epochs"])


def test_a_resolved_recipe_loads_as_itself(tmp_path):
    found, _ = recipe.parse(COURSE | {"sft": {"dataset": ["a", "b"]}, "reward": {"learning_rate": 1e-5}})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump(found))
    assert recipe.load(path) == (found, [])
    assert set(yaml.safe_load(path.read_text())) == {*recipe.Recipe.model_fields, "schema", "defaults"}


def test_errors_of_files_name_the_file_and_the_line(tmp_path):
    path = tmp_path / "r.yaml"
    with pytest.raises(PlatformError, match="no such recipe"):
        recipe.load(path)
    path.write_text("a: 1\nb: [1\n")
    with pytest.raises(UsageError, match=r"r\.yaml:3: not YAML"):
        recipe.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlatformError, match="cannot be read as a recipe"):
        recipe.load(path)
    with pytest.raises(UsageError, match="is a folder; give a YAML file"):
        recipe.load(tmp_path)
    (tmp_path / "recipe.yaml").write_text("kl_coeff: 0.1")
    with pytest.raises(UsageError, match=r"is a folder; `preferent run .*/recipe\.yaml --out "):
        recipe.load(tmp_path)


def test_pick_takes_fields_dotted_fields_and_sections():
    found, _ = recipe.parse(COURSE)
    picked = recipe.pick(found, "seed", "ppo.epochs", "sft.train_steps", "report")
    assert picked == {"seed": 0, "ppo.epochs": None, "sft.train_steps": None, "report": {"pairs": 60}}


def test_every_field_says_what_it_is():
    for name in recipe.names():
        *path, last = name.split(".")
        section = recipe.Recipe
        for part in path:
            section = recipe.inner_section(section.model_fields[part])
        field = section.model_fields[last]
        if recipe.inner_section(field) is None:
            assert field.description, name
            assert field.description[0].isupper() or field.description[0] in "`", name


NINE = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "kl_coeff: 0.1\nseed: 1\nkl_coeff: 0.9\n",
            r"r\.yaml:3: the key 'kl_coeff' stands twice, first at .*r\.yaml:1",
        ),
        ("ppo:\n  epochs: 2\nppo:\n  minibatches: 2\n", r"r\.yaml:3: the key 'ppo' stands twice, first at .*r\.yaml:1"),
        ("ppo:\n  epochs: 2\n  epochs: 3\n", r"r\.yaml:3: the key 'epochs' stands twice, first at .*r\.yaml:2"),
        ("a: &a [x]\n" + NINE + "preference_dataset: *i\n", r"r\.yaml:6: has more than 20,000 values"),
        ("a: &a [*a]\n", r"r\.yaml:1: an alias stands inside"),
        ("\nseed: " + "9" * 5000, r"r\.yaml:2: a number of 5000 digits"),
        ("x: 1\nseed: " + "[" * 5000, r"r\.yaml:2: nested too deeply"),
        ("{a:" * 5000, r"r\.yaml:1: nested too deeply"),
        ("- " * 5000, r"r\.yaml:1: nested too deeply"),
        ("seed: 2024-99-99", r"r\.yaml: not YAML"),
        ("x" * (1 << 21), r"r\.yaml: has 2,097,152 characters"),
        ("seed: " + "x" * 5000, r"seed: .*\(given: 'x{10,60}\.\.\.x{10,60}'\)"),
    ],
)
def test_a_recipe_is_bounded_and_says_nothing_twice(tmp_path, text, says):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        recipe.load(path)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused_by_its_key(name):
    model = {"large_model_reference": "m"}
    judge = {"name": "j", "model": name}
    for key, values in {
        "large_model_reference": {"large_model_reference": name},
        "reward_model_reference": model | {"reward_model_reference": name},
        "prompt_dataset": model | {"prompt_dataset": ["rows.jsonl", name]},
        "compare.judges.0.model": model | {"compare": {"judges": [judge]}},
    }.items():
        assert f"r.yaml: {key}: is no name of a file or a model" in refused(values)


def test_an_alias_and_a_merge_within_bounds_are_what_they_repeat(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: &a {epochs: 2, minibatches: 3}\nb: *a\nc: {<<: *a, epochs: 4}\n")
    assert recipe.read(path) == {
        "a": {"epochs": 2, "minibatches": 3},
        "b": {"epochs": 2, "minibatches": 3},
        "c": {"epochs": 4, "minibatches": 3},
    }


@pytest.mark.parametrize("setting", ["seed=" + "[" * 3000, "seed=" + "9" * 5000, "seed={a: 1, a: 2}", "seed=[1"])
def test_a_setting_is_bounded_as_the_recipe_is(setting):
    with pytest.raises(UsageError, match=r"^--set seed=") as error:
        recipe.assign({}, [setting])
    assert len(str(error.value)) < 500
