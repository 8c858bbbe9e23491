"""A model's folder before any library opens it: its files, its sizes, and what is refused whatever else it holds.

Nothing is loaded. Sizes come from config.json, from the headers of the .safetensors files and from tokenizer.json.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from preferent.errors import PlatformError

LONGEST_JSON = 1 << 28
"""Bytes of the longest JSON file that is read here."""
MOST_PARTS = 1000
"""Layers, heads or experts that a model may have, unless its weights are more tensors than that."""
COUNTS = re.compile(r"(layers?|experts|heads?|blocks|depth)$")
"""Names in config.json of how many parts of a kind a model has."""
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "n_embd", "n_layer", "n_head", "n_positions"),
)
"""Names in config.json whose value, where there is one, is a whole number from 1."""
RECURRENT_LAYER = re.compile(r"mamba|linear|conv|recurrent|hybrid|ssm|rwkv|delta")
RECURRENT_MODEL = re.compile(
    r"mamba|rwkv|xlstm|recurrent|jamba|zamba|bamba|hybrid|linear|falcon_h1|nemotron_h|qwen3_next|qwen3_5|lfm2"
)
"""Words in the kinds of layers, or else in `model_type`, of models that keep a state instead of keys and values."""
OTHER_MEDIA = re.compile(r"image|video|vision|audio")
"""Words in the names of tokens that stand for what a model of text alone cannot read."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BEFORE_THE_PROMPT = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
"""Kinds of adapters that are tokens before the prompt instead of a change of weights."""
TASKS = (None, "CAUSAL_LM", "SEQ_CLS")

Shapes = dict[str, tuple[int, ...]]


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter."""
    return (folder / "adapter_config.json").exists()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file that other people wrote."""
    if not path.is_file():
        raise PlatformError(f"{path}: is not a file; copy it again from the model")
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise PlatformError(f"{path}: is longer than {LONGEST_JSON >> 20} MiB; copy it again from the model")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlatformError(f"{path}: cannot be read as JSON: {error}; copy it again from the model") from None
    if not isinstance(value, dict):
        raise PlatformError(f"{path}: is not a JSON object; copy it again from the model")
    return value


def check(folder: Path, complete: bool = True) -> dict[str, Any]:
    """Return the config.json of a full model; raise `PlatformError` if it is of no model, or of one not trained here.

    What the weights contradict is looked for only where they are there, and the folder is `complete`.
    """
    path = folder / "config.json"
    if not path.exists():
        raise PlatformError(
            f"{folder}: is no model: there is no config.json in it; give a folder in the Hugging Face layout"
        )
    config = read_object(path)
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise PlatformError(f"{path}: architectures: {names!r:.80} is not a list of names; copy it again")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            _check_sizes(path, part)
            _check_kind(folder, part)
    shapes = tensors(folder) if complete and has_weights(folder) else {}
    for name, value in _numbers(config):
        if shapes and COUNTS.search(name) and value > max(MOST_PARTS, len(shapes)):
            raise PlatformError(f"{path}: {name}: {value}, but the weights are {len(shapes)} tensors; copy it again")
    return config


def _check_sizes(path: Path, config: Mapping[str, Any]) -> None:
    for name in SIZES:
        value = config.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (value is None or isinstance(value, list) or whole):
            raise PlatformError(
                f"{path}: {name}: {value!r:.80} is not a whole number from 1; copy it again from the model"
            )


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse quantised weights, and models that are not made of attention alone."""
    if config.get("quantization_config") is not None:
        raise PlatformError(
            f"{folder}: its weights are quantised, and quantised weights are not read here; use the model that they "
            "were made from"
        )
    kinds, model_type = config.get("layer_types") or config.get("layers_block_type"), str(config.get("model_type"))
    recurrent = RECURRENT_MODEL.search(model_type)
    if isinstance(kinds, list) and kinds:
        recurrent = RECURRENT_LAYER.search(" ".join(map(str, kinds)))
    if recurrent:
        raise PlatformError(recurrent_refusal(folder, model_type))


def recurrent_refusal(folder: Path, kind: str) -> str:
    """Return why a model with a recurrent state is refused."""
    return (
        f"{folder}: is a {kind:.80} model, with layers that keep a recurrent state; only models whose layers all are "
        "attention (keys and values) are trained and sampled here, such as Llama, Mistral, Qwen3 or Gemma"
    )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers at any depth of a configuration, with their names."""
    waiting: list[Any] = [config]
    while waiting:
        part = waiting.pop()
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(value, dict | list):
                waiting.append(value)
            elif isinstance(value, int):
                yield str(name), value


