"""The plan against fake tensors: the stages' own functions on models of real shapes, without their weights."""

import dataclasses

import fake_memory
import pytest
import torch
from conftest import quiet_recipe

from preferent.config import defaults, memory_estimate, model_shape
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape
from preferent.models import llama

LLAMA = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
WITHIN = 0.05


@pytest.fixture(autouse=True)
def nothing_is_packed(monkeypatch):
    """The layout of a CPU's matrix unit has no fake tensors, and no row is padded."""
    monkeypatch.setattr(llama._Places, "of", fake_memory.every_token)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: weight.clone())
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, weight, bias, *_: x @ weight.t())


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


@pytest.mark.parametrize(("rank", "bytes", "checkpointing"), [(0, 2, False), (0, 4, True), (4, 2, True), (4, 4, False)])
def test_three_layers_of_llama_2_7b(rank, bytes, checkpointing):
    sections = {"ppo": {"lora_dim": rank}, "reward": {"lora_dim": rank}}
    check(facts_of(dataclasses.replace(LLAMA, layers=3), bytes=bytes, gradient_checkpointing=checkpointing, **sections))


def test_two_layers_of_llama_2_70b_whose_heads_share_keys():
    shape = dataclasses.replace(model_shape.LLAMA_2["meta-llama/Llama-2-70b-hf"], layers=2)
    check(facts_of(shape, ppo={"lora_dim": 4}, reward={"lora_dim": 4}))


@pytest.mark.acceptance
def test_llama_2_7b_with_nothing_set():
    check(facts_of(LLAMA))
