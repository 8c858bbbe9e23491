"""AdamW, its schedule and its clipping, and the KL controller, each against a closed form."""

import math

import pytest
import torch
from torch.nn import Parameter

from preferent.training import losses
from preferent.training.optimizer import Optimizer, Schedule

EPS = 1e-5
GRADIENTS = [1e-7, 1e-5, -1e-5, 3e-3, -1.0, 50.0]


def made(values: list[float], schedule: Schedule, clip: float = 1e9, decay: float = 0.0) -> tuple[Parameter, Optimizer]:
    parameter = Parameter(torch.tensor(values))
    return parameter, Optimizer({"w": parameter}, schedule, clip, decay)


def test_the_first_step_is_the_rate_times_g_over_g_plus_eps() -> None:
    parameter, optimizer = made([0.0] * len(GRADIENTS), Schedule(0.1))
    parameter.grad = torch.tensor(GRADIENTS)
    optimizer.step(0)
    expected = [-0.1 * g / (abs(g) + EPS) for g in GRADIENTS]
    assert parameter.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_under_one_gradient_every_step_is_as_long_as_its_rate(kind: str) -> None:
    """Both moments are then the gradient's after the correction of their bias, so steps add up like the schedule."""
    schedule = Schedule(0.01, 3, kind, 12)
    parameter, optimizer = made([0.0] * len(GRADIENTS), schedule)
    for step in range(12):
        parameter.grad = torch.tensor(GRADIENTS)
        rate, _ = optimizer.step(step)
        assert rate == schedule.at(step)
    total = sum(schedule.at(step) for step in range(12))
    assert parameter.tolist() == pytest.approx([-total * g / (abs(g) + EPS) for g in GRADIENTS], rel=1e-4)


def test_schedules_rise_and_fall_as_they_say() -> None:
    for kind, shape in (("linear", lambda x: 1 - x), ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2)):
        schedule = Schedule(0.5, 4, kind, 24)
        assert [schedule.at(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
        assert [schedule.at(4 + k) for k in range(21)] == pytest.approx([0.5 * shape(k / 20) for k in range(21)])
    assert {Schedule(0.5, 4, "constant", 24).at(step) for step in range(4, 99)} == {0.5}


def test_weights_decay_by_rate_times_decay_whatever_the_gradient() -> None:
    parameter, optimizer = made([2.0, -1.0], Schedule(0.1), decay=0.5)
    parameter.grad = torch.zeros(2)
    optimizer.step(0)
    assert parameter.tolist() == pytest.approx([2 * 0.95, -0.95])


def test_gradients_are_scaled_to_the_global_norm_where_they_exceed_it() -> None:
    for clip, scale in ((6.5, 0.5), (13.0, 1.0), (50.0, 1.0)):
        first, second = Parameter(torch.zeros(2)), Parameter(torch.zeros(1))
        optimizer = Optimizer({"a": first, "b": second}, Schedule(0.1), clip)
        first.grad, second.grad = torch.tensor([3.0, -4.0]), torch.tensor([12.0])
        _, norm = optimizer.step(0)
        assert norm == 13.0, "the norm is that before clipping"
        kept = optimizer.tensors()
        assert kept["exp_avg.a"].tolist() == pytest.approx([0.3 * scale, -0.4 * scale], rel=1e-5)
        assert kept["exp_avg_sq.b"].item() == pytest.approx(0.001 * (12 * scale) ** 2, rel=1e-4)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(0.0, -0.2), (4.8, -0.2), (5.4, -0.1), (6.0, 0.0), (6.6, 0.1), (7.2, 0.2), (1000.0, 0.2)],
)
def test_the_kl_controller_is_proportional_between_its_limits(kl: float, factor: float) -> None:
    coefficient = 0.15
    for _ in range(10):
        coefficient = losses.next_kl_coeff(coefficient, kl, 6.0, 10_000, 512)
    assert coefficient == pytest.approx(0.15 * (1 + factor * 0.0512) ** 10, rel=1e-12)
