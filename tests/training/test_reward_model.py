"""Training a reward model: it learns what can be learnt, keeps the best, says how good it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCES, quiet_recipe

from preferent import files
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Choice, Preference, Prompt
from preferent.errors import DataError, UsageError
from preferent.evaluation.inference import initial_answers
from preferent.models import language_models
from preferent.models.world import World
from preferent.runs import metrics
from preferent.runs.directory import StageDirectory
from preferent.training import reward_model
from preferent.training.preference_pairs import PreferencePairs


def rows(count: int, offset: int) -> list[dict[str, Any]]:
    """The answer that ends in an exclamation mark is preferred; which side it is on, is data."""
    words = [word.strip(".,;!") for sentence in SENTENCES for word in sentence.split()]
    preferences = []
    for i in range(count):
        word = words[(i + offset) % len(words)]
        good, bad = f" {word}!", f" {word}."
        choice = i * 7 % 2
        preferences.append(
            {
                "input_text": f"{words[(i * 3 + offset) % len(words)]} {i}",
                "candidate_0": bad if choice else good,
                "candidate_1": good if choice else bad,
                "choice": choice,
            }
        )
    return preferences


def preference(choice: Choice, strength: float | None = None) -> Preference:
    return Preference(Prompt("x"), " a", " b", choice, strength=strength, source="p.jsonl:3")


def test_pairs_carry_margins_and_ties(tiny: Path) -> None:
    recipe = recipe_of(margin=0.5, ties="soft", label_smoothing=0.1)
    tokenizer = Tokenizer.load(tiny)
    rows = [preference(1, 3.0), preference("tie", 2.0), preference(0)]
    pairs = reward_model.encoded(recipe, rows, tokenizer, training=True)
    assert pairs.wrong.tolist() == [0.1, 0.5, 0.1] and pairs.margins.tolist() == [1.5, 0.0, 0.0]
    assert pairs.ties == 1 and len(pairs) == 3
    held_out = reward_model.encoded(recipe, rows, tokenizer, training=False)
    assert (held_out.ties, len(held_out)) == (1, 2), "nobody can be right about a tie"
    texts = [tokenizer.decode(side[1].tolist()) for side in (pairs.chosen, pairs.rejected)]
    assert "a" in texts[0] and "b" in texts[1], "a tie keeps the order of its candidates"
    assert len(PreferencePairs.of([preference(1, 3.0), preference("tie", 2.0)], tokenizer, recipe)) == 1
    with pytest.raises(DataError, match=r"p\.jsonl:3: strength is -1, but a margin is at least 0"):
        reward_model.encoded(recipe, [preference(1, -1.0)], tokenizer, training=False)


def test_margins_ties_and_centering_change_what_is_learnt(inputs: dict[str, Path], tmp_path: Path) -> None:
    def learnt(name: str, **section: Any) -> dict[str, Any]:
        reward_model.main(recipe_of(steps=10, **section), inputs, tmp_path / name)
        return dict(metrics.read(tmp_path / name / "metrics.jsonl")[-1])

    with pytest.raises(DataError, match=r"reward\.margin is set, but no pair has a strength"):
        learnt("none", margin=1.0)
    strong = [row | {"strength": 3.0} for row in files.read_jsonl(inputs["train"])]
    files.write_jsonl(inputs["train"], strong)
    plain, wide = learnt("plain"), learnt("wide", margin=1.0)
    assert wide["margin"] > plain["margin"] + 0.5
    assert learnt("centered", centering=0.5)["rank_loss"] != plain["rank_loss"]
    soft = learnt("soft", ties="soft")
    counts = files.read_json(tmp_path / "soft/stage.json")["facts"]["counts"]
    assert counts["train"] == {"pairs": 65, "ties": 1, "truncated": 0} and soft["rank_loss"] != plain["rank_loss"]


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
    reward_model.main(recipe_of(), inputs, tmp_path / "out")
    quality = files.read_json(tmp_path / "out/quality.json")
    assert quality["test"]["accuracy"] == 1.0 and quality["test"]["loss"] < 0.2
    facts = files.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["counts"]["train"] == {"pairs": 64, "ties": 1, "truncated": 0}
    validated = [row for row in metrics.read(tmp_path / "out/metrics.jsonl") if "validation/loss" in row]
    best = min(validated, key=lambda row: row["validation/loss"])
    assert quality["best_step"] == best["step"]
    assert quality["validation"]["loss"] == pytest.approx(best["validation/loss"], abs=1e-6)


def test_reported_quality_is_that_of_the_saved_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(8)
    reward_model.main(recipe, inputs, tmp_path / "out")
    scorer = language_models.load_scorer(tmp_path / "out/model", World.of(recipe))
    pairs = PreferencePairs.of(datasets.load_preferences(inputs["test"]), scorer.tokenizer, recipe)
    chosen, rejected = reward_model.measured(recipe, scorer, pairs)
    quality = files.read_json(tmp_path / "out/quality.json")["test"]
    assert quality["accuracy"] == pytest.approx((chosen > rejected).mean())
    assert quality["loss"] == pytest.approx(np.log1p(np.exp(rejected - chosen)).mean(), abs=1e-6)
    assert quality["longer_accuracy"] == 0.5


def test_quality_has_the_details_of_the_test_pairs(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Step 1 of a model from nothing makes mistakes; they are test rows, by their place below the run."""
    reward_model.main(recipe_of(1), inputs, tmp_path / "out")
    quality = files.read_json(tmp_path / "out/quality.json")
    assert quality["reported"] == "test" and quality["accuracy"]["count"] == 20
    assert quality["accuracy"]["share"] == quality["test"]["accuracy"]
    assert quality["rules"]["words"]["share"] == 1.0 and quality["rules"]["first"]["share"] == 0.5
    assert quality["samples"]["chosen_above"]["count"] == 20
    mistakes = files.read_jsonl(tmp_path / "out/mistakes.jsonl")
    assert len(mistakes) == round(20 * (1 - quality["accuracy"]["share"]))
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    for row in mistakes:
        name, line = row["source"].split(":")
        assert name == "test.jsonl" and json.loads(lines[int(line) - 1]).items() <= row.items()
        assert (row["score_0"] > row["score_1"]) == (row["choice"] == 1)


