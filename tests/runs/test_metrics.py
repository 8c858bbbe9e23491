"""What a stage logs: what is appended is read back, a rewind forgets, TensorBoard sees each step once and at once."""

import io
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from preferent.errors import DataError, PlatformError
from preferent.runs import event_file
from preferent.runs.metrics import Log, Metrics, read


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics(tmp_path / "stage" / "metrics.jsonl")


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log(tmp_path / "stage")
    log.rewind(0)
    return log


def reader(log: Log) -> EventAccumulator:
    """TensorBoard, as it looks at a stage while the stage goes on."""
    return EventAccumulator(str(log.events.parent))


def seen(events: EventAccumulator, tag: str = "loss") -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Reload().Scalars(tag)]


def test_lines_are_read_back_in_order(metrics: Metrics) -> None:
    metrics.append(1, {"reward": 0.25, "kl_loss": 3})
    metrics.append(2, {"reward": -0.5})
    assert read(metrics.path) == [{"step": 1, "reward": 0.25, "kl_loss": 3.0}, {"step": 2, "reward": -0.5}]
    assert metrics.path.read_text() == '{"step": 1, "reward": 0.25, "kl_loss": 3.0}\n{"step": 2, "reward": -0.5}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(metrics: Metrics, value: float) -> None:
    metrics.append(1, {"reward": value})
    assert metrics.path.read_text() == '{"step": 1, "reward": null}\n'


def test_rewind_drops_the_step_and_what_follows(metrics: Metrics) -> None:
    for step in range(5):
        metrics.append(step, {"loss": step})
    metrics.rewind(3)
    assert [row["step"] for row in read(metrics.path)] == [0, 1, 2]
    metrics.append(3, {"loss": 9})
    assert read(metrics.path)[-1] == {"step": 3, "loss": 9.0}


def test_rewound_and_rewritten_file_equals_an_uninterrupted_one(metrics: Metrics) -> None:
    for step in range(4):
        metrics.append(step, {"loss": 1 / (step + 3)})
    whole = metrics.path.read_bytes()
    metrics.path.write_bytes(whole[:-7])
    metrics.rewind(2)
    for step in range(2, 4):
        metrics.append(step, {"loss": 1 / (step + 3)})
    assert metrics.path.read_bytes() == whole


def test_an_unfinished_last_line_is_left_out(metrics: Metrics) -> None:
    metrics.append(0, {"loss": 1.0})
    with open(metrics.path, "a") as file:
        file.write('{"step": 1, "lo')
    assert read(metrics.path) == [{"step": 0, "loss": 1.0}]
    metrics.rewind(5)
    assert metrics.path.read_text() == '{"step": 0, "loss": 1.0}\n'


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "a"}'])
def test_a_damaged_line_is_named(metrics: Metrics, line: str) -> None:
    metrics.append(0, {"loss": 1.0})
    with open(metrics.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
        read(metrics.path)


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "metrics.jsonl") == []
    Metrics(tmp_path / "metrics.jsonl").rewind(0)


def test_tensorboard_sees_a_step_as_soon_as_it_is_over(log: Log) -> None:
    events = None
    for step in range(5):
        log.append(step, {"loss": step / 4, "objective/kl": step / 8 if step > 1 else math.nan})
        events = events or reader(log)
        assert seen(events) == [(k, k / 4) for k in range(step + 1)]
    assert sorted(events.Tags()["scalars"]) == ["loss", "objective/kl"]
    assert seen(events, "objective/kl") == [(k, k / 8) for k in (2, 3, 4)]


def test_the_time_of_a_step_is_when_it_was_over(log: Log) -> None:
    began = time.time()
    with log.timed("learn"):
        time.sleep(0.01)
    log.append(1, {"loss": 1.0}, tokens_per_second=7)
    log.append(2, {"loss": 1.0})
    first, second = read(log.timings.path)
    assert first.keys() == {"step", "time", "learn", "tokens_per_second"} and second.keys() == {"step", "time"}
    assert began - 0.001 <= first["time"] <= second["time"] <= time.time() + 0.001 and first["learn"] >= 0.01
    assert [event.wall_time for event in reader(log).Reload().Scalars("loss")] == [first["time"], second["time"]]


