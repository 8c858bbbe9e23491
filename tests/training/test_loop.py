"""The bookkeeping of the training loops: what is due, what is kept of the best, and where a loop goes on."""

import math
from pathlib import Path

import pytest
import torch
from conftest import quiet_recipe
from torch.nn import Parameter

from preferent.errors import DataError
from preferent.models import checkpoint
from preferent.runs import metrics
from preferent.runs.checkpoints import step_folders
from preferent.training import loop
from preferent.training.optimizer import Optimizer, Schedule, TrainingState


def learner() -> TrainingState:
    weight = Parameter(torch.arange(6.0).view(2, 3))
    return TrainingState(0, Optimizer({"weight": weight}, Schedule(0.1), 1.0))


def learn(state: TrainingState) -> None:
    weight = state.optimizer.parameters["weight"]
    (weight - 3).square().sum().backward()
    state.optimizer.step(state.step)
    state.step += 1


@pytest.mark.parametrize(
    ("step", "every", "stopped", "expected"),
    [(3, 3, False, True), (4, 3, False, False), (10, 3, False, True), (4, 3, True, True), (0, 3, False, True)],
)
def test_something_is_due_every_so_often_and_at_the_end(step: int, every: int, stopped: bool, expected: bool) -> None:
    state = learner()
    state.step, state.scalars = step, {"stopped": "enough"} if stopped else {}
    assert loop.due(state, every, total=10) == expected
    assert loop.unfinished(state, total=10) == (step < 10 and not stopped)


def test_the_best_is_the_lowest_or_the_highest(tmp_path: Path) -> None:
    values = [2.0, math.nan, 3.0, 1.0, 1.0, 3.0]
    for highest, best, step, since in ((False, 1.0, 3, 2), (True, 3.0, 2, 3)):
        state = learner()
        for number, value in enumerate(values):
            state.step = number
            loop.keep_best(state, state.optimizer, tmp_path / str(highest), "loss", value, highest=highest)
        assert state.scalars == {"best_loss": best, "best_step": step, "evaluations_since_best": since}
        assert step_folders.steps(tmp_path / str(highest) / "best") == [step]


def test_nothing_is_kept_that_is_no_number(tmp_path: Path) -> None:
    state = learner()
    for value, highest in ((math.nan, True), (-math.inf, True), (math.nan, False), (math.inf, False)):
        loop.keep_best(state, state.optimizer, tmp_path, "loss", value, highest=highest)
    assert state.scalars == {"evaluations_since_best": 4} and not (tmp_path / "best").exists()
    assert loop.restore_best(state, state.optimizer, tmp_path) == state.step == 0


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path) -> None:
    other = learner()
    other.optimizer = Optimizer({"other": Parameter(torch.zeros(2, 3))}, Schedule(0.1), 1.0)
    checkpoint.save(tmp_path / "checkpoints", 3, other.tensors(), {}, keep=None)
    state = learner()
    with pytest.raises(DataError, match=r"step 3 has no master\.weight, so another version .* remove "):
        loop.resume(state, tmp_path)
    assert state.step == 0


def test_patience(tmp_path: Path) -> None:
    state = learner()
    for value in (1.0, 2.0, 3.0):
        assert loop.unfinished(state, 10)
        loop.keep_best(state, state.optimizer, tmp_path, "loss", value)
        loop.stop_early(state, None, "loss")
        loop.stop_early(state, 2, "loss")
    assert state.scalars["stopped"] == "no better validation loss in 2 evaluations" and not loop.unfinished(state, 10)


def test_the_best_has_weights_alone_and_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    state = learner()
    learn(state)
    loop.keep_best(state, state.optimizer, tmp_path, "loss", 1.0)
    kept = state.optimizer.masters["weight"].detach().clone()
    assert checkpoint.read(tmp_path / "best", 1).tensors.keys() == {"master.weight"}
    learn(state)
    loop.keep_best(state, state.optimizer, tmp_path, "loss", 2.0)
    assert not torch.equal(state.optimizer.masters["weight"], kept)
    assert loop.restore_best(state, state.optimizer, tmp_path) == 1
    assert torch.equal(state.optimizer.masters["weight"], kept)


