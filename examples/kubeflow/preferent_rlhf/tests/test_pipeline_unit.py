"""The pipeline compiles, by itself and as the examples set it."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("kfp")
FOLDER = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("module", "name"), [("pipeline", "preferent_rlhf"), ("example_pipelines", "on_one_card")])
def test_it_compiles(module, name, tmp_path, monkeypatch):
    from kfp import compiler

    monkeypatch.syspath_prepend(str(FOLDER))
    sys.modules.pop(module, None)
    made = getattr(__import__(module), name)()
    compiler.Compiler().compile(made, package_path=str(tmp_path / "pipeline.yaml"))
    assert "rlhf-train-template" in (tmp_path / "pipeline.yaml").read_text()
