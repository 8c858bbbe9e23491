"""Where a model reference leads: a local folder, a GCPC alias, or a repository on the Hugging Face hub."""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from preferent import files
from preferent.config.defaults import reward_reference
from preferent.config.gcpc_names import resolve_model
from preferent.config.model_shape import LLAMA_2, Shape
from preferent.config.recipe import Recipe
from preferent.errors import PlatformError, UsageError

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.model", "*.py"]
CONFIGURATION = ["config.json", "adapter_config.json"]
TOKENIZER = [*CONFIGURATION, "tokenizer*", "*.jinja", "special_tokens_map.json", "generation_config.json"]


def resolve(reference: str) -> Path:
    """Return the folder of a model reference, downloaded where it is not local.

    Raises `PlatformError` with the steps to take where the repository is gated, missing or out of reach.
    """
    local = Path(reference)
    if local.exists():
        return local.resolve()
    return _download(*_repository(reference))


def cached(reference: str) -> Path | None:
    """Return the folder of a model reference as far as it is on this machine, found without network; None where it is
    not."""
    local = Path(reference)
    if local.exists():
        return local.resolve()
    from huggingface_hub import try_to_load_from_cache

    with contextlib.suppress(PlatformError, UsageError, ValueError):  # a name that is none, for us or for the hub
        repository, revision = _repository(reference)
        for name in ("config.json", "adapter_config.json"):
            if isinstance(file := try_to_load_from_cache(repository, name, revision=revision), str):
                return Path(file).parent
    return None


def tokenizer_folder(reference: str, offline: bool) -> Path | None:
    """Return the folder of a model's tokenizer, of an adapter without one that of its base; no weight is downloaded.

    Return None if it is not on this machine and `offline` is set.
    """
    folder = cached(reference)
    if folder is not None and not (folder / "tokenizer.json").exists() and (folder / "adapter_config.json").exists():
        name = files.read_json(folder / "adapter_config.json")["base_model_name_or_path"]
        beside = (folder / name).resolve()
        return tokenizer_folder(str(beside if beside.exists() else name), offline)
    if folder is not None and ((folder / "tokenizer.json").exists() or Path(reference).exists()):
        return folder
    return None if offline else _download(*_repository(reference), TOKENIZER)


def check(recipe: Recipe) -> None:
    """Refuse a model to tune that can be seen, without network or loading it, to be none or to read too little.

    Of the model that the reward model starts from only the second is looked for.
    """
    folder = Path(recipe.large_model_reference)
    if not folder.exists():
        _repository(recipe.large_model_reference)
    elif not (folder / "adapter_config.json").exists():
        require_config(folder)
        config = files.read_json(folder / "config.json")
        if isinstance(config, dict):
            require_writer(folder, config.get("architectures"), bool(config.get("is_encoder_decoder")))
    for part in recipe.reward.parts:
        if part.kind == "model":
            with placed(part.place):
                _check_reward(part.source, recipe)
    for source in dict.fromkeys((folder, Path(reward_reference(recipe)))):
        if (source / "config.json").exists():
            require_length(source, _longest(files.read_json(source / "config.json")), recipe)


def _check_reward(reference: str, recipe: Recipe) -> None:
    """Refuse what can be seen to be no reward model, or to read too little."""
    if not Path(reference).exists():
        try:
            _repository(reference)
        except PlatformError as error:
            raise PlatformError(f"{error}, and it is not of the form module:function") from None
    elif (Path(reference) / "config.json").exists():
        require_length(Path(reference), _longest(files.read_json(Path(reference) / "config.json")), recipe)


@contextlib.contextmanager
def placed(place: str) -> Iterator[None]:
    """Put where a recipe names a model in front of what is wrong with it."""
    try:
        yield
    except (PlatformError, UsageError) as error:
        raise type(error)(f"{place}: {error}") from None


def _longest(config: Any) -> int | None:
    """Return the tokens that a model reads, where its config.json says so."""
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    found = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def require_config(folder: Path) -> None:
    """Refuse a folder that holds no model."""
    if not (folder / "config.json").exists():
        raise PlatformError(
            f"{folder}: is no model: there is no config.json in it; give a folder in the Hugging Face layout"
        )


