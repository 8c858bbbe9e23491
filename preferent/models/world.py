"""The process that computes: its device, threads and precision."""

import os
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from preferent import ranks
from preferent.config.model_shape import keeps_attention
from preferent.config.recipe import Recipe
from preferent.data.tokenizer import OWN
from preferent.data.tokenizer.chat_templates import ChatOptions
from preferent.errors import PlatformError
from preferent.runs import environment, memory_choice
from preferent.runs.stages import Stage

# A team of threads that shrinks under load changes the order of additions. Set before torch starts.
os.environ.setdefault("OMP_DYNAMIC", "FALSE")
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Batches differ in size. Segments that grow leave no gaps between them. Set before CUDA starts.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

QUANTIZATION = "a backbone in 4 bits (nf4 with double quantization, by bitsandbytes)"


@dataclass(frozen=True, slots=True)
class World:
    """One rank of `size`: device, threads, dtype and attention implementation (None: transformers chooses).

    `chat` is how the models that it loads read conversations; `quantize` is how it holds their frozen weights. What it
    cuts into shards, `shard` says: nothing, models without an adapter, or also the frozen weights below adapters.
    """

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype
    threads: int
    trust_remote_code: bool = False
    attention: str | None = None
    chat: ChatOptions = OWN
    quantize: Literal["nf4"] | None = None
    shard: Literal["none", "auto", "full"] = "none"

    @classmethod
    def of(cls, recipe: Recipe, learns: bool = False) -> "World":
        """Set up the process of a stage by the recipe: threads, determinism, device, precision, and shards if the stage
        `learns`."""
        if ranks.wanted() > ranks.here().size:
            raise PlatformError(
                "WORLD_SIZE is above 1, but one process does this; unset it, or start a stage by torchrun"
            )
        group, beside = ranks.here(), ranks.environment("LOCAL_WORLD_SIZE", ranks.here().size)
        threads = recipe.threads or max(1, environment.usable_cores() // beside)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(recipe.deterministic)
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        device = _device(recipe.device, ranks.environment("LOCAL_RANK", group.rank))
        if group.size > 1 and device.type == "cuda":
            torch.cuda.set_device(device)
        dtype = _dtype(recipe.precision, device)
        # In a bf16 run only adapters, masters and score heads are fp32.
        rounds = dtype == torch.bfloat16 and not recipe.deterministic
        torch.backends.cuda.matmul.fp32_precision = "tf32" if rounds else "ieee"
        whole = keeps_attention(recipe, device.type == "cpu", dtype == torch.bfloat16)
        attention = "eager" if whole else None
        if device.type not in ("cpu", "cuda") and (recipe.quantize or recipe.optimizer == "adamw8bit"):
            raise PlatformError(f"quantize: nf4 and optimizer: adamw8bit run on cpu and cuda, not on {device.type}")
        own_device = device.type != "cuda" or beside <= torch.cuda.device_count()
        shard = recipe.shard if learns and group.size > 1 and own_device and not recipe.quantize else "none"
        code, chat, quantize = recipe.trust_remote_code, ChatOptions.of(recipe), recipe.quantize
        return cls(group.rank, group.size, device, dtype, threads, code, attention, chat, quantize, shard)

    def with_own_templates(self) -> "World":
        """Return the same process for models that the recipe does not train: they read in their own template."""
        return replace(self, chat=OWN)

    @property
    def memory(self) -> int:
        """Total bytes of the device's memory, used or not: of the GPU, or main memory; a rank's part of it."""
        beside = ranks.environment("LOCAL_WORLD_SIZE", self.size)
        if self.device.type == "cuda":
            sharing = -(-beside // torch.cuda.device_count())
            return int(torch.cuda.get_device_properties(self.device).total_memory) // sharing
        return environment.memory() // beside

    def settled(self, recipe: Recipe, stage: Stage) -> Recipe:
        """Return the recipe with how much the stage computes at once, chosen for this device when it began."""
        sharing = 1 if self.shard == "none" else self.size
        machine = memory_choice.Machine(self.memory, self.dtype.itemsize, self.device.type != "cpu", sharing)
        return memory_choice.settled(recipe, stage, machine)

    def facts(self) -> dict[str, object]:
        """Return what bit equality of two runs depends on besides versions, for `stage.json`."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        facts: dict[str, object] = {
            "device": name,
            "threads": self.threads,
            "precision": str(self.dtype).removeprefix("torch."),
            "size": self.size,
        }
        return facts | ({"quantization": QUANTIZATION} if self.quantize else {})


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Return the array as a tensor on the device; the copy to a GPU is pinned and does not wait for its arrival."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _device(name: str, place: int = 0) -> torch.device:
    """Return the device that a recipe names, of several GPUs that of the rank's place on this machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise PlatformError("device: cuda is set, but torch finds no GPU; use device: cpu, or install torch for CUDA")
    if name == "mps" and not torch.backends.mps.is_available():
        raise PlatformError("device: mps is set, but torch finds no Apple GPU; use device: cpu")
    if name == "mps":
        return torch.device("mps")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", place % max(1, torch.cuda.device_count()))


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Return whether the processor multiplies bfloat16 natively (AVX512-BF16 or AMX on a CPU); not known of MPS."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
