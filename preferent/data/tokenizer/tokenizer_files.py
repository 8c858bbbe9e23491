"""The files of a tokenizer: read from a model's folder, and written with the pad token named."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from preferent.config import model_folder
from preferent.config.model_reference import adapter_base
from preferent.errors import PlatformError
from preferent.files import write_atomic, write_json

SPECIAL = ("bos", "eos", "unk", "pad")
FOR_TOOLS = "tool_use"
"""The name of the template that is used where `chat_template_kwargs` has tools."""
PAD = "<|pad|>"
"""The token that a saved reward model pads with if its tokenizer has no other; it is left out where we read it."""
_ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer's files: `backend` is `tokenizer.json` as text, `ids` are from the model's configuration.

    `ends` are the ids at which the model's configuration ends an answer. `named_tokens` are all special tokens that the
    tokenizer's configuration names, by the names under which a template reads them; None where it says null.
    `templates` are the chat templates by name, and `template` is the one in use, written in `template_place`.
    """

    folder: Path
    backend: str
    config: dict[str, Any]
    names: dict[str, str]
    ids: dict[str, int]
    ends: tuple[int, ...]
    named_tokens: dict[str, str | None]
    special_tokens_map: dict[str, Any]
    template: str | None
    template_place: str


def read(folder: Path, tools: bool = False) -> TokenizerFiles:
    """Read the files of a tokenizer; a missing or broken file raises a `PlatformError` with the way to repair it.

    What an adapter does not say on its model is read from its base. With `tools` the template for tools is preferred.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise PlatformError(_missing(folder))
    alone = (folder / "config.json").is_file() or not (folder / "adapter_config.json").is_file()
    config = _object(folder / "tokenizer_config.json")
    base = folder if alone else adapter_base(folder)
    model, generation = _object(base / "config.json"), _object(base / "generation_config.json")
    generation |= {} if alone else _object(folder / "generation_config.json")
    special = _object(folder / "special_tokens_map.json")
    names, ids = _names(special) | _names(config), _ids(generation) | _ids(model)
    backend = text = _backend(path, model.get("vocab_size"))
    if names.get("pad") == PAD and (backend := without_pad(text)) != text:
        names.pop("pad")
        ids.pop("pad", None)
        config, special = ({key: held[key] for key in held if key != "pad_token"} for held in (config, special))
    return TokenizerFiles(
        folder,
        backend,
        config,
        names,
        ids,
        _ends(generation) or _ends(model) or _ends(model.get("text_config")),
        named_tokens(config | ({} if "added_tokens_decoder" in config else special)),
        special,
        *_template(folder, config, tools),
    )


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
    return model_folder.read_object(path) if path.exists() else {}


def _backend(path: Path, rows: object) -> str:
    """Return the text of tokenizer.json, less the tokens of other media beyond the `rows` of the embeddings."""
    value = _object(path)
    if not isinstance(value.get("model"), dict):
        raise PlatformError(f"{path}: is not a tokenizer of the `tokenizers` library: it has no model; copy it again")
    text = model_folder.without_other_media(value, rows) if isinstance(rows, int) else value
    return path.read_text(encoding="utf-8") if text is value else json.dumps(text, ensure_ascii=False)


def id_of_pad(text: str) -> int:
    """Return the id that the token `PAD` has, or would get, in the tokenizer of a `tokenizer.json`."""
    padded = tokenizers.Tokenizer.from_str(text)
    padded.add_special_tokens([PAD])
    id = padded.token_to_id(PAD)
    assert id is not None, "it was added"
    return id


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
    texts = {role: _content(config.get(f"{role}_token")) for role in SPECIAL}
    return {role: text for role, text in texts.items() if text is not None}


def _content(token: Any) -> str | None:
    """Return the text of a token that is given as a text or as an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def named_tokens(config: dict[str, Any]) -> dict[str, str | None]:
    """Return all tokens that a tokenizer's configuration names, by name: `eos_token`, `image_token`, and so on."""
    further = config.get("extra_special_tokens")
    tokens = {name: token for name, token in config.items() if name.endswith("_token") and not isinstance(token, bool)}
    tokens |= further if isinstance(further, dict) else {}
    return {name: _content(token) for name, token in tokens.items()}


def _ends(config: Any) -> tuple[int, ...]:
    """Return the ids at which a configuration ends an answer."""
    ids = config.get("eos_token_id") if isinstance(config, dict) else None
    return tuple(id for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int)


def _ids(config: dict[str, Any]) -> dict[str, int]:
    """Return special ids by role; of several end tokens, the first."""
    ids = {role: config.get(f"{role}_token_id") for role in SPECIAL}
    first = {role: id[0] if isinstance(id, list) and id else id for role, id in ids.items()}
    return {role: id for role, id in first.items() if isinstance(id, int)}


def _template(folder: Path, config: dict[str, Any], tools: bool) -> tuple[str | None, str]:
    """Return the chat template and its place; of several, the one for tools if `tools`, else the default one."""
    named: dict[str, Any] = {}
    places = {"default": folder / "chat_template.jinja"}
    places |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in places.items():
        if path.is_file():
            named[name] = path.read_text(encoding="utf-8")
    if not named:
        places, inside = {}, config.get("chat_template")
        entries = inside if isinstance(inside, list) else [{"name": "default", "template": inside}]
        named = {str(entry.get("name")): entry.get("template") for entry in entries if isinstance(entry, dict)}
    name = FOR_TOOLS if tools and FOR_TOOLS in named else "default"
    text = named.get(name)
    return text if isinstance(text, str) else None, str(places.get(name, folder / "tokenizer_config.json"))


def write(files: TokenizerFiles, names: dict[str, str], ends: list[int], folder: Path, pad: int | None = None) -> None:
    """Write a tokenizer's files with the given special tokens named in its configuration, and the template in use.

    `ends` are the ids that end an answer. They are written where the folder would otherwise name other ones. With `pad`
    the tokenizer gets the token `PAD` of that id.
    """
    special = {f"{role}_token": text for role, text in names.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | files.config | special
    config.pop("chat_template", None)
    write_atomic(folder / "tokenizer.json", files.backend if pad is None else with_pad(files.backend, pad))
    write_json(folder / "tokenizer_config.json", config)
    if (files.folder / "special_tokens_map.json").exists():
        write_json(folder / "special_tokens_map.json", files.special_tokens_map | special)
    if files.template is not None:
        write_atomic(folder / "chat_template.jinja", files.template)
    model, generation = _object(folder / "config.json"), _object(folder / "generation_config.json")
    if {ends[0], *(_ends(generation) or _ends(model) or _ends(model.get("text_config")))} != set(ends):
        write_json(folder / "generation_config.json", generation | {"eos_token_id": ends})
