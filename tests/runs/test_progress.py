"""Progress: few plain lines where nobody watches, a bar in a terminal."""

import io
from itertools import pairwise

import pytest

from preferent.runs import progress


@pytest.fixture(autouse=True)
def outside_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(monkeypatch: pytest.MonkeyPatch, seconds_a_step: float, total: int, start: int = 0) -> list[str]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with progress.bar("reward", total, start, file) as bar:
        for step in range(start, total):
            now[0] += seconds_a_step
            bar.update(step + 1, loss=0.5312345)
    return file.getvalue().splitlines()


def test_plain_lines_are_the_first_the_last_and_one_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [line.split()[1] for line in lines(monkeypatch, 1.0, 25)] == ["1/25", "11/25", "21/25", "25/25"]


def test_a_line_tells_time_gone_time_left_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, 100.0, 50)[0] == "reward 1/50  1:40 gone, 1:21:40 left  loss 0.5312"


def test_the_time_left_counts_only_steps_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(monkeypatch, 10.0, 100, start=90)[0].startswith("reward 91/100  0:10 gone, 1:30 left")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = Terminal()
    with progress.bar("reward", 2, file=file) as bar:
        bar.update(2, loss=0.5)
    assert "2/2" in file.getvalue() and "loss 0.5" in file.getvalue() and "\x1b[" in file.getvalue()


def test_no_color_leaves_out_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    file = Terminal()
    with progress.bar("reward", 2, file=file) as bar:
        bar.update(2)
    assert "\x1b[3" not in file.getvalue() and "2/2" in file.getvalue()


def test_no_frames_without_a_terminal_whatever_force_color_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    written = lines(monkeypatch, 1.0, 25)
    assert len(written) == 4 and not any("\x1b" in line or "\r" in line for line in written)


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_a_notebook_gets_one_line_that_is_overwritten(monkeypatch: pytest.MonkeyPatch, file: io.StringIO) -> None:
    """Also behind `!preferent`, which IPython runs in a terminal of its own."""
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.bar("ppo", 40, 0, file) as bar:
        for step in range(40):
            now[0] += 0.5
            bar.update(step + 1, loss=0.53 if step % 2 else 0.5)
    text = file.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n") and "\x1b" not in text
    shown = text.rstrip("\n").split("\r")[1:]
    assert 20 <= len(shown) <= 22 and shown[-1].startswith("ppo 40/40")
    assert all(len(later) >= len(earlier.rstrip()) for earlier, later in pairwise(shown)), "nothing is left over"