# Weights


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds the weights of a full model as .safetensors."""
    return any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json"))


def require_weights(folder: Path) -> None:
    """Refuse a full model or an adapter without weights that are read here."""
    if is_adapter(folder) and not (folder / ADAPTER_WEIGHTS).exists():
        raise PlatformError(
            f"{folder}: has no {ADAPTER_WEIGHTS}; a pickled adapter is not read, since it can run code. Convert it "
            "once: PeftModel.from_pretrained(BASE_MODEL, ADAPTER).save_pretrained(ADAPTER)"
        )
    if not is_adapter(folder) and not has_weights(folder):
        raise PlatformError(
            f"{folder}: has no .safetensors weights; pickled ones are not read, since they can run code. "
            f"Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )


def weights(folder: Path) -> list[Path]:
    """Return the files of a full model's weights, each beside its config.json."""
    require_weights(folder)
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    named = read_object(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise PlatformError(f"{index}: weight_map does not name the files of the weights; copy it again from the model")
    for name in sorted(set(names)):
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise PlatformError(f"{index}: names {name!r:.80}, which is not a file beside it; copy it again")
        if not (folder / name).is_file():
            raise PlatformError(f"{index}: names {name}, which is not there; the model is incomplete: copy it again")
    return [folder / name for name in sorted(set(names))]


def tensors(folder: Path) -> Shapes:
    """Return the shapes of a full model's weights by name, read off the headers of its files."""
    return {name: shape for path in weights(folder) for name, shape in header(path).items()}


def counted(folder: Path) -> int:
    """Return how many numbers the weights in a folder are."""
    return sum(map(math.prod, tensors(folder).values()))


def header(path: Path) -> Shapes:
    """Return the shapes of the tensors in a .safetensors file by name; its length is checked by that."""
    try:
        if not path.is_file():
            raise OSError("it is not a file")
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise PlatformError(f"{path}: cannot be read: {error}; the model is damaged: copy it again") from None


# Adapters


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return the adapter_config.json of an adapter; raise `PlatformError` if it is none that is read here."""
    path = folder / "adapter_config.json"
    config = read_object(path)
    base, kind, task = (config.get(name) for name in ("base_model_name_or_path", "peft_type", "task_type"))
    if not isinstance(base, str) or not base or "\0" in base:
        raise PlatformError(f"{path}: base_model_name_or_path does not name the adapter's base; write it there")
    if kind in BEFORE_THE_PROMPT:
        raise PlatformError(f"{folder}: is an adapter of the kind {kind}, which is not read here; use a LoRA adapter")
    if task not in TASKS:
        raise PlatformError(f"{path}: task_type: {task!r:.80}; the adapters read here are CAUSAL_LM or SEQ_CLS")
    if config.get("megatron_config") is not None or config.get("megatron_core") not in (None, "megatron.core"):
        raise PlatformError(f"{path}: megatron_config and megatron_core name code to import, which is not done here")
    return config


def check_fit(adapter: Path, base: Path) -> None:
    """Refuse an adapter on an adapter, and one that replaces a weight of its base by one of another shape."""
    if is_adapter(base):
        raise PlatformError(
            f"{adapter}: its base {base} is an adapter itself; merge that one first: merge_and_unload() in PEFT"
        )
    if not has_weights(base) or not (adapter / ADAPTER_WEIGHTS).exists():
        return
    below = tensors(base)
    for name, shape in header(adapter / ADAPTER_WEIGHTS).items():
        plain = name.removeprefix("base_model.model.")
        if shape != below.get(plain, shape):
            raise PlatformError(
                f"{adapter}: its {plain} is {list(shape)}, but that of its base {base} is {list(below[plain])}; give "
                "the base as many rows with resize_token_embeddings and save it, or use the base it was trained on"
            )


# Vocabulary


def check_vocabulary(folder: Path, base: Path) -> None:
    """Refuse a model whose tokenizer has ids without a row in the embeddings; `base` holds its config.json."""
    source = folder if (folder / "tokenizer.json").is_file() else base
    config = read_object(base / "config.json")
    text = config.get("text_config")
    rows = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    if isinstance(rows, int) and (source / "tokenizer.json").is_file():
        size = 1 + max(ids(without_other_media(read_object(source / "tokenizer.json"), rows)), default=-1)
        require_rows(folder, size, rows)


def require_rows(folder: Path, size: int, rows: int) -> None:
    """Refuse a tokenizer of `size` ids before embeddings of fewer `rows`."""
    if size > rows:
        raise PlatformError(
            f"{folder}: its tokenizer has {size} tokens, but its embeddings have {rows} rows; give the model a row for "
            f"each once: model.resize_token_embeddings({size}), then save_pretrained"
        )


def ids(tokenizer: Mapping[str, Any]) -> list[int]:
    """Return the ids of the tokens in a tokenizer.json."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    plain = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    if isinstance(vocabulary, list):
        plain = list(range(len(vocabulary)))
    return [id for id in [*plain, *(token.get("id") for token in _added(tokenizer))] if isinstance(id, int)]


def without_other_media(tokenizer: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return a tokenizer.json without the tokens beyond the embeddings that stand for images, video or sound.

    Gemma 3 1B comes with one: its tokenizer is that of the larger models, which see. Such a token is then plain text.
    """
    added = _added(tokenizer)
    kept = [token for token in added if not _beyond(token, rows)]
    return tokenizer if len(kept) == len(added) else tokenizer | {"added_tokens": kept}


def _beyond(token: Mapping[str, Any], rows: int) -> bool:
    id = token.get("id")
    return isinstance(id, int) and id >= rows and bool(OTHER_MEDIA.search(str(token.get("content"))))


def _added(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = tokenizer.get("added_tokens")
    return [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
