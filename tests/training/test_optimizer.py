"""AdamW on masters: first steps in closed form, bf16 parameters, clipping, schedules, restoring."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.nn import Parameter

from preferent.errors import DivergedError
from preferent.models import checkpoint
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.ppo.moving_average import MovingAverage
from preferent.training.ppo.update import PPOState


def made(value: list[float], dtype: torch.dtype = torch.float32, clip: float = 1e9) -> tuple[Parameter, Optimizer]:
    parameter = Parameter(torch.tensor(value, dtype=dtype))
    return parameter, Optimizer({"w": parameter}, Schedule(0.1), clip)


def test_first_step_is_adams() -> None:
    # |delta| = lr * |g| / (|g| + eps), eps = 1e-5: for g = 1e-5 half the learning rate.
    parameter, optimizer = made([1.0, 1.0])
    parameter.grad = torch.tensor([1e-5, -2.0])
    rate, norm = optimizer.step(0)
    assert parameter.tolist() == pytest.approx([1 - 0.05, 1 + 0.1], abs=1e-5)
    assert (rate, norm) == (0.1, pytest.approx(2.0))


def test_bf16_parameters_have_fp32_masters_and_gradients_add_up_in_fp32() -> None:
    parameter, optimizer = made([1.0], torch.bfloat16)
    for coefficient in (256.0, 1.0, 1.0):
        (parameter * coefficient).sum().backward()
    assert parameter.grad is None
    assert optimizer.masters["w"].grad is not None and optimizer.masters["w"].grad.item() == 258.0
    optimizer.step(0)
    assert optimizer.masters["w"].item() == pytest.approx(0.9, abs=1e-6)
    assert parameter.item() == torch.tensor(optimizer.masters["w"].item()).bfloat16().item()


def test_small_updates_are_not_lost_in_bf16() -> None:
    parameter = Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    optimizer = Optimizer({"w": parameter}, Schedule(1e-4), 1e9)
    for step in range(100):
        parameter.sum().backward()
        optimizer.step(step)
    assert optimizer.masters["w"].item() == pytest.approx(0.99, abs=1e-3)
    assert parameter.item() < 1


def test_clipping_is_by_global_norm() -> None:
    first, second = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    optimizer = Optimizer({"a": first, "b": second}, Schedule(0.1), 1.0)
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    _, norm = optimizer.step(0)
    assert norm == 5.0
    assert optimizer.tensors()["exp_avg.a"].item() == pytest.approx(0.1 * 0.6)


def test_restored_optimizer_goes_on_bit_by_bit() -> None:
    straight, whole = made([1.0, -2.0])
    for step in range(4):
        straight.grad = torch.tensor([0.3, -0.7]) * (step + 1)
        whole.step(step)
        if step == 1:
            kept = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    resumed, other = made([0.0, 0.0])
    other.restore(kept)
    for step in (2, 3):
        resumed.grad = torch.tensor([0.3, -0.7]) * (step + 1)
        other.step(step)
    assert torch.equal(straight, resumed)


def test_moments_of_8_bits_go_on_bit_by_bit_and_stay_beside_those_of_32(tmp_path: Path) -> None:
    """A master has two bytes of moments a weight, and their scales; a small tensor keeps 32 bits."""
    pytest.importorskip("bitsandbytes", reason="pip install 'preferent[bits]'")
    kinds: tuple[Literal["adamw", "adamw8bit"], ...] = ("adamw8bit", "adamw8bit", "adamw8bit", "adamw")
    generator = torch.Generator().manual_seed(1)
    start = {"large": torch.randn(96, 64, generator=generator), "small": torch.randn(10, generator=generator)}
    gradients = [{name: torch.randn(w.shape, generator=generator) for name, w in start.items()} for _ in range(6)]
    whole, stopped, resumed, plain = (
        Optimizer({name: Parameter(w.bfloat16()) for name, w in start.items()}, Schedule(0.01), 1e9, 0.1, kind)
        for kind in kinds
    )

    def learn(optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            for name, parameter in optimizer.parameters.items():
                (parameter * gradients[step][name]).sum().backward()
            optimizer.step(step)

    learn(whole, range(6))
    learn(plain, range(6))
    learn(stopped, range(3))
    checkpoint.save(tmp_path, 3, stopped.tensors(), {}, keep=None)
    resumed.restore(checkpoint.read(tmp_path, 3).tensors)
    learn(resumed, range(3, 6))
    expected, tensors = whole.tensors(), resumed.tensors()
    assert expected.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    moments = [name for name in expected if name.startswith(("state", "absmax")) and name.endswith("large")]
    assert sum(expected[name].nbytes for name in moments) == (2 + 2 * 4 / 256) * 96 * 64
    assert {expected[f"state{i}.{name}"].dtype for i in (1, 2) for name in ("small",)} == {torch.float32}
    assert torch.allclose(whole.masters["small"], plain.masters["small"], atol=1e-6), "AdamW itself below 4,096 weights"
    moved = plain.masters["large"] - start["large"].bfloat16().float()
    assert 0 < (whole.masters["large"] - plain.masters["large"]).norm() / moved.norm() < 0.1


def test_a_checkpoint_of_ppo_holds_all_that_a_step_changes() -> None:
    """Masters, both moments and Adam's step of policy and critic, and the moving average, which goes on bit by bit."""

    def fresh() -> PPOState:
        (_, policy), (_, critic) = made([1.0, -2.0]), made([0.5, 3.0])
        return PPOState(0, policy, critic, {}, MovingAverage(policy.masters, 0.75))

    def learn(state: PPOState, steps: range) -> None:
        for step in steps:
            for optimizer, scale in ((state.policy, 1.0), (state.critic, -2.0)):
                assert optimizer is not None and state.average is not None
                optimizer.parameters["w"].grad = scale * torch.tensor([0.3, -0.7]) * (step + 1)
                optimizer.step(step)
            state.average.update(state.policy.masters)

    whole, resumed = fresh(), fresh()
    learn(whole, range(3))
    kept = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    parts = [f"{part}.{key}.w" for part in ("policy", "critic") for key in ("master", "step", "exp_avg", "exp_avg_sq")]
    assert kept.keys() == {*parts, "average.w"}
    learn(whole, range(3, 5))
    resumed.restore(kept)
    learn(resumed, range(3, 5))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]) and not torch.equal(tensor, kept[name]), name


def test_gradient_that_is_not_finite_stops() -> None:
    parameter, optimizer = made([1.0])
    parameter.grad = torch.tensor([float("nan")])
    with pytest.raises(DivergedError):
        optimizer.step(0)
    assert parameter.item() == 1.0


def test_schedules() -> None:
    assert [Schedule(1.0, 1, "linear", 5).at(step) for step in (0, 1, 3, 5)] == [0.5, 1.0, 0.5, 0.0]
    assert Schedule(1.0, 0, "cosine", 4).at(2) == pytest.approx(0.5)
    assert Schedule(1.0, 2).at(100) == 1.0
