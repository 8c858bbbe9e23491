"""Supervised fine-tuning: which tokens count, packing, and learning."""

import json
import shutil
from pathlib import Path
from typing import Any

import curves
import numpy as np
import pytest
import torch
from conftest import SENTENCES, quiet_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from preferent.errors import DataError
from preferent.models import language_models
from preferent.models.world import World
from preferent.runs import metrics, progress
from preferent.training import sequences, sft


def recipe_of(path: Path, **section: Any) -> Any:
    values = {"dataset": str(path), "train_steps": 12, "batch_size": 4, "learning_rate": 3e-3, "validation_every": 6}
    return quiet_recipe(sft=values | section)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 10))
    return tmp_path / "text.jsonl"


def test_loss_is_the_models_own_on_answers_only(tiny: Path) -> None:
    policy = language_models.load_policy(tiny, World.of(quiet_recipe()))
    rows = [np.array([1, 270, 280, 290, 2], np.int32), np.array([1, 271, 281], np.int32)]
    loss = sequences.loss_sum(policy, sequences.Sequences(rows, [3, 2]))
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    expected = 0.0
    for row, start in zip(rows, (3, 2), strict=True):
        with torch.no_grad():
            logits = plain(torch.from_numpy(row.astype(np.int64))[None]).logits[0]
        logits[:, policy.masked_ids] = -torch.inf
        log_probs = logits.log_softmax(-1)
        expected -= sum(float(log_probs[place - 1, row[place]]) for place in range(start, len(row)))
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert sequences.target_count(policy, sequences.Sequences(rows, [3, 2])) == 3


def test_the_validation_loss_is_a_mean_over_tokens_however_it_is_cut(tiny: Path) -> None:
    policy = language_models.load_policy(tiny, World.of(quiet_recipe()))
    rows = [np.array([1, *range(270, 270 + n)], np.int32) for n in (2, 9, 3, 5)]
    held_out = sequences.Sequences(rows, [1, 4, 2, 0])
    whole = float(sequences.loss_sum(policy, held_out)) / sequences.target_count(policy, held_out)
    for tokens in (6, 20, 1000):
        assert sequences.mean_loss(policy, held_out, tokens) == pytest.approx(whole, abs=1e-5)


def test_plain_text_is_packed_and_learnt(tiny: Path, texts: Path, tmp_path: Path) -> None:
    sft.main(recipe_of(texts, sequence_length=32), {"model": tiny}, tmp_path / "out")
    rows = metrics.read(tmp_path / "out/metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3 and "validation/loss" in rows[-1]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")


def test_a_step_that_is_over_is_seen_in_tensorboard(
    tiny: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a TensorBoard that watches while the stage trains; checkpoints are rarer."""
    out, steps = tmp_path / "out", []
    events = EventAccumulator(str(out / "tensorboard"))

    def update(bar: progress.PrintedProgress, done: int, **values: float) -> None:
        points = curves.shown(out, events)["loss"]
        assert points == curves.logged(out)["loss"] and [step for step, _ in points] == list(range(1, done + 1))
        steps.append(done)

    monkeypatch.setattr(progress.PrintedProgress, "update", update)
    sft.main(recipe_of(texts, sequence_length=32), {"model": tiny}, out)
    assert steps == list(range(1, 13))


def test_adapter_is_merged(tiny: Path, texts: Path, tmp_path: Path) -> None:
    sft.main(recipe_of(texts, lora_dim=2, sequence_length=32), {"model": tiny}, tmp_path / "out")
    assert (tmp_path / "out/model/model.safetensors").exists()
    assert not (tmp_path / "out/model/adapter_config.json").exists()
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny, tmp_path / "out/model"))
    changed = [name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))]
    assert changed and all("proj" in name for name in changed)


def test_preferences_are_refused(tiny: Path, tmp_path: Path) -> None:
    row = {"input_text": "a", "candidate_0": " b", "candidate_1": " c", "choice": 0}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="fine-tuning needs input_text"):
        sft.main(recipe_of(tmp_path / "pairs.jsonl"), {"model": tiny}, tmp_path / "out")


def test_conversations_that_the_template_refuses_are_dropped_and_counted(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "chat"
    shutil.copytree(tiny, model)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    policy = language_models.load_policy(model, World.of(quiet_recipe()))
    answer = {"role": "assistant", "content": "A dog ran."}
    rows = [{"messages": [{"role": "user", "content": text}, answer]} for text in (*SENTENCES * 4, "bad")]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = quiet_recipe(sft={"dataset": str(path)}, data={"max_dropped": 0.05}, prompt_sequence_length=64)
    assert len(sequences.read(recipe, policy, [str(path)], 32)) == 24
    with pytest.raises(DataError, match=r"1 of 25 rows cannot be used[\s\S]*chat.jsonl:25: refused conversation"):
        sequences.read(quiet_recipe(sft={"dataset": str(path)}), policy, [str(path)], 32)


def test_a_recipe_says_what_the_keys_of_demonstrations_mean(tiny: Path, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, World.of(quiet_recipe()))
    path = tmp_path / "alpaca.jsonl"
    path.write_text('{"instruction": "Say", "input": "it", "output": "now", "rating": 1}\n' * 3)
    columns = {"prompt": ["instruction", "input"], "completion": "output"}
    with pytest.raises(DataError, match="unclear label: rating is 1"):
        sequences.read(quiet_recipe(data={"columns": columns}), policy, [str(path)], 32)
    recipe = quiet_recipe(data={"columns": columns | {"extra": ["rating"]}})
    read = sequences.read(recipe, policy, [str(path)], 32)
    assert policy.tokenizer.decode(read.ids[0][: read.starts[0]].tolist()).strip() == "Say\nit"
