"""The over-optimisation example: its estimator and fits are exact, its world is what it says, its one command runs."""

import importlib
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preferent import files

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "overoptimization"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module


@pytest.mark.parametrize("n", range(1, 8))
def test_best_of_n_is_the_mean_over_all_subsets(module: Any, n: int) -> None:
    curve, random = module("curve"), np.random.default_rng(0)
    proxy, gold = random.normal(size=(3, 7)), random.normal(size=(3, 7))
    picked = [
        row_gold[max(subset, key=lambda i: row_proxy[i])]
        for row_proxy, row_gold in zip(proxy, gold, strict=True)
        for subset in itertools.combinations(range(7), n)
    ]
    assert curve.best_of_n(proxy, gold, n) == pytest.approx(np.mean(picked), abs=1e-12)


@pytest.mark.parametrize("logarithmic", [True, False])
def test_fits_find_the_curve_that_made_the_points(module: Any, logarithmic: bool) -> None:
    d = np.linspace(0, 5, 30)
    gold = np.array([x * (1.5 - 0.4 * (math.log(x) if logarithmic else x)) if x else 0.0 for x in d])
    found = module("curve").Fit.of(d, gold, logarithmic)
    assert (found.alpha, found.beta, found.r2) == pytest.approx((1.5, 0.4, 1.0))
    assert found(d[1:]) == pytest.approx(gold[1:])


def test_taste_is_the_formula(module: Any) -> None:
    soup = module("soup")
    leek, carrot, salt = (soup.INGREDIENTS.index(name) for name in ("leek", "carrot", "salt"))
    expected = soup.V[salt] + soup.C[leek, salt] + soup.C[carrot, salt] - 3 * soup.SPOILS
    found = soup.taste(["leek carrot:"] * 2, [" salt salt leek salt", " nothing of the kind"])
    assert found == pytest.approx([expected, 0.0]) and leek < carrot < salt


def test_annotators_choose_by_bradley_terry(module: Any, tmp_path: Path) -> None:
    soup = module("soup")
    soup.preferences(0, "train", 4000, tmp_path / "pairs.jsonl")
    rows = files.read_jsonl(tmp_path / "pairs.jsonl")
    tastes = [
        soup.taste([r["input_text"] for r in rows], [r[side] for r in rows]) for side in ("candidate_0", "candidate_1")
    ]
    chance = 1 / (1 + np.exp(tastes[0] - tastes[1]))
    right = sum(row["choice"] for row in rows) - chance.sum()
    assert abs(right) < 3 * math.sqrt((chance * (1 - chance)).sum())
    agreed = sum((row["choice"] == 1) == (p > 0.5) for row, p in zip(rows, chance, strict=True)) / len(rows)
    assert agreed == pytest.approx(np.maximum(chance, 1 - chance).mean(), abs=0.02)


@pytest.mark.acceptance
@pytest.mark.slow
def test_the_command_runs_and_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLE / "run.py"), str(tmp_path), "--sizes", "16", "32", "--samples", "8"]
    small = {"sft.train_steps": 2, "reward_model_train_steps": 2, "reinforcement_learning_train_steps": 4}
    small |= {"ppo.batch_size": 16, "reward.normalize_prompts": 16, "ppo.validation_prompts": 16}
    for key, value in small.items():
        words += ["--set", f"{key}={value}"]
    subprocess.run(words, check=True)
    found = files.read_json(tmp_path / "points.json")
    assert list(found["ppo"]) == ["16", "32"]
    assert set(found["ppo_ways"]) == {"mean", "worst", "variance", "leash", "budget"}
    assert len(found["ppo"]["16"]["d"]) == 2 and len(found["best_of_n"]["16"]["d"]) == 4
    assert found["best_of_n"]["16"]["gold"][0] == pytest.approx(0, abs=1e-9)
    assert (tmp_path / "figure.svg").read_text().startswith("<svg") and "| 16 |" in (tmp_path / "table.md").read_text()
