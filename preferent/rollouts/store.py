"""The rollouts of a run: sampled and scored answers, on disk before anything learns from them.

One safetensors file a step with the columns `prompt_index, sample_index, policy_step, ids, answer_mask,
sampler_log_probs, ended, scores.*`, and beside them `samples.jsonl` in plain words. A step whose file is there is
replayed, not sampled again.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from preferent import files
from preferent.data.types import Rollout
from preferent.models.batching import pad


@dataclass(frozen=True, slots=True)
class RolloutStore:
    """The folder where rollouts are committed."""

    folder: Path

    def recorded(self, name: str, prompts: Sequence[np.ndarray], make: Callable[[], list[Rollout]]) -> list[Rollout]:
        """The rollouts called `name`: replayed where they were committed before, else made and committed."""
        replayed = self.replayed(name, prompts)
        return self.committed(name, make()) if replayed is None else replayed

    def replayed(self, name: str, prompts: Sequence[np.ndarray]) -> list[Rollout] | None:
        """Read the rollouts called `name`; None where they were not committed, or are damaged.

        `prompts` [number of prompts] are the token ids that `prompt_index` points into.
        """
        path = self._path(name)
        if not path.exists():
            return None
        if (arrays := unsealed(path.read_bytes())) is not None:
            return from_columns(arrays, prompts)
        print(f"{path}: damaged (its hash is not the one in it); sampling it again", file=sys.stderr)
        return None

    def committed(self, name: str, rollouts: list[Rollout]) -> list[Rollout]:
        """Write the rollouts under `name`, and return them."""
        files.write_atomic(self._path(name), sealed(columns(rollouts)))
        return rollouts

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def describe(self, step: int, texts: Sequence[str], answers: Sequence[str], rollouts: Sequence[Rollout]) -> None:
        """Append the decoded rows of a step to `samples.jsonl`."""
        path = self.folder / "samples.jsonl"
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

    def rewind(self, step: int) -> None:
        """Drop the rows of `samples.jsonl` from `step` on, and a last line that was cut off; says what it cannot read.

        Nothing is learnt from these rows: they are for readers.
        """
        path = self.folder / "samples.jsonl"
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


def sealed(found: Mapping[str, np.ndarray]) -> bytes:
    """Columns as a safetensors file with the digest of its content in its metadata."""
    plain = dict(found)
    return save(plain, {"sha256": hashlib.sha256(save(plain)).hexdigest()})


def unsealed(data: bytes) -> dict[str, np.ndarray] | None:
    """The columns that `sealed` wrote; None where any byte is another."""
    try:
        found = load(data)
        return found if sealed(found) == data else None
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def columns(rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
    """Rollouts as arrays of n rows; answers [n, A] are padded with 0 where `answer_mask` is False."""
    found = {
        "prompt_index": np.array([r.prompt_index for r in rollouts], np.int64),
        "sample_index": np.array([r.sample_index for r in rollouts], np.int64),
        "policy_step": np.array([r.policy_step for r in rollouts], np.int64),
        "ended": np.array([r.ended for r in rollouts], np.bool_),
        "ids": pad([r.ids for r in rollouts], 0),
        "answer_mask": pad([np.ones(len(r.ids), np.bool_) for r in rollouts], False),
        "sampler_log_probs": pad([r.sampler_log_probs for r in rollouts], 0.0),
    }
    for name in rollouts[0].scores:
        found[f"scores.{name}"] = np.array([r.scores[name] for r in rollouts], np.float64)
    return found


def from_columns(found: dict[str, np.ndarray], prompts: Sequence[np.ndarray]) -> list[Rollout]:
    """The rollouts that `columns` wrote."""
    names = [key.removeprefix("scores.") for key in found if key.startswith("scores.")]
    lengths = found["answer_mask"].sum(-1)
    return [
        Rollout(
            prompt_index=int(found["prompt_index"][i]),
            sample_index=int(found["sample_index"][i]),
            policy_step=int(found["policy_step"][i]),
            prompt_ids=prompts[int(found["prompt_index"][i])],
            ids=found["ids"][i, : lengths[i]],
            sampler_log_probs=found["sampler_log_probs"][i, : lengths[i]],
            ended=bool(found["ended"][i]),
            scores={name: float(found[f"scores.{name}"][i]) for name in names},
        )
        for i in range(len(lengths))
    ]
