"""The files of a tokenizer: read from a model's folder, and written with the pad token named."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent.errors import PlatformError
from preferent.files import write_atomic, write_json

SPECIAL = ("bos", "eos", "unk", "pad")
PAD = "<|pad|>"
"""The token that a saved reward model pads with if its tokenizer has no other; it is left out where we read it."""
_ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer's files: `backend` is `tokenizer.json` as text, `ids` are from the model's configuration."""

    folder: Path
    backend: str
    config: dict[str, Any]
    names: dict[str, str]
    ids: dict[str, int]
    template: str | None


def read(folder: Path) -> TokenizerFiles:
    """Read the files of a tokenizer; a missing or broken file raises a `PlatformError` with the way to repair it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise PlatformError(_missing(folder))
    config, model, generation = (_object(folder / f"{name}_config.json") for name in ("tokenizer", "", "generation"))
    names, ids = _names(_object(folder / "special_tokens_map.json")) | _names(config), _ids(generation) | _ids(model)
    backend = text = _backend(path)
    if names.get("pad") == PAD and (backend := without_pad(text)) != text:
        names.pop("pad")
        ids.pop("pad", None)
        config.pop("pad_token", None)
    return TokenizerFiles(folder, backend, config, names, ids, _template(folder, config))


def _missing(folder: Path) -> str:
    """Return a message about a folder without tokenizer.json."""
    if not folder.is_dir():
        return f"{folder}: no such folder; a tokenizer is read from a model's folder"
    if (folder / "tokenizer.model").exists() or (folder / "vocab.json").exists():
        return (
            f"{folder}: the tokenizer is only in an old format; write tokenizer.json beside it with\n"
            f"  python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{folder}').save_pretrained("
            f"'{folder}')\""
        )
    return f"{folder}: holds no tokenizer.json; copy the tokenizer's files of the model into it"


def _object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is no file."""
    path = path.with_name(path.name.removeprefix("_"))
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlatformError(f"{path}: cannot be read as JSON: {error}; copy it again from the model") from None
    if not isinstance(value, dict):
        raise PlatformError(f"{path}: is not a JSON object; copy it again from the model")
    return value


def _backend(path: Path) -> str:
    value = _object(path)
    if not isinstance(value.get("model"), dict):
        raise PlatformError(f"{path}: is not a tokenizer of the `tokenizers` library: it has no model; copy it again")
    return path.read_text(encoding="utf-8")


def with_pad(text: str, id: int) -> str:
    """Return the text of a `tokenizer.json` with the special token `PAD`; `without_pad` gives the same text back."""
    key = _ADDED.search(text)
    assert key is not None, "the tokenizers library writes the key always"
    tokens, end = json.JSONDecoder().raw_decode(text, key.end())
    return text[: end - 1] + (", " if tokens else "") + _pad_entry(id) + text[end - 1 :]


def without_pad(text: str) -> str:
    """Return the text of a `tokenizer.json` without the token that `with_pad` added, if it did."""
    added = json.loads(text).get("added_tokens") or [{}]
    entry = _pad_entry(added[-1].get("id"))
    return text.replace(", " + entry, "", 1).replace(entry, "", 1)


def _pad_entry(id: int | None) -> str:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return json.dumps({"id": id, "content": PAD, **flags, "special": True})


def _names(config: dict[str, Any]) -> dict[str, str]:
    """Return special tokens by role, from texts or from objects with `content`."""
    tokens = {role: config.get(f"{role}_token") for role in SPECIAL}
    texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in tokens.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _ids(config: dict[str, Any]) -> dict[str, int]:
    """Return special ids by role; of several end tokens, the first."""
    ids = {role: config.get(f"{role}_token_id") for role in SPECIAL}
    first = {role: id[0] if isinstance(id, list) and id else id for role, id in ids.items()}
    return {role: id for role, id in first.items() if isinstance(id, int)}


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the chat template; of several, the one named `default`, else the first."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value if isinstance(entry, dict) and "name" in entry}
        value = named.get("default", next(iter(named.values()), None))
    return value if isinstance(value, str) else None


def write(files: TokenizerFiles, names: dict[str, str], folder: Path, pad: int | None = None) -> None:
    """Write a tokenizer's files with the given special tokens named in its configuration.

    With `pad` they get the token `PAD` of that id.
    """
    special = {f"{role}_token": text for role, text in names.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | files.config | special
    config.pop("chat_template", None)
    write_atomic(folder / "tokenizer.json", files.backend if pad is None else with_pad(files.backend, pad))
    write_json(folder / "tokenizer_config.json", config)
    if (files.folder / "special_tokens_map.json").exists():
        write_json(folder / "special_tokens_map.json", special)
    if files.template is not None:
        write_atomic(folder / "chat_template.jinja", files.template)