def test_best_ones_do_not_multiply_between_checkpoints(tmp_path: Path) -> None:
    """Kept are the one that each checkpoint knows, and the newest; a resume finds the one of its checkpoint."""
    recipe, state = quiet_recipe(keep_checkpoints=2), learner()
    for value in range(9, 0, -1):
        learn(state)
        loop.keep_best(state, state.optimizer, tmp_path, "loss", value)
        if state.step in (2, 4):
            loop.save(recipe, state, tmp_path)
            kept = state.optimizer.masters["weight"].detach().clone()
        assert len(step_folders.steps(tmp_path / "best")) <= 3
    assert step_folders.steps(tmp_path / "best") == [2, 4, 9]
    again = learner()
    loop.resume(again, tmp_path)
    assert again.step == 4 and loop.restore_best(again, again.optimizer, tmp_path) == 4
    assert torch.equal(again.optimizer.masters["weight"], kept)


def test_a_resumed_loop_has_the_same_weights_and_one_line_per_step(tmp_path: Path) -> None:
    recipe = quiet_recipe()

    def train(out: Path, total: int, every: int) -> TrainingState:
        state = learner()
        log = loop.resume(state, out)
        while loop.unfinished(state, total):
            learn(state)
            log.append(state.step, {"loss": float(state.optimizer.masters["weight"].detach().sum())})
            if loop.due(state, every, 6):
                loop.save(recipe, state, out)
        return state

    whole = train(tmp_path / "whole", 6, every=2)
    train(tmp_path / "cut", 5, every=2)
    cut = train(tmp_path / "cut", 6, every=2)
    assert whole.optimizer.tensors().keys() == cut.optimizer.tensors().keys()
    assert all(torch.equal(tensor, cut.optimizer.tensors()[name]) for name, tensor in whole.optimizer.tensors().items())
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert [row["step"] for row in metrics.read(tmp_path / "cut/timings.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_resume_carries_every_scalar_and_the_rule_of_patience_counts_on(tmp_path: Path) -> None:
    """Coefficient, best value, its step, evaluations since, reason to stop: as they were at the checkpoint."""
    recipe, state = quiet_recipe(), learner()
    state.scalars["kl_coeff"] = 0.25
    for value in (2.0, 3.0):
        learn(state)
        loop.keep_best(state, state.optimizer, tmp_path, "loss", value)
    loop.save(recipe, state, tmp_path)
    again = learner()
    again.scalars["kl_coeff"] = 0.1
    loop.resume(again, tmp_path)
    assert again.step == 2
    assert again.scalars == {"kl_coeff": 0.25, "best_loss": 2.0, "best_step": 1, "evaluations_since_best": 1}
    loop.keep_best(again, again.optimizer, tmp_path, "loss", 2.5)
    loop.stop_early(again, 2, "loss")
    assert not loop.unfinished(again, 10)
    loop.save(recipe, again, tmp_path)
    last = learner()
    loop.resume(last, tmp_path)
    assert not loop.unfinished(last, 10), "what has stopped stays stopped"


def test_a_log_is_new_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    state = learner()
    log = loop.resume(state, tmp_path)
    assert log.is_new
    log.append(0, {"validation/score": 1.0})
    loop.save(quiet_recipe(), state, tmp_path)
    log.append(1, {"loss": 1.0})
    again = loop.resume(state, tmp_path)
    assert not again.is_new, "step 0 is logged already"
    assert [row["step"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [0]


def test_a_best_with_moments_of_an_earlier_version_comes_back_too(tmp_path: Path) -> None:
    state = learner()
    learn(state)
    checkpoint.save(tmp_path / "best", 1, state.optimizer.tensors(), {}, keep=None)
    state.scalars["best_step"], kept = 1, state.optimizer.masters["weight"].detach().clone()
    learn(state)
    assert loop.restore_best(state, state.optimizer, tmp_path) == 1
    assert torch.equal(state.optimizer.masters["weight"], kept)


def test_a_policy_that_is_its_base_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = loop.origin("By ppo from `base`, the checkpoint of step 0.", 0, 30, tmp_path)
    assert card.endswith("step 0. The policy is the base: no step did better than the start.")
    assert capsys.readouterr().err == f"{tmp_path}: The policy is the base: no step did better than the start.\n"
    assert loop.origin("Step 3.", 3, 30, tmp_path) == "Step 3." and not capsys.readouterr().err
    assert loop.origin("Nothing trained.", 0, 0, tmp_path) == "Nothing trained." and not capsys.readouterr().err
