"""The run directory: files whole or absent, stages that start, resume, are done or refuse, leaving when asked to."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from preferent import files
from preferent.errors import Interrupted, PlatformError, UsageError
from preferent.runs import interruption, stages


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *arguments], **pipes)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a" / "file"
    files.write_atomic(path, "old")
    assert path.read_bytes() == b"old"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(PlatformError, match=r"file: cannot be written \(3 bytes needed\): No space left"):
        files.write_atomic(path, "new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_json_holds_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"ä": 1})
    assert files.read_json(tmp_path / "a.json") == {"ä": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    files.write_jsonl(tmp_path / "a.jsonl", [{"a": 1}, {"b": "x\n"}])
    assert files.read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"b": "x\n"}]


def test_a_fingerprint_covers_names_and_bytes_but_no_hidden_files(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = files.fingerprint(folder)
    (folder / ".lock").write_text("x")
    assert files.fingerprint(folder) == before
    assert files.fingerprint(folder / "a") == files.sha256(folder / "a")
    (folder / "a").rename(folder / "b")
    assert files.fingerprint(folder) != before
    (folder / "b").rename(folder / "a")
    assert files.fingerprint(folder) == before
    (folder / "a").write_text("2")
    assert files.fingerprint(folder) != before
    with pytest.raises(PlatformError, match="no such file or directory"):
        files.fingerprint(tmp_path / "nothing")


def settle() -> None:
    """Wait until the next change of a file cannot bear the time of the last one."""
    time.sleep(files.TICK / 1e9 + 0.05)


def rewrite(path: Path, content: bytes) -> None:
    """Change the bytes of a file in place, and put its time of change back."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)


def test_a_stamp_changes_with_every_write_and_is_none_until_that_is_sure(tmp_path):
    folder = tmp_path / "m"
    files.write_atomic(folder / "a", "1")
    assert files.stamp(folder) is None and files.stamp(folder / "a") is None
    assert files.stamp(tmp_path / "nothing") is None
    settle()
    first = files.stamp(folder)
    assert first is not None and first == files.stamp(folder)
    assert files.stamp(folder / "a") not in (None, first)
    rewrite(folder / "a", b"2")
    settle()
    second = files.stamp(folder)
    assert second not in (None, first)
    (folder / "a").rename(folder / "b")
    settle()
    third = files.stamp(folder)
    assert third not in (None, first, second)
    files.write_atomic(folder / ".lock", "x")
    assert files.stamp(folder) == third, "hidden files are not read"


def test_a_process_reads_a_file_once_and_again_after_any_write(tmp_path, monkeypatch):
    path, read, sha256 = tmp_path / "weights", [], files.sha256
    monkeypatch.setattr(files, "sha256", lambda file: read.append(file) or sha256(file))
    path.write_bytes(b"old")
    assert [files.fingerprint(path) for _ in range(2)] == [sha256(path)] * 2
    assert len(read) == 2, "its next change could bear the same time"
    settle()
    assert [files.fingerprint(path) for _ in range(3)] == [sha256(path)] * 3
    assert len(read) == 3
    rewrite(path, b"new")
    settle()
    assert files.fingerprint(path) == sha256(path) and len(read) == 4


def test_a_lock_holds_against_a_second_process_and_dies_with_the_first(tmp_path):
    first = python(
        """
        import sys, time; from pathlib import Path; from preferent.runs import stages
        with stages.locked(Path(sys.argv[1])):
            print("locked", flush=True); time.sleep(60)
        """,
        str(tmp_path),
    )
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(UsageError, match="another process is working here"), stages.locked(tmp_path):
        pass
    first.kill()
    first.wait()
    with stages.locked(tmp_path):
        pass


def opened(folder: Path, source: Path, **options) -> stages.Stage:
    fields = options.pop("fields", {"steps": 10, "ppo": {"epochs": 4}})
    return stages.open_stage(options.pop("name", "ppo"), folder, fields, {"train": source}, **options)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    return path


def test_a_stage_starts_resumes_and_is_done(tmp_path, source):
    folder = tmp_path / "policy"
    stage = opened(folder, source)
    assert not stage.done
    (folder / "model").write_text("weights")
    stage.record(device="cpu")
    again = opened(folder, source)
    assert not again.done
    assert again.facts == {"device": "cpu"}
    again.finish(["model"])
    assert opened(folder, source).done
    written = json.loads((folder / "stage.json").read_text())
    assert written["fields"] == {"steps": 10, "ppo.epochs": 4}
    assert written["inputs"] == {"train": files.sha256(source)}
    assert written["facts"] == {"device": "cpu", "outputs": {"model": files.sha256(folder / "model")}}
    assert written["versions"]["python"] == sys.version.split()[0]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path, source):
    opened(tmp_path / "policy", source)
    left = tmp_path / "policy/rollouts/.000003.safetensors.tmp-99", tmp_path / "policy/best/.step-000003.tmp-99/a"
    for path in left:
        files.write_atomic(path, "half")
    files.write_atomic(tmp_path / "policy/rollouts/000002.safetensors", "whole")
    opened(tmp_path / "policy", source)
    assert sorted(path.name for path in (tmp_path / "policy").rglob("*")) == [
        "000002.safetensors", "best", "rollouts", "stage.json",
    ]  # fmt: skip


