"""The parameters of Google Cloud Pipeline Components as a recipe, and the run directory that belongs to them."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preferent.config import recipe as recipes
from preferent.config import recipe_yaml
from preferent.config.gcpc_names import CLOUD_ONLY
from preferent.errors import UsageError

ROOT = "PREFERENT_ROOT"
"""The environment variable that names the folder of the runs in a pod: where a volume is mounted."""
BUCKETS = Path("/gcs")
"""Where Vertex AI mounts buckets."""
ONLY_HERE = ("autorater",)
"""Keys of the parameter `recipe` that are no fields of a recipe: `autorater` names the judge of `rlaif_pipeline` and
`autosxs_pipeline`, as `preferent compare --judge` does."""
FIELDS = (
    *("prompt_dataset", "preference_dataset", "large_model_reference", "instruction", "eval_dataset", "kl_coeff"),
    "reward_model_reference",
    *("prompt_sequence_length", "target_sequence_length", "reward_model_train_steps"),
    *("reward_model_learning_rate_multiplier", "reinforcement_learning_rate_multiplier"),
    "reinforcement_learning_train_steps",
)
"""The parameters of the pipelines that are fields of a recipe."""
EXTENDABLE = ("reward_model_train_steps", "reinforcement_learning_train_steps")


def further(text: str) -> dict[str, Any]:
    """Return the fields in the parameter `recipe`, a YAML text."""
    if not text.strip():
        return {}
    values = recipe_yaml.parse(text, "recipe")
    if not isinstance(values, dict):
        raise UsageError(f"recipe: holds {type(values).__name__}, not fields of a recipe such as 'ppo: {{epochs: 2}}'")
    return values


def merged(parameters: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return a recipe's values: the parameters that are set, and the further fields in `text`."""
    fields = {key: value for key, value in further(text).items() if key not in ONLY_HERE}
    values = {key: value for key, value in parameters.items() if value not in ("", None)}
    for key in sorted(fields.keys() & (parameters.keys() | {*CLOUD_ONLY})):
        if not (isinstance(fields[key], dict) and isinstance(values.get(key), dict)):
            raise UsageError(f"recipe: {key}: is a parameter of the pipeline; set it there")
        values[key] = fields.pop(key) | values[key]
    recipes.parse(values | fields, "pipeline parameters")
    return values | fields


def tuning_fields(kind: str, reward_model: str, batch_size: int, lora_dim: int) -> dict[str, Any]:
    """Return the sections of a recipe that `reward_model_graph` (`kind` "reward") or `reinforcement_learning_graph`
    ("reinforcement") sets: batch size and LoRA rank of its stage, and the reward model to tune against."""
    section = {"batch_size": batch_size} if batch_size > 0 else {}
    section |= {"lora_dim": lora_dim} if lora_dim >= 0 else {}
    sections: dict[str, Any] = {"reward" if kind == "reward" else "ppo": section} if section else {}
    return sections | ({"reward": {"sources": reward_model}} if reward_model else {})


def autorater(text: str) -> str:
    """Return the judge that the parameter `recipe` names; an empty text if it names none."""
    return str(further(text).get("autorater", ""))


def run_place(pipeline_root: str, name: str) -> str:
    """Return where a run lies: in a mounted volume, in a bucket where Vertex AI mounts it, or below `pipeline_root`,
    which may be the address of an object store."""
    root = os.environ.get(ROOT) or pipeline_root
    scheme, mark, rest = root.partition("://")
    if mark and scheme == "gs" and BUCKETS.is_dir():
        root = str(BUCKETS / rest)
    elif mark and scheme not in ("gs", "s3"):
        raise UsageError(
            f"{scheme}://…: runs lie in folders, gs:// and s3://; mount a volume and name its folder in {ROOT} "
            "(preferent.kubeflow.PodSettings(volume=…) does it)"
        )
    return f"{root.rstrip('/')}/{name}"


def run_name(name: str, kind: str, values: Mapping[str, Any]) -> str:
    """Return the name of the run directory: the one asked for, else one that depends on the parameters alone."""
    if name:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
        if not plain:
            raise UsageError(f"model_display_name: {name!r} names no folder; use letters and digits")
        return plain
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f"{kind}-{digest[:10]}"


def artifacts_folder(run: Path) -> Path:
    """Return the folder beside a run directory that holds what the run made where users of GCPC look for it."""
    return run.with_name(f"{run.name}-artifacts")


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], run: str) -> None:
    """Raise `UsageError` if a run was made from other parameters; more training steps go on with it."""
    changes = [
        f"  {key}: was {old.get(key)!r}, is now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not (key in EXTENDABLE and new.get(key, 0) > old.get(key, 0))
    ]
    if changes:
        lines = "\n".join(changes)
        raise UsageError(
            f"{run}: was made from other parameters:\n{lines}\nGo back to the old values, or name another run: "
            "model_display_name"
        )
