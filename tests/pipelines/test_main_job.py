"""The whole job by its one command, with adapters, a SentencePiece-style tokenizer and no pad token; then moved."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES
from forking import PREFERENT

from preferent.commands.python_api import Run
from preferent.doctor import examination, run_history
from preferent.files import read_jsonl, read_sealed, stamp

pytestmark = pytest.mark.acceptance

COUNTED = str(Path(__file__).parents[1] / "counted.py")

RECIPE = """
large_model_reference: model
preference_dataset: pairs.jsonl
prompt_dataset: prompts.jsonl
instruction: Go on.
prompt_sequence_length: 24
target_sequence_length: 10
precision: fp32
checkpoint_every: 5
reward_model_train_steps: 10
reinforcement_learning_train_steps: 6
sft: {dataset: sft.jsonl, train_steps: 10, batch_size: 8, lora_dim: 2, learning_rate: 1.0e-2}
data: {validation_share: 0.2, test_share: 0.2}
reward: {batch_size: 8, lora_dim: 2, learning_rate: 1.0e-2, validation_every: 5}
ppo: {batch_size: 8, minibatches: 2, lora_dim: 1, validation_every: 3, learning_rate: 1.0e-2}
"""


@pytest.fixture(scope="module")
def work(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `preferent run` has done the whole job."""
    folder = tmp_path_factory.mktemp("job")
    make_model(seed=6).rename(folder / "model")
    (folder / "model" / "LICENSE.txt").write_text("terms of the model")
    (folder / "recipe.yaml").write_text(RECIPE)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    texts = [" ".join(words[i : i + 5]) + " " for i in range(40)]
    pairs = [
        {"input_text": text, "candidate_0": f" {words[i]} a", "candidate_1": f" {words[i + 3]} be it", "choice": i % 2}
        for i, text in enumerate(texts)
    ]
    answers = [{"input_text": text, "output_text": f" {words[i + 7]} {words[i + 8]}"} for i, text in enumerate(texts)]
    for name, lines in {"sft": answers, "pairs": pairs, "prompts": [{"input_text": text} for text in texts]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    preferent(folder, "run", "recipe.yaml", "--out", "run", counted="first.jsonl")
    return folder


def preferent(folder: Path, *words: str, counted: str | None = None) -> str:
    """Run a command; with `counted`, a file gets a line for each load and hash of a whole model."""
    ours = PREFERENT if counted is None else (sys.executable, COUNTED, counted)
    done = subprocess.run([*ours, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_everything_is_there(work: Path) -> None:
    run = work / "run"
    stages = (
        "data",
        "sft",
        "reward",
        "judge",
        "policy",
        "predictions/base",
        "predictions/tuned",
        "predictions/original",
    )
    for stage in (*stages, "comparison"):
        assert (run / stage / "DONE").exists(), stage
    found = Run(run)
    verdict = found.verdict()
    assert verdict["headline"] == "judge" and 0 <= verdict["autosxs_model_a_win_rate"] <= 1
    assert verdict["judges"]["judge"]["independent"] and not verdict["judges"]["reward"]["independent"]
    rows = {name: found.predictions(name) for name in ("base", "tuned", "original")}
    assert [r["id"] for r in rows["base"]] == [r["id"] for r in rows["tuned"]] == [r["id"] for r in rows["original"]]
    assert all(r["inputs"]["inputs_pretokenized"].startswith("Go on.\n\n\n") for r in rows["base"])
    assert all(r["kl"] >= 0 for r in rows["tuned"]) and not any("kl" in r for r in rows["base"])
    assert found.report().stat().st_size < 1_000_000
    assert list((run / "policy/tensorboard").iterdir()) and list((run / "reward/tensorboard").iterdir())
    assert "terms of the model" in (run / "policy/model/LICENSE.txt").read_text()


def counts(path: Path, what: str) -> dict[str, list[str]]:
    """Return which models each command loaded or hashed whole, by its folder."""
    found: dict[str, list[str]] = {}
    for row in read_jsonl(path):
        if what in row:
            folder = row["command"][row["command"].index("--out") + 1]
            found.setdefault(folder, []).append(Path(row[what]).relative_to(path.parent.resolve()).as_posix())
    return found


def test_each_stage_loads_one_model_once_and_hashes_it_once(work: Path) -> None:
    """Without sft there are six of these: no sft and no original."""
    loaded, hashed = (counts(work / "first.jsonl", what) for what in ("loaded", "hashed"))
    tuned = {"reward", "judge", "policy", "predictions/base", "predictions/tuned", "comparison"}
    expected = {f"run/{name}": ["run/sft/model"] for name in tuned}
    assert loaded == expected | {"run/sft": ["model"], "run/predictions/original": ["model"]}
    for folder, weights in hashed.items():
        assert len(weights) == len(set(weights)), folder


def test_the_same_command_does_nothing_twice(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work / "run").rglob("*.safetensors")}
    known = read_sealed(work / "run/.digests.json")["digests"]
    models = [work / "model", *(work / "run" / name / "model" for name in ("sft", "reward", "judge", "policy"))]
    assert all(stamp(folder) in known for folder in models), "no weights are read again"
    said = preferent(work, "run", "recipe.yaml", "--out", "run", counted="second.jsonl")
    assert said.count("done already") == 9
    assert not (work / "second.jsonl").exists(), "nothing is loaded or hashed again"
    assert before == {path: path.stat().st_mtime_ns for path in (work / "run").rglob("*.safetensors")}


def test_a_change_downstream_reruns_only_downstream(work: Path) -> None:
    shutil.copytree(work / "run", work / "other")
    before = {path: path.stat().st_mtime_ns for path in (work / "other").rglob("model/*.safetensors")}
    first = (work / "other/predictions/tuned/text.jsonl").read_text()
    preferent(work, "run", "recipe.yaml", "--out", "other", "--set", "infer.sampling_strategy=temperature_sampling")
    assert before == {path: path.stat().st_mtime_ns for path in (work / "other").rglob("model/*.safetensors")}
    assert (work / "other/predictions/tuned/text.jsonl").read_text() != first


def test_a_moved_run_still_loads(work: Path) -> None:
    moved = work / "far" / "away"
    moved.parent.mkdir()
    shutil.copytree(work / "run", moved)
    (work / "run").rename(work / "hidden")
    try:
        preferent(
            work, "infer", "--recipe", "far/away/recipe.yaml", "--in", "model=far/away/policy/model",
            "--in", "prompts=far/away/data/prompt/test.jsonl", "--out", "again",
        )  # fmt: skip
        code = (
            "import json, torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
            "base = AutoModelForCausalLM.from_pretrained('far/away/sft/model')\n"
            "policy = PeftModel.from_pretrained(base, 'far/away/policy/model')\n"
            "print(json.dumps(policy(torch.tensor([[1, 270, 280]])).logits[0, -1].tolist()))"
        )
        plain = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True)
        assert plain.returncode == 0, plain.stderr
    finally:
        (work / "hidden").rename(work / "run")
    old = [row["prediction"] for row in read_jsonl(work / "run/predictions/tuned/text.jsonl")]
    assert [row["prediction"] for row in read_jsonl(work / "again/text.jsonl")] == old
    assert torch.isfinite(torch.tensor(json.loads(plain.stdout.splitlines()[-1]))).all()


@pytest.mark.parametrize(("method", "rank"), [("dpo", 2), ("kto", 0)])
def test_a_method_without_a_reward_does_the_whole_job(work: Path, method: str, rank: int) -> None:
    section = f"dpo={{train_steps: 12, batch_size: 8, learning_rate: 1.0e-2, validation_every: 3, lora_dim: {rank}}}"
    words = ["--set", f"method={method}", "--set", "sft=null", "--set", section]
    said = preferent(work, "run", "recipe.yaml", "--out", method, *words)
    assert "an independent judge prefers the tuned model" in said and not (work / method / "reward").exists()
    page = Run(work / method).report().read_text()
    assert "<h3>Policy: margin of implicit rewards</h3>" in page and "reward/metrics.jsonl" not in page
    verdict = Run(work / method).verdict()
    assert list(verdict["judges"]) == ["judge"] and verdict["kl"]["mean"] > 0
    findings = examination.examine(run_history.read(work / method))
    assert not {one.name for one in findings} & {"few-prompts", "few-validation-prompts", "never-below-the-start"}
    preferent(work, "export", method, "--out", f"{method}-out", "--what", "merged")
    assert f"{method.upper()} from `model`" in (work / f"{method}-out/README.md").read_text()


def test_the_course_dictionary_runs_dry_without_a_hub(work: Path) -> None:
    course = """
    preference_dataset: pairs.jsonl
    prompt_dataset: prompts.jsonl
    eval_dataset: eval.jsonl
    large_model_reference: llama-2-7b
    reward_model_train_steps: 1410
    reinforcement_learning_train_steps: 320
    reward_model_learning_rate_multiplier: 1.0
    reinforcement_learning_rate_multiplier: 1.0
    kl_coeff: 0.1
    instruction: Summarize in less than 50 words
    """
    (work / "eval.jsonl").write_text("".join(json.dumps({"input_text": f"other {i}"}) + "\n" for i in range(20)))
    (work / "course.yaml").write_text("\n".join(line.strip() for line in course.splitlines()))
    said = preferent(work, "run", "course.yaml", "--dry-run")
    assert "meta-llama/Llama-2-7b-hf" in said and "1,410 steps" in said and "320 steps" in said
