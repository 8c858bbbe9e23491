"""Stages on one rank and on several: an interpreter that forks the ranks of a `preferent` command, and comparisons.

The interpreter has imported everything before it forks, so that ranks start at once, and has computed nothing.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forking
import numpy as np
from safetensors.numpy import load_file

SMALL = {
    "checkpoint_every": 2,
    "reward_model_train_steps": 4,
    "reinforcement_learning_train_steps": 3,
    "sft": "{dataset: sft.jsonl, train_steps: 4, batch_size: 8, validation_every: 2, micro_batch_tokens: 48}",
    "reward": "{batch_size: 8, validation_every: 2, micro_batch_tokens: 96, normalize_prompts: 12}",
    "dpo": "{train_steps: 4, batch_size: 8, validation_every: 2, micro_batch_tokens: 96}",
    "rejection": "{rounds: 2, prompts: 7, samples: 3, train_steps: 2, batch_size: 6, micro_batch_tokens: 48}",
    "ppo": "{batch_size: 16, minibatches: 2, epochs: 2, validation_every: 1, micro_batch_tokens: 48, kl_target: 0.5}",
    "sampler": "{rows: 5}",
}
"""Steps and micro-batches so small that every rank has some, of unequal number."""
FUNCTION = "reward.sources=[{source: counted_calls:length}]"
"""A reward function that notes each call in the file `CALLS`."""


def settings(*more: str) -> list[str]:
    """Return the words that make a stage small."""
    values = [f"{name}={value}" for name, value in SMALL.items()]
    return [word for value in (*values, *more) for word in ("--set", value)]


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Return all weights and moments that a stage wrote, by file and name."""
    files = [*folder.glob("checkpoints/*/*.safetensors"), *folder.glob("best/*/*.safetensors")]
    paths = sorted([*files, *folder.glob("model/*.safetensors")])
    return {f"{path.relative_to(folder)} {name}": tensor for path in paths for name, tensor in load_file(path).items()}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray], kind: str = "master.") -> float:
    """Return the largest difference of two sets of tensors, relative to the largest number in it, or to 1e-3."""
    assert one.keys() == other.keys()
    return max(
        float(np.abs(one[name].astype(np.float64) - other[name]).max() / max(np.abs(one[name]).max(), 1e-3))
        for name in one
        if kind in name or "model/" in name
    )


def tokens(folder: Path) -> dict[str, list[list[int]]]:
    """Return the sampled ids by file."""
    paths = sorted(folder.glob("rollouts/*.safetensors"))
    return {path.name: load_file(path)["ids"].tolist() for path in paths}


