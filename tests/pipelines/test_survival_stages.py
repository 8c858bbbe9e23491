"""Whole stages survive SIGTERM in every phase and a disk that is really full, each in a process of its own.

`PREFERENT_PHASES` says in how many phases, `PREFERENT_FULL_DISKS` how many sizes the disk has. What was counted is
recorded as [what, how many, differences].
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forking import PREFERENT
from nursery import Nursery, outcome, prepare, words_of

pytestmark = pytest.mark.acceptance

NUMBER_OF_PHASES = int(os.environ.get("PREFERENT_PHASES", "2"))
FULL_DISKS = int(os.environ.get("PREFERENT_FULL_DISKS", "3"))
Record = Callable[[str, object], None]
LATER = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("dpo", "rejection")]
RUN = ["run", "recipe.yaml", "--set", "preference_dataset=pairs.jsonl", "--set", "prompt_dataset=prompts.jsonl"]
RUN += ["--set", "compare.judge=reward", "--set", "data.validation_share=0.2", "--set", "data.test_share=0.2"]
STAGES = ("sft", "reward", "policy", "predictions/tuned", "predictions/base", "comparison")


@pytest.fixture(scope="module")
def work(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("stages"), make_model(seed=5))


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def sampled(policy: Path) -> int:
    return len(list(policy.glob("rollouts/0*.safetensors")))


PHASES: dict[str, Callable[[Path], object]] = {
    "while the first stage is imported": lambda out: (out / "recipe.yaml").exists(),
    "as data are prepared": lambda out: (out / "data/stage.json").exists(),
    "before the first step of sft": lambda out: (out / "sft/stage.json").exists(),
    "in the middle of sft": lambda out: lines(out / "sft/metrics.jsonl") >= 7,
    "as a checkpoint is saved": lambda out: list(out.glob("sft/checkpoints/.step-*")),
    "as the reward model is validated": lambda out: lines(out / "reward/metrics.jsonl") % 6 == 5,
    "as ppo samples": lambda out: 3 <= lines(out / "policy/metrics.jsonl") == sampled(out / "policy") + 1,
    "as ppo learns": lambda out: 5 <= lines(out / "policy/metrics.jsonl") == sampled(out / "policy"),
    "as ppo validates": lambda out: list(out.glob("policy/rollouts/.validation-*")),
    "as a model is written": lambda out: list(out.glob("policy/.model.tmp-*")),
    "as prompts are answered": lambda out: list(out.glob("predictions/*/parts")),
}


def test_sigterm_in_every_phase_of_a_run(work: Path, record_property: Record) -> None:
    """One run, told to leave in each phase in turn; a phase that was over before it was seen is not counted."""
    twin = subprocess.run([*PREFERENT, *RUN, "--out", "twin"], cwd=work, capture_output=True)
    assert twin.returncode == 0, twin.stderr.decode()
    left, differences = [], 0
    asked = list(PHASES)[:: -(-len(PHASES) // NUMBER_OF_PHASES)]
    for name in asked:
        argv = [sys.executable, "-m", "preferent", *RUN, "--out", "run"]
        with open(work / "log", "w") as log:
            process = subprocess.Popen(argv, cwd=work, stdout=log, stderr=log, start_new_session=True)
            while process.poll() is None and not PHASES[name](work / "run"):
                time.sleep(0.001)
            process.send_signal(signal.SIGTERM)
            code = process.wait()
        said = (work / "log").read_text()
        assert "Traceback" not in said and "bug in preferent" not in said, said
        if code != 0:
            assert code in (143, -signal.SIGTERM), (name, code, said)
            left.append(name)
    done = subprocess.run([sys.executable, "-m", "preferent", *RUN, "--out", "run"], cwd=work, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    differences += sum(outcome(work / "run" / stage) != outcome(work / "twin" / stage) for stage in STAGES)
    record_property("survival", [f"SIGTERM in {len(left)} phases of a run", len(left), differences])
    assert len(left) > len(asked) / 2, left
    assert differences == 0


@pytest.fixture(scope="module")
def disks(work: Path) -> Iterator[Nursery]:
    """A nursery where disks of any size can be mounted; skipped where they cannot."""
    inside = ["unshare", "-rm"]
    trial = [*inside, "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(work)]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    nursery = Nursery(work, inside)
    yield nursery
    nursery.close()


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", *LATER, "infer"])
def test_a_disk_that_is_full_at_any_size(work: Path, disks: Nursery, stage: str, record_property: Record) -> None:
    """The stage says which file cannot be written, and goes on with the same bits when there is room."""
    code, said = disks.run(*words_of(stage, "whole"))
    assert code == 0, said
    whole = outcome(work / "whole" / stage)
    pages = max(8, sum(-(-file.stat().st_size // 4096) + 1 for file in (work / "whole" / stage).rglob("*")))
    (work / "small").mkdir(exist_ok=True)
    full = differences = 0
    for number in range(FULL_DISKS):
        size = 4 * (1 + number * pages // FULL_DISKS)
        disks.shell(f"mount -t tmpfs -o size={size}k none small")
        code, said = disks.run(*words_of(stage, "small"))
        if code != 0:
            full += 1
            last = said.rstrip().rpartition("\n")[2]
            told = "No space left on device" in last and f"small/{stage}" in last
            assert (code, told) == (3, True), said
            assert "make room" in last or "fix that" in last or "use another --out" in last
            disks.shell("mount -o remount,size=64m small")
            code, said = disks.run(*words_of(stage, "small"))
            assert code == 0, said
        disks.shell(f"rm -rf kept && cp -r small/{stage} kept && umount small")
        differences += outcome(work / "kept") != whole
    record_property("survival", [f"a full disk of any size under `{stage}`", full, differences])
    assert full >= 1
    assert differences == 0
