"""Shards with threads as ranks: gradients are sums, weights are never stale, and rows lie in their place in files.

Below adapters the frozen weights are cut, and what one process computes with them is the same.
"""

import functools
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
from preferent.models import adapters, checkpoint, collectives, language_models, pretrained, saving, sharding
from preferent.models.collectives import ProcessGroup
from preferent.models.language_models import Policy, Scorer
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.sequences import Sequences, accumulate_gradients, mean_loss

ROWS = [np.arange(5, 8 + 2 * number, dtype=np.int32) for number in range(5)]
TEXT, TOKENS = Sequences(ROWS, [1, 0, 2, 1, 0]), 12
"""Five sequences in four micro-batches: two ranks have as many each, three do not."""

Work = Callable[[Policy], Any]

IN_TURN: tuple[tuple[Any, str], ...] = (
    *((language_models, name) for name in ("_opened", "critic_from_policy")),
    *((pretrained, name) for name in ("open_adapter", "classifies_alike")),
    *((adapters, name) for name in ("make_trainable", "add")),
)
"""What uses the generator, the default dtype or the warnings of the process, which all threads share."""


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads load models one after the other, and each computes on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    lock = threading.RLock()

    def locked(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def alone(*given: Any, **named: Any) -> Any:
            with lock:
                return function(*given, **named)

        return alone

    for place, name in IN_TURN:
        monkeypatch.setattr(place, name, locked(getattr(place, name)))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_ranks(tiny: Path, in_turn: None) -> Iterator[Callable[[int, Work], list[Any]]]:
    """A function that does work with a policy in shards on a number of ranks, and returns what each returns.

    Above `lora_dim` 0 these are shards of the frozen weights below an adapter.
    """
    multi_threaded_pg._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)

    def on(size: int, work: Work, lora_dim: int = 0, dtype: torch.dtype = torch.float32) -> list[Any]:
        store, returned, errors = dist.HashStore(), [None] * size, list[Exception]()

        def one(rank: int) -> None:
            try:
                dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
                ranks.enter(ProcessGroup(rank, size, store))
                world = World(rank, size, torch.device("cpu"), dtype, 1, shard="full" if lora_dim else "auto")
                returned[rank] = work(language_models.load_policy(tiny, world, lora_dim=lora_dim))
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


@pytest.fixture
def adapted(tiny: Path) -> Policy:
    return language_models.load_policy(tiny, World(0, 1, torch.device("cpu"), torch.float32, 1), lora_dim=2)


def learn(policy: Policy, critic: Scorer) -> dict[str, torch.Tensor]:
    """Make three steps of two adapters on one backbone; return what they learnt."""
    optimizers = [optimizer_of(policy), optimizer_of(critic)]
    for number in range(3):
        accumulate_gradients(policy, TEXT, TOKENS)
        for rows, weight in collectives.passes([ROWS[:2], ROWS[2:4], ROWS[4:]]):
            (weight * measurement.scores_at_end(critic, rows).sum()).backward()
        for optimizer in optimizers:
            optimizer.step(number)
    return {name: tensor for optimizer in optimizers for name, tensor in optimizer.weights().items()}


def test_adapters_on_a_backbone_in_shards_learn_what_one_process_learns(adapted: Policy, on_ranks: Any) -> None:
    def used(policy: Policy) -> tuple[Any, ...]:
        masters = learn(policy, language_models.critic_from_policy(policy))
        rollouts = LocalSampler(policy, 0, rows=2).sample(ROWS, range(5), "rollout", 0, Params(6))
        divergence = measurement.divergence(policy, policy.reference(), rollouts, TOKENS, 1.0)
        return masters, [rollout.ids.tolist() for rollout in rollouts], torch.stack(divergence)

    masters, ids, divergence = used(adapted)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in masters.items() if "lora_B" in name)
    for own_masters, own_ids, own_divergence in on_ranks(3, used, lora_dim=2):
        assert own_masters.keys() == masters.keys()
        assert all(torch.allclose(own_masters[name], masters[name], rtol=0, atol=1e-5) for name in masters)
        assert own_ids == ids
        assert torch.allclose(own_divergence, divergence, rtol=1e-4, atol=1e-6)


