"""The lessons run from the first cell to the last at CI size, offline (make lessons-ci)."""

from pathlib import Path

import pytest

LESSONS = Path(__file__).resolve().parents[2] / "docs/lessons"


@pytest.mark.lessons
@pytest.mark.parametrize("name", [path.stem for path in sorted(LESSONS.glob("[0-9]_*.py"))])
def test_a_lesson_runs(name):
    pytest.importorskip("nbclient", reason="the lessons need pip install 'preferent[lessons]'")
    import build

    if not build.interpreter(name).exists():
        pytest.skip(f"{build.interpreter(name).relative_to(build.ROOT)} is not there: make kubeflow")
    notebook = build.executed(name, "ci")
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
