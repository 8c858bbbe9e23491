"""The committed notebooks of the lessons: as their sources are, small, and built as every lesson is."""

import ast
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the lessons need pip install 'preferent[lessons]'")
nbformat = pytest.importorskip("nbformat")

LESSONS = Path(__file__).resolve().parents[2] / "docs/lessons"
NAMES = [path.stem for path in sorted(LESSONS.glob("[0-9]_*.py"))]
MOST_BYTES = 300_000
OF_A_MACHINE = re.compile(r"/(?:home|root|tmp|work|Users|usr|opt|private|var)/\w|site-packages|0x[0-9a-f]{8,}")
DECIMAL = re.compile(r"(?<![\w.])(\d+\.\d+|\d+(?= ?%))(?![\w.]*\w\.)")
SETTING = re.compile(r"\w(?:=|: )(\d+(?:\.\d+)?(?:e-?\d+)?)")
PREDICTED, COMPARED = re.compile(r"^(\w+) = predict\(", re.M), re.compile(r"^(\w+)\.compare\(", re.M)

pytestmark = pytest.mark.parametrize("name", NAMES)


def cells(name: str, kind: str) -> list[str]:
    return [cell.source for cell in jupytext.read(LESSONS / f"{name}.py").cells if cell.cell_type == kind]


def test_the_notebook_is_its_source(name):
    source = jupytext.read(LESSONS / f"{name}.py")
    notebook = nbformat.read(LESSONS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    kinds = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert kinds == [(cell.cell_type, cell.source) for cell in source.cells], "make lessons"


def test_the_notebook_is_small_and_of_no_machine(name):
    path = LESSONS / f"{name}.ipynb"
    assert path.stat().st_size <= MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and not any(c.metadata for c in notebook.cells)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            texts = [output.get("text", ""), *(str(t) for k, t in output.get("data", {}).items() if "image" not in k)]
            assert not OF_A_MACHINE.search("\n".join(texts)), texts


def test_every_code_cell_was_executed_in_order(name):
    notebook = nbformat.read(LESSONS / f"{name}.ipynb", as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_a_lesson_begins_with_a_question_and_ends_with_checked_exercises(name):
    texts, codes = cells(name, "markdown"), cells(name, "code")
    assert texts[0].startswith(f"# {name[0]}. ") and "?" in texts[0]
    assert any(re.search(r"^## Exercises", text, re.M) for text in texts)
    checks = [code for code in codes if re.search(r"^exercises\.\w+\(", code, re.M)]
    assert len(checks) >= 2
    assert re.search(r"^finish\(\)$", codes[-1], re.M)


def test_a_prediction_stands_before_each_run(name):
    """A cell that begins with `# Run` follows a prediction of its own; every prediction is compared after it."""
    codes = cells(name, "code")
    open_predictions, compared, runs = set(), set(), 0
    fresh = False
    for code in codes:
        if code.startswith("# Run"):
            assert fresh, f"no prediction before:\n{code}"
            fresh, runs = False, runs + 1
        for found in PREDICTED.findall(code):
            open_predictions.add(found)
            fresh = True
        for found in COMPARED.findall(code):
            assert found in open_predictions, found
            compared.add(found)
    assert runs >= 3 and compared == open_predictions


def numbers(code: str) -> set[float]:
    """The numbers of a cell, and those of settings in its texts, `key=0.5` or `key: 0.5`."""
    constants = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    settings = [found for text in constants if isinstance(text, str) for found in SETTING.findall(text)]
    return {float(constant) for constant in constants if isinstance(constant, int | float)} | set(map(float, settings))


def test_each_number_of_the_text_stands_in_the_code(name):
    """A decimal or a percentage in a text is a setting or is asserted: it occurs in the code of the same lesson."""
    known = set().union(*(numbers(code) for code in cells(name, "code")))
    for text in cells(name, "markdown"):
        plain = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.S)
        for number in DECIMAL.findall(plain):
            said = float(number)
            assert said in known or said / 100 in known, f"{number} is in the text, and in no cell:\n{text}"


def test_the_site_shows_a_text_as_a_notebook_does(name):
    """It has no script that would draw formulas, and begins every list with 1."""
    for text in cells(name, "markdown"):
        assert not re.match(r"[02-9]\. ", text), text
        assert "$" not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S), text


def test_what_a_lesson_imports_is_there(name):
    """The names that cells take from `lesson` and `exercises` exist."""
    for code in cells(name, "code"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module in ("lesson", "exercises"):
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)