def test_what_is_kept_for_speed_is_nothing_that_a_stage_has_made(tmp_path, source):
    folder = tmp_path / "reward"
    opened(folder, source, name="reward")
    files.write_atomic(folder / ".samples.json", "{}")
    opened(folder, source, name="reward")
    assert (folder / ".samples.json").exists()
    opened(folder, source, name="reward", fields={"steps": 10, "ppo": {"epochs": 2}})
    assert [path.name for path in folder.iterdir()] == ["stage.json"], "of other fields, it starts afresh"


def test_another_field_is_refused_with_both_values_and_the_way_out(tmp_path, source):
    folder = tmp_path / "policy"
    files.write_json(tmp_path / "run.json", {"schema": 1, "stages": {}})
    (tmp_path / "recipe.yaml").write_text("kl_coeff: 0.1\n")
    opened(folder, source)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError) as error:
        opened(folder, source, fields={"steps": 10, "ppo": {"epochs": 2}})
    assert "ppo.epochs: was 4, is now 2" in str(error.value)
    assert f"--out NEW_RUN --from policy --of {tmp_path}" in str(error.value)


def test_another_input_is_refused(tmp_path, source):
    folder = tmp_path / "policy"
    opened(folder, source).finish()
    source.write_text("{ }\n")
    with pytest.raises(UsageError, match="input train: its content changed"):
        opened(folder, source)


def test_a_stage_that_made_nothing_yet_takes_other_values(tmp_path, source):
    folder = tmp_path / "policy"
    opened(folder, source).record(device="cpu")
    stage = opened(folder, source, fields={"steps": 10, "ppo": {"epochs": 2}})
    assert stage.facts == {}
    assert json.loads((folder / "stage.json").read_text())["fields"]["ppo.epochs"] == 2


def test_a_cheap_stage_starts_afresh(tmp_path, source):
    folder = tmp_path / "predictions"
    stage = opened(folder, source, name="infer", rerun=True)
    (folder / "text.jsonl").write_text("old")
    stage.finish(["text.jsonl"])
    assert opened(folder, source, name="infer", rerun=True).done
    stage = opened(folder, source, name="infer", rerun=True, fields={"steps": 11})
    assert not stage.done
    assert sorted(p.name for p in folder.iterdir()) == ["stage.json"]


def test_more_steps_extend_a_finished_stage_and_fewer_are_refused(tmp_path, source):
    folder = tmp_path / "policy"
    stage = opened(folder, source, extendable=("steps",))
    (folder / "metrics.jsonl").write_text("kept")
    stage.record(device="cpu")
    stage.finish()
    longer = opened(folder, source, extendable=("steps",), fields={"steps": 20, "ppo": {"epochs": 4}})
    assert not longer.done
    assert longer.facts["device"] == "cpu"
    assert (folder / "metrics.jsonl").read_text() == "kept"
    longer.finish()
    with pytest.raises(UsageError, match="steps: was 20, is now 10"):
        opened(folder, source, extendable=("steps",))


def test_a_run_folder_may_move(tmp_path, source):
    folder = tmp_path / "a" / "policy"
    stage = opened(folder, source)
    (folder / "model").write_text("x")
    stage.finish(["model"])
    (tmp_path / "a").rename(tmp_path / "b")
    assert opened(tmp_path / "b" / "policy", source).done


def test_without_a_signal_nothing_stops():
    interruption.stop().check()
    with interruption.stoppable() as wish:
        assert interruption.stop() is wish
        interruption.stop().check()
    assert interruption.stop() is not wish


def test_a_signal_is_a_wish_that_saves_at_the_step_boundary():
    saved = []
    before = signal.getsignal(signal.SIGTERM)
    with interruption.stoppable() as wish, pytest.raises(Interrupted) as error:
        wish.signal_number = signal.SIGTERM  # without the handler, whose timer would end this process
        interruption.stop().check(lambda: saved.append(True))
    assert saved == [True]
    assert error.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


LOOP = """
import signal, sys, time; from preferent.runs import interruption
interruption.SECONDS_TO_LEAVE = float(sys.argv[1])
with interruption.stoppable():
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.05)
        if sys.argv[2] == "steps":
            interruption.stop().check(lambda: print("saved", flush=True))
"""


@pytest.mark.parametrize(
    ("steps", "seconds", "signals", "code"),
    [
        ("none", 0.3, [signal.SIGINT], 130),  # no boundary in reach: leave after the time limit
        ("none", 0.3, [signal.SIGTERM], 143),
        ("none", 60, [signal.SIGINT, signal.SIGINT], 130),  # a second signal leaves at once
        ("none", 60, [signal.SIGTERM, signal.SIGINT], 143),
    ],
)
def test_a_signal_ends_a_process_in_time(steps, seconds, signals, code):
    process = python(LOOP, str(seconds), steps)
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - began < 5
    assert "the same command goes on from here" in stderr


HELD_UP = """
import itertools, time; from preferent.runs import interruption
interruption.SECONDS_TO_LEAVE, interruption.SECONDS_TO_BE_ENDED = 0.1, 0.5
with interruption.stoppable() as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    sum(itertools.repeat(1, 10**11))  # C code that lets no other thread run
"""


def test_a_process_that_is_held_up_in_c_code_is_ended():
    process = python(HELD_UP)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGALRM


def test_a_signal_lets_a_loop_save():
    process = python(LOOP, "60", "steps")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert stdout == "saved\n"
    assert "Interrupted: stopped; the same command goes on from here" in stderr
