"""Stages that are killed often: a small piece of work, and an interpreter that forks `preferent` commands.

The nursery has imported everything before it forks, so that a kill costs no import, and has computed nothing, because
torch refuses to differentiate in a child of a process that did. Each command is still a process of its own.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import forking
from conftest import SENTENCES

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
dpo: {train_steps: 24, batch_size: 8, learning_rate: 1.0e-3, validation_every: 6, early_stopping_patience: 3}
rejection: {rounds: 3, prompts: 9, samples: 3, train_steps: 4, batch_size: 8, learning_rate: 1.0e-3}
sampler: {rows: 16}
infer: {sampling_strategy: temperature_sampling}
"""
PLACES = ("model/*.safetensors", "metrics.jsonl", "rollouts/*", "*.jsonl", "score.json", "quality.json")


def prepare(folder: Path, model: Path) -> Path:
    """Recipe, data and model in one folder."""
    model.rename(folder / "model")
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


def words_of(stage: str, out: str, whole: str = "whole") -> list[str]:
    """The words of a stage's command; `whole` holds the stages before it."""
    inputs = {
        "sft": ["model=model"],
        "reward": ["model=model", "train=pairs.jsonl", "validation=pairs.jsonl", "test=pairs.jsonl"],
        "ppo": ["model=model", f"reward={whole}/reward/model", "train=prompts.jsonl", "validation=prompts.jsonl"],
        "dpo": ["model=model", "train=pairs.jsonl", "validation=pairs.jsonl", "test=pairs.jsonl"],
        "rejection": ["model=model", f"reward={whole}/reward/model", "train=prompts.jsonl", "validation=prompts.jsonl"],
        "infer": [f"model={whole}/ppo/model", "reference=model", "prompts=prompts.jsonl"],
    }
    named = [word for pair in inputs[stage] for word in ("--in", pair)]
    return [stage, "--recipe", "recipe.yaml", *named, "--out", f"{out}/{stage}"]


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of what must be equal to the last bit."""
    files = sorted({path for place in PLACES for path in folder.glob(place)} - {folder / "timings.jsonl"})
    assert files
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Nursery:
    """Starts `preferent` commands in a folder, one at a time."""

    def __init__(self, folder: Path, inside: Sequence[str] = ()) -> None:
        """`inside` is a command to run the interpreter inside of, such as `unshare`."""
        self.log = folder / "nursery.log"
        argv = [*inside, sys.executable, __file__]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, cwd=folder, stdin=pipe, stdout=pipe, text=True, start_new_session=True)

    def start(self, *words: str, kill_after: float | None = None) -> None:
        """Begin `preferent WORDS`; kill it after some seconds, if it is still there."""
        self._ask("preferent", *words, kill_after=kill_after)

    def wait(self) -> int:
        """The exit code of what was started, -9 where it was killed."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def run(self, *words: str) -> tuple[int, str]:
        """The exit code of `preferent WORDS`, and what it said."""
        self.start(*words)
        return self.wait(), self.log.read_text()

    def shell(self, command: str) -> None:
        """A shell command where the nursery is."""
        self._ask("sh", "-ec", command)
        assert self.wait() == 0, (command, self.log.read_text())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, *argv: str, kill_after: float | None = None) -> None:
        assert self._process.stdin is not None
        print(json.dumps([argv, kill_after]), file=self._process.stdin, flush=True)


def serve() -> None:
    """Fork a command for each line of standard input; answer with its exit code."""
    from preferent.training import sft  # noqa: F401 - imported once for all children

    for line in sys.stdin:
        argv, kill_after = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open("nursery.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            if argv[0] == "sh":
                os.execvp("sh", argv)
            sys.argv = argv
            forking.perform()
        print(os.waitstatus_to_exitcode(_status(child, kill_after)), flush=True)


def _status(child: int, kill_after: float | None) -> int:
    """How a child ended; only its parent can be sure whom it kills."""
    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
