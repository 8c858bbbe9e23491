"""The README.md of a saved model: metadata as the Hugging Face hub reads them, and lines that load the model.

The lines work in a process that does not know preferent, from any working directory, and after the run was moved.
"""

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from preferent.config import model_reference
from preferent.config.model_reference import adapter_base

FOLDER = "PATH/OF/THIS/FOLDER"
"""What stands in a card for the model's own folder."""
LOADING = "{loading}"
"""The place of the lines that load the model; a card without it has them at its end."""
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.S)
_INHERITED = ("license", "license_name", "license_link")

Base = tuple[str, str | None]
"""The name of an adapter's base as `adapter_config.json` has it, and its revision."""


def render(card: str, front: Mapping[str, Any], loading: str) -> str:
    """Return a card with its metadata in front and the lines that load the model in their place."""
    lines = f"```python\n{loading}```"
    text = card.replace(LOADING, lines) if LOADING in card else f"{card.rstrip()}\n\n{lines}\n"
    return f"---\n{yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)}---\n\n{text}"


def metadata(source: Path, reward: bool, adapter: bool, licences: list[str]) -> dict[str, Any]:
    """Return the metadata of a model that was made from the one in `source`; `licences` are the files copied from it.

    The base and the licence are those that are known: by the hub's cache, or by the card in `source`.
    """
    earlier = front_matter(source / "README.md")
    name, revision = model_reference.name_of(source)
    tags = ["preferent", "reward-model"] if reward else ["preferent"]
    ours = isinstance(earlier.get("tags"), list) and "preferent" in earlier["tags"]
    front = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if reward else "text-generation",
        "tags": [*tags, "lora"] if adapter else tags,
        "base_model": name if revision else earlier.get("base_model") if ours else None,
    }
    front |= {key: earlier.get(key) for key in _INHERITED}
    if licences and front["license"] is None:
        front |= {"license": "other", "license_link": licences[0]}
    return {key: known for key, known in front.items() if known is not None}


def front_matter(path: Path) -> dict[str, Any]:
    """Return the metadata of a card; an empty dictionary if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        if match := _FRONT.match(path.read_text(encoding="utf-8")[:20_000]):
            front = yaml.safe_load(match[1])
            return front if isinstance(front, dict) else {}
    return {}


def loading(reward: bool, base: Base | None, inside: bool = False, rows: int | None = None) -> str:
    """Return Python lines that load a model, or an adapter on its `base`.

    The name of a base `inside` the run or the export is relative to the adapter. `rows` is the number of embeddings
    that the pad token of a reward model needs, where the base has fewer.
    """
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    lines = ["from peft import PeftModel"] if base else []
    lines += [f"from transformers import {kind}, AutoTokenizer", "", f'folder = "{FOLDER}"']
    lines.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
    if base is None:
        lines.append(f"model = {kind}.from_pretrained(folder)")
    else:
        name, revision = base
        words = [f'f"{{folder}}/{name}"' if inside else f'"{name}"']
        words += [f'revision="{revision}"'] if revision else []
        words += ["num_labels=1"] if reward else []
        lines.append(f"base = {kind}.from_pretrained({', '.join(words)})")
        if reward and rows is not None:
            lines.append(f"base.resize_token_embeddings({rows}, mean_resizing=False)")
        if reward:
            lines.append("base.config.get_text_config().pad_token_id = tokenizer.pad_token_id")
        lines.append("model = PeftModel.from_pretrained(base, folder)")
    return "".join(f"{line}\n" for line in lines)


def copy_licences(source: Path, folder: Path) -> list[str]:
    """Copy the source's licence files into a model folder; return their names."""
    base = adapter_base(source) if (source / "adapter_config.json").exists() else source
    names = []
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")):
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return names
