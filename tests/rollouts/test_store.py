"""Rollouts on disk: every column comes back as it was, a changed byte is seen, and readers' rows are cut on resume."""

import json
from pathlib import Path

import numpy as np
import pytest

from preferent.data.types import Rollout
from preferent.rollouts import store as store_module
from preferent.rollouts.store import RolloutStore

PROMPTS = [np.array([1, 7 + i], np.int32) for i in range(5)]


def rollouts() -> list[Rollout]:
    """Answers of 3, 1 and 2 tokens, of which the last did not end; scores that fp32 would round."""
    made = []
    for row, (length, ended) in enumerate([(3, True), (1, True), (2, False)]):
        ids, log_probs = np.arange(length, dtype=np.int32) + 10 * row, np.linspace(-0.1, -2, length).astype(np.float32)
        scores = {"reward": 0.1 + row, "reward-2": -1 / (3 + row)}
        made.append(Rollout(4 - row, row + 2, 17, PROMPTS[4 - row], ids, log_probs, ended, scores))
    return made


def test_what_is_replayed_is_what_was_committed(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    assert store.replay("000017", PROMPTS) is None
    store.commit("000017", rollouts())
    replayed = store.replay("000017", PROMPTS)
    assert replayed is not None
    for row, again in zip(rollouts(), replayed, strict=True):
        assert (again.prompt_index, again.sample_index, again.policy_step) == (row.prompt_index, row.sample_index, 17)
        assert again.ids.tolist() == row.ids.tolist() and again.prompt_ids.tolist() == row.prompt_ids.tolist()
        assert again.sampler_log_probs.tolist() == row.sampler_log_probs.tolist()
        assert (again.ended, dict(again.scores)) == (row.ended, dict(row.scores))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_changed_byte_is_seen(tmp_path: Path, place: float, capsys: pytest.CaptureFixture[str]) -> None:
    store, path = RolloutStore(tmp_path), tmp_path / "a.safetensors"
    store.commit("a", rollouts())
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(bytes(content))
    assert store.replay("a", PROMPTS) is None
    assert "damaged" in capsys.readouterr().err


def test_made_once_and_replayed_then(tmp_path: Path) -> None:
    store, calls = RolloutStore(tmp_path), []

    def make() -> list[Rollout]:
        calls.append(1)
        return rollouts()

    for _ in range(2):
        kept = store.replay_or_make("a", PROMPTS, make)
    assert calls == [1] and [r.policy_step for r in kept] == [17] * 3


def test_a_resume_drops_the_rows_of_the_step_that_is_done_again(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for step in range(4):
        store.append_samples(step, ["p"] * 3, ["a"] * 3, rollouts())
    store.rewind(2)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 3 + [1] * 3
    assert [row["ended"] for row in rows[:3]] == [True, True, False] and rows[0]["scores"] == dict(rollouts()[0].scores)


def test_replayed_scores_stand_in_the_order_in_which_they_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors gives the columns of a file in an order that differs from process to process."""
    load = store_module.load
    monkeypatch.setattr(store_module, "load", lambda content: dict(sorted(load(content).items(), reverse=True)))
    made = rollouts()
    RolloutStore(tmp_path).commit("000000", made)
    replayed = RolloutStore(tmp_path).replay("000000", PROMPTS)
    assert replayed is not None
    assert [list(each.scores) for each in replayed] == [list(each.scores) for each in made]


def test_what_is_missing_or_damaged_is_listed(tmp_path: Path) -> None:
    folder = RolloutStore(tmp_path)
    names = [f"{step:06d}" for step in range(4)]
    for name in names:
        folder.commit(name, rollouts())
    assert folder.damaged(names) == []
    paths = [tmp_path / f"{name}.safetensors" for name in names]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[2].unlink()
    assert folder.damaged(names) == paths[:3]