def test_the_event_file_has_one_name_everywhere(log: Log) -> None:
    log.append(1, {"loss": 1.0})
    log.rewind(1)
    log.append(1, {"loss": 1.0})
    assert [path.name for path in log.events.parent.iterdir()] == ["events.out.tfevents.0.preferent"]


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_after_a_kill_and_a_resume_each_step_is_seen_once(log: Log, torn: int) -> None:
    """By a TensorBoard that was there all the time, too: the file is cut, so what it has open is what is written on."""
    for step in range(7):
        log.append(step, {"loss": step / 4, "learning_rate": 0.5})
    whole = reader(log)
    steps = [(step, step / 4) for step in range(7)]
    assert seen(whole) == steps
    log.events.write_bytes(log.events.read_bytes()[: -torn or None])
    again = Log(log.events.parent.parent)
    again.rewind(4)
    assert seen(reader(again)) == steps[:4]
    for step in range(4, 9):
        again.append(step, {"loss": step / 4, "learning_rate": 0.5})
    expected = [(step, step / 4) for step in range(9)]
    assert seen(whole) == seen(reader(again)) == expected
    assert seen(whole, "learning_rate") == seen(reader(again), "learning_rate") == [(step, 0.5) for step, _ in expected]
    assert [row["step"] for row in read(again.timings.path)] == list(range(9))


def test_the_event_file_follows_from_the_two_others(log: Log, tmp_path: Path) -> None:
    for step in range(4):
        log.append(step, {"loss": 1 / (step + 3), "reward": math.inf if step == 2 else -1 / 7})
    for name in ("metrics.jsonl", "timings.jsonl"):
        (tmp_path / "other").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "stage" / name, tmp_path / "other" / name)
    other = Log(tmp_path / "other")
    other.rewind(4)
    assert other.events.read_bytes() == log.events.read_bytes()
    other.events.write_bytes(b"of another version")
    other.rewind(4)
    assert other.events.read_bytes() == log.events.read_bytes()


def test_steps_without_a_time_are_seen(log: Log) -> None:
    for step in (1, 2, 3):
        log.append(step, {"loss": step})
    times = [row["time"] for row in read(log.timings.path)]
    log.timings.path.write_text("".join(log.timings.path.read_text().splitlines(keepends=True)[:2]))
    log.rewind(4)
    assert [event.wall_time for event in reader(log).Reload().Scalars("loss")] == [*times[:2], times[1]]
    log.timings.path.unlink()
    log.rewind(4)
    assert [(event.step, event.wall_time) for event in reader(log).Reload().Scalars("loss")] == [(1, 0), (2, 0), (3, 0)]


def test_only_a_log_without_steps_is_new(log: Log) -> None:
    assert log.is_new
    log.rewind(1)
    assert not log.is_new


def test_a_full_disk_under_the_event_file_is_told(log: Log) -> None:
    log.events.unlink()
    log.events.symlink_to("/dev/full")
    message = r"tfevents\.0\.preferent: cannot be written: No space left.*fix that, then run it again"
    with pytest.raises(PlatformError, match=message):
        log.append(1, {"loss": 1.0})


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300, 2**40])
def test_the_bytes_are_those_that_tensorboard_writes(step: int) -> None:
    values = {"loss": 0.1, "objective/größe": -3e38, "x" * 200: 1e-40}
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=1.5e9, file_version="brain.Event:2").SerializeToString())
    summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
    writer.write(Event(wall_time=1.75e9 + 0.123, step=step, summary=summary).SerializeToString())
    ours = event_file.start(1.5e9) + event_file.scalars(1.75e9 + 0.123, step, values)
    if step:
        assert ours == buffer.getvalue()
    else:
        assert len(ours) == len(buffer.getvalue()) + 2, "a step 0 is written, where protobuf leaves it out"


def test_a_number_beyond_a_float_is_infinite_there(log: Log) -> None:
    log.append(1, {"loss": -1e39})
    assert seen(reader(log)) == [(1, -math.inf)]


def test_logging_needs_no_heavy_library(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from preferent.runs import metrics\n"
        f"log = metrics.Log(Path({str(tmp_path / 'stage')!r}))\n"
        "log.rewind(0); log.append(1, {'reward': 1.0}); log.rewind(1)\n"
        "heavy = {'torch', 'tensorflow', 'tensorboard', 'google.protobuf', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
