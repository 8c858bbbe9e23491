"""The moving average of the policy's weights, which a run with `ppo.ema_decay` validates and writes as its model."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from preferent.models import sharding
from preferent.training.optimizer import Optimizer


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights after every step, in fp32 (Ouyang et al. 2022: .992)."""

    def __init__(self, masters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: master.detach().clone() for name, master in masters.items()}

    @torch.no_grad()
    def update(self, masters: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.lerp_(masters[name].detach(), 1 - self.decay)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(sharding.cut_as(tensors[name], weight))

    @contextlib.contextmanager
    def instead(self, optimizer: Optimizer) -> Iterator[None]:
        """Set the policy and its optimizer's masters to the average within the block."""
        now = {name: master.detach().clone() for name, master in optimizer.masters.items()}
        optimizer.put(self.weights)
        try:
            yield
        finally:
            optimizer.put(now)
