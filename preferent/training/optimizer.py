"""AdamW on fp32 master weights, learning-rate schedules, clipping by global norm."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from preferent.errors import DivergedError, UsageError
from preferent.models import collectives, quantization, sharding

STATE = ("step", "exp_avg", "exp_avg_sq", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
"""What AdamW keeps of a parameter, then what AdamW of 8 bits does: moments, their code books and scales."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate by step: linear warm-up, then constant, or linear or cosine to zero at `steps`."""

    learning_rate: float
    warmup_steps: int = 0
    kind: str = "constant"
    steps: int = 0

    def at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.kind == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over named parameters.

    A bf16 parameter has an fp32 master: gradients of micro-batches are summed in fp32, the update applies to the
    master, and the parameter is set to the rounded master. An fp32 parameter is its own master, and so is a shard.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        schedule: Schedule,
        max_grad_norm: float,
        weight_decay: float = 0.0,
        kind: Literal["adamw", "adamw8bit"] = "adamw",
    ) -> None:
        self.parameters = dict(parameters)
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.masters = {name: _master(parameter) for name, parameter in self.parameters.items()}
        if kind == "adamw8bit" and any(map(sharding.is_cut, self.masters.values())):
            raise UsageError("optimizer: adamw8bit learns whole weights, not shards; set shard: none, or processes: 1")
        masters = list(self.masters.values())
        settings: dict[str, Any] = {"eps": 1e-5, "weight_decay": weight_decay}
        self._adam: torch.optim.Optimizer = (
            torch.optim.AdamW(masters, schedule.learning_rate, **settings, fused=True)
            if kind == "adamw"
            else quantization.bitsandbytes().optim.AdamW8bit(masters, schedule.learning_rate, **settings)
        )

    def step(self, step: int) -> tuple[float, float]:
        """Apply the accumulated gradients; return (learning rate, gradient norm before clipping)."""
        rate = self.schedule.at(step)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._sum_over_ranks()
        before = torch.nn.utils.clip_grad_norm_(self.masters.values(), self.max_grad_norm, foreach=True)
        norm = float(sharding.whole_of(before))
        if not math.isfinite(norm):
            raise DivergedError(f"step {step}: the gradient is not finite")
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._round()
        return rate, norm

    def _sum_over_ranks(self) -> None:
        """Add up what each rank accumulated from its share; a tensor that no rank has a gradient of gets none.

        Those of shards are sums already.
        """
        masters = [master for master in self.masters.values() if not sharding.is_cut(master)]
        counts = collectives.total(torch.tensor([master.grad is not None for master in masters], dtype=torch.int32))
        learning = [master for master, count in zip(masters, counts.tolist(), strict=True) if count]
        for master in learning:
            master.grad = torch.zeros_like(master) if master.grad is None else master.grad
        collectives.total_of([master.grad for master in learning if master.grad is not None])

    def discard(self) -> None:
        """Drop the accumulated gradients."""
        self._adam.zero_grad(set_to_none=True)

    def put(self, masters: Mapping[str, Tensor]) -> None:
        """Set the masters and the parameters; leave the moments unchanged."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(sharding.cut_as(masters[name], master))
        self._round()

    def _round(self) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])

    def weights(self) -> dict[str, Tensor]:
        """Return the masters by name: all that is needed of a model that is not trained further."""
        return {f"master.{name}": master.detach() for name, master in self.masters.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return masters and moments by name, for a checkpoint."""
        tensors = self.weights()
        for name, master in self.masters.items():
            for key, moment in self._adam.state[master].items():
                tensors[f"{key}.{name}"] = moment.clone() if key.startswith("qmap") else torch.as_tensor(moment)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the masters, the parameters, and the moments if there are any."""
        for name, master in self.masters.items():
            keys = [key for key in STATE if f"{key}.{name}" in tensors]
            stored = {key: sharding.cut_as(tensors[f"{key}.{name}"], master) for key in keys}
            moments: dict[str, Any] = {key: moment.to(master.device, copy=True) for key, moment in stored.items()}
            if "state1" in moments:  # bitsandbytes counts in Python
                moments["step"] = int(moments["step"])
            self._adam.state[master] = moments
        self.put({name: tensors[f"master.{name}"] for name in self.masters})


@dataclass
class TrainingState:
    """Trainer state: step, optimizer, and the scalars saved in checkpoints."""

    step: int
    optimizer: Optimizer
    scalars: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        return self.optimizer.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.restore(tensors)


def _master(parameter: Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    master = parameter.detach().float().requires_grad_()

    def gather(p: Tensor) -> None:
        assert p.grad is not None
        if master.grad is None:
            master.grad = p.grad.float()
        else:
            master.grad.add_(p.grad)
        p.grad = None

    parameter.register_post_accumulate_grad_hook(gather)
    return master
