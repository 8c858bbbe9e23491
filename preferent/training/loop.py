"""The bookkeeping of every training loop: going on where it stopped, what is due, saving, the best so far, stopping.

A loop is a `while unfinished(...)` in its own stage and its own words; these are the sentences that all of them share.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from preferent.config.recipe import Recipe
from preferent.models import checkpoint
from preferent.runs import interruption
from preferent.runs.metrics import Log
from preferent.training.optimizer import Optimizer


class LoopState(Protocol):
    """What a checkpoint carries: steps done, tensors by name, and a few plain numbers."""

    step: int
    scalars: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


def resume(state: LoopState, out: Path) -> Log:
    """Restore the newest checkpoint of a stage, if it has one; return its log, cut to that checkpoint."""
    saved = checkpoint.resume(out)
    if saved is not None:
        state.step, state.scalars = saved.step, dict(saved.scalars)
        state.restore(saved.tensors)
    log = Log(out)
    log.rewind(0 if saved is None else saved.step + 1)
    return log


def unfinished(state: LoopState, total: int) -> bool:
    """Whether steps remain, and no reason to stop has been found."""
    return state.step < total and "stopped" not in state.scalars


def due(state: LoopState, every: int, total: int) -> bool:
    """Whether what happens every so many steps, and after the last one, happens now."""
    return state.step % every == 0 or not unfinished(state, total)


def check_stop(recipe: Recipe, state: LoopState, out: Path) -> None:
    """Save and leave, where a signal asked for it."""
    interruption.stop().check(lambda: save(recipe, state, out))


def save(recipe: Recipe, state: LoopState, out: Path) -> None:
    """Write a checkpoint; then remove every best one that no checkpoint knows."""
    checkpoint.save(out / "checkpoints", state.step, state.tensors(), state.scalars, recipe.keep_checkpoints)
    checkpoint.forget(out)


def keep_best(
    state: LoopState, optimizer: Optimizer, out: Path, measure: str, value: float, *, highest: bool = False
) -> None:
    """Keep the optimizer's weights in `out/best` where `value` is the lowest so far (or the highest), else count.

    Weights alone, because nothing learns from them again. Of the best ones before, those that no checkpoint knows go.
    """
    scalars, worst = state.scalars, -math.inf if highest else math.inf
    best = scalars.get(f"best_{measure}", worst)
    if value > best if highest else value < best:
        scalars |= {f"best_{measure}": value, "best_step": state.step, "evaluations_since_best": 0}
        checkpoint.forget(out)
        checkpoint.save(out / "best", state.step, optimizer.weights(), {}, keep=None)
    else:
        scalars["evaluations_since_best"] = scalars.get("evaluations_since_best", 0) + 1


def stop_early(state: LoopState, patience: int | None, measure: str) -> None:
    """Find a reason to stop where `patience` evaluations in a row brought nothing better."""
    if patience is not None and state.scalars["evaluations_since_best"] >= patience:
        state.scalars["stopped"] = f"no better validation {measure} in {patience} evaluations"


def restore_best(state: LoopState, optimizer: Optimizer, out: Path) -> int:
    """Put the best weights back, where any were kept; return the step that the weights are of."""
    step: int | None = state.scalars.get("best_step")
    if step is None:
        return state.step
    optimizer.restore(checkpoint.read(out / "best", step).tensors)
    return step
