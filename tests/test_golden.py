"""What `make golden` calls a difference, what it lets pass, and how it spells a recipe."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import differences
import golden

BEST = "run/policy/best/step-000002/00000.safetensors"
ROLLOUTS = "run/policy/rollouts/000000.safetensors"
METRICS = "run/reward/metrics.jsonl"
VERDICT = "run/comparison/metrics.json"
JUDGMENTS = "run/comparison/judgments.jsonl"
CHOSEN = "best/text.jsonl"


def write(path: Path, *rows: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tensors(path: Path, **tensors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)


def write_side(folder: Path) -> None:
    """A run of few files: row 1 of its comparison has a cut answer."""
    for stage in ("run/policy", "run/reward", "run/comparison", "best"):
        write(folder / stage / "stage.json", {"stage": stage})
    write_tensors(folder / BEST, master__w=np.ones(3, np.float32), exp_avg__w=np.zeros(3, np.float32))
    write_tensors(folder / ROLLOUTS, ids=np.arange(4), scores__reward=np.ones(4))
    write(folder / METRICS, {"step": 1, "rank_loss": 0.5, "validation/length_correlation": 0.25})
    answers = {"a": {"text": "x", "ended": True}, "b": {"text": "y", "ended": True}}
    cut = {"a": {"text": "xx", "ended": False}, "b": {"text": "y", "ended": True}}
    write(folder / "run/comparison/answers.jsonl", {"id": "0", "answers": answers}, {"id": "1", "answers": cut})
    judged = {"judge": "judge", "model_a": "tuned", "model_b": "base", "choice": "A", "score_a": 1.0, "score_b": 0.0}
    write(folder / JUDGMENTS, {"id": "0"} | judged, {"id": "1"} | judged)
    sides = [{"key": "a", "name": "tuned"}, {"key": "b", "name": "base"}]
    judges = {"judge": {"win_rate": 1.0}}
    write(folder / VERDICT, {"sides": sides, "judges": judges, "changed": {"p_exact": 0.5}, "kl": {"mean": 2.0}})
    write(folder / CHOSEN, {"id": "0", "best_of": 2, "prediction": "x", "scores": [1.0, 0.5], "kl": 2.0})


def in_row(name: str, number: int, key: str, replacement: object) -> Callable[[Path], None]:
    """A change of one key of one row of a file."""

    def change(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        inner = rows[number]
        *outer, last = key.split("|")
        for part in outer:
            inner = inner[part]
        inner[last] = replacement
        write(folder / name, *rows)

    return change


def in_tensors(name: str, **replaced: np.ndarray | None) -> Callable[[Path], None]:
    """A change of tensors of a file; None removes one."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name) | {key.replace("__", "."): tensor for key, tensor in replaced.items()}
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / name)

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


CUT = in_row(JUDGMENTS, 1, "score_a", 0.5)
EXEMPT = {
    "moments": in_tensors(BEST, exp_avg__w=None),
    "cut answer": CUT,
    "best of n": both(in_row(CHOSEN, 0, "prediction", "z"), in_row(CHOSEN, 0, "scores", [-1.0, 0.5])),
    "scipy": both(
        in_row(METRICS, 0, "validation/length_correlation", 0.25 + 1e-14),
        in_row(VERDICT, 0, "changed|p_exact", 0.5 - 1e-14),
    ),
    "cut answer: run/comparison/metrics.json": both(CUT, in_row(VERDICT, 0, "judges|judge|win_rate", 0.5)),
    "column of one side": in_tensors(ROLLOUTS, ended=np.ones(4)),
    "only in HEAD": lambda folder: write_tensors(folder / "run/reward/rollouts/new.safetensors", ids=np.ones(2)),
}
DIFFERENT = {
    "a weight by its last bit": in_tensors(
        BEST, master__w=np.float32([1, 1, np.nextafter(np.float32(1), np.float32(2))])
    ),
    "the sign of a zero": in_tensors(BEST, exp_avg__w=np.float32([0, 0, -0.0])),
    "a type": in_tensors(BEST, master__w=np.ones(3)),
    "a weight that is gone": in_tensors(BEST, master__w=None),
    "a rollout": in_tensors(ROLLOUTS, ids=np.arange(4)[::-1].copy()),
    "a metric": in_row(METRICS, 0, "rank_loss", 0.5 + 1e-15),
    "a metric that is new": in_row(METRICS, 0, "new", 1.0),
    "a correlation that is another": in_row(METRICS, 0, "validation/length_correlation", 0.25 + 1e-9),
    "the score of the answer that ended beside a cut one": in_row(JUDGMENTS, 1, "score_b", 0.5),
    "a judgment of answers that ended": in_row(JUDGMENTS, 0, "choice", "B"),
    "a verdict from equal judgments": in_row(VERDICT, 0, "judges|judge|win_rate", 0.5),
    "the KL beside judgments of cut answers": both(CUT, in_row(VERDICT, 0, "kl|mean", 1.0)),
    "the KL of a best-of-n policy": in_row(CHOSEN, 0, "kl", 1.0),
    "a file that is gone": without(METRICS),
    "a row that is gone": lambda folder: write(folder / METRICS),
}


