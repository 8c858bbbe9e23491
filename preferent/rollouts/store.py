"""The rollouts of a run: sampled and scored answers, on disk before any update uses them.

There is one safetensors file per step with the columns `prompt_index, sample_index, policy_step, ids, answer_mask,
sampler_log_probs, ended, scores.*`, and `samples.jsonl` has them as text. A step whose file exists is replayed,
not sampled again.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from preferent import files, ranks
from preferent.data.types import Rollout
from preferent.models.batching import pad
from preferent.runs.directory import StageDirectory

SAMPLES = StageDirectory(Path()).samples.name


@dataclass(frozen=True, slots=True)
class RolloutStore:
    """The folder to which rollouts are committed."""

    folder: Path

    def replay_or_make(
        self, name: str, prompts: Sequence[np.ndarray], make: Callable[[], list[Rollout]]
    ) -> list[Rollout]:
        """Return the rollouts called `name`: replayed if they were committed before, else made and committed."""
        rollouts = self.replay(name, prompts)
        return self.commit(name, make()) if rollouts is None else rollouts

    def replay(self, name: str, prompts: Sequence[np.ndarray]) -> list[Rollout] | None:
        """Read the rollouts called `name`; return None if they were not committed, or are damaged.

        `prompts` are the token ids of all prompts, indexed by `prompt_index`.
        """
        path = self._path(name)
        if not ranks.agreed(lambda: _is_whole(path)):
            return None
        arrays = unsealed(path.read_bytes())
        assert arrays is not None, "it was whole a moment ago"
        return from_columns(arrays, prompts)

    def commit(self, name: str, rollouts: list[Rollout]) -> list[Rollout]:
        """Write the rollouts under `name`, and return them."""
        files.write_atomic(self._path(name), sealed(columns(rollouts)))
        return rollouts

    def damaged(self, names: Iterable[str]) -> list[Path]:
        """Return the files of committed rollouts that are missing or have changed."""
        paths = [self._path(name) for name in names]
        return [path for path in paths if not path.is_file() or unsealed(path.read_bytes()) is None]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    @ranks.first_only
    def append_samples(
        self, step: int, texts: Sequence[str], answers: Sequence[str], rollouts: Sequence[Rollout]
    ) -> None:
        """Append the decoded rows of a step to `samples.jsonl`."""
        path = self.folder / SAMPLES
        with files.writing(path), open(path, "a", encoding="utf-8") as file:
            for text, answer, rollout in zip(texts, answers, rollouts, strict=True):
                row = {
                    "step": step,
                    "prompt_index": rollout.prompt_index,
                    "input": text,
                    "answer": answer,
                    "ended": rollout.ended,
                    "scores": dict(rollout.scores),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @ranks.first_only
    def rewind(self, step: int) -> None:
        """Drop the rows of `samples.jsonl` from `step` on, and a truncated last line; report lines that are damaged.

        These rows are for readers only.
        """
        path = self.folder / SAMPLES
        if not path.exists():
            return
        kept = []
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line)
            except (ValueError, TypeError, KeyError):
                if line.endswith(b"\n"):
                    print(f"{path}:{number}: damaged; left out", file=sys.stderr)
        files.write_atomic(path, b"".join(kept))


def _is_whole(path: Path) -> bool:
    """Return whether rollouts were committed to a file; say it if they are damaged."""
    if not path.exists():
        return False
    if unsealed(path.read_bytes()) is None:
        print(f"{path}: damaged (its hash is not the one in it); sampling it again", file=sys.stderr)
        return False
    return True


def sealed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return columns as a safetensors file with the digest of its content in its metadata."""
    plain = dict(arrays)
    return save(plain, {"sha256": hashlib.sha256(save(plain)).hexdigest()})


def unsealed(content: bytes) -> dict[str, np.ndarray] | None:
    """Return the columns that `sealed` wrote; None if any byte has changed."""
    try:
        arrays = load(content)
        return arrays if sealed(arrays) == content else None
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def columns(rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
    """Return rollouts as arrays of n rows; answers [n, A] are padded with 0 where `answer_mask` is False."""
    arrays = {
        "prompt_index": np.array([r.prompt_index for r in rollouts], np.int64),
        "sample_index": np.array([r.sample_index for r in rollouts], np.int64),
        "policy_step": np.array([r.policy_step for r in rollouts], np.int64),
        "ended": np.array([r.ended for r in rollouts], np.bool_),
        "ids": pad([r.ids for r in rollouts], 0),
        "answer_mask": pad([np.ones(len(r.ids), np.bool_) for r in rollouts], False),
        "sampler_log_probs": pad([r.sampler_log_probs for r in rollouts], 0.0),
    }
    for name in rollouts[0].scores:
        arrays[f"scores.{name}"] = np.array([r.scores[name] for r in rollouts], np.float64)
    return arrays


def from_columns(arrays: dict[str, np.ndarray], prompts: Sequence[np.ndarray]) -> list[Rollout]:
    """Return the rollouts of which `columns` made the arrays, their scores by name in order: a file has none."""
    names = sorted(key.removeprefix("scores.") for key in arrays if key.startswith("scores."))
    lengths = arrays["answer_mask"].sum(-1)
    return [
        Rollout(
            prompt_index=int(arrays["prompt_index"][i]),
            sample_index=int(arrays["sample_index"][i]),
            policy_step=int(arrays["policy_step"][i]),
            prompt_ids=prompts[int(arrays["prompt_index"][i])],
            ids=arrays["ids"][i, : lengths[i]],
            sampler_log_probs=arrays["sampler_log_probs"][i, : lengths[i]],
            ended=bool(arrays["ended"][i]),
            scores={name: float(arrays[f"scores.{name}"][i]) for name in names},
        )
        for i in range(len(lengths))
    ]
