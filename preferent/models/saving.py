"""Model folders that load without preferent: Hugging Face layout or PEFT adapter, written atomically."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from preferent import files, ranks
from preferent.config import model_reference
from preferent.config.model_reference import adapter_base
from preferent.models import adapters, language_models, sharding
from preferent.models.language_models import Network, Policy, Scorer, read_config
from preferent.models.world import QUANTIZATION
from preferent.runs import model_card, ownership


def save(
    network: Network,
    folder: Path,
    masters: Mapping[str, Tensor],
    card: str,
    front: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a model folder in the Hugging Face layout, or a PEFT adapter, atomically.

    `masters` are the trained fp32 weights by parameter name. A full model is stored in the dtype of its source. `front`
    is added to the metadata of the card.
    """
    _save_whole(network, folder, sharding.collected(masters), card, front)


@ranks.first_only
def _save_whole(
    network: Network, folder: Path, masters: Mapping[str, Tensor], card: str, front: Mapping[str, Any]
) -> None:
    aside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    with files.writing(folder):
        try:
            aside.mkdir(parents=True)
            _fill(network, aside, folder, masters, card, front)
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


def _fill(
    network: Network, aside: Path, folder: Path, masters: Mapping[str, Tensor], card: str, front: Mapping[str, Any]
) -> None:
    reward, adapter = isinstance(network, Scorer), network.peft is not None
    quantized = adapter and network.world.quantize is not None
    pad = network.tokenizer.named_pad(new_pad=reward)
    if adapter:
        loading = _save_adapter(network, aside, folder, masters, pad)
    else:
        _save_full(network, aside, masters, pad)
        loading = model_card.loading(reward, None)
    network.tokenizer.save(aside, new_pad=reward)  # it reads which ends the model's files name
    licences = model_card.copy_licences(network.source, aside)
    links = "".join(f"\nLicence of the source: [{name}]({name})\n" for name in licences)
    known = model_card.metadata(network.source, reward, adapter, licences) | dict(front)
    trained = f"\nThe adapter was trained on {QUANTIZATION}; the base itself is as it was.\n" if quantized else ""
    (aside / "README.md").write_text(model_card.render(card, known, loading) + trained + links, encoding="utf-8")
    for file in aside.iterdir():
        files.share(file)
        with open(file, "rb") as written:
            os.fsync(written.fileno())


def _save_full(network: Network, folder: Path, masters: Mapping[str, Tensor], pad: int | None) -> None:
    """Write weights and configuration; embeddings get a further row if the pad token that is named has none."""
    stored = getattr(read_config(network.source, network.world.trust_remote_code), "dtype", None) or torch.float32
    parameters = dict(network.body.named_parameters(remove_duplicate=False))
    own = {parameter: masters.get(name, parameter) for name, parameter in network.body.named_parameters()}
    cast = {parameter: master.detach().to("cpu", stored) for parameter, master in own.items()}
    state = {
        name: cast[parameters[name]] if name in parameters else tensor.to("cpu", stored)
        for name, tensor in network.body.state_dict().items()
    }
    table, more = _embeddings(network), {"pad_token_id": pad}
    if pad is not None and pad >= len(table):
        name = next(name for name, parameter in network.body.named_parameters() if parameter is table)
        state[name] = torch.cat([state[name], state[name].new_zeros(pad + 1 - len(table), state[name].shape[1])])
        more["vocab_size"] = pad + 1
    network.body.save_pretrained(folder, state_dict=state, max_shard_size="4GB")
    config = files.read_json(folder / "config.json") | {"dtype": str(stored).removeprefix("torch.")}
    nested = {"text_config": config["text_config"] | more} if "text_config" in config else more
    files.write_json(folder / "config.json", config | {"pad_token_id": pad} | nested)
    if (generation := folder / "generation_config.json").exists():
        files.write_json(generation, files.read_json(generation) | {"pad_token_id": pad})


def _embeddings(network: Network) -> Tensor:
    table: Tensor = network.body.get_input_embeddings().get_parameter("weight")
    return table


def _save_adapter(network: Network, folder: Path, final: Path, masters: Mapping[str, Tensor], pad: int | None) -> str:
    """Write the adapter in fp32 with the name of its base; return the lines that load it."""
    assert network.peft is not None and network.adapter is not None
    trained = {f"{adapters.PREFIX}{name}": master.detach() for name, master in masters.items()}
    state = network.peft.state_dict() | trained
    network.peft.save_pretrained(str(folder), selected_adapters=[network.adapter], state_dict=state)
    inside = final.resolve().parents[1] in network.source.resolve().parents
    beside = os.path.relpath(network.source, final.resolve())
    base = (beside, None) if inside else model_reference.name_of(network.source)
    name_base(folder, base)
    rows = pad + 1 if pad is not None and pad >= len(_embeddings(network)) else None
    return model_card.loading(isinstance(network, Scorer), base, inside, rows)


def name_base(folder: Path, base: model_card.Base) -> None:
    """Write the base of an adapter into its configuration."""
    path = folder / "adapter_config.json"
    names = dict(zip(("base_model_name_or_path", "revision"), base, strict=True))
    files.write_json(path, files.read_json(path) | names)


@ranks.first_only
def save_merged(
    policy: Network,
    folder: Path,
    masters: Mapping[str, Tensor],
    card: str,
    front: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write the base of a policy, as it is stored, with its adapter merged; `masters` are as in `save`."""
    if policy.world.quantize or policy.world.shard == "full":
        policy = _on_whole_base(policy)
    assert policy.peft is not None
    for name, parameter in policy.body.named_parameters():
        if name in masters:
            parameter.data = masters[name].detach().to(parameter.device)
    adapters.activate(policy.peft, policy.adapter)
    merged: Any = policy.peft.merge_and_unload()
    base = adapter_base(policy.source) if (policy.source / "adapter_config.json").exists() else policy.source
    full = dataclasses.replace(policy, source=base, body=merged, peft=None, adapter=None)
    save(full, folder, dict(merged.named_parameters()), card, front)


def _on_whole_base(network: Network) -> Policy:
    """Return a policy whose base is quantized or cut with its trained adapter on the base as stored, on the CPU."""
    assert network.peft is not None and network.adapter is not None
    world = dataclasses.replace(network.world, quantize=None, shard="none", device=torch.device("cpu"))
    config = network.peft.peft_config[network.adapter]
    assert isinstance(config, LoraConfig), "preferent trains no other adapters"
    policy = language_models.load_policy(network.source, world, config.r)
    assert policy.peft is not None and policy.adapter is not None
    state = get_peft_model_state_dict(network.peft, adapter_name=network.adapter)
    set_peft_model_state_dict(policy.peft, state, adapter_name=policy.adapter)
    return policy
