"""Training a reward model: it learns what can be learnt, keeps the best, says how good it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCES, quiet_recipe

from preferent import dataset, metric, model, reward, run
from preferent.error import UsageError
from preferent.recipe import Recipe
from preferent.world import World


def rows(count: int, offset: int) -> list[dict[str, Any]]:
    """The answer that ends in an exclamation mark is preferred; which side it is on, is data."""
    words = [word.strip(".,;!") for sentence in SENTENCES for word in sentence.split()]
    found = []
    for i in range(count):
        word = words[(i + offset) % len(words)]
        good, bad = f" {word}!", f" {word}."
        choice = i * 7 % 2
        found.append(
            {
                "input_text": f"{words[(i * 3 + offset) % len(words)]} {i}",
                "candidate_0": bad if choice else good,
                "candidate_1": good if choice else bad,
                "choice": choice,
            }
        )
    return found


@pytest.fixture
def inputs(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    parts = {"train": rows(64, 0), "validation": rows(20, 5), "test": rows(20, 9)}
    parts["train"].append({**parts["train"][0], "choice": "tie"})
    for name, part in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {"model": tiny} | {name: tmp_path / f"{name}.jsonl" for name in parts}


def recipe_of(steps: int = 20, **section: Any) -> Recipe:
    values = {"batch_size": 16, "learning_rate": 1e-2, "validation_every": 5} | section
    return quiet_recipe(reward_model_train_steps=steps, checkpoint_every=4, reward=values)


def test_learns_and_reports(inputs: dict[str, Path], tmp_path: Path) -> None:
    reward.main(recipe_of(), inputs, tmp_path / "out")
    quality = run.read_json(tmp_path / "out/quality.json")
    assert quality["test"]["accuracy"] == 1.0 and quality["test"]["loss"] < 0.2
    facts = run.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["counts"]["train"] == {"pairs": 64, "ties": 1, "truncated": 0}
    validated = [row for row in metric.read(tmp_path / "out/metrics.jsonl") if "validation/loss" in row]
    best = min(validated, key=lambda row: row["validation/loss"])
    assert quality["best_step"] == best["step"]
    assert quality["validation"]["loss"] == pytest.approx(best["validation/loss"], abs=1e-6)


def test_reported_quality_is_that_of_the_saved_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(8)
    reward.main(recipe, inputs, tmp_path / "out")
    scorer = model.load_scorer(tmp_path / "out/model", World.of(recipe))
    pairs = reward.Pairs.of(dataset.load_preferences(inputs["test"]), scorer.tokenizer, recipe)
    chosen, rejected = reward.measured(recipe, scorer, pairs)
    quality = run.read_json(tmp_path / "out/quality.json")["test"]
    assert quality["accuracy"] == pytest.approx((chosen > rejected).mean())
    assert quality["loss"] == pytest.approx(np.log1p(np.exp(rejected - chosen)).mean(), abs=1e-6)
    assert quality["longer_accuracy"] == 0.5


def test_batch_may_be_cut_anyhow(inputs: dict[str, Path], tmp_path: Path) -> None:
    curves = []
    for tokens in (10_000, 40):
        out = tmp_path / str(tokens)
        reward.main(recipe_of(3, micro_batch_tokens=tokens), inputs, out)
        curves.append([row["rank_loss"] for row in metric.read(out / "metrics.jsonl")])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_stops_early_and_keeps_the_best(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(40, early_stopping_patience=1, learning_rate=0.3, validation_every=2)
    reward.main(recipe, inputs, tmp_path / "out")
    facts = run.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["steps"] < 40 and "no better validation loss" in facts["stopped"]
    assert facts["best_step"] < facts["steps"]


def test_other_data_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    reward.main(recipe_of(2), inputs, tmp_path / "out")
    with open(inputs["train"], "a") as file:
        file.write(json.dumps(rows(70, 1)[-1]) + "\n")
    with pytest.raises(UsageError, match="input train: its content changed"):
        reward.main(recipe_of(2), inputs, tmp_path / "out")
