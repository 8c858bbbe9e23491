"""The shape of the house: rows, the torch-free half, and pieces small enough to read."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "preferent"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
TORCH_FREE = next(contract["source_modules"] for contract in CONTRACTS if contract["type"] == "forbidden")
COMPUTES = {
    *("objective", "advantage", "world", "batch", "model", "checkpoint", "optimizer"),
    *("experience", "imitation", "pairs", "export"),
    *("rollouts", "sampler", "score", "warm", "scratch", "sft", "reward", "ppo"),
    *("dpo", "rejection", "infer", "compare", "adjudicator"),
    *("trial", "delivery"),
}
"""The other half: modules that may import torch."""

FILES = sorted(PACKAGE.rglob("*.py"))


def modules() -> set[str]:
    """The modules and packages directly in the package."""
    found = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return found - {"__init__", "__main__"}


def test_every_module_is_in_one_half_and_in_one_row():
    free = {name.removeprefix("preferent.") for name in TORCH_FREE}
    assert not free & COMPUTES
    assert modules() <= free | COMPUTES
    layers = next(contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")
    rows = [name.strip(" ()") for layer in layers for name in layer.split("|")]
    assert len(rows) == len(set(rows))
    assert modules() <= set(rows)


def test_the_torch_free_half_imports_no_torch():
    code = f"""
import importlib, sys
for name in {TORCH_FREE!r}:
    importlib.import_module(name)
heavy = {{"torch", "transformers", "peft", "tensorflow"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_pieces_are_small(path):
    source = path.read_text()
    assert source.count("\n") <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_is_pickled_and_nothing_swallowed(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.load", "torch.save")
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
            if ast.unparse(node.type) in ("Exception", "BaseException"):
                assert isinstance(node.body[-1], ast.Raise)
