"""Files survive: a death at every call of a save, a full disk at every write, a damaged byte anywhere.

`PREFERENT_DAMAGES` says how many checkpoints are damaged in each way. What was counted is recorded as
[what, how many, differences, partial loads].
"""

import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from faults import saved, tensors, whole

from preferent.data.types import Rollout
from preferent.errors import DataError, UsageError
from preferent.evaluation.inference import generate
from preferent.files import kept, read_jsonl, read_sealed, write_atomic, write_sealed
from preferent.models import checkpoint
from preferent.rollouts import store
from preferent.runs import metrics
from preferent.runs.checkpoints import step_folders
from preferent.runs.metrics import Metrics

DAMAGES = int(os.environ.get("PREFERENT_DAMAGES", "30"))
Record = Callable[[str, object], None]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FILE_BYTES", 2400)


def failing_saves(folder: Path, step: int, act: Callable[[], None], expected: int) -> tuple[int, int, int]:
    """Save over steps 1 and 2 with a fault at every call in turn: calls, differences, partial loads.

    After each the newest checkpoint is step 2 or the new one, whole; and the same save then leaves what it leaves
    where nothing fails.
    """
    differences = partial_loads = 0
    for at in range(1, 1000):
        shutil.rmtree(folder, ignore_errors=True)
        saved(folder, 1)
        saved(folder, 2)

        def work(at: int = at) -> None:
            faults.Fault(folder, at, act)
            saved(folder, step)

        if (code := faults.forked(work)) == 0:
            return at - 1, differences, partial_loads
        assert code == expected
        partial_loads += not whole(checkpoint.latest(folder), (2, step))
        saved(folder, step)
        kept = {(2, 3): [2, 3], (2, 2): [1, 2]}[2, step]
        differences += not (step_folders.steps(folder) == kept and whole(checkpoint.latest(folder), (step,)))
        differences += files(folder) != [f"step-{k:06d}/{name}" for k in kept for name in NAMES]
    raise AssertionError("the save never came to its end")


NAMES = ["00000.safetensors", "00001.safetensors", "manifest.json"]


@pytest.mark.parametrize("step", [3, 2])
def test_a_death_at_every_call_of_a_save(tmp_path: Path, step: int, record_property: Record) -> None:
    count, differences, partial_loads = failing_saves(tmp_path / "checkpoints", step, faults.die, -9)
    again = ", the same step again" if step == 2 else ""
    record_property("survival", [f"SIGKILL at every call of a save{again}", count, differences, partial_loads])
    assert count > 25
    assert (differences, partial_loads) == (0, 0)


@pytest.mark.parametrize("step", [3, 2])
def test_a_full_disk_at_every_write_of_a_save(tmp_path: Path, step: int, record_property: Record) -> None:
    count, differences, partial_loads = failing_saves(tmp_path / "checkpoints", step, faults.refuse, faults.TOLD)
    again = ", the same step again" if step == 2 else ""
    record_property("survival", [f"ENOSPC at every write of a save{again}", count, differences, partial_loads])
    assert count > 15
    assert (differences, partial_loads) == (0, 0)


def rollout(index: int) -> Rollout:
    ids = np.arange(3 + index % 2, dtype=np.int32)
    return Rollout(index, 0, 4, np.array([1, 2], np.int32), ids, ids / 7, bool(index % 2), {"reward": index / 3})


PROMPTS = [np.array([1, 2], np.int32)] * 3
ROLLOUTS = [rollout(index) for index in range(3)]


def write_ledger(folder: Path) -> None:
    store.RolloutStore(folder).replay_or_make("000004", PROMPTS, lambda: ROLLOUTS)


def write_samples(folder: Path) -> None:
    ledger = store.RolloutStore(folder)
    ledger.rewind(4)
    ledger.append_samples(4, ["p"] * 3, ["a"] * 3, ROLLOUTS)


def write_metrics(folder: Path) -> None:
    metrics = Metrics(folder / "metrics.jsonl")
    metrics.rewind(4)
    metrics.append(4, {"loss": 0.5})


def write_log(folder: Path) -> None:
    log = metrics.Log(folder)
    log.rewind(4)
    log.append(4, {"loss": 0.5})


def write_part(folder: Path) -> None:
    kept(folder / "0-1.json", lambda: [{"prediction": "new"}])


def write_file(folder: Path) -> None:
    write_atomic(folder / "file", "new")


