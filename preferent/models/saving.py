"""Model folders that load without preferent: Hugging Face layout or PEFT adapter, written atomically."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preferent import files
from preferent.config import model_reference
from preferent.config.model_reference import adapter_base
from preferent.models.language_models import Network, read_config
from preferent.runs import ownership


def save(network: Network, folder: Path, masters: Mapping[str, Tensor], card: str) -> None:
    """Write a model folder in the Hugging Face layout, or a PEFT adapter, atomically.

    `masters` are the trained fp32 weights by parameter name. A full model is stored in the dtype of its source.
    """
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    with files.writing(folder):
        try:
            aside.mkdir(parents=True)
            _fill(network, aside, folder, masters, card)
            _put(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        files.sync_folder(folder.parent)


def _put(aside: Path, folder: Path) -> None:
    """Rename a complete folder in the place of an earlier model; files of others that lie there stay."""
    if folder.exists():
        ownership.remove(folder.parent, [f"{folder.name}/{name}" for name in ownership.MODEL])
    if not folder.exists():
        os.replace(aside, folder)
        return
    for path in list(aside.iterdir()):
        os.replace(path, folder / path.name)


def _fill(network: Network, aside: Path, folder: Path, masters: Mapping[str, Tensor], card: str) -> None:
    if network.peft is None:
        _save_full(network, aside, masters)
    else:
        _save_adapter(network, aside, folder)
    network.tokenizer.save(aside)
    licences = copy_licences(network.source, aside)
    links = "".join(f"\nLicence of the source: [{name}]({name})\n" for name in licences)
    (aside / "README.md").write_text(card + links)
    for file in aside.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())


def _save_full(network: Network, folder: Path, masters: Mapping[str, Tensor]) -> None:
    stored = getattr(read_config(network.source, network.world.trust_remote_code), "dtype", None) or torch.float32
    owners = {p.data_ptr(): masters[name] for name, p in network.body.named_parameters() if name in masters}
    state = network.body.state_dict()
    cast: dict[int, Tensor] = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in cast:
            cast[tensor.data_ptr()] = owners.get(tensor.data_ptr(), tensor).detach().to("cpu", stored)
        state[name] = cast[tensor.data_ptr()]
    network.body.save_pretrained(folder, state_dict=state, max_shard_size="4GB")
    config = files.read_json(folder / "config.json")
    config["dtype"] = str(stored).removeprefix("torch.")
    config["pad_token_id"] = network.tokenizer.pad_id
    files.write_json(folder / "config.json", config)


def _save_adapter(network: Network, folder: Path, final: Path) -> None:
    assert network.peft is not None and network.adapter is not None
    network.peft.save_pretrained(str(folder), selected_adapters=[network.adapter])
    config = files.read_json(folder / "adapter_config.json")
    inside = final.resolve().parents[1] in network.source.resolve().parents
    beside = os.path.relpath(network.source, final.resolve())
    config["base_model_name_or_path"], config["revision"] = (
        (beside, None) if inside else model_reference.name_of(network.source)
    )
    files.write_json(folder / "adapter_config.json", config)


def save_merged(policy: Network, folder: Path, card: str) -> None:
    """Write the base of a policy with its adapter merged as one full model."""
    assert policy.peft is not None
    merged: Any = policy.peft.merge_and_unload()
    base = adapter_base(policy.source) if (policy.source / "adapter_config.json").exists() else policy.source
    full = dataclasses.replace(policy, source=base, body=merged, peft=None, adapter=None)
    save(full, folder, dict(merged.named_parameters()), card)


def copy_licences(source: Path, folder: Path) -> list[str]:
    """Copy the source's licence files into a model folder; return their names."""
    base = adapter_base(source) if (source / "adapter_config.json").exists() else source
    names = []
    for path in sorted(base.iterdir()):
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")):
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return names