def compare(tmp_path: Path, change: Callable[[Path], None]) -> bool:
    for side in ("base", "head"):
        write_side(tmp_path / side)
    change(tmp_path / "head")
    return differences.compared(tmp_path / "base", tmp_path / "head")


@pytest.mark.parametrize("why", EXEMPT)
def test_what_is_exempt_is_shown(why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not compare(tmp_path, EXEMPT[why])
    shown = [line for line in capsys.readouterr().out.splitlines() if why in line]
    assert shown and all("BASE" in line and "HEAD" in line for line in shown if line.startswith("exempt"))


@pytest.mark.parametrize("what", DIFFERENT)
def test_any_other_difference_counts(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, DIFFERENT[what])
    assert "DIFFERENT: " in capsys.readouterr().out


def test_equal_runs_do_not_differ_and_nothing_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not compare(tmp_path, lambda folder: None)
    assert "no difference" in capsys.readouterr().out
    assert differences.compared(tmp_path / "empty", tmp_path / "empty")  # nothing was compared


def test_a_recipe_is_spelled_as_a_tree_spells_it(tmp_path: Path) -> None:
    settings = {"seed": 1, "ppo.reward_clip": 2.0, "ppo.epochs": 2, "reward.members": 2}
    golden.write_recipe(tmp_path / "recipe.yaml", settings, golden.MOVED[0])
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    assert recipe == {"seed": 1, "ppo": {"epochs": 2}, "reward": {"clip": 2.0, "members": 2}}


@pytest.mark.parametrize(
    "accepted", [set(), set(golden.MOVED[0].values()), {"reward.sources", "reward.training.batch_size"}]
)
def test_the_spelling_of_a_tree_is_found(accepted: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {old: new for group in golden.MOVED for old, new in group.items()}

    def plans(_side: golden.Side, settings: Mapping[str, Any], spelling: Mapping[str, str]) -> bool:
        return all((name in spelling) == (moved[name] in accepted) for name in settings if name in moved)

    monkeypatch.setattr(golden.Side, "plans", plans)
    side = golden.Side("HEAD", tmp_path, tmp_path)
    side.learn_spelling()
    assert set(side.spelling.values()) == accepted


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (in_tensors(BEST, master__w=np.full(3, 1 + 9e-6, np.float32)), False),
        (in_tensors(BEST, master__w=np.full(3, 1 + 3e-5, np.float32)), True),
        (in_tensors(BEST, master__w=np.array([1, 1, np.nan], np.float32)), True),
        (in_tensors(ROLLOUTS, ids=np.array([0, 1, 2, 4])), True),
        (in_row(METRICS, 0, "rank_loss", 0.500004), False),
        (in_row(METRICS, 0, "rank_loss", 0.50002), True),
        (in_row(METRICS, 0, "step", 2), True),
    ],
)
def test_a_bound_lets_floats_alone_be_as_far_apart(
    tmp_path: Path, change: Callable[[Path], None], differs: bool
) -> None:
    for side in ("base", "head"):
        write_side(tmp_path / side)
    change(tmp_path / "head")
    assert differences.compared(tmp_path / "base", tmp_path / "head", 1e-5) == differs
    assert differences.compared(tmp_path / "base", tmp_path / "head")
