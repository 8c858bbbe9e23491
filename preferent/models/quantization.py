"""Frozen weights in 4 bits (QLoRA, Dettmers et al. 2023), by the package bitsandbytes.

The weight of a linear layer is held as nf4 codes in blocks of 64, whose scales are 8-bit codes themselves, and is
restored to the world's dtype for each product. Embeddings, norms, biases and heads stay as they are.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig

from preferent.errors import PlatformError, UsageError
from preferent.models.world import World

BLOCK = 64
"""Weights that share a scale."""


def bitsandbytes() -> Any:
    """Return the package; raise `PlatformError` if it is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise PlatformError(
            "quantize: nf4 and optimizer: adamw8bit need the package bitsandbytes: pip install 'preferent[bits]'"
        )
    return importlib.import_module("bitsandbytes")


def loading(world: World) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize a model while it is read; none without `quantize`."""
    if world.quantize is None:
        return {}
    bitsandbytes()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=world.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=world.dtype,
    )
    return {"quantization_config": config, "device_map": {"": world.device}}


def settle(body: nn.Module, base: Path) -> None:
    """Refuse a quantized model that a CPU would restore wrongly; keep the 4-bit weights of others as they are stored.

    On a processor with AVX512-BF16 a layer would repack them at its first pass without gradient: later passes would
    round to bf16, and have no gradient.
    """
    for name, layer in body.named_modules():
        if isinstance(layer, bitsandbytes().nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False
            if layer.in_features % BLOCK:
                raise UsageError(
                    f"quantize: nf4: {base}: the rows of {name} have {layer.in_features} weights, and bitsandbytes "
                    f"restores only rows of a multiple of {BLOCK} rightly on every machine; drop quantize"
                )
