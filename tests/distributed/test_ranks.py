"""Every stage that computes, on one rank, two and three, in shards and whole: the same tokens, and the same weights but
for last bits."""

import json
from pathlib import Path

import numpy as np
import pytest
from nursery import PLACES, words_of
from ranked import FUNCTION, SMALL, Ranked, difference, settings, tokens, weights

pytestmark = pytest.mark.ranks

BOUND, ADAPTER_BOUND = 1e-6, 1e-5
"""Differences of weights; those of an adapter begin at zero."""
ALGORITHMS = ("rloo", "grpo", "dr_grpo", "remax", "reinforce_plus_plus")
WHOLE = ("shard=none",)
CASES = {
    "sft": ("sft", ()),
    "sft-lora": ("sft", ("sft.lora_dim=2", "gradient_checkpointing=true")),
    "sft-bf16": ("sft", ("precision=bf16", "gradient_checkpointing=true")),
    "reward": ("reward", ()),
    "dpo": ("dpo", ()),
    "kto": ("dpo", ("method=kto", *WHOLE)),
    "ppo": ("ppo", ("ppo.micro_batch_tokens=96", "ppo.ema_decay=0.5", "ppo.entropy_coeff=0.01")),
    "ppo-lora": ("ppo", ("ppo.micro_batch_tokens=96", "ppo.lora_dim=2")),
    "ppo-function": ("ppo", (FUNCTION, *WHOLE)),
    "rejection": ("rejection", ()),
    "infer": ("infer", ()),
} | {name: ("ppo", (f"ppo.algorithm={name}", *WHOLE)) for name in ALGORITHMS}
"""The models are so small that every weight learns by default: in shards, or whole on every rank. With LoRA two ranks
cut the weights below, three do not."""


@pytest.fixture(scope="module")
def whole(ranked: Ranked) -> Ranked:
    """The same with a reward model and a tuned policy in `whole`."""
    for stage in ("reward", "ppo"):
        ranked.ran(1, *words_of(stage, "whole"), *settings())
    return ranked


@pytest.mark.parametrize("name", CASES)
def test_ranks_compute_what_one_process_computes(whole: Ranked, name: str):
    ranked, (stage, more) = whole, CASES[name]
    folders = []
    for size in (1, 2, 3):
        calls = ranked.folder / f"{name}-{size}.calls"
        below = ("shard=full",) if "lora" in name and size == 2 else ()
        ranked.ran(size, *words_of(stage, f"{name}-{size}"), *settings(*more, *below), env={"CALLS": str(calls)})
        assert "lora" not in name or ranked.cut() == (size == 2)
        assert len({ranked.steps(rank) for rank in range(size)}) == 1
        assert bool(ranked.steps(0)) == (stage != "infer")
        folders.append(ranked.folder / f"{name}-{size}" / stage)
    alone, *others = folders
    for size, folder in enumerate(others, start=2):
        assert json.loads((folder / "stage.json").read_text())["facts"]["size"] == size
        assert names(folder) == names(alone)
        assert tokens(folder) == tokens(alone)
        assert close(folder, alone)
        if stage != "infer":
            assert difference(weights(alone), weights(folder)) <= (ADAPTER_BOUND if "lora" in name else BOUND)
    if name == "ppo-function":
        calls = [(ranked.folder / f"{name}-{size}.calls").read_text() for size in (1, 2, 3)]
        assert calls[0] == calls[1] == calls[2]


def test_shards_go_on_from_a_checkpoint_of_any_number_of_ranks(ranked: Ranked):
    """Weights and moments of 2, 1, then 3 ranks are those of one process that stops and goes on as often."""
    folders = {name: ranked.folder / name / "sft" for name in ("cut", "never-cut")}
    for size, steps in ((2, 2), (1, 4), (3, 6)):
        section = SMALL["sft"].replace("train_steps: 4", f"train_steps: {steps}")
        for name, count in (("cut", size), ("never-cut", 1)):
            ranked.ran(count, *words_of("sft", name), *settings(f"sft={section}"))
        ours, theirs = (weights(folder) for folder in folders.values())
        assert any(f"step-{steps:06d}" in name and "exp_avg_sq" in name for name in ours)
        assert difference(ours, theirs) <= BOUND
        assert difference(ours, theirs, kind="exp_avg") <= BOUND


def test_adapters_go_on_from_a_checkpoint_with_their_backbone_cut_or_whole(ranked: Ranked):
    """2 ranks that cut it, one process, then 2 ranks that do not: weights and moments of one process."""
    lora = SMALL["sft"].replace("{", "{lora_dim: 2, ")

    def learn(name: str, size: int, steps: int, shard: str) -> dict[str, np.ndarray]:
        section = lora.replace("train_steps: 4", f"train_steps: {steps}")
        ranked.ran(size, *words_of("sft", name), *settings(f"sft={section}", f"shard={shard}"))
        assert ranked.cut() == (size == 2 and shard == "full")
        return weights(ranked.folder / name / "sft")

    for size, steps, shard in ((2, 2, "full"), (1, 4, "full"), (2, 6, "auto")):
        ours = learn("cut-below", size, steps, shard)
    theirs = learn("whole-below", 1, 6, "auto")
    assert any("step-000006" in name and "exp_avg_sq" in name for name in ours)
    assert difference(ours, theirs) <= ADAPTER_BOUND
    assert difference(ours, theirs, kind="exp_avg") <= ADAPTER_BOUND


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def close(folder: Path, alone: Path) -> bool:
    """Whether the numbers in two files of lines are equal but for last bits, and their texts to the letter."""
    for place in PLACES:
        for path in alone.glob(place):
            if path.suffix == ".jsonl" and path.name != "timings.jsonl":
                ours, theirs = (lines(other / path.relative_to(alone)) for other in (folder, alone))
                assert len(ours) == len(theirs)
                for one, other in zip(ours, theirs, strict=True):
                    assert numbers(one) == pytest.approx(numbers(other), rel=1e-4, abs=2e-6), path
                    assert one.keys() == other.keys()
                    assert {name for name in one if one[name] != other[name]} <= numbers(one).keys()
    return True


def numbers(row: dict[str, object]) -> dict[str, float]:
    return {name: number for name, number in row.items() if isinstance(number, float)}


def lines(path: Path) -> list[dict[str, object]]:
    return [flat(json.loads(line)) for line in path.read_text().splitlines()]


def flat(row: object, prefix: str = "") -> dict[str, object]:
    if isinstance(row, dict):
        return {key: value for name, inner in row.items() for key, value in flat(inner, f"{prefix}{name}.").items()}
    return {prefix: row}
