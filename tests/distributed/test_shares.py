"""What ranks share, sum and decide together, with threads as ranks: each stage gives what one process gives."""

import importlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_endpoint import completion, prefers, serving
from nursery import prepare, words_of
from ranked import FUNCTION, SMALL, difference, numbers_in, tokens, weights
from threaded import together
from torch.nn import Parameter

from preferent import files, ranks
from preferent.cli.actions import MODULES
from preferent.config import recipe as recipes
from preferent.errors import Interrupted
from preferent.evaluation.inference import compare
from preferent.models import collectives, language_models
from preferent.models.world import World
from preferent.runs import interruption
from preferent.training.sequences import Sequences, mean_loss

SMALLER = {
    "shard": "none",  # shards take processes: test_ranks.py
    "target_sequence_length": 5,
    "reinforcement_learning_train_steps": 2,
    "reward": "{batch_size: 6, validation_every: 4, micro_batch_tokens: 96, normalize_prompts: 6}",
    "ppo": "{batch_size: 8, minibatches: 2, epochs: 1, validation_prompts: 4, micro_batch_tokens: 48}",
}
COUNTED = """
calls = []


def length(prompts, answers):
    calls.append(len(answers))
    return [len(answer) / 10 for answer in answers]
"""


@pytest.fixture
def folder(make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with data and a model."""
    prepare(tmp_path, make_model())
    (tmp_path / "counted_calls.py").write_text(COUNTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "counted_calls", None)
    del sys.modules["counted_calls"]
    return tmp_path


def perform(stage: str, size: int, out: str, *more: str) -> Path:
    """Do a stage on a number of ranks; return its folder."""
    values = [f"{name}={value}" for name, value in (SMALL | SMALLER).items()]
    recipe = recipes.load(Path("recipe.yaml"), [*values, *more])[0]
    words = words_of(stage, out)
    pairs = [word.partition("=") for word in words if "=" in word]
    inputs = {name: Path(path) for name, _, path in pairs if name != "reward"}
    main = importlib.import_module(MODULES[stage]).main
    together(size, lambda rank: main(recipe, inputs, Path(out, stage)))
    return Path(out, stage)


CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ppo": ("ppo", (FUNCTION,)),
    "rloo": ("ppo", (FUNCTION, "ppo.algorithm=rloo", "ppo.samples_per_prompt=2", "ppo.lora_dim=0")),
    "text": ("ppo", (FUNCTION, "ppo.algorithm=rloo", "ppo.ptx_coeff=0.5", "ppo.ptx_dataset=sft.jsonl")),
    "reward": ("reward", ()),
    "kto": ("dpo", ("method=kto",)),
    "sft": ("sft", ()),
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_what_one_gives(folder: Path, name: str) -> None:
    stage, more = CASES[name]
    alone, both = (perform(stage, size, f"{name}-{size}", *more) for size in (1, 2))
    assert tokens(alone) == tokens(both)
    assert difference(weights(alone), weights(both)) <= 1e-6
    pairs = zip(numbers_in(alone / "metrics.jsonl"), numbers_in(both / "metrics.jsonl"), strict=True)
    assert all(ours == pytest.approx(theirs, rel=1e-4, abs=2e-6) for ours, theirs in pairs)
    if name == "reward":
        ours, theirs = (json.loads((folder / "quality.json").read_text()) for folder in (alone, both))
        assert ours["test"] == pytest.approx(theirs["test"], rel=1e-5, abs=1e-6)


def test_a_reward_function_is_called_once_for_an_answer(folder: Path) -> None:
    for size in (1, 2):
        perform("ppo", size, f"out-{size}", FUNCTION)
    calls = sys.modules["counted_calls"].calls
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]


def test_judges_say_the_same_and_an_endpoint_is_asked_once(folder: Path) -> None:
    for name, end in (("a", " x y"), ("b", " z")):
        rows = [
            {"inputs": {"inputs_pretokenized": f"the {i}", "targets_pretokenized": ""}, "prediction": f"{end} {i}"}
            for i in range(3)
        ]
        files.write_jsonl(folder / f"{name}.jsonl", rows)
    inputs = {"a": Path("a.jsonl"), "b": Path("b.jsonl")}
    with serving(lambda asked: completion(f"Verdict: {prefers(asked, lambda a, b: len(a) > len(b))}")) as server:
        for size in (1, 2):
            judges = [
                {"name": "here", "model": "model", "explanation": True, "max_tokens": 4},
                {"name": "there", "url": server.url, "model": "m"},
            ]
            section = {"judges": judges, "micro_batch_tokens": 256}
            recipe = recipes.load(Path("recipe.yaml"), [f"compare={json.dumps(section)}"])[0]
            out = Path(f"judged-{size}/comparison")
            together(size, lambda rank: compare.main(recipe, inputs, out))  # noqa: B023 - called at once
        assert set(server.counts.values()) == {2}, "once by one process, once by two"
    ours, theirs = (files.read_json(Path(f"judged-{size}/comparison/metrics.json")) for size in (1, 2))
    for name in ("here", "there"):
        counts = [{key: side["judges"][name][key] for key in ("win", "tie", "loss", "n")} for side in (ours, theirs)]
        assert counts[0] == counts[1]
    calls = [sorted((Path(f"judged-{size}/calls/here.jsonl")).read_text().splitlines()) for size in (1, 2)]
    assert len(calls[0]) == len(calls[1]) == 6


def test_a_loss_without_a_gradient_is_that_of_all_rows(tiny: Path) -> None:
    policy = language_models.load_policy(tiny, World(0, 1, torch.device("cpu"), torch.float32, 1))
    rows = [np.arange(5, 8 + 2 * number, dtype=np.int32) for number in range(4)]
    sequences = Sequences(rows, [1, 0, 2, 1])
    alone, both, three = (together(size, lambda rank: mean_loss(policy, sequences, 10)) for size in (1, 2, 3))
    assert [*both, *three] == pytest.approx(alone * 5, rel=1e-6)


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        files.write_atomic(tmp_path / f"rank-{rank}", "")

    together(3, work)
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0"]


def test_what_the_first_rank_decides_is_decided_for_all() -> None:
    assert together(3, lambda rank: ranks.agreed(lambda: [rank, None])) == [[0, None]] * 3


def test_nothing_waits_within_what_the_first_rank_does_alone() -> None:
    assert together(2, lambda rank: ranks.at_first(lambda: ranks.agreed(lambda: ranks.here().size))) == [1, None]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_all_rows_once(size: int) -> None:
    shares = together(size, lambda rank: collectives.share(list(range(7))))
    assert sorted(row for share in shares for row in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_sums_of_ranks_that_have_different_names() -> None:
    parts: list[dict[str, float]] = [{"a": 1.0, "b": 2.0}, {}, {"b": 0.5}]
    assert together(3, lambda rank: collectives.sums(parts[rank])) == [{"a": 1.0, "b": 2.5}] * 3


def test_many_tensors_are_summed_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "BUCKET_ELEMENTS", 5)

    def work(rank: int) -> list[list[float]]:
        tensors = [torch.full((size,), float(rank + size)) for size in (2, 3, 7, 1)]
        collectives.total_of(tensors)
        return [tensor.tolist() for tensor in tensors]

    assert together(2, work) == [[[1.0 + 2 * size] * size for size in (2, 3, 7, 1)]] * 2


def test_gradients_are_summed_before_they_are_clipped() -> None:
    from preferent.training.optimizer import Optimizer, Schedule

    def work(rank: int) -> tuple[float, list[float], bool]:
        first, second, third = (Parameter(torch.zeros(2)) for _ in range(3))
        optimizer = Optimizer({"first": first, "second": second, "third": third}, Schedule(0.1), 1.0)
        first.grad = torch.tensor([3.0, -3.0 * rank])
        if rank:
            second.grad = torch.tensor([2.0, 0.0])
        norm = optimizer.step(0)[1]
        return norm, [*first.tolist(), *second.tolist()], third in optimizer._adam.state

    both = together(2, work)
    assert both[0] == both[1]
    assert both[0][0] == pytest.approx(7.0)
    assert not both[0][2]


def test_a_signal_to_one_rank_stops_all() -> None:
    saved = []

    def work(rank: int) -> int:
        interruption._stop.set(interruption.Stop(15 if rank == 1 else 0))
        try:
            interruption.stop().check(lambda: saved.append(rank))
        except Interrupted as stopped:
            return stopped.exit_code
        return 0

    assert together(3, work) == [143] * 3
    assert sorted(saved) == [0, 1, 2]


def test_ranks_share_the_memory_and_the_cores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preferent.runs import environment

    monkeypatch.setattr(environment, "usable_cores", lambda: 8)
    recipe = recipes.parse({"large_model_reference": "m", "device": "cpu"})[0]
    before = torch.get_num_threads()
    try:
        worlds: list[Any] = together(3, lambda rank: World.of(recipe))
    finally:
        torch.set_num_threads(before)
    assert [(world.rank, world.size, world.threads) for world in worlds] == [(0, 3, 2), (1, 3, 2), (2, 3, 2)]
    assert worlds[0].facts()["size"] == 3
    assert together(3, lambda rank: worlds[rank].memory) == [environment.memory() // 3] * 3
    assert threading.active_count() < 10
    assert "WORLD_SIZE" not in os.environ
