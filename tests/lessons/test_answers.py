"""The checks of the exercises: a right answer is right, a wrong one is told what is wrong with it."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the lessons need pip install 'preferent[lessons]'")
LESSONS = Path(__file__).resolve().parents[2] / "docs/lessons"

ANSWERS = [
    (
        "two_datasets",
        "two_faults",
        {"tired", "repeated"},
        [
            ({"tired", "padded"}, "one of the two"),
            ({"tired"}, "two names"),
            ({"padded", "unusable"}, "neither"),
            ({"tired", "drunk"}, "drunk"),
        ],
    ),
    ("two_datasets", "prompts_for_the_test", 8000, [(400, "20 prompts"), (80000, "more than")]),
    ("two_datasets", "four_annotators", 0.68, [(0.32, "agree"), (0.684, "other candidate"), (0.25, "unless all four")]),
    ("two_datasets", "invisible", (0, 1), [((1, 2), "no candidate"), ((1, 0), "10 to 15"), (1, "a pair")]),
]


@pytest.fixture(autouse=True)
def _lessons(monkeypatch):
    monkeypatch.syspath_prepend(LESSONS)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("exercises", "lesson", "small_world")]:
        del sys.modules[name]


@pytest.mark.parametrize(("lesson", "name", "right", "wrong"), ANSWERS, ids=[f"{a[0]}-{a[1]}" for a in ANSWERS])
def test_the_check_knows_right_from_wrong(lesson, name, right, wrong, capsys):
    check = getattr(import_module(f"exercises.{lesson}"), name)
    check(None)
    check(right)
    assert capsys.readouterr().out == "No answer yet.\nRight.\n"
    for answer, says in wrong:
        check(answer)
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and says in said, said
