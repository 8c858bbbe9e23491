"""A run that 0.1.0 made, kept under tests/data, still opens: its stages are known to be finished, and what reads a run
reads it."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from labelling import Person

KEPT = Path(__file__).parent.parent / "data" / "run-0.1.0"
STAGES = ("data", "reward", "judge", "ppo", "infer-base", "infer-tuned", "compare")
VERDICT = (
    "an independent judge prefers the base to the tuned model in 56.2% of 8 pairs (95 % interval 33.6% to 76.4%), "
    "accuracy not measured"
)
RECIPE = """
large_model_reference: model
preference_dataset: pairs.jsonl
instruction: Go on.
prompt_sequence_length: 24
target_sequence_length: 8
precision: fp32
device: cpu
threads: 1
reward_model_train_steps: 4
reinforcement_learning_train_steps: 3
kl_coeff: 0.01
reward_model_learning_rate_multiplier: 100
reinforcement_learning_rate_multiplier: 2000
data: {validation_share: 0.15, test_share: 0.2}
reward: {missing_eos_score: null, normalize_prompts: 16}
ppo: {batch_size: 32, epochs: 2, validation_every: 1}
infer: {sampling_strategy: temperature_sampling}
report: {pairs: 4}
"""
"""What the run was asked, in today's spelling."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the run and of what it was made from."""
    folder = tmp_path / "copy"
    shutil.copytree(KEPT, folder)
    (folder / "today.yaml").write_text(RECIPE)
    return folder


def preferent(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run([sys.executable, "-m", "preferent", *words], cwd=folder, capture_output=True, text=True)
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, save those that a reader may leave behind."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.acceptance
@pytest.mark.parametrize("recipe", ["today.yaml", "run/recipe.yaml"])
def test_its_finished_stages_are_recognised_without_starting_one(old: Path, recipe: str) -> None:
    (old / "run/report.html").unlink()
    before = {stage: contents(old / "run" / stage) for stage in ("data", "reward", "judge", "policy", "predictions")}
    finished = preferent(old, "run", recipe, "--out", "run")
    announced = [line.partition(" ")[2] for line in finished.stderr.splitlines() if line[:1].isdigit()]
    assert announced == [*(f"{stage}: done already" for stage in STAGES), "report"]
    assert {stage: contents(old / "run" / stage) for stage in before} == before
    assert VERDICT in finished.stdout
    assert "people" in (old / "run/report.html").read_text()  # made anew, with the votes


def test_a_changed_byte_is_noticed(old: Path) -> None:
    weights = old / "run/reward/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "reward/model" in preferent(old, "run", "today.yaml", "--out", "run", code=4).stderr


def test_doctor_reads_it(old: Path) -> None:
    findings = json.loads(preferent(old, "doctor", "run", "--json", code=4).stdout)
    names = {finding["name"] for finding in findings}
    assert {"no-better-than-trivial", "few-pairs", "past-its-best", "verdict-open", "judges-disagree"} <= names


@pytest.mark.acceptance
def test_compare_reads_it(old: Path) -> None:
    verdict = json.loads((KEPT / "run/comparison/metrics.json").read_text())
    assert VERDICT in preferent(old, "compare", "run").stdout
    assert json.loads((old / "run/comparison/metrics.json").read_text()) == verdict
    assert "26 judgments" in preferent(old, "compare", "run/comparison", "--write", "csv").stdout


def test_label_exports_its_votes(old: Path) -> None:
    """The votes to the byte; which pairs of identical answers were passed depends on the order, which sides no longer
    decide."""
    kept = contents(old / "run/labels")
    assert "7 votes" in preferent(old, "label", "run", "--export").stdout
    exported = contents(old / "run/labels")
    names = [name for name in kept if name.endswith(".jsonl")]
    assert len(names) == 6
    for name in names:
        before, after = (
            [line for line in files[name].splitlines() if not json.loads(line).get("identical")]
            for files in (kept, exported)
        )
        assert before == after, name


def test_label_asks_its_questions_again(old: Path) -> None:
    """The same questions are found in the run, so that the server opens the votes that are there."""
    words = ["label", "run", "--annotators", "ann,bob", "--overlap", "2", "--seed", "1", "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "preferent", *words],
        cwd=old, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        lines.append(line)
        if "/owner#" in line:
            break
    link = next(line for line in lines if line.split()[0] == "ann").split()[-1]
    queue = Person(*link.split("/#")).get("/api/queue")
    server.send_signal(signal.SIGTERM)
    rest, errors = server.communicate(timeout=20)
    assert (queue["done"], queue["total"]) == (4, 5), errors
    assert "7 votes" in rest


def test_it_names_no_machine() -> None:
    """Nothing in it is a path of the machine that made it."""
    for name, content in contents(KEPT).items():
        assert not any(root in content for root in (b"/tmp/", b"/home/", b"/root/", b"/work/", b"127.0.0.1")), name
    assert sum(map(len, contents(KEPT).values())) < 2_000_000
