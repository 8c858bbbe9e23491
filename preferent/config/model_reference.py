"""Where a model reference leads: a local folder, a GCPC alias, or a repository on the Hugging Face hub."""

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from preferent import ranks
from preferent.config import model_folder
from preferent.config.defaults import reward_reference
from preferent.config.gcpc_names import resolve_model
from preferent.config.model_shape import LLAMA_2, Shape
from preferent.config.recipe import Recipe
from preferent.errors import PlatformError, UsageError

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.model", "*.py"]
CONFIGURATION = ["config.json", "adapter_config.json", "tokenizer.json"]
TOKENIZER = [*CONFIGURATION, "tokenizer*", "*.jinja", "special_tokens_map.json", "generation_config.json"]


def resolve(reference: str) -> Path:
    """Return the folder of a model reference, downloaded where it is not local.

    Raises `PlatformError` with the steps to take where the repository is gated, missing or out of reach.
    """
    local = Path(reference)
    if local.exists():
        return local.resolve()
    return Path(ranks.agreed(lambda: str(_download(*_repository(reference)))))


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
        beside, name = _base(folder)
        return tokenizer_folder(str(beside or name), offline)
    if folder is not None and ((folder / "tokenizer.json").exists() or Path(reference).exists()):
        return folder
    return None if offline else _download(*_repository(reference), TOKENIZER)


def check(recipe: Recipe, fetch: bool = False) -> None:
    """Refuse the models of a recipe that can be seen, without loading them, not to be what they are named for.

    Of those on the hub the configurations are downloaded with `fetch`; without it they are not looked at.
    """
    policy, start = recipe.large_model_reference, reward_reference(recipe)
    if look := _look(policy, fetch):
        require_full(look.folder, "large_model_reference")
        require_writer(look.folder, look.config.get("architectures"), bool(look.config.get("is_encoder_decoder")))
        require_length(look.folder, _longest(look.config), recipe)
    for part in recipe.reward.parts:
        if part.kind == "model":
            with placed(part.place):
                _check_reward(part.source, recipe, fetch)
    if start != policy:
        with placed("reward_model_reference"):
            if look := _look(start, fetch):
                require_full(look.folder, "reward_model_reference")
                require_length(look.folder, _longest(look.config), recipe)
    for number, judge in enumerate(recipe.compare.judges):
        with placed(place := f"compare.judges.{number}.model"):
            if judge.url is None and (look := _look(judge.model, fetch)):
                require_writer(look.folder, look.architectures, bool(look.config.get("is_encoder_decoder")), place)


class _Look(NamedTuple):
    """A model's folder and the config.json of the full model in it or below it."""

    folder: Path
    config: dict[str, Any]

    @property
    def architectures(self) -> list[str]:
        """Return what the model is; of an adapter, what it is for."""
        if model_folder.is_adapter(self.folder):
            task = model_folder.check_adapter(self.folder).get("task_type")
            return ["ForSequenceClassification" if task == "SEQ_CLS" else "ForCausalLM"]
        return list(self.config.get("architectures") or [])


def _look(reference: str, fetch: bool) -> _Look | None:
    """Look into a model; None for one of known shape on the hub, or that is not on this machine or to be fetched."""
    local = Path(reference).exists()
    repository = None if local else _repository(reference)
    if repository is None:
        folder = Path(reference)
    elif fetch and resolve_model(reference) not in LLAMA_2:
        folder = cached(reference) or _download(*repository, CONFIGURATION)
    else:
        return None
    if model_folder.is_adapter(folder):
        if local:
            model_folder.require_weights(folder)
        beside, name = _base(folder)
        if beside is None and not fetch and cached(name) is None:
            return None
    base = examine(folder, complete=local)
    model_folder.check_vocabulary(folder, base)
    return _Look(folder, model_folder.read_object(base / "config.json"))


def examine(source: Path, complete: bool = True) -> Path:
    """Return the folder of the full model in a model's folder or, for an adapter, below it; refuse what is not read.

    With `complete` the weights are looked at too, where they are there.
    """
    if not model_folder.is_adapter(source):
        model_folder.check(source, complete)
        return source
    base = adapter_base(source)
    model_folder.check_fit(source, base)
    model_folder.check(base, complete)
    return base