def numbers_in(path: Path) -> list[dict[str, float]]:
    """Return the numbers in each line of a file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: number for name, number in row.items() if isinstance(number, float)} for row in rows]


class Ranked:
    """Starts `preferent` commands in a folder, each as a number of ranks, one command at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pipe = subprocess.PIPE
        argv = [sys.executable, __file__]
        self._process = subprocess.Popen(argv, cwd=folder, stdin=pipe, stdout=pipe, text=True, start_new_session=True)

    def start(self, size: int, *words: str, env: Mapping[str, str] | None = None, **signals: Any) -> None:
        """Begin `preferent WORDS`.

        `number`, `rank` and `after` send a signal to a rank after some seconds; in the checkpoint of number `save` the
        rank is killed: the first before the manifest, another before its rows are written.
        """
        assert self._process.stdin is not None
        line = {"size": size, "words": ["preferent", *words], "env": dict(env or {}), "signals": signals}
        print(json.dumps(line), file=self._process.stdin, flush=True)

    def wait(self) -> list[int]:
        """Return the exit codes by rank."""
        assert self._process.stdout is not None
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    def run(self, size: int, *words: str, env: Mapping[str, str] | None = None, **signals: Any) -> list[int]:
        self.start(size, *words, env=env, **signals)
        return self.wait()

    def ran(self, size: int, *words: str, env: Mapping[str, str] | None = None) -> None:
        """Run a command that must succeed on every rank."""
        assert self.run(size, *words, env=env) == [0] * size, self.said()

    def steps(self, rank: int) -> str:
        """Return the digests of the weights after each step of a rank."""
        path = self.folder / f"rank-{rank}.steps"
        return path.read_text() if path.exists() else ""

    def cut(self) -> bool:
        """Return whether the first rank held but some rows of the network that the last command loaded first."""
        held, whole = map(int, (self.folder / "rank-0.held").read_text().split())
        return held < 0.6 * whole

    def said(self, rank: int = 0) -> str:
        return (self.folder / f"rank-{rank}.log").read_text()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Fork the ranks of a command for each line of standard input; answer with their exit codes."""
    import torch.distributed  # noqa: F401 - imported once for all children

    from preferent.training import dpo, ppo, rejection_sampling, reward_model, sft  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryDirectory() as meeting:
            children = [_begin(asked, rank, f"{meeting}/ranks") for rank in range(asked["size"])]
            print(json.dumps(_codes(children, **asked["signals"])), flush=True)


def _begin(asked: dict[str, Any], rank: int, meeting: str) -> int:
    """Fork a rank; return its process id."""
    child = os.fork()
    if child:
        Path(f"rank-{rank}.pid").write_text(str(child))
        return child
    log = os.open(f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    if asked["size"] > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": asked["size"], "LOCAL_WORLD_SIZE": asked["size"]}
        os.environ.update({name: str(number) for name, number in numbers.items()}, PREFERENT_RENDEZVOUS=meeting)
    os.environ.update(asked["env"])
    _write_down_steps(Path(f"rank-{rank}.steps"))
    _write_down_held(Path(f"rank-{rank}.held"))
    if "save" in asked["signals"] and rank == asked["signals"].get("rank", 0):
        _die_in_save(asked["signals"]["save"], rank)
    sys.argv = asked["words"]
    forking.perform()
    return 0


def _die_in_save(number: int, rank: int) -> None:
    """Kill this process in its checkpoint of a number: the first rank at the manifest, another at its rows."""
    from preferent.runs.checkpoints import row_files, step_folders

    place, name = (row_files.RowFile, "write") if rank else (step_folders, "write_sealed")
    plain, saves = getattr(place, name), iter(range(1, 1 << 20))

    def write(*arguments: Any) -> None:
        if next(saves) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(*arguments)

    setattr(place, name, write)


def _write_down_steps(path: Path) -> None:
    """Write the digest of all weights after every optimizer step to a file: equal on all ranks, to the last bit."""
    from torch.distributed.tensor import DTensor

    from preferent.training.optimizer import Optimizer

    path.unlink(missing_ok=True)
    plain = Optimizer.step

    def step(self: Optimizer, number: int) -> tuple[float, float]:
        done = plain(self, number)
        digest = hashlib.sha256()
        for master in self.masters.values():
            whole = master.full_tensor() if isinstance(master, DTensor) else master
            digest.update(whole.detach().numpy().tobytes())
        with open(path, "a") as file:
            print(number, digest.hexdigest(), file=file)
        return done

    Optimizer.step = step  # type: ignore[method-assign]


def _write_down_held(path: Path) -> None:
    """Write how many weights of its first network this rank holds, and how many there are, to a file."""
    from preferent.models import sharding

    path.unlink(missing_ok=True)
    plain = sharding.shard

    def shard(body: Any, *given: Any, **named: Any) -> None:
        plain(body, *given, **named)
        held = sum(sharding.own(parameter).numel() for parameter in body.parameters())
        if not path.exists():
            path.write_text(f"{held} {sum(parameter.numel() for parameter in body.parameters())}")

    sharding.shard = shard


def _codes(children: list[int], rank: int = 0, after: float = 0, number: int = 0, save: int = 0) -> list[int]:
    """Wait for all; send a signal to one after some seconds; end those that stay when another was killed."""
    began, codes = time.monotonic(), dict[int, int]()
    lost = None
    while len(codes) < len(children):
        for place, child in enumerate(children):
            if place not in codes:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    codes[place] = os.waitstatus_to_exitcode(status)
                    lost = time.monotonic() if codes[place] and lost is None else lost
        now = time.monotonic()
        if number and rank not in codes and now - began > after:
            os.kill(children[rank], number)
            number = 0
        if lost is not None and now - lost > 2:  # as a launcher does
            for place, child in enumerate(children):
                if place not in codes:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[place] for place in range(len(children))]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
