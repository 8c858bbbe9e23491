"""A recipe to begin with: every field with its meaning and its default, and a JSON Schema for editors beside it.

What has to be decided is set; every other field is a comment that holds its default. A `#` right before a key turns it
off; a `#` and a space begin a text.
"""

import json
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from preferent import files
from preferent.config import defaults
from preferent.config.gcpc_names import CLOUD_ONLY
from preferent.config.recipe import Recipe, inner_section, parse
from preferent.config.sections import Section
from preferent.errors import UsageError

SCHEMA = "recipe.schema.json"
TITLE = "Recipe of preferent"
HEAD = f"""\
# yaml-language-server: $schema={SCHEMA}
# A recipe of preferent. The lines that are set are what you decide first. A key behind a # has its default: take the #
# away to set it, and the one before its section too. The recipe's reference page is docs/recipe.md.
"""
FIRST = {
    "large_model_reference": "models/base",
    "preference_dataset": "data/preference.jsonl",
    "prompt_dataset": "data/prompt.jsonl",
    "reward_model_train_steps": 1000,
    "reinforcement_learning_train_steps": 1000,
    "kl_coeff": 0.1,
}
"""What a recipe of `rlhf_pipeline` sets."""
WITHOUT_PREFERENCES = {
    key: FIRST[key] for key in FIRST if key not in ("preference_dataset", "reward_model_train_steps")
}
DIRECT = {key: FIRST[key] for key in ("large_model_reference", "preference_dataset", "kl_coeff")}
"""What a recipe sets that tunes on the preferences themselves."""
STARTS: dict[str, dict[str, Any]] = {
    "rlhf_pipeline": FIRST,
    "sft": FIRST | {"sft": {"dataset": "data/demonstrations.jsonl", "train_steps": 1000}},
    "rloo": FIRST | {"ppo": {"algorithm": "rloo"}},
    "grpo": FIRST | {"ppo": {"algorithm": "grpo"}},
    "rejection_sampling": FIRST | {"method": "rejection_sampling"},
    "dpo": DIRECT | {"method": "dpo", "dpo": {"train_steps": 1000}},
    "kto": DIRECT | {"method": "kto", "dpo": {"train_steps": 1000}},
    "reward_function": WITHOUT_PREFERENCES | {"reward": {"sources": "rewards:score"}},
}
"""The values that each kind of recipe sets."""
OF_METHOD = {
    "ppo": ("reinforcement_learning",),
    "rejection": ("rejection_sampling",),
    "dpo": ("dpo", "kto"),
}
"""The sections that only some methods read."""


def init(path: Path, start: str) -> list[str]:
    """Write a recipe and the schema beside it, and return what to say; refuse to overwrite a recipe."""
    if path.exists():
        raise UsageError(f"{path}: is there already; name another file: preferent recipe init FILE")
    beside = path.parent / SCHEMA
    if beside.exists() and f'"title": "{TITLE}"' not in beside.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"{beside}: is there already and is no schema of preferent; name a recipe in another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(beside, schema_text())
    files.write_atomic(path, template(start))
    return [f"{path}: written; {beside} tells editors its fields", f"next: preferent run {path} --dry-run"]


def template(start: str) -> str:
    """Return the text of a commented recipe."""
    values = STARTS[start]
    recipe, _ = defaults.resolve(parse(values)[0])
    shown = recipe.model_dump(mode="json")
    unread = [name for name, methods in OF_METHOD.items() if recipe.method not in methods]
    return HEAD + "".join(_fields(Recipe, values, shown, unread=unread))


def _fields(
    section: type[Section],
    values: Mapping[str, Any],
    shown: Mapping[str, Any],
    indent: str = "",
    is_set: bool = True,
    unread: Collection[str] = (),
) -> Iterator[str]:
    """Return the lines of a section: those of `values` set, the others with what is `shown` behind a `#`."""
    for name, field in section.model_fields.items():
        inner = inner_section(field)
        if name in unread:
            continue
        mark = "" if is_set and name in values else "#"
        if inner is None:
            yield _meaning(field, indent)
            yield f"{indent}{mark}{name}: {_setting(field, shown.get(name))}\n"
        else:
            yield f"\n{indent}{mark}{name}:\n"
            yield from _fields(inner, values.get(name) or {}, shown.get(name) or {}, indent + "  ", not mark)


def _meaning(field: FieldInfo, indent: str) -> str:
    text = " ".join((field.description or "").split())
    lines = textwrap.wrap(text, 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    return "\n".join([*([] if indent else [""]), *lines, ""])


def _setting(field: FieldInfo, shown: Any) -> str:
    """Return what is shown on one line; of a section that is off, the default."""
    if shown is None:
        shown = "data/demonstrations.jsonl" if field.is_required() else field.default
    return yaml.safe_dump(shown, default_flow_style=True, width=10**6).splitlines()[0]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of recipes: what their types say; what fields say of each other is checked by `run`."""
    described = Recipe.model_json_schema()
    _without_titles(described)
    ignored = {"description": "Of Google Cloud: accepted and ignored."}
    described["properties"] |= dict.fromkeys(CLOUD_ONLY, ignored)
    described["properties"] |= {
        "schema": {"description": "The schema of a recipe that a run wrote."},
        "defaults": {"description": "What nobody asked for, in a recipe that a run wrote.", "type": "object"},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": TITLE, **described}


def schema_text() -> str:
    """Return the schema as the file that is written."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def _without_titles(part: Any) -> None:
    """Remove the titles that only repeat a key or the name of a class."""
    if isinstance(part, dict):
        if isinstance(part.get("title"), str):
            del part["title"]
        for inner in part.values():
            _without_titles(inner)
    elif isinstance(part, list):
        for inner in part:
            _without_titles(inner)