def _check_reward(reference: str, recipe: Recipe, fetch: bool) -> None:
    """Refuse what can be seen to be no reward model, or to read too little."""
    if not Path(reference).exists():
        try:
            _repository(reference)
        except PlatformError as error:
            raise PlatformError(f"{error}, and it is not of the form module:function") from None
    if look := _look(reference, fetch):
        require_length(look.folder, _longest(look.config), recipe)
        require_scorer(look.folder, look.architectures, _labels(look))


def _labels(look: _Look) -> int:
    """Return how many numbers a sequence classifier returns, as transformers reads its config.json."""
    names, count = look.config.get("id2label"), look.config.get("num_labels")
    if model_folder.is_adapter(look.folder):
        return 1
    return len(names) if isinstance(names, dict) else count if isinstance(count, int) else 2


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


def require_length(source: Path, longest: int | None, recipe: Recipe) -> None:
    """Refuse prompts and answers that together are longer than the model can read."""
    asked = recipe.prompt_sequence_length + recipe.target_sequence_length
    if longest is not None and asked > longest:
        raise UsageError(
            f"prompt_sequence_length + target_sequence_length: {asked} tokens, but {source} reads {longest}; "
            f"lower one of them"
        )


def require_writer(
    source: Path,
    architectures: Sequence[str] | None,
    is_encoder_decoder: bool,
    setting: str = "large_model_reference",
) -> None:
    """Refuse a model that writes no text, by what its configuration says of it."""
    names = " ".join(architectures or ())
    if "SequenceClassification" in names or is_encoder_decoder:
        raise UsageError(f"{source}: is a {names}, not a causal language model; {setting} wants one that writes text")


def require_scorer(source: Path, architectures: Sequence[str] | None, labels: int) -> None:
    """Refuse a model that is no reward model, by what its configuration says of it."""
    if "SequenceClassification" not in " ".join(architectures or ()):
        raise UsageError(
            f"{source}: is not a reward model (its config names {architectures}); train one with `preferent reward`"
        )
    if labels != 1:
        raise UsageError(f"{source}: returns {labels} numbers, but a reward model returns one (num_labels: 1)")


def require_full(source: Path, setting: str) -> None:
    """Refuse an adapter where a full model is to be trained."""
    if model_folder.is_adapter(source):
        raise UsageError(
            f"{source}: is an adapter, but {setting} wants a full model; merge it into its base: merge_and_unload() in "
            "PEFT, or for a run of preferent: preferent export RUN --what merged"
        )


def _repository(reference: str) -> tuple[str, str | None]:
    """Return the hub's repository and revision that a reference names."""
    repository, _, revision = resolve_model(reference).partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository, re.ASCII):
        raise PlatformError(f"{reference}: no such folder, and no hub id (OWNER/NAME) either")
    return repository, revision or None


def adapter_base(source: Path) -> Path:
    """Return the folder of the model that an adapter sits on; a relative path is relative to the adapter."""
    beside, name = _base(source)
    if beside is not None:
        return beside
    if not Path(name).exists() and cached(name) is None:
        print(f"{source}: its base model {name} is fetched from the hub", file=sys.stderr)
    return resolve(name)


def _base(source: Path) -> tuple[Path | None, str]:
    """Return the folder that an adapter names as its base, None if there is none, and the name with its revision."""
    config = model_folder.check_adapter(source)
    name, revision = config["base_model_name_or_path"], config.get("revision")
    try:
        beside = (source / name).resolve()
        return beside if beside.exists() else None, f"{name}@{revision}" if revision else name
    except (OSError, RuntimeError) as error:
        raise PlatformError(
            f"{source}: its base {name:.80} cannot be looked for: {error!s:.80}; copy it again"
        ) from None


def parameters(reference: str) -> int:
    """Return how many parameters the model that a reference names has, of an adapter its base; no weight is loaded.

    Of a repository on the hub only the configuration is downloaded where that is enough.
    """
    local = Path(reference).exists()
    if not local and (known := LLAMA_2.get(resolve_model(reference))):
        return known.policy
    folder = cached(reference) or _download(*_repository(reference), CONFIGURATION)
    if model_folder.is_adapter(folder):
        return parameters(str(examine(folder, complete=False)))
    shape = Shape.of(model_folder.check(folder, complete=local))
    return shape.policy if shape is not None else model_folder.counted(folder if local else resolve(reference))


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
            f"{repository}: the hub is out of reach ({type(error).__name__}) and the model is not in the cache; nor is "
            f"there a folder {Path(repository).absolute()}. Connect, or download it elsewhere and give its folder as "
            f"large_model_reference"
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
