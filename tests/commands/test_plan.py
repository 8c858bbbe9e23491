"""`plan`: the table of memory where the shape of the model is at hand, and what it says where it is not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from preferent.commands import memory_fit, plan
from preferent.config import memory_estimate, recipe
from preferent.config.model_shape import Shape


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The folder with preferences in it; the longest prompt has 21 words."""
    monkeypatch.chdir(tmp_path)
    found = [
        {
            "input_text": f"the dog {i} " + "and the man " * (i % 7),
            "candidate_0": " a",
            "candidate_1": " b",
            "choice": 0,
        }
        for i in range(60)
    ]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return tmp_path


def described(model: object, **values: object) -> str:
    given = {"large_model_reference": str(model), "preference_dataset": "p.jsonl", "precision": "bf16"} | values
    return plan.describe(recipe.parse(given)[0], [], Path("runs/x"), sizes=True)


def test_of_a_folder(rows, tiny):
    text = described(tiny, precision="fp32", prompt_sequence_length=90, target_sequence_length=12)
    shape = Shape.of(json.loads((tiny / "config.json").read_text()))
    assert f"{shape.policy:,} parameters, computed in fp32" in text
    assert "of at most 90" not in text and "there is no tokenizer" not in text
    lines = [
        line.split()[0]
        for line in text.splitlines()
        if " in " in line and line.rstrip().endswith(("learn", "step", "sample", "measure", "finish"))
    ]
    assert lines == ["reward", "judge", "ppo", "infer"]
    assert "disk: checkpoints" in text and "rollouts: " in text


def test_of_llama_2(rows):
    text = described("llama-2-7b")
    assert "6,738,415,616 parameters, computed in bf16" in text
    assert "the limit in the recipe: there is no tokenizer here" in text
    assert "12.6 GiB" in text, "the policy's weights"


def test_of_an_unknown_shape(rows, tmp_path):
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt/config.json").write_text('{"model_type": "gpt2"}')
    for name in ("somebody/model", "gpt"):
        text = described(name)
        assert f"not known: the shape of {name}" in text
        assert "peak" not in text and "steps of 64" in text


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_of_a_method_without_a_reward(rows, tiny, method):
    text = described(tiny, method=method, prompt_sequence_length=90, target_sequence_length=12)
    assert f"reward          none: method is {method}" in text and "rollouts" not in text and "steps of 64" in text
    stages = [line.split()[0] for line in text.splitlines() if line.rstrip().endswith((" in learn", " in measure"))]
    assert stages == ["judge", "dpo", "infer"]


def test_every_source_of_the_reward_is_told(rows, tiny):
    values = json.loads((tiny / "config.json").read_text())
    values |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    Path("other").mkdir()
    Path("other/config.json").write_text(json.dumps(values))
    parts = [{"source": "reward"}, {"source": "m:f"}, {"source": "other", "weight": 2, "name": "other"}]
    sizes = {"prompt_sequence_length": 90, "target_sequence_length": 12}
    said = described(tiny, reward={"sources": parts}, **sizes)
    assert "reward          the function m:f" in said and "reward          the model other" in said
    assert "reward from" in said
    assert "reward from" not in described(tiny, reward={"sources": parts[1:]}, **sizes)


def test_without_sizes_it_is_the_dry_run(rows, tiny):
    given = recipe.parse(
        {"large_model_reference": str(tiny), "preference_dataset": "p.jsonl", "prompt_sequence_length": 64}
    )[0]
    unknown = plan.describe(given, [], Path("runs/x")).partition("not known yet")[2]
    assert f"preferent data check p.jsonl --model {tiny}" in unknown
    assert "peak" not in plan.describe(given, [], Path("runs/x"))


def test_it_says_whether_a_run_fits_and_what_makes_it_fit(rows):
    def lines(memory: int, **values) -> list[str]:
        given = {"large_model_reference": "llama-2-7b", "preference_dataset": "p.jsonl", "device": "auto"} | values
        text = plan.describe(recipe.parse(given)[0], [], Path("runs/x"), sizes=True, memory=memory << 30)
        return [line.strip() for line in text.splitlines()]

    assert any(line.startswith("fits: at most ") and "of 80.0 GiB (as given)" in line for line in lines(80))
    reading = {"reward": {"normalize_prompts": 256}, "ppo": {"batch_size": 256}, "sampler": {"rows": 256}}
    (told,) = [line for line in lines(40, **reading) if line.startswith("ppo: does not fit in 40.0 GiB")]
    setting, peak = re.search(r"`--set (sampler.rows=\d+)` makes it ([\d.]+) GiB", told).groups()
    again = lines(40, **(reading | {"sampler": {"rows": int(setting.partition("=")[2])}}))
    assert any(line.startswith("ppo") and f"{peak} GiB" in line for line in again)
    assert not any("does not fit" in line for line in again)
    assert any(
        line.startswith("ppo: does not fit in 8.0 GiB (as given): `--set quantize=nf4` makes it ") for line in lines(8)
    )


def test_settings_are_advised_where_they_help():
    def settings(**values) -> set[str]:
        given = {"large_model_reference": "m", "preference_dataset": "p", "ppo": {"lora_dim": 4}} | values
        found = recipe.parse({"reward": {"lora_dim": 4}} | given)[0]
        return {setting.partition("=")[0] for setting in memory_fit._settings(found, "ppo")}

    assert settings() == {"gradient_checkpointing", "quantize"}
    assert settings(quantize="nf4") == {"gradient_checkpointing"}
    assert settings(reward={"lora_dim": 0}) == {"gradient_checkpointing"}, "a stage trains every weight"
    assert settings(ppo={"lora_dim": 0}) == {"gradient_checkpointing", "optimizer", "ppo.lora_dim"}


def test_the_table_adds_up():
    need = memory_estimate.MemoryNeed(
        "ppo", {"policy": 3 << 30}, {"learn": {"gradients": 1 << 30}, "finish": {"best": 1 << 20}}
    )
    header, line = memory_fit.table([need])
    assert len(header.split()) == len(memory_fit.PARTS) + 2 + 1  # "KV cache" is two words
    assert line.split()[:3] == ["ppo", "3.0", "GiB"] and line.endswith("in learn")
    assert memory_fit.size(need.peak) in line


def test_the_verb_imports_no_torch(rows, tiny):
    Path("r.yaml").write_text(
        f"large_model_reference: {tiny}\npreference_dataset: p.jsonl\nprompt_sequence_length: 64\n"
    )
    code = """
import sys
sys.argv = ["preferent", "plan", "r.yaml", "--set", "ppo.epochs=2"]
from preferent.cli.main import main
main()
assert not {"torch", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "memory, tokens and disk" in done.stdout and "KV cache" in done.stdout