def require_length(source: Path, longest: int | None, recipe: Recipe) -> None:
    """Refuse prompts and answers that together are longer than the model can read."""
    asked = recipe.prompt_sequence_length + recipe.target_sequence_length
    if longest is not None and asked > longest:
        raise UsageError(
            f"prompt_sequence_length + target_sequence_length: {asked} tokens, but {source} reads {longest}; "
            f"lower one of them"
        )


def require_writer(source: Path, architectures: Sequence[str] | None, is_encoder_decoder: bool) -> None:
    """Refuse a model that writes no text, by what its configuration says of it."""
    names = " ".join(architectures or ())
    if "SequenceClassification" in names or is_encoder_decoder:
        raise UsageError(
            f"{source}: is a {names}, not a causal language model; large_model_reference wants one that writes text"
        )


def _repository(reference: str) -> tuple[str, str | None]:
    """Return the hub's repository and revision that a reference names."""
    repository, _, revision = resolve_model(reference).partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository, re.ASCII):
        raise PlatformError(f"{reference}: no such folder, and no hub id (OWNER/NAME) either")
    return repository, revision or None


def adapter_base(source: Path) -> Path:
    """Return the folder of the model that an adapter sits on; a relative path is relative to the adapter."""
    config = files.read_json(source / "adapter_config.json")
    name, revision = config["base_model_name_or_path"], config.get("revision")
    beside = (source / name).resolve()
    return beside if beside.exists() else resolve(f"{name}@{revision}" if revision else name)


def parameters(reference: str) -> int:
    """Return how many parameters the model that a reference names has, of an adapter its base; no weight is loaded.

    Of a repository on the hub only the configuration is downloaded where that is enough.
    """
    if not Path(reference).exists() and (known := LLAMA_2.get(resolve_model(reference))):
        return known.policy
    folder = cached(reference) or _download(*_repository(reference), CONFIGURATION)
    if (folder / "adapter_config.json").exists():
        return parameters(str(adapter_base(folder)))
    require_config(folder)
    shape = Shape.of(files.read_json(folder / "config.json"))
    if shape is not None:
        return shape.policy
    return counted(folder if any(folder.glob("*.safetensors")) else resolve(reference))


def counted(folder: Path) -> int:
    """Return how many numbers the weights in a folder are, read off the headers of its files."""
    require_weights(folder)
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise PlatformError(f"{path}: cannot be read: {error}; the model is damaged: copy it again") from None
    return total


def require_weights(folder: Path) -> None:
    """Refuse a model without weights that are read here."""
    if not any(folder.glob("*.safetensors")):
        raise PlatformError(
            f"{folder}: has no .safetensors weights; pickled ones are not read, since they can run code. "
            f"Convert them once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )


def _download(repository: str, revision: str | None, patterns: Sequence[str] = PATTERNS) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise PlatformError(
            f"{repository}: is gated. Ask for access at https://huggingface.co/{repository}, make a token under your "
            f"account's settings, run `hf auth login` (or set HF_TOKEN), and start again"
        ) from None
    except RepositoryNotFoundError:
        raise PlatformError(
            f"{repository}: no such repository on the hub, or it is private; check the spelling, or run `hf auth login`"
        ) from None
    except HFValidationError as error:
        raise PlatformError(f"{repository}: is no name that the hub allows: {error}; check the spelling") from None
    except RevisionNotFoundError:
        raise PlatformError(f"{repository}: has no revision {revision}; name another, or none") from None
    except Exception as error:
        raise PlatformError(
            f"{repository}: the hub is out of reach ({type(error).__name__}) and the model is not in the cache. "
            f"Connect, or download it elsewhere and give its folder as large_model_reference"
        ) from error


def name_of(source: Path) -> tuple[str, str | None]:
    """Return what to call a resolved folder in a saved file: of one in the hub's cache OWNER/NAME and commit, else its
    path.

    The cache writes OWNER/NAME as models--OWNER--NAME; the hub gives no OWNER a name with `--`.
    """
    repository = source.parent.parent.name
    if source.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1), source.name
    return str(source), None
