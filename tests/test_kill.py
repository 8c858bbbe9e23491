"""`kill -9` at random moments, then the same command: the same bits as a run that nobody disturbed.

Every stage runs as the command line runs it, in a process of its own; adaptive KL and early stopping are on.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SENTENCES

pytestmark = pytest.mark.acceptance

KILLS = int(os.environ.get("PREFERENT_KILLS", "3"))

RECIPE = """
large_model_reference: model
precision: fp32
threads: 1
prompt_sequence_length: 24
target_sequence_length: 12
instruction: Go on.
checkpoint_every: 3
reward_model_train_steps: 24
reinforcement_learning_train_steps: 12
sft: {dataset: sft.jsonl, train_steps: 24, batch_size: 8, learning_rate: 1.0e-3, validation_every: 6}
reward: {batch_size: 8, learning_rate: 1.0e-3, validation_every: 6, early_stopping_patience: 3}
ppo:
  {batch_size: 16, minibatches: 2, epochs: 2, learning_rate: 1.0e-3, critic_learning_rate: 1.0e-3, kl_target: 0.5,
   kl_horizon: 200, validation_every: 3, early_stopping_patience: 3}
sampler: {rows: 16}
infer: {sampling_strategy: temperature_sampling}
"""


@pytest.fixture(scope="module")
def work(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe, data and model in one folder."""
    folder = tmp_path_factory.mktemp("kill")
    make_model(seed=5).rename(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    texts = [" ".join(words[i : i + 6]) for i in range(40)]
    pairs = [
        {"input_text": text, "candidate_0": f" {words[i]} a", "candidate_1": f" {words[i + 3]} be it", "choice": i % 2}
        for i, text in enumerate(texts)
    ]
    answers = [{"input_text": text, "output_text": f" {words[i + 7]} {words[i + 8]}"} for i, text in enumerate(texts)]
    rows = {"sft": answers, "pairs": pairs, "prompts": [{"input_text": text} for text in texts]}
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(stage: str, out: str) -> list[str]:
    inputs = {
        "sft": ["model=model"],
        "reward": ["model=model", "train=pairs.jsonl", "validation=pairs.jsonl", "test=pairs.jsonl"],
        "ppo": ["model=model", "reward=whole/reward/model", "train=prompts.jsonl", "validation=prompts.jsonl"],
        "infer": ["model=whole/ppo/model", "reference=model", "prompts=prompts.jsonl"],
    }
    named = [word for pair in inputs[stage] for word in ("--in", pair)]
    return [sys.executable, "-m", "preferent", stage, "--recipe", "recipe.yaml", *named, "--out", f"{out}/{stage}"]


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of what must be equal to the last bit."""
    patterns = ("model/*.safetensors", "metrics.jsonl", "rollouts/*", "*.jsonl", "score.json", "quality.json")
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)} - {folder / "timings.jsonl"})
    assert files
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(work: Path, stage: str, out: str, seconds: float | None = None) -> bool:
    """Run a stage; kill it after so many seconds. Returns whether it came to its end."""
    process = subprocess.Popen(command(stage, out), cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, errors
    return True


def working_seconds(work: Path, stage: str) -> tuple[float, float]:
    """Run the undisturbed twin; returns how long it took to begin to work and how long to end."""
    started = time.monotonic()
    process = subprocess.Popen(
        command(stage, "whole"), cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    began = None
    while process.poll() is None:
        if began is None and (work / "whole" / stage / "stage.json").exists():
            began = time.monotonic() - started
        time.sleep(0.02)
    assert process.returncode == 0, process.stderr and process.stderr.read()
    assert began is not None
    return began, time.monotonic() - started


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "infer"])
def test_killed_and_started_again_gives_the_same_bits(work: Path, stage: str) -> None:
    began, ended = working_seconds(work, stage)
    moments = random.Random(f"{stage} {KILLS}")
    kills = 0
    for _ in range(KILLS):
        kills += not run(work, stage, "killed", began + (ended - began) * moments.uniform(0.1, 0.9))
    run(work, stage, "killed")
    assert kills >= 1, "the stage was over before the first kill"
    assert outcome(work / "killed" / stage) == outcome(work / "whole" / stage)
