"""Recipes to begin with: each is valid as it is and with every comment taken away, and editors are told the truth."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from preferent.cli import arguments
from preferent.commands import recipe_template
from preferent.commands.recipe_template import OF_METHOD, SCHEMA, STARTS, init, schema, template
from preferent.config import defaults, recipe
from preferent.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*recipe.yaml"))


def check(values) -> None:
    jsonschema.validate(values, schema(), jsonschema.Draft202012Validator)


def without_comments(text: str) -> dict:
    """The recipe with every key set: a `#` right before a key taken away."""
    return yaml.safe_load(re.sub(r"^( *)#(?! )", r"\1", text, flags=re.M))


@pytest.mark.parametrize("start", STARTS)
def test_a_recipe_is_valid_as_written_and_sets_what_it_says(start):
    values = yaml.safe_load(template(start))
    assert values == STARTS[start]
    recipe.parse(values)
    check(values)


@pytest.mark.parametrize("start", STARTS)
def test_the_comments_hold_the_defaults(start):
    """With every key set the recipe is the same, its open fields filled in (a section that is off comes on)."""
    values = without_comments(template(start))
    expected, _ = defaults.resolve(recipe.parse(STARTS[start])[0])
    if "sft" not in STARTS[start]:
        assert values.pop("sft")["dataset"] == "data/demonstrations.jsonl"
    unread = {name: getattr(expected, name) for name in OF_METHOD if name not in values}
    assert recipe.parse(values)[0].model_copy(update=unread) == expected
    check(values)


def test_every_field_is_there_with_its_meaning():
    written = without_comments(template("rlhf_pipeline")) | {"dpo": {}, "rejection": {}}
    for name in recipe.names():
        section, _, key = name.rpartition(".")
        assert section in ("dpo", "rejection") or key in (written[section] if section else written), name
    words = " ".join(re.sub(r"^ *# ", "", template("grpo"), flags=re.M).split())
    assert "a step is one batch of rollouts." in words and "#epochs: 1\n" in template("grpo")


def test_sections_that_the_method_does_not_read_are_left_out():
    assert "\n#ppo:" not in template("dpo") and "\ndpo:" in template("dpo")
    assert "\n#dpo:" not in template("grpo") and "\nppo:\n" in template("grpo")
    assert "\n#rejection:" in template("rejection_sampling")


def test_it_is_written_with_its_schema_and_never_over_another(tmp_path):
    path = tmp_path / "recipes" / "my.yaml"
    said = init(path, "dpo")
    assert said == [
        f"{path}: written; {path.parent / SCHEMA} tells editors its fields",
        f"next: preferent run {path} --dry-run",
    ]
    assert path.read_text().startswith(f"# yaml-language-server: $schema={SCHEMA}\n")
    assert json.loads((path.parent / SCHEMA).read_text()) == schema()
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already; name another file"):
        init(path, "dpo")
    assert path.read_text() == "mine"
    init(path.with_name("other.yaml"), "kto")
    (path.parent / SCHEMA).write_text("{}")
    with pytest.raises(UsageError, match="is no schema of preferent"):
        init(path.with_name("third.yaml"), "kto")
    assert not path.with_name("third.yaml").exists() and (path.parent / SCHEMA).read_text() == "{}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_recipes_of_the_examples_fit_the_schema(path):
    check(yaml.safe_load(path.read_text()))


def test_a_run_s_own_recipe_and_google_cloud_s_keys_fit_the_schema():
    check(yaml.safe_load(recipe.dump(*defaults.resolve(recipe.parse(STARTS["sft"])[0]))))
    check(STARTS["rlhf_pipeline"] | {"project": "p", "deploy_model": False})


@pytest.mark.parametrize(
    "wrong",
    [
        {"kl_coef": 0.1},
        {"ppo": {"epoch": 2}},
        {"kl_coeff": -1},
        {"method": "ppo"},
        {"compare": {"judges": [{"nam": "x"}]}},
    ],
)
def test_a_misspelt_key_or_a_wrong_value_does_not(wrong):
    with pytest.raises(jsonschema.ValidationError):
        check(STARTS["rlhf_pipeline"] | wrong)


def test_the_command_line_knows_every_start():
    assert tuple(recipe_template.STARTS) == arguments.STARTS