def test_the_samples_are_the_untrained_models(inputs: dict[str, Path], tmp_path: Path) -> None:
    """At most 64, at temperature 1, of prompts that have a text; of a model that writes none, none."""
    recipe = recipe_of()
    preferences = [preference(0)] * 70 + [Preference(Prompt(), " a", " b", 0)] * 5
    samples = initial_answers.sampled(recipe, World.of(recipe), inputs["model"], preferences)
    assert len({i for i, _ in samples}) == initial_answers.SAMPLES and max(i for i, _ in samples) < 70
    start, _ = Tokenizer.load(inputs["model"]).encode_prompt(Prompt("x"), None, 32)
    assert all(ids[: len(start)].tolist() == start for _, ids in samples)
    assert len({ids.tobytes() for _, ids in samples}) > 60, "each answer is drawn by itself"
    assert initial_answers.sampled(recipe, World.of(recipe), inputs["model"], preferences[70:]) == []
    reward_model.main(recipe_of(1), inputs, tmp_path / "out")
    assert initial_answers.sampled(recipe, World.of(recipe), tmp_path / "out/model", preferences) == []


@pytest.mark.parametrize("name", ["reward", "judge"])
def test_the_samples_are_made_once_a_stage(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A stage that is interrupted, goes on, and is extended, ends as one that does all with samples of its own."""
    rounds: list[int] = []
    sampled = initial_answers.sampled

    def counted(*rest: Any) -> Any:
        rounds.append(len(rounds))
        return sampled(*rest)

    def interrupted(*rest: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(initial_answers, "sampled", counted)
    reward_model.main(recipe_of(8), inputs, tmp_path / "whole")
    monkeypatch.setattr(initial_answers, "compare_samples", interrupted)
    with pytest.raises(InterruptedError):
        reward_model.main(recipe_of(4), inputs, tmp_path / name)
    monkeypatch.undo()
    monkeypatch.setattr(initial_answers, "sampled", counted)
    for steps in (4, 8):
        reward_model.main(recipe_of(steps), inputs, tmp_path / name)
    assert rounds == [0, 1]
    qualities = [(tmp_path / folder / "quality.json").read_bytes() for folder in ("whole", name)]
    assert qualities[0] == qualities[1] and b'"samples"' in qualities[0]


def test_damaged_samples_are_made_again(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample() -> list[tuple[int, np.ndarray]]:
        return [(3, np.array([1, 2], np.int32))]

    path = StageDirectory(tmp_path).initial_answers
    first = initial_answers.sample_once(path, sample)
    path.write_text(path.read_text().replace("3", "4"))
    again = initial_answers.sample_once(path, sample)
    for [(row, ids)] in (first, again, initial_answers.sample_once(path, list)):
        assert row == 3 and ids.dtype == np.int32 and ids.tolist() == [1, 2]
    assert ".samples.json: damaged" in capsys.readouterr().err


def test_without_held_out_pairs_there_is_little_to_say(inputs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("validation", "test"):
        inputs[name].write_text("")
    reward_model.main(recipe_of(2), inputs, tmp_path / "out")
    assert files.read_json(tmp_path / "out/quality.json") == {"reliability": [], "best_step": 2}
    assert (tmp_path / "out/mistakes.jsonl").read_text() == ""


def test_batch_may_be_cut_anyhow(inputs: dict[str, Path], tmp_path: Path) -> None:
    curves = []
    for tokens in (10_000, 40):
        out = tmp_path / str(tokens)
        reward_model.main(recipe_of(3, micro_batch_tokens=tokens), inputs, out)
        curves.append([row["rank_loss"] for row in metrics.read(out / "metrics.jsonl")])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_stops_early_and_keeps_the_best(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(40, early_stopping_patience=1, learning_rate=0.3, validation_every=2)
    reward_model.main(recipe, inputs, tmp_path / "out")
    facts = files.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["steps"] < 40 and "no better validation loss" in facts["stopped"]
    assert facts["best_step"] < facts["steps"]


def test_other_data_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    reward_model.main(recipe_of(2), inputs, tmp_path / "out")
    with open(inputs["train"], "a") as file:
        file.write(json.dumps(rows(70, 1)[-1]) + "\n")
    with pytest.raises(UsageError, match="input train: its content changed"):
        reward_model.main(recipe_of(2), inputs, tmp_path / "out")
