"""The commands of the examples' READMEs, with few steps and small models."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from forking import PREFERENT

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data"
SMOLLM2 = ROOT / "models/smollm2"

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there"),
]
FEW = (
    *("sft.train_steps=2", "sft.batch_size=4", "reward_model_train_steps=2", "reward.batch_size=4"),
    *("reward.normalize_prompts=8", "reinforcement_learning_train_steps=2", "ppo.batch_size=8"),
    *("ppo.validation_prompts=4", "precision=fp32"),
)
WITHOUT_SFT = [setting for setting in FEW if not setting.startswith("sft.")]


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


def settings(*more: str, kept: Sequence[str] = FEW) -> list[str]:
    return [word for setting in (*kept, *more) for word in ("--set", setting)]


def test_ethics(place):
    done(place, "examples/ethics/prepare.py", DATA / "preference/ethics_util", "runs/ethics-data")
    sizes = ("--vocab-size", 512, "--hidden-size", 16, "--layers", 1, "--heads", 2, "--positions", 128)
    model = "runs/ethics-data/model"
    done(place, "-m", "preferent", "scratch", "--text", "runs/ethics-data/text.jsonl", "--out", model, *sizes)
    recipe, few = "examples/ethics/recipe.yaml", settings("reward.members=2", "infer.max_prompts=8")
    done(place, PREFERENT[1], "run", recipe, "--out", "runs/ethics", *few)
    said = done(place, "examples/ethics/outside.py", "runs/ethics-data", "runs/ethics")
    assert "outside judge: accuracy 0.64" in said
    assert "held-out pairs (373): reward 0." in said and "tuned preferred in " in said


@pytest.fixture
def small(place):
    """The folder, with a model of one million parameters that has SmolLM2's tokenizer in the place of SmolLM2."""
    if not (SMOLLM2 / "tokenizer.json").exists():
        pytest.skip("models/smollm2 is not there: make smollm2")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = place / "models/smollm2"
    shutil.copytree(SMOLLM2, model, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(model)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    for name, value in (sizes | {"num_attention_heads": 2, "num_key_value_heads": 1}).items():
        setattr(config, name, value)
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    assert made.num_parameters() < 1_100_000
    made.save_pretrained(model)
    return place


def run(folder: Path, name: str, *data: str) -> Path:
    """Prepare and run an example of SmolLM2; return the run's folder."""
    given = [DATA / part for part in data]
    done(folder, f"examples/smollm2/{name}/prepare.py", *given, f"runs/smollm2/{name}-data")
    few = settings("infer.max_prompts=8", "sft.lora_dim=2", "reward.lora_dim=2", "ppo.lora_dim=2")
    recipe, out = f"examples/smollm2/{name}/recipe.yaml", folder / "runs/smollm2" / name
    done(folder, PREFERENT[1], "run", recipe, "--out", out, *few)
    assert (out / "report.html").exists()
    return out


def test_continuation(small):
    out = run(small, "continuation", "preference/ethics_util", "corpora/books_children.train.jsonl.gz")
    script, data = "examples/smollm2/continuation/verdict.py", "runs/smollm2/continuation-data"
    books = DATA / "corpora/books_fiction.validation.jsonl.gz"
    said = done(small, script, data, out, "--books", books, "--openings", 12)
    rows = ("the reward model", "with the other sources of the reward", "tuned", "what people preferred", "people")
    for line in ("373 held-out pairs", "| best of 4 of the base |", *(f"| {row} |" for row in rows)):
        assert line in said
    assert "of 12" in said and "perplexity of books" in said


def test_conversation(small):
    out = run(small, "conversation", "preference/ukp_convarg")
    assert json.loads((out / "comparison/metrics.json").read_text())["judges"]
    parts = json.loads((out / "data/counts.json").read_text())["parts"]
    assert parts["preference"] == {"validation": 334, "test": 174, "train": 933, "judge": 492}
    assert parts["prompt"] == {"validation": 18, "test": 52, "train": 80}


@pytest.mark.slow
def test_feedback(place):
    done(place, "examples/feedback/prepare.py", "runs/feedback-data")
    sizes = ("--vocab-size", 1024, "--hidden-size", 16, "--layers", 1, "--heads", 2, "--positions", 256)
    model, text = "runs/feedback-data/model", "runs/feedback-data/demonstrations.jsonl"
    done(place, "-m", "preferent", "scratch", "--text", text, "--out", model, *sizes)
    export = "runs/feedback-data/feedback-history-export.json"
    said = done(place, "-m", "preferent", "data", "convert", export, "--out", "runs/feedback-data/feedback")
    assert "360 records = 60 in pairs + 300 thumbs (" in said and " + 0 dropped" in said
    for name, more in (("ppo", ()), ("kto", ("dpo.train_steps=2",))):
        few = settings("infer.max_prompts=8", *more, kept=FEW if name == "ppo" else WITHOUT_SFT)
        done(place, PREFERENT[1], "run", f"examples/feedback/{name}.yaml", "--out", f"runs/feedback-{name}", *few)
        said = done(place, "examples/feedback/verdict.py", f"runs/feedback-{name}")
        assert "8 votes: tuned preferred " in said and "the truth, 8 prompts: tuned wins " in said


@pytest.mark.slow
def test_feedback_for_several_seeds(place):
    few = settings("infer.max_prompts=8", "dpo.train_steps=2")
    words = (ROOT / "bench/feedback.py", "--out", "seeds", "--seeds", 4, *few)
    said = done(place, *words)
    rows = [line.split(" | ") for line in said.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["| 4", "ppo"], ["| 4", "kto"]]
    (place / "seeds/seed-4/runs").rename(place / "seeds/away")
    assert done(place, *words) == said, "rows that are done are not made again"
