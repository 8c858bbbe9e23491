"""Where a model reference leads: a local folder, a GCPC alias, or a repository on the Hugging Face hub."""

from pathlib import Path

from preferent.error import PlatformError
from preferent.gcpc import resolve_model

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*.model", "*.py"]


def resolve(reference: str) -> Path:
    """The folder of a model reference, downloaded where it is not local.

    Raises `PlatformError` with the steps to take where the repository is gated, missing or out of reach.
    """
    local = Path(reference)
    if local.exists():
        return local.resolve()
    name = resolve_model(reference)
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/")):
        raise PlatformError(f"{reference}: no such folder, and no hub id (OWNER/NAME) either")
    return _download(repository, revision or None)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    except GatedRepoError:
        raise PlatformError(
            f"{repository}: is gated. Ask for access at https://huggingface.co/{repository}, make a token under your "
            f"account's settings, run `hf auth login` (or set HF_TOKEN), and start again"
        ) from None
    except RepositoryNotFoundError:
        raise PlatformError(
            f"{repository}: no such repository on the hub, or it is private; check the spelling, or run `hf auth login`"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise PlatformError(
            f"{repository}: the hub is out of reach ({type(error).__name__}) and the model is not in the cache. "
            f"Connect, or download it elsewhere and give its folder as large_model_reference"
        ) from None


def name_of(source: Path) -> str:
    """What to call a resolved folder in a saved file: OWNER/NAME@REVISION for one in the hub's cache, else its path."""
    for parent in source.parents:
        if parent.name.startswith("models--") and source.parent.name == "snapshots":
            return parent.name.removeprefix("models--").replace("--", "/")
    return str(source)
