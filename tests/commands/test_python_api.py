"""The Python calls: light to import, with real signatures, and doing what the command line does."""

import inspect
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import preferent
from preferent.commands import compare_runs
from preferent.errors import PlatformError, PreferentError, UsageError
from preferent.pipelines import executor

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "tests/data/run-0.1.0"
RECIPE = {
    "large_model_reference": "model",
    "preference_dataset": "pairs.jsonl",
    "prompt_sequence_length": 24,
    "target_sequence_length": 8,
}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> preferent.Run:
    """A finished run in the current folder, with what it was made from."""
    shutil.copytree(KEPT, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return preferent.Run("run")


def test_importing_is_light_and_names_are_those_of_the_door() -> None:
    code = """
import sys, preferent
assert not {"torch", "pydantic", "numpy"} & set(sys.modules), "heavy"
preferent.Run
assert "torch" not in sys.modules
assert not set(preferent.__all__) & {"cli", "config", "data", "doctor", "report", "labeling", "training"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert preferent.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("name", ["run", "load_recipe"])
def test_signatures_are_real(name: str) -> None:
    function = getattr(preferent, name)
    assert inspect.isfunction(function) and inspect.getdoc(function)
    parameters = inspect.signature(function).parameters.values()
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)


def test_a_recipe_is_read_from_a_file_with_settings_or_from_a_dictionary(old: preferent.Run) -> None:
    Path("my.yaml").write_text("large_model_reference: model\npreference_dataset: pairs.jsonl\nproject: p\n")
    loaded = preferent.load_recipe("my.yaml", ["ppo.epochs=2"])
    assert loaded.recipe.ppo.epochs == 2 and list(loaded.ignored) == ["project"]
    assert preferent.load_recipe(RECIPE).recipe.preference_dataset == "pairs.jsonl"
    assert "run directory somewhere" in preferent.load_recipe(RECIPE).plan("somewhere", sizes=False)
    with pytest.raises(UsageError, match="did you mean"):
        preferent.load_recipe(RECIPE | {"sed": 1})


def test_a_run_is_read_and_used(old: preferent.Run) -> None:
    assert "prefers the base to the tuned model" in old.headline()
    first, size, doctor = old.summary()
    assert first == old.headline() and size.startswith("8 prompts are too few to show any difference")
    assert doctor.startswith("doctor: ") and "no-better-than-trivial" in doctor
    assert doctor.endswith("; preferent doctor run shows them")
    assert old.metrics()[-1]["step"] == 3 and old.metrics("reward")[-1]["step"] == 4
    assert len(old.judgments()) > 0 and old.predictions("base")[0]["prediction"]
    assert old.recipe().recipe.large_model_reference == "model"
    report = old.directory.report
    report.unlink()
    assert old.report() == report and report.stat().st_size > 10_000
    assert {finding.severity for finding in old.doctor()} <= {"sick", "suspicious"}
    assert "judgments" in old.export_labels()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=r"metrics\.jsonl: does not exist; .* contains: nothing"):
        preferent.Run(tmp_path).metrics()


def test_others_are_compared_in_the_words_of_the_command_line(
    old: preferent.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []
    monkeypatch.setattr(compare_runs, "compare", lambda request: requests.append(request) or ["done"])
    assert old.compare("other.jsonl", judges=["people"], names=["a", "b"], out="there") == ["done"]
    assert requests == [
        compare_runs.ComparisonRequest(
            sides=["run", "other.jsonl"], names=["a", "b"], judges=["people"], out=Path("there")
        )
    ]


def test_an_error_carries_that_of_the_stage_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(KEPT / "model", tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("{\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreferentError, match="data failed") as caught:
        preferent.run(RECIPE, "run")
    assert caught.value.exit_code == 4
    cause = caught.value.__cause__
    assert isinstance(cause, PreferentError) and "pairs.jsonl" in str(cause) and cause.exit_code == 4


@pytest.mark.acceptance
def test_a_comparison_carries_the_error_of_its_stage_too(old: preferent.Run) -> None:
    with pytest.raises(PreferentError, match="compare failed") as caught:
        old.compare("run/predictions/base", judges=["model"], out="there")
    cause = caught.value.__cause__
    assert isinstance(cause, PreferentError) and "is not a reward model" in str(cause)
    assert caught.value.exit_code == cause.exit_code == 2


def test_a_run_from_a_stage_and_the_next_round_are_passed_on(
    old: preferent.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(executor, "execute", lambda *arguments, **more: calls.append((*arguments, more)))
    loaded = preferent.load_recipe(RECIPE)
    assert loaded.run("new", from_stage="ppo", of_run="run") == preferent.Run("new")
    assert calls == [(loaded.recipe, Path("new"), "ppo", Path("run"), {"launch": None, "until": None})]
    with pytest.raises(UsageError, match="give --launcher ray too"):
        loaded.run("new", address="127.0.0.1:6379")
    with pytest.raises(PlatformError, match="no preferences to learn from"):
        loaded.with_labels("run")


def test_names_are_completed_in_a_notebook() -> None:
    assert set(preferent.__all__) <= set(dir(preferent))