@pytest.mark.parametrize("write", [write_ledger, write_samples, write_metrics, write_log, write_part, write_file])
def test_a_full_disk_at_every_write_of_a_file(
    tmp_path: Path,
    write: Callable[[Path], None],
    record_property: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was there before is whole, and the same call then leaves what it leaves where nothing fails."""
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    before = {"samples.jsonl": '{"step": 3}\n', "metrics.jsonl": '{"step": 3}\n', "file": "old"}
    folders = tmp_path / "twin", tmp_path / "broken"
    for folder in folders:
        folder.mkdir()
        for file, text in before.items():
            (folder / file).write_text(text)
    write(tmp_path / "twin")
    differences, at, code = 0, 0, faults.TOLD
    while code == faults.TOLD:
        at += 1
        for file, text in before.items():
            (tmp_path / "broken" / file).write_text(text)

        def work(at: int = at) -> None:
            faults.Fault(tmp_path / "broken", at, faults.refuse)
            for module in (metrics, store):
                vars(module)["open"] = vars(checkpoint)["open"]
            write(tmp_path / "broken")

        code = faults.forked(work)
        kept = {file: (tmp_path / "broken" / file).read_text() for file in before}
        differences += not all(kept[file].startswith(text) or kept[file] == "new" for file, text in before.items())
        write(tmp_path / "broken")
        twin, broken = ({file: (folder / file).read_bytes() for file in files(folder)} for folder in folders)
        differences += twin != broken
        shutil.rmtree(tmp_path / "broken")
        (tmp_path / "broken").mkdir()
    assert code == 0
    record_property("survival", [f"ENOSPC at every write of {write.__name__[6:]}", at - 1, differences])
    assert at > 2
    assert differences == 0


def flip(data: bytearray, place: random.Random) -> bytes:
    data[place.randrange(len(data))] ^= 1 << place.randrange(8)
    return bytes(data)


def cut(data: bytearray, place: random.Random) -> bytes:
    return bytes(data[: place.randrange(len(data))])


@pytest.mark.parametrize("harm", [cut, flip])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(
    tmp_path: Path,
    harm: Callable[[bytearray, random.Random], bytes],
    capsys: pytest.CaptureFixture[str],
    record_property: Record,
) -> None:
    place = random.Random(DAMAGES)
    differences = partial_loads = 0
    for _ in range(DAMAGES):
        saved(tmp_path, 1)
        saved(tmp_path, 2)
        folder = tmp_path / "step-000002"
        sizes = [(folder / name).stat().st_size for name in NAMES]
        file = folder / place.choices(NAMES, sizes if place.random() < 0.5 else None)[0]
        file.write_bytes(harm(bytearray(file.read_bytes()), place))
        found = checkpoint.latest(tmp_path)
        partial_loads += not whole(found, (1,))
        lines = capsys.readouterr().err.splitlines()
        told = len(lines) == 1 and str(folder) in lines[0] and "going back to the checkpoint before it" in lines[0]
        differences += not told
    what = {cut: "cut short", flip: "with a flipped bit"}[harm]
    record_property("survival", [f"checkpoints {what}", DAMAGES, differences, partial_loads])
    assert (differences, partial_loads) == (0, 0)


@pytest.mark.parametrize(
    ("name", "harm"),
    [(name, harm) for name in NAMES for harm in (Path.unlink, lambda path: path.write_bytes(b""))],
)
def test_a_missing_or_an_empty_file_of_the_only_checkpoint(
    tmp_path: Path, name: str, harm: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 1)
    harm(tmp_path / "step-000001" / name)
    assert checkpoint.latest(tmp_path) is None
    said = capsys.readouterr().err
    assert "step-000001: " in said and "there is none before it: starting again" in said
    saved(tmp_path, 1)
    assert whole(checkpoint.latest(tmp_path), (1,))


def test_strangers_among_checkpoints_are_let_alone(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-000001" / "notes.txt").write_text("mine")
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000001 (copy)")
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000007")
    assert whole(checkpoint.latest(tmp_path), (1,))
    assert (tmp_path / "step-000001 (copy)").exists()


def test_a_checkpoint_of_an_unknown_schema_is_refused(tmp_path: Path, record_property: Record) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "step-000001" / "manifest.json"
    write_sealed(path, read_sealed(path) | {"schema": 2})
    before = files(tmp_path)
    with pytest.raises(UsageError, match="schema 2, this version reads 1; use the preferent that wrote it"):
        checkpoint.latest(tmp_path)
    record_property("survival", ["checkpoint of an unknown schema", 1, int(files(tmp_path) != before), 0])
    assert files(tmp_path) == before


def best_and_last(out: Path) -> None:
    """What a stage leaves whose best step was 2 and that is at step 3."""
    for step, best in ((1, 1), (2, 2), (3, 2)):
        if step == best:
            checkpoint.save(out / "best", step, tensors(step), {}, keep=None)
        checkpoint.save(out / "checkpoints", step, tensors(step), {"best_step": best}, keep=2)
        step_folders.forget(out)


def test_a_damaged_best_is_told_and_nothing_removed(tmp_path: Path) -> None:
    best_and_last(tmp_path)
    assert step_folders.steps(tmp_path / "best") == [2]
    file = tmp_path / "best/step-000002/00000.safetensors"
    file.write_bytes(flip(bytearray(file.read_bytes()), random.Random(0)))
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"best/step-000002: .* is damaged .* there is no other copy. Restore it"):
        checkpoint.resume(tmp_path)
    assert files(tmp_path) == before


def test_the_best_of_every_kept_checkpoint_is_kept(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "best", 1, tensors(1), {}, keep=None)
    checkpoint.save(tmp_path / "checkpoints", 1, tensors(1), {"best_step": 1}, keep=2)
    checkpoint.save(tmp_path / "best", 2, tensors(2), {}, keep=None)
    checkpoint.save(tmp_path / "checkpoints", 2, tensors(2), {"best_step": 2}, keep=2)
    step_folders.forget(tmp_path)
    (tmp_path / "checkpoints/step-000002/manifest.json").unlink()
    found = checkpoint.resume(tmp_path)
    assert found is not None and found.step == 1
    assert torch.equal(checkpoint.read(tmp_path / "best", 1).tensors["a"], tensors(1)["a"])


@pytest.mark.parametrize("harm", [cut, flip])
def test_damaged_rollouts_are_told_and_sampled_again(
    tmp_path: Path,
    harm: Callable[[bytearray, random.Random], bytes],
    capsys: pytest.CaptureFixture[str],
    record_property: Record,
) -> None:
    place, differences, partial_loads = random.Random(DAMAGES), 0, 0
    write_ledger(tmp_path)
    path = tmp_path / "000004.safetensors"
    whole_file = path.read_bytes()
    for _ in range(DAMAGES):
        path.write_bytes(harm(bytearray(whole_file), place))
        made: list[int] = []
        found = store.RolloutStore(tmp_path).replay_or_make(
            "000004", PROMPTS, lambda made=made: made.append(1) or ROLLOUTS
        )
        partial_loads += not made
        differences += found is not ROLLOUTS or path.read_bytes() != whole_file
        differences += capsys.readouterr().err.count("000004.safetensors: damaged") != 1
    what = {cut: "cut short", flip: "with a flipped bit"}[harm]
    record_property("survival", [f"rollout files {what}", DAMAGES, differences, partial_loads])
    assert (differences, partial_loads) == (0, 0)


@pytest.mark.parametrize("harm", [cut, flip])
def test_a_damaged_sealed_file_is_told(
    tmp_path: Path, harm: Callable[[bytearray, random.Random], bytes], record_property: Record
) -> None:
    """`score.json`, `stage.json` and parts of predictions: no byte of them is believed that was not written."""
    place, believed = random.Random(DAMAGES), 0
    path = tmp_path / "score.json"
    write_sealed(path, {"bias": -0.51, "gain": 1.25e-7, "text": "ä \u2028 \\n", "rows": [{"a": None}, True]})
    data = path.read_bytes()
    for _ in range(DAMAGES):
        path.write_bytes(harm(bytearray(data), place))
        try:
            read_sealed(path)
            believed += 1
        except DataError as error:
            believed += not str(error).startswith(f"{path}: damaged")
    what = {cut: "cut short", flip: "with a flipped bit"}[harm]
    record_property("survival", [f"`score.json`, `stage.json` {what}", DAMAGES, 0, believed])
    assert believed == 0


def test_a_damaged_part_of_the_predictions_is_answered_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(tmp_path)
    path = tmp_path / "0-1.json"
    assert kept(path, partial(pytest.fail, "made again")) == [{"prediction": "new"}]
    path.write_text(path.read_text().replace("new", "old"))
    assert kept(path, lambda: [{"prediction": "new"}]) == [{"prediction": "new"}]
    assert "0-1.json: damaged or changed by hand" in capsys.readouterr().err


def test_parts_of_another_size_are_answered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(recipe: Any, *given: Any) -> Any:
        _policy, _reference, _engine, prompts, items, _reward = given
        if items.stop > 8 and recipe.sampler.rows == 4:
            raise InterruptedError
        return [{"item": prompts[item]} for item in items]

    monkeypatch.setattr(generate, "answered", answered)
    with pytest.raises(InterruptedError):
        generate.answer(quiet_recipe(sampler={"rows": 4}), None, None, list(range(10)), tmp_path)
    generate.answer(quiet_recipe(sampler={"rows": 3}), None, None, list(range(10)), tmp_path)
    assert [row["item"] for row in read_jsonl(tmp_path / "text.jsonl")] == list(range(10))
    assert files(tmp_path) == ["text.jsonl"]


def test_lost_lines_of_metrics_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        metrics.append(step, {"loss": 0.5})
    metrics.rewind(3)
    assert capsys.readouterr().err == ""
    metrics.rewind(5)
    assert "metrics.jsonl: the lines of steps 3 to 4 are missing" in capsys.readouterr().err


def test_damaged_samples_are_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\xffp": 1}\n[]\n{"step": 2}\n{"step": 3}\n{"ste')
    store.RolloutStore(tmp_path).rewind(3)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [line.rpartition("/")[2] for line in capsys.readouterr().err.splitlines()] == [
        "samples.jsonl:2: damaged; left out",
        "samples.jsonl:3: damaged; left out",
    ]


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_is_wrong_changes_nothing(tmp_path: Path, years: int, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, other = tmp_path / "twin", tmp_path / "other"
    best_and_last(twin)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + years * 3e7)
    best_and_last(other)
    for number, path in enumerate(sorted(other.rglob("*"))):
        os.utime(path, (1e9 - number, 1e9 - number))
    found = checkpoint.resume(other)
    assert found is not None and found.step == 3
    assert files(twin) == files(other)
    assert all((twin / name).read_bytes() == (other / name).read_bytes() for name in files(twin))
