"""The shape of the house: rooms and rows, where torch may be, names that occur once, pieces small enough to read."""

import ast
import re
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "preferent"
ROOMS = {
    *("cli", "commands", "kubeflow", "quickstart", "pipelines", "report", "doctor", "labeling"),
    *("training", "evaluation", "rewards", "rollouts", "models", "data", "runs", "config"),
}
ROOT_FILES = {"__init__.py", "__main__.py", "py.typed", "errors.py", "files.py", "randomness.py", "ranks.py"}
SPINE = ("training", "rewards", "rollouts", "models")
COMPUTES = (*SPINE, "evaluation/inference", "commands/inference")
"""The folders that may import torch."""

MOST_MODULES, MOST_FOLDER_LINES, MOST_ROOM_LINES, MOST_SPINE_LINES = 15, 3000, 6000, 6000
MOST_MODULE_LINES, MOST_FUNCTION_LINES = 400, 60
UNGUESSABLE = {
    *("trial", "delivery", "contest", "hearing", "jury", "juror", "panel", "accord", "opinion", "vote", "tally"),
    *("verdict", "adjudicator", "warm", "imitation", "experience", "outcome", "appraisal", "trivial", "scale"),
    *("sheet", "draw", "dialect", "desk", "door", "harvest", "cluster", "graph", "metric", "record"),
}
EMPTY_NAMES = ("found", "one", "given", "asked", "said", "told")
"""Identifiers that do not say what they hold."""

RUN_FILES = {
    *("stage.json", "DONE", "run.json", "report.html", "metrics.jsonl", "timings.jsonl", "counts.json", "quality.json"),
    *("mistakes.jsonl", "score.json", "samples.jsonl", "judgments.jsonl", "answers.jsonl", "text.jsonl", "gold.json"),
}
VAGUE_NAMES = ("result", "res", "value", "data", "obj", "item")
MOST_EMPTY_NAMES, MOST_VAGUE_NAMES = 200, 536

FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def lines(paths) -> int:
    return sum(path.read_text().count("\n") for path in paths)


def repeated(names) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def classes() -> list[str]:
    return [node.name for node in chain(*map(ast.walk, TREES.values())) if isinstance(node, ast.ClassDef)]


def stems() -> list[str]:
    return [path.stem for path in FILES if path.stem not in ("__init__", "__main__")]


def test_the_root_holds_rooms_and_four_small_files():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries - ROOMS - ROOT_FILES == set()
    assert entries >= ROOT_FILES
    assert all((PACKAGE / room / "__init__.py").exists() for room in entries & ROOMS)


@pytest.mark.parametrize("folder", FOLDERS, ids=place)
def test_a_folder_can_be_surveyed(folder):
    paths = sorted(folder.glob("*.py"))
    assert len(paths) <= MOST_MODULES
    assert lines(paths) <= MOST_FOLDER_LINES


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_can_be_surveyed(room):
    assert lines((PACKAGE / room).rglob("*.py")) <= MOST_ROOM_LINES


def test_the_training_spine_can_be_read_in_an_afternoon():
    assert lines(chain(*((PACKAGE / room).rglob("*.py") for room in SPINE))) <= MOST_SPINE_LINES


@pytest.mark.parametrize("path", FILES, ids=place)
def test_pieces_are_small(path):
    assert path.read_text().count("\n") <= MOST_MODULE_LINES
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, node.name


def test_imports_go_down_the_rows_without_a_ring():
    """The contracts of pyproject.toml: layers, independence of the stages, no rings among siblings."""
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_torch_is_imported_only_where_something_is_computed():
    elsewhere = [path for path in FILES if not place(path).startswith(tuple(f"{room}/" for room in COMPUTES))]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in elsewhere if path.stem != "__main__"]
    names = [".".join(part for part in module if part != "__init__") for module in parts]
    code = f"""
import importlib, sys
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert name.startswith("preferent.kubeflow.") and error.name == "kfp", name
heavy = {{"torch", "transformers", "peft", "tensorflow"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_paths_of_a_run_are_spelt_in_one_place():
    """In `runs/directory.py`; the stage graph names what a stage reads and writes, relative to the run."""
    for path in FILES:
        if place(path) == "runs/directory.py" or place(path).startswith("config/"):
            continue
        texts = [node.value for node in ast.walk(TREES[path]) if isinstance(node, ast.Constant)]
        names = [text for text in texts if isinstance(text, str) and re.fullmatch(r"[\w/.-]+", text)]
        assert not {name for name in names if name.split("/")[-1] in RUN_FILES}, place(path)


def test_contributors_read_the_rooms_that_there_are():
    table = re.findall(r"^\| \d+ \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    named = {name for row in table for name in re.findall(r"`([\w.]+)/?`", row)}
    assert named == {path.name for path in PACKAGE.iterdir() if path.name in ROOMS or path.name in ROOT_FILES} - {
        "__init__.py",
        "__main__.py",
        "py.typed",
    }


def test_a_name_is_given_once():
    assert repeated(classes()) == []
    assert repeated(stems()) == []


def test_no_module_and_no_class_has_a_name_that_nobody_guesses():
    assert {name for name in [*stems(), *classes()] if name.strip("_").lower() in UNGUESSABLE} == set()


def test_identifiers_say_what_they_hold():
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    names = Counter(node.id if isinstance(node, ast.Name) else node.arg for node in nodes if is_identifier(node))
    assert sum(names[name] for name in EMPTY_NAMES) < MOST_EMPTY_NAMES
    assert sum(names[name] for name in VAGUE_NAMES) <= MOST_VAGUE_NAMES


def is_identifier(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.arg)


@pytest.mark.parametrize("path", [path for path in FILES if path.read_text()], ids=place)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(TREES[path])


@pytest.mark.parametrize("path", FILES, ids=place)
def test_nothing_is_pickled_and_nothing_swallowed(path):
    for node in ast.walk(TREES[path]):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.load", "torch.save")
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
            if ast.unparse(node.type) in ("Exception", "BaseException"):
                assert isinstance(node.body[-1], ast.Raise)
