"""Models of the Hugging Face hub: found in its cache without network, and named with their revision in what we save."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import quiet_recipe
from huggingface_hub import constants
from peft import AutoPeftModelForCausalLM

from preferent import files
from preferent.commands.inference import export
from preferent.config import model_reference
from preferent.errors import PlatformError
from preferent.models import language_models, saving
from preferent.models.world import World

COMMIT, NEWER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
IDS = torch.tensor([[1, 270, 280, 290, 275]])


@pytest.fixture
def cache(tmp_path: Path, tiny: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with a model at the tag v1 and another at main, out of reach of the network."""
    folder = tmp_path / "hub"
    for revision, commit, source in (("v1", COMMIT, tiny), ("main", NEWER, make_model(seed=9))):
        shutil.copytree(source, folder / "models--owner--name/snapshots" / commit)
        files.write_atomic(folder / "models--owner--name/refs" / revision, commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder / "models--owner--name/snapshots"


@pytest.mark.parametrize(
    ("reference", "commit"),
    [("owner/name", NEWER), ("owner/name@v1", COMMIT), (f"owner/name@{COMMIT}", COMMIT), ("owner/name@v2", None)],
)
def test_a_cached_model_is_found_without_network(cache: Path, reference: str, commit: str | None) -> None:
    assert model_reference.cached(reference) == (cache / commit if commit else None)
    if commit:
        assert model_reference.resolve(reference) == model_reference.cached(reference)


@pytest.mark.parametrize("reference", ["other/name", "no-such-folder", "a/b/c", "owner/na--me", "gs://bucket/model"])
def test_what_is_not_in_the_cache_is_none(cache: Path, reference: str) -> None:
    assert model_reference.cached(reference) is None


def test_a_folder_is_itself(tiny: Path, cache: Path) -> None:
    assert model_reference.cached(str(tiny)) == tiny.resolve()


def test_an_adapter_on_the_hub_is_found_too(cache: Path) -> None:
    files.write_atomic(cache.parents[1] / f"models--owner--lora/snapshots/{COMMIT}/adapter_config.json", "{}")
    files.write_atomic(cache.parents[1] / "models--owner--lora/refs/main", COMMIT)
    assert model_reference.cached("owner/lora") == cache.parents[1] / f"models--owner--lora/snapshots/{COMMIT}"


@pytest.mark.parametrize("name", ["owner/name", "owner/my--name", "owner/a--b--c", "own-er/-name", "gpt2"])
def test_the_name_of_a_cached_model_is_read_from_its_folder(name: str) -> None:
    folder = Path("/cache") / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT
    assert model_reference.name_of(folder) == (name, COMMIT)


@pytest.mark.parametrize("folder", ["/a--b", "/models--a--b/other/c", "/models--a--b/snapshots/c/d", "/snapshots/c"])
def test_any_other_folder_is_called_by_its_path(folder: str) -> None:
    assert model_reference.name_of(Path(folder)) == (folder, None)


def test_a_name_that_the_hub_does_not_allow_is_refused_as_that(cache: Path) -> None:
    with pytest.raises(PlatformError, match="owner/na--me: is no name that the hub allows"):
        model_reference.resolve("owner/na--me")


def test_an_adapter_keeps_the_revision_of_its_base(cache: Path, tmp_path: Path) -> None:
    """Ours and theirs both load the pinned base, though main has moved on."""
    world = World.of(quiet_recipe())
    policy = language_models.load_policy(model_reference.resolve("owner/name@v1"), world, lora_dim=2)
    folder = tmp_path / "run/policy/model"
    saving.save(policy, folder, {}, "# test\n")
    config = files.read_json(folder / "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/name", COMMIT)
    assert model_reference.adapter_base(folder) == cache / COMMIT
    theirs = AutoPeftModelForCausalLM.from_pretrained(folder, cache_dir=cache.parents[1], local_files_only=True)
    for loaded in (theirs, language_models.load_policy(folder, world).peft):
        weight = loaded.get_base_model().get_input_embeddings().weight
        assert torch.equal(weight, policy.body.get_input_embeddings().weight)


def test_an_exported_adapter_keeps_it_too(cache: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run(2)
    config = files.read_json(folder / "policy/model/adapter_config.json")
    pinned = config | {"base_model_name_or_path": "owner/name", "revision": "v1"}
    files.write_json(folder / "policy/model/adapter_config.json", pinned)
    export.write(folder, tmp_path / "out", "adapter")
    written = files.read_json(tmp_path / "out/adapter_config.json")
    assert (written["base_model_name_or_path"], written["revision"]) == ("owner/name", COMMIT)
    assert f"vllm serve owner/name --revision {COMMIT} --enable-lora" in (tmp_path / "out/README.md").read_text()
