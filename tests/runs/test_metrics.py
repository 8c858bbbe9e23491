"""The metrics file: what is appended is read back, a rewind forgets, TensorBoard says the same."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from preferent.errors import DataError
from preferent.runs.metrics import Metrics, read, tensorboard


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics(tmp_path / "stage" / "metrics.jsonl")


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


def test_tensorboard_reads_the_same_scalars(metrics: Metrics, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (10, 20, 30):
        metrics.append(step, {"reward": (step - 10) / 8, "objective/kl": step / 4 if step > 10 else math.nan})
    for _ in range(2):  # made anew, not added to
        tensorboard(metrics.path, tmp_path / "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["objective/kl", "reward"]
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(10, 0.0), (20, 1.25), (30, 2.5)]
    assert [(e.step, e.value) for e in events.Scalars("objective/kl")] == [(20, 5.0), (30, 7.5)]


def test_tensorboard_files_need_neither_torch_nor_tensorflow(metrics: Metrics, tmp_path: Path) -> None:
    metrics.append(1, {"reward": 1.0})
    program = (
        "import sys; from pathlib import Path; from preferent.runs import metrics\n"
        f"metrics.tensorboard(Path({str(metrics.path)!r}), Path({str(tmp_path / 'tb')!r}))\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules), 'a heavy library was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
