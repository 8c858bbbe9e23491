"""Averages of the weights of reward models that started from the same model (WARM, Ramé et al. 2024)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import Tensor

from preferent.config import model_folder
from preferent.config.model_reference import adapter_base
from preferent.errors import UsageError
from preferent.models import adapters, language_models
from preferent.models.language_models import Network, Scorer
from preferent.models.world import World

MEAN = "mean"


def load(sources: Sequence[Path], world: World, checkpointing: bool = False, beside: Sequence[Network] = ()) -> Scorer:
    """Load the reward model whose weights, including the head, are the mean of those in the folders.

    Adapters sit on the backbone of a network `beside` that has their base.
    """
    if len(sources) == 1:
        return language_models.load_scorer(sources[0], world, checkpointing=checkpointing, beside=beside)
    are_adapters = [model_folder.is_adapter(source) for source in sources]
    if any(are_adapters) and (not all(are_adapters) or len({adapter_base(source) for source in sources}) > 1):
        raise UsageError(
            f"reward.combine: weights averages models that started from the same model, but {sources[0]} and the "
            "others did not; "
            "use reward.combine: mean"
        )
    world = world if all(are_adapters) else dataclasses.replace(world, quantize=None)  # 4-bit weights have no mean
    scorer = language_models.load_scorer(sources[0], world, checkpointing=checkpointing, beside=beside)
    return _adapters(scorer, sources) if all(are_adapters) else _full(scorer, sources)


@torch.no_grad()
def _full(scorer: Scorer, sources: Sequence[Path]) -> Scorer:
    """Return the running mean in fp32, with one more model in memory at a time; equal models give the same bits."""
    means = {name: parameter.float() for name, parameter in scorer.body.named_parameters()}
    for count, source in enumerate(sources[1:], start=2):
        others = dict(language_models.load_scorer(source, scorer.world).body.named_parameters())
        if {name: p.shape for name, p in others.items()} != {name: p.shape for name, p in means.items()}:
            raise UsageError(
                f"reward.combine: weights averages models of the same shape, but {sources[0]} and {source} differ; "
                "use reward.combine: mean"
            )
        for name, mean in means.items():
            means[name] = mean + (others[name].float() - mean) / count
    for name, parameter in scorer.body.named_parameters():
        parameter.copy_(means[name])
    return scorer


def _adapters(scorer: Scorer, sources: Sequence[Path]) -> Scorer:
    """Join the adapters in one of their summed ranks, whose product is exactly the mean of their products."""
    assert scorer.peft is not None and scorer.adapter is not None
    for source in sources:
        model_folder.require_weights(source)
    stored = [load_peft_weights(str(source), device="cpu") for source in sources]
    described = [model_folder.check_adapter(source) for source in sources]
    for source, weights, other in zip(sources, stored, described, strict=True):
        if weights.keys() != stored[0].keys() or other.get("rank_pattern") or other.get("alpha_pattern"):
            raise UsageError(
                f"reward.combine: weights averages adapters of the same layers, each of one rank, but {sources[0]} and "
                f"{source} are not; use reward.combine: mean"
            )
    ranks, scales = [int(one["r"]) for one in described], [_scale(one) for one in described]
    config = scorer.peft.peft_config[scorer.adapter]
    assert isinstance(config, LoraConfig), "preferent trains no other adapters"
    settings: dict[str, Any] = {"r": sum(ranks), "lora_alpha": scales[0] * sum(ranks), "use_rslora": False}
    wider = dataclasses.replace(config, **settings)
    relative = [scale / scales[0] for scale in scales]
    joined = {name: _join(name, [weights[name] for weights in stored], relative) for name in stored[0]}
    adapters.add(scorer.peft, MEAN, wider)
    set_peft_model_state_dict(scorer.peft, joined, adapter_name=MEAN)
    return dataclasses.replace(scorer, adapter=MEAN)


def _scale(config: Mapping[str, Any]) -> float:
    """Return what an adapter's product is multiplied by."""
    rank = float(config["r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)


def _join(name: str, weights: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """Stack A [r, in] vertically and B [out, r], scaled and divided by their number, horizontally; take the mean of the
    head."""
    if ".lora_A." in name:
        return torch.cat(list(weights), dim=0)
    if ".lora_B." in name:
        return torch.cat([weight * scale for weight, scale in zip(weights, scales, strict=True)], dim=1) / len(weights)
    return torch.stack(list(weights)).mean(0)
