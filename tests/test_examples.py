"""The commands of the examples' READMEs, with few steps and small models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data"

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there"),
]
FEW = (
    *("sft.train_steps=2", "sft.batch_size=4", "reward_model_train_steps=2", "reward.batch_size=4"),
    *("reward.normalize_prompts=8", "reinforcement_learning_train_steps=2", "ppo.batch_size=8"),
    *("ppo.validation_prompts=4", "precision=fp32"),
)


@pytest.fixture
def place(tmp_path):
    """A folder with the examples in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def done(folder: Path, *words: object) -> str:
    """What a Python command says."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def settings(*more: str) -> list[str]:
    return [word for setting in (*FEW, *more) for word in ("--set", setting)]


def test_ethics(place):
    done(place, "examples/ethics/prepare.py", DATA / "preference/ethics_util", "runs/ethics-data")
    sizes = ("--vocab-size", 512, "--hidden-size", 16, "--layers", 1, "--heads", 2, "--positions", 128)
    model = "runs/ethics-data/model"
    done(place, "-m", "preferent", "scratch", "--text", "runs/ethics-data/text.jsonl", "--out", model, *sizes)
    recipe, few = "examples/ethics/recipe.yaml", settings("reward.members=2", "infer.max_prompts=8")
    done(place, "-m", "preferent", "run", recipe, "--out", "runs/ethics", *few)
    said = done(place, "examples/ethics/outside.py", "runs/ethics-data", "runs/ethics")
    assert "outside judge: accuracy 0.64" in said
    assert "held-out pairs (373): reward 0." in said and "tuned preferred in " in said