def test_every_rank_holds_some_rows_of_a_backbone_and_all_of_its_adapters(adapted: Policy, on_ranks: Any) -> None:
    """Also between passes, after a sample, and of an adapter that came later; the same rows as before."""

    def held(policy: Policy) -> dict[str, torch.Tensor]:
        learn(policy, language_models.critic_from_policy(policy))
        LocalSampler(policy, 0).sample(ROWS[:1], [0], "rollout", 0, Params(2))
        parameters = dict(policy.body.named_parameters())
        named = {name for name in parameters if "lora_" in name or adapters.HEAD in name.split(".")}
        assert {name for name in parameters if sharding.is_cut(parameters[name])} == parameters.keys() - named
        return {name: sharding.own(parameters[name].detach()) for name in parameters.keys() - named}

    shares = on_ranks(2, held, lora_dim=2)
    frozen = {name: parameter for name, parameter in adapted.body.named_parameters() if name in shares[0]}
    assert len(frozen) > 10
    assert all(torch.equal(torch.cat([share[name] for share in shares]), frozen[name]) for name in frozen)


def in_shards(scorer: Scorer) -> bool:
    return any(map(sharding.is_cut, scorer.body.parameters()))


@pytest.mark.parametrize("joins", [True, False])
def test_a_reward_model_scores_on_a_backbone_in_shards(
    adapted: Policy, on_ranks: Any, tmp_path: Path, joins: bool
) -> None:
    """On that of the policy, or on one of its own."""
    trained = language_models.load_scorer(adapted.source, adapted.world, lora_dim=2, seed=1)
    saving.save(trained, tmp_path / "out" / "reward", dict(trained.trainable()), "# test\n")

    def scores(policy: Policy) -> torch.Tensor:
        beside = [policy] if joins else []
        scorer = language_models.load_scorer(tmp_path / "out" / "reward", policy.world, beside=beside)
        assert in_shards(scorer) and (scorer.body is policy.body) == joins
        return measurement.scores_at_end(scorer, ROWS).detach()

    expected = measurement.scores_at_end(trained, ROWS).detach()
    assert expected.abs().max() > 1e-3
    assert all(torch.allclose(own, expected, rtol=0, atol=1e-6) for own in on_ranks(2, scores, lora_dim=2))


@pytest.mark.parametrize("sampled", [True, False])
def test_a_critic_joins_a_reward_model_on_a_backbone_in_shards(adapted: Policy, on_ranks: Any, sampled: bool) -> None:
    """Whose head, which the critic's is a copy of, is whole; it was cut when it had sampled, or was loaded for that."""

    def scores(policy: Policy) -> torch.Tensor:
        on = language_models.load_policy(policy.source, policy.world) if sampled else None
        scorer = language_models.load_scorer(policy.source, policy.world, lora_dim=2, seed=1, on=on)
        assert in_shards(scorer) == (ranks.here().size > 1) and (on is None or on.body is scorer.body)
        return measurement.scores_at_end(scorer.critic(), ROWS).detach()

    expected = scores(adapted)
    assert expected.abs().max() > 1e-3
    assert all(torch.allclose(own, expected, rtol=0, atol=1e-6) for own in on_ranks(2, scores, lora_dim=2))


def test_a_frozen_backbone_stays_in_the_precision_of_computation(on_ranks: Any) -> None:
    """In bf16 as it is loaded, where weights that learn are fp32 masters."""

    def held(policy: Policy) -> set[torch.dtype]:
        return {parameter.dtype for parameter in policy.body.parameters() if sharding.is_cut(parameter)}

    assert on_ranks(2, held, dtype=torch.bfloat16) == [{torch.float32}] * 2
    assert on_ranks(2, held, lora_dim=2, dtype=torch.bfloat16) == [{torch.bfloat16}] * 2


def test_an_adapter_is_merged_into_the_base_that_is_stored(adapted: Policy, on_ranks: Any, tmp_path: Path) -> None:
    """A rank that holds some rows of it only has to read the others again."""

    def merged(policy: Policy, name: str) -> None:
        masters = {key: torch.full_like(tensor, 0.1) for key, tensor in policy.trainable().items()}
        saving.save_merged(policy, tmp_path / name / "model", masters, "# test\n")

    on_ranks(2, lambda policy: merged(policy, "shards"), lora_dim=2)
    merged(adapted, "alone")
    ours, theirs = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("shards", "alone"))
    assert ours == theirs
