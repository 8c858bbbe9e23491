"""The process that computes: device, precision of matrix products, and how arrays get to the device."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import quiet_recipe

from preferent.errors import PlatformError
from preferent.models import world
from preferent.models.world import World


@pytest.fixture
def products() -> Iterator[None]:
    before, deterministic = torch.backends.cuda.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.matmul.fp32_precision = before
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(
    ("precision", "deterministic", "expected"),
    [("bf16", False, "tf32"), ("bf16", True, "ieee"), ("fp32", False, "ieee"), ("fp32", True, "ieee")],
)
def test_only_a_bf16_run_rounds_its_fp32_products(precision: str, deterministic: bool, expected: str) -> None:
    World.of(quiet_recipe(precision=precision, deterministic=deterministic))
    assert torch.backends.cuda.matmul.fp32_precision == expected


def test_cuda_memory_grows_in_segments_unless_the_environment_says_otherwise() -> None:
    assert "PYTORCH_CUDA_ALLOC_CONF" in os.environ or os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_an_array_on_the_cpu_is_not_copied() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert world.to_device(array, torch.device("cpu")).data_ptr() == array.ctypes.data
    assert world.to_device(array.T, torch.device("cpu")).tolist() == array.T.tolist()


def test_an_apple_gpu_is_asked_for_by_name_and_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PlatformError, match="device: mps is set, but torch finds no Apple GPU"):
        World.of(quiet_recipe(device="mps"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = World.of(quiet_recipe(device="mps", precision="auto"))
    assert (found.device.type, found.dtype, found.facts()["device"]) == ("mps", torch.float32, "mps")


def test_a_cuda_device_has_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert world._device("auto") == world._device("cuda") == torch.device("cuda", 0)
    assert world._device("cpu") == torch.device("cpu")


def test_a_process_that_is_told_to_be_one_of_several_and_did_not_join_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PlatformError, match="WORLD_SIZE is above 1, but one process does this"):
        World.of(quiet_recipe())
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(PlatformError, match="WORLD_SIZE='two' in the environment is not a whole number"):
        World.of(quiet_recipe())
