"""Every stage on a simulated graphics card: nothing is on the wrong device, nondeterministic or float64 there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SENTENCES, quiet_recipe
from simulated_card import CARD, OnCard, simulated

from preferent.config.recipe import Recipe
from preferent.evaluation.inference import generate
from preferent.models.world import to_device
from preferent.runs import metrics
from preferent.training import dpo, loop, ppo, rejection_sampling, reward_model, sft
from preferent.training.optimizer import Optimizer, Schedule


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with simulated(monkeypatch):
        yield


@pytest.fixture
def inputs(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    prompts = [{"input_text": text[:20]} for text in SENTENCES]
    answers = [{"candidate_0": text[20:30], "candidate_1": text[30:50]} for text in SENTENCES]
    rows = {
        "texts": [{"text": " ".join(SENTENCES)}] * 2,
        "prompts": prompts,
        "pairs": [prompt | pair | {"choice": 0} for prompt, pair in zip(prompts, answers, strict=True)],
    }
    paths = {name: tmp_path / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
    return paths | {"model": tiny}


def recipe_of(inputs: dict[str, Path], rank: int, **values: Any) -> Recipe:
    few = {"batch_size": 4, "micro_batch_tokens": 120, "lora_dim": rank, "learning_rate": 1e-3}
    texts = str(inputs["texts"])
    updates = {"minibatches": 2, "epochs": 1, "critic_learning_rate": 1e-3, "validation_prompts": 4}
    terms = {"entropy_coeff": 0.01, "ptx_coeff": 0.1, "ptx_dataset": texts, "ema_decay": 0.5, "whiten_rewards": True}
    some = {"rounds": 1, "prompts": 3, "samples": 2, "train_steps": 2, "batch_size": 2, "lora_dim": rank}
    sections: dict[str, Any] = {
        "sft": few | {"dataset": texts, "train_steps": 2, "validation_every": 1},
        "reward": few | {"normalize_prompts": 4, "normalize": "std", "validation_every": 1},
        "ppo": few | updates | terms | {"validation_every": 2},
        "dpo": few | {"train_steps": 2, "validation_every": 1},
        "rejection": some,
        "sampler": {"temperature": 0.7, "top_p": 0.95, "top_k": 100},
    }
    steps = {
        "reward_model_train_steps": 2,
        "reinforcement_learning_train_steps": 2,
        "checkpoint_every": 1,
        "target_sequence_length": 6,
    }
    return quiet_recipe(deterministic=True, **(sections | steps | values))


@pytest.mark.acceptance
@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("rank", [0, 2])
def test_every_stage_computes_on_the_card(inputs: dict[str, Path], tmp_path: Path, rank: int) -> None:
    model, pairs, prompts = {"model": inputs["model"]}, inputs["pairs"], inputs["prompts"]
    held_out = {"train": pairs, "validation": pairs, "test": pairs}
    asked = {"train": prompts, "validation": prompts}
    recipe = recipe_of(inputs, rank)
    sft.main(recipe, model, tmp_path / "sft")
    reward_model.main(recipe, model | held_out, tmp_path / "reward")
    reward = {"reward": tmp_path / "reward/model"}
    ppo.main(recipe, model | reward | asked, tmp_path / "ppo")
    for method in ("dpo", "kto"):
        dpo.main(recipe_of(inputs, rank, method=method), model | held_out, tmp_path / method)
    sampled = recipe_of(inputs, rank, method="rejection_sampling")
    rejection_sampling.main(sampled, model | reward | asked, tmp_path / "rejection")
    tuned = {"model": tmp_path / "ppo/model", "reference": inputs["model"], "prompts": prompts}
    generate.main(recipe, tuned, tmp_path / "infer")
    for name in ("sft", "reward", "ppo", "dpo", "kto"):
        assert metrics.read(tmp_path / name / "metrics.jsonl")[-1]["step"] == 2


class Cut(Exception):
    """Stands for a sudden end."""


@pytest.mark.usefixtures("card")
def test_a_stage_resumes_on_the_card(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {"dataset": str(inputs["texts"]), "train_steps": 3, "batch_size": 4, "lora_dim": 2, "learning_rate": 1e-3}
    recipe = recipe_of(inputs, 2, sft=section)
    sft.main(recipe, {"model": inputs["model"]}, tmp_path / "whole")
    save = loop.save

    def cut(*arguments: Any) -> None:
        save(*arguments)
        raise Cut

    monkeypatch.setattr(loop, "save", cut)
    with pytest.raises(Cut):
        sft.main(recipe, {"model": inputs["model"]}, tmp_path / "cut")
    monkeypatch.setattr(loop, "save", save)
    sft.main(recipe, {"model": inputs["model"]}, tmp_path / "cut")
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_the_simulated_card_refuses_what_a_card_does(card: None) -> None:
    there, here = torch.zeros(3, device=CARD), torch.zeros(3)
    assert isinstance(there, OnCard) and float((there + 1).sum()) == 3
    with pytest.raises(RuntimeError, match="add: expected all tensors to be on the same device"):
        there + here
    with pytest.raises(RuntimeError, match="cumsum: has no deterministic implementation"):
        there.cumsum(-1)
    with pytest.raises(TypeError, match="no float64"):
        there.double()
    with pytest.raises(TypeError, match="no float64"):
        to_device(np.zeros(3), CARD)
    assert there.long().cumsum(-1).cpu().tolist() == [0, 0, 0]


@pytest.mark.usefixtures("card")
def test_every_moment_is_restored_on_the_device_of_its_master() -> None:
    def made() -> Optimizer:
        weight = torch.nn.Parameter(torch.ones(3).to(CARD))
        return Optimizer({"weight": weight}, Schedule(1e-3), 1.0)

    def stepped(optimizer: Optimizer, step: int) -> list[float]:
        optimizer.parameters["weight"].square().sum().backward()
        optimizer.step(step)
        return optimizer.masters["weight"].detach().cpu().tolist()

    straight, resumed = made(), made()
    stepped(straight, 0)
    resumed.restore({name: tensor.cpu() for name, tensor in straight.tensors().items()})
    assert {tensor.device for tensor in resumed.tensors().values()} == {CARD}
    assert stepped(resumed, 1) == stepped(straight, 1)
