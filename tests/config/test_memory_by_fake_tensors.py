"""The plan against fake tensors: the stages' own functions on models of real shapes, without their weights."""

import dataclasses

import fake_memory
import pytest
from conftest import quiet_recipe

from preferent.config import defaults, memory_estimate, model_shape
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape

LLAMA = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
WITHIN = 0.1


def facts_of(shape: Shape, rows: int = 64, bytes: int = 2, **values) -> ModelFacts:
    sizes = {"prompt_sequence_length": 512, "target_sequence_length": 64, "sampler": {"rows": rows}}
    recipe, _ = defaults.resolve(quiet_recipe(**(sizes | values)), shape.policy, shape.policy)
    return ModelFacts(
        recipe, shape, shape, bytes, 512, dict.fromkeys(("train", "validation", "test"), 10**6), on_gpu=True
    )


def told(facts: ModelFacts) -> dict[str, int]:
    """The plan's bytes of each phase, the parts counted, without what is there before any weight."""
    need = memory_estimate.ppo(facts)
    parts = sum(need.parts.values())
    return {"loaded": parts, **{name: parts + sum(held.values()) for name, held in need.phases.items()}}


def check(facts: ModelFacts) -> None:
    found, plan = fake_memory.ppo_peaks(facts), told(facts)
    for name, peak in {"loaded": found.loaded, **found.peaks}.items():
        print(f"{name:<8} {peak / 2**30:8.2f} GiB, plan {plan[name] / 2**30:8.2f}, {plan[name] / peak:.3f}")
    for name, peak in {"loaded": found.loaded, **found.peaks}.items():
        assert plan[name] == pytest.approx(peak, rel=WITHIN), name


@pytest.mark.parametrize("bytes", [2, 4])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_layers_of_llama_2_7b(rank, bytes, checkpointing):
    """Of weights and activations alike: with two layers, activations outweigh everything else."""
    sections = {"ppo": {"lora_dim": rank}, "reward": {"lora_dim": rank}}
    check(facts_of(dataclasses.replace(LLAMA, layers=2), bytes=bytes, gradient_checkpointing=checkpointing, **sections))


@pytest.mark.acceptance
def test_llama_2_7b_with_nothing_set():
    check(facts_of(LLAMA))
