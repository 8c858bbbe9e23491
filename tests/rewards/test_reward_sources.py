"""A run by its one command, by what its reward is: a user's module, a model with other tokens, a weighted sum."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCES, quiet_recipe
from forking import PREFERENT

from preferent.commands.python_api import Run
from preferent.files import read_jsonl
from preferent.models import language_models, saving
from preferent.models.world import World
from preferent.rewards.normalization import ScoreNormalization
from preferent.runs import metrics

pytestmark = pytest.mark.acceptance

RECIPE = """
large_model_reference: model
prompt_dataset: prompts.jsonl
prompt_sequence_length: 48
target_sequence_length: 8
precision: fp32
threads: 1
reward_model_train_steps: 4
reinforcement_learning_train_steps: 3
data: {validation_share: 0.2, test_share: 0.2}
reward: {batch_size: 8, learning_rate: 1.0e-2, validation_every: 2}
infer: {max_prompts: 6}
compare: {judge: reward}
"""
PPO = {"batch_size": 8, "validation_every": 3, "learning_rate": 1e-2}
REWARD = {
    "batch_size": 8,
    "learning_rate": 1e-2,
    "validation_every": 2,
    "normalize_prompts": 8,
    "missing_eos_score": None,
}
TASTE = """
def vowels(prompts, answers):
    assert all(isinstance(text, str) for text in (*prompts, *answers)) and len(prompts) == len(answers)
    return [sum(letter in "aeiou" for letter in answer) / (1 + len(answer)) for answer in answers]
"""
TEMPLATE = "{% for m in messages %}X{{ m.role }}: {{ m.content }}\n{% endfor %}Xreply:"


@pytest.fixture(scope="module")
def work(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a reward model of other tokens and another template, a user's module, and data."""
    folder = tmp_path_factory.mktemp("job")
    make_model(seed=6).rename(folder / "model")
    other = language_models.load_scorer(make_model(seed=7, vocab_size=330), World.of(quiet_recipe()), 0, seed=1)
    saving.save(other, folder / "other", dict(other.trainable()), "# test\n")
    for name in ("model", "other"):
        (folder / name / "chat_template.jinja").write_text(TEMPLATE.replace("X", name[0]))
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "taste.py").write_text(TASTE)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    texts = [" ".join(words[i : i + 5]) + " " for i in range(30)]
    rows = {
        "prompts": [{"input_text": text} for text in texts],
        "talks": [{"messages": [{"author": "user", "content": text}]} for text in texts],
        "pairs": [
            {"input_text": text, "candidate_0": f" {words[i]} a", "candidate_1": f" {words[i + 3]} it", "choice": i % 2}
            for i, text in enumerate(texts)
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(work: Path, name: str, source: Any, **values: Any) -> Run:
    """Do the run, and check what holds of any: scores are those of the file, the verdict is marked."""
    recipe = {"ppo": PPO, "reward": REWARD | {"sources": source} | values.pop("reward", {})} | values
    settings = [word for key, value in recipe.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = [*PREFERENT, "run", "recipe.yaml", "--out", name, *settings]
    done = subprocess.run(words, cwd=work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    finished = Run(work / name)
    verdict = finished.verdict()
    assert verdict["headline"] == "reward" and not verdict["judges"]["reward"]["independent"]
    rows = [row for row in read_jsonl(work / name / "policy/rollouts/samples.jsonl") if row["step"] == 0]
    raw = {key: np.array([row["scores"][key] for row in rows]) for key in rows[0]["scores"]}
    scale = ScoreNormalization.read(work / name / "policy/score.json")
    steps = [row for row in metrics.read(work / name / "policy/metrics.jsonl") if row.get("reward") is not None]
    assert len(steps) == 3 and steps[0]["reward"] == pytest.approx(scale(raw).mean(), abs=1e-5)
    assert np.ptp(scale(raw)) > 1e-4
    return finished


def test_a_users_module(work: Path) -> None:
    finished = run(work, "function", "taste:vowels")
    assert not (finished.folder / "reward").exists()
    sides = {side: [row["prediction"] for row in finished.predictions(side)] for side in ("tuned", "base")}
    vowels = {
        side: np.mean([sum(c in "aeiou" for c in a) / (1 + len(a)) for a in texts]) for side, texts in sides.items()
    }
    bias = ScoreNormalization.read(finished.folder / "policy/score.json").normalizer("reward").bias
    judge = finished.verdict()["judges"]["reward"]
    assert judge["mean_score"]["a"] == pytest.approx(vowels["tuned"] - bias)
    assert judge["mean_score"]["b"] == pytest.approx(vowels["base"] - bias)


def test_modules_beside_a_recipe_are_not_imported(work: Path, tmp_path: Path) -> None:
    """The function that the recipe names is; by the run, and by a comparison of it."""
    folder = Path(shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("function", "other*", "sum")))
    for name in ("yaml", "numpy", "torch", "transformers", "peft", "scipy", "pydantic", "sklearn", "PIL", "kernels"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write({name!r})")
    settings = ["--set", "reward.sources=taste:vowels", "--set", "reward.normalize_prompts=4"]
    for words in (["run", "recipe.yaml", "--out", "R", *settings], ["compare", "R"]):
        argv = [sys.executable, "-P", "-m", "preferent", *words]
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mark").exists()


def test_a_reward_model_with_other_tokens_and_another_template(work: Path) -> None:
    finished = run(work, "other-tokens", [{"source": "other"}], prompt_dataset="talks.jsonl", instruction="Be kind.")
    assert not (finished.folder / "reward").exists()
    prompt = finished.predictions()[0]["inputs"]["inputs_pretokenized"]
    assert prompt.startswith("msystem: Be kind.\nmuser: ")
    stage = json.loads((finished.folder / "policy/stage.json").read_text())
    assert "reward.other" in stage["inputs"]


@pytest.mark.slow
def test_a_sum_of_what_the_run_trains_and_a_function(work: Path) -> None:
    parts = [{"source": "reward"}, {"source": "taste:vowels", "weight": 0.5, "name": "taste"}]
    values = {"members": 2, "combine": "variance", "normalize": "std"}
    finished = run(work, "sum", parts, preference_dataset="pairs.jsonl", reward=values)
    terms = ScoreNormalization.read(finished.folder / "policy/score.json").terms
    assert [(term.name, term.weight, list(term.members)) for term in terms] == [
        ("reward", 1.0, ["reward", "reward-2"]),
        ("taste", 0.5, ["taste"]),
    ]
    steps = [row for row in metrics.read(finished.folder / "policy/metrics.jsonl") if row.get("reward") is not None]
    for row in steps:
        assert row["reward"] == pytest.approx(
            row["objective/scores/reward"] + 0.5 * row["objective/scores/taste"], abs=1e-5
        )
