"""Shards with threads as ranks: gradients are sums, weights are never stale, and rows lie in their place in files."""

import threading
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg

from preferent import ranks
from preferent.models import checkpoint, language_models, sharding
from preferent.models.collectives import ProcessGroup
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.sequences import Sequences, accumulate_gradients, mean_loss

ROWS = [np.arange(5, 8 + 2 * number, dtype=np.int32) for number in range(5)]
TEXT, TOKENS = Sequences(ROWS, [1, 0, 2, 1, 0]), 12
"""Five sequences in four micro-batches: two ranks have as many each, three do not."""

Work = Callable[[Policy], Any]


@pytest.fixture
def on_ranks(tiny: Path) -> Iterator[Callable[[int, Work], list[Any]]]:
    """A function that does work with a policy in shards on a number of ranks, and returns what each returns."""
    multi_threaded_pg._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)

    def on(size: int, work: Work) -> list[Any]:
        store, returned, errors = dist.HashStore(), [None] * size, list[Exception]()
        worlds = [World(rank, size, torch.device("cpu"), torch.float32, 1) for rank in range(size)]
        policies = [language_models.load_policy(tiny, world, lora_dim=0) for world in worlds]

        def one(rank: int) -> None:
            try:
                dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
                ranks.enter(ProcessGroup(rank, size, store))
                sharding.shard(policies[rank].body, worlds[rank], learns=True)
                returned[rank] = work(policies[rank])
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)

        threads = [threading.Thread(target=Context().run, args=(one, rank), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if errors:
            raise errors[0]
        assert not any(thread.is_alive() for thread in threads), "a rank waits for one that never comes"
        return returned

    yield on
    torch._C._distributed_c10d._set_thread_isolation_mode(False)
    multi_threaded_pg._uninstall_threaded_pg()


def optimizer_of(policy: Policy) -> Optimizer:
    return Optimizer(policy.trainable(), Schedule(1e-3), max_grad_norm=0.5)


def step(policy: Policy) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Make a step on the text; return its loss, the norm of its gradient, and the weights after it."""
    optimizer = optimizer_of(policy)
    loss = accumulate_gradients(policy, TEXT, TOKENS)
    norm = optimizer.step(0)[1]
    return loss, norm, whole(optimizer.weights())


def whole(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.full_tensor() if sharding.is_cut(tensor) else tensor for name, tensor in tensors.items()}


@pytest.fixture
def alone(tiny: Path) -> Policy:
    return language_models.load_policy(tiny, World(0, 1, torch.device("cpu"), torch.float32, 1), lora_dim=0)


@pytest.mark.parametrize("size", [2, 3])
def test_a_step_of_shards_is_that_of_one_process(alone: Policy, on_ranks: Any, size: int) -> None:
    loss, norm, weights = step(alone)
    for own_loss, own_norm, own_weights in on_ranks(size, step):
        assert (own_loss, own_norm) == pytest.approx((loss, norm), rel=1e-6)
        assert own_weights.keys() == weights.keys()
        assert all(torch.allclose(own_weights[name], weights[name], rtol=0, atol=1e-6) for name in weights)


def test_a_pass_sees_the_weights_that_were_put(alone: Policy, on_ranks: Any) -> None:
    """Also after a pass without a gradient, which nothing undoes."""

    def losses(policy: Policy) -> list[float]:
        optimizer = optimizer_of(policy)
        before = mean_loss(policy, TEXT, TOKENS)
        parameters = policy.trainable().values()
        assert all(sharding.is_cut(parameter) for parameter in parameters) or ranks.here().size == 1
        optimizer.put({name: 2 * master.detach() for name, master in optimizer.masters.items()})
        return [before, mean_loss(policy, TEXT, TOKENS)]

    expected = losses(alone)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    assert all(own == pytest.approx(expected, rel=1e-5) for own in on_ranks(3, losses))


def test_a_checkpoint_of_shards_is_that_of_one_process(alone: Policy, on_ranks: Any, tmp_path: Path) -> None:
    """Its files hold what one process writes, and each rank reads its rows of them."""

    def saved(policy: Policy, name: str) -> Optimizer:
        optimizer = optimizer_of(policy)
        accumulate_gradients(policy, TEXT, TOKENS)
        optimizer.step(0)
        checkpoint.save(tmp_path / name, 1, optimizer.tensors(), {"a": 1}, keep=None)
        return optimizer

    def resumed(policy: Policy) -> dict[str, torch.Tensor]:
        optimizer = optimizer_of(policy)
        optimizer.restore(checkpoint.read(tmp_path / "shards", 1).tensors)
        return whole(optimizer.tensors())

    expected = saved(alone, "alone").tensors()
    on_ranks(3, lambda policy: saved(policy, "shards") and None)
    read = checkpoint.read(tmp_path / "shards", 1)
    assert read.scalars == {"a": 1} and read.tensors.keys() == expected.keys()
    assert all(torch.allclose(read.tensors[name], expected[name], rtol=0, atol=1e-6) for name in expected)
    for size in (2, 3):
        for tensors in on_ranks(size, resumed):
            assert all(torch.equal(tensors[name], read.tensors[name]) for name in expected)
