"""The rollouts on disk: what a replay gives back, and which files are missing or damaged."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from preferent.data.types import Rollout
from preferent.rollouts import store
from preferent.rollouts.store import RolloutStore

PROMPTS = [np.array([1, 2], np.int32)] * 3


def rollout(index: int, scores: Mapping[str, float]) -> Rollout:
    ids = np.arange(index + 1, dtype=np.int32)
    return Rollout(index, 0, 4, PROMPTS[0], ids, ids / 7, True, scores)


def test_replayed_scores_stand_in_the_order_in_which_they_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors gives the columns of a file in an order that differs from process to process."""
    load = store.load
    monkeypatch.setattr(store, "load", lambda content: dict(sorted(load(content).items(), reverse=True)))
    made = [rollout(index, {"a": 1.0, "reward": 2.0, "reward-2": 3.0}) for index in range(3)]
    RolloutStore(tmp_path).commit("000000", made)
    replayed = RolloutStore(tmp_path).replay("000000", PROMPTS)
    assert replayed is not None
    assert [list(each.scores) for each in replayed] == [list(each.scores) for each in made]


def test_what_is_missing_or_damaged_is_listed(tmp_path: Path) -> None:
    folder = RolloutStore(tmp_path)
    names = [f"{step:06d}" for step in range(4)]
    for name in names:
        folder.commit(name, [rollout(0, {"reward": 1.0})])
    assert folder.damaged(names) == []
    paths = [tmp_path / f"{name}.safetensors" for name in names]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[2].unlink()
    assert folder.damaged(names) == paths[:3]
