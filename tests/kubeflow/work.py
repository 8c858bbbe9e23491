"""A small piece of work for pipelines: data, and parameters as the course fills them in."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SENTENCES

RECIPE = """
threads: 1
precision: fp32
checkpoint_every: 2
reward: {batch_size: 8, learning_rate: 1.0e-3}
ppo: {batch_size: 16, learning_rate: 1.0e-3, critic_learning_rate: 1.0e-3}
"""
LENGTHS = {"prompt_sequence_length": 24, "target_sequence_length": 12}


def write_data(folder: Path) -> None:
    """Write `preferences.jsonl`, `prompts.jsonl` and `eval.jsonl`."""
    words = [word for sentence in SENTENCES for word in sentence.split()]
    texts = [" ".join(words[i : i + 6]) for i in range(40)]
    pairs = [
        {"input_text": text, "candidate_0": f" {words[i]} a", "candidate_1": f" {words[i + 3]} be it", "choice": i % 2}
        for i, text in enumerate(texts)
    ]
    rows = {"preferences": pairs[8:], "prompts": [{"input_text": text} for text in texts[8:]]}
    rows["eval"] = [{"input_text": text} for text in texts[:8]]
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that everything happens in, as a notebook's, with the data."""
    place = tmp_path_factory.mktemp("work")
    write_data(place)
    with contextlib.chdir(place):
        yield place


def parameter_values(model: Path, **more: Any) -> dict[str, Any]:
    return {
        "preference_dataset": "preferences.jsonl",
        "prompt_dataset": "prompts.jsonl",
        "eval_dataset": "eval.jsonl",
        "large_model_reference": str(model),
        "reward_model_train_steps": 12,
        "reinforcement_learning_train_steps": 6,
        "reward_model_learning_rate_multiplier": 1.0,
        "reinforcement_learning_rate_multiplier": 1.0,
        "kl_coeff": 0.1,
        "instruction": "Go on.",
        "recipe": RECIPE,
        **LENGTHS,
        **more,
    }
