"""The bookkeeping that every training loop shares: resume, save, keep the best weights, stop.

Each stage writes its own loop, `while unfinished(...)`, and calls these functions.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from preferent.config import stage_graph
from preferent.config.recipe import Recipe, pick
from preferent.errors import DataError
from preferent.evaluation import verdict_sentence
from preferent.models import checkpoint, saving
from preferent.models.language_models import Policy
from preferent.runs import interruption, stages
from preferent.runs.checkpoints import step_folders
from preferent.runs.directory import StageDirectory
from preferent.runs.metrics import Log
from preferent.runs.stages import Stage
from preferent.training.optimizer import Optimizer


class LoopState(Protocol):
    """The state that a checkpoint holds: steps done, tensors by name, and scalars."""

    step: int
    scalars: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


def opened(name: str, out: Path, recipe: Recipe, inputs: Mapping[str, Path], by_default: Mapping[str, Any]) -> Stage:
    """Open the folder of a stage that trains on fields of the recipe, and reads its chat template if there is one."""
    fields, inputs = pick(recipe, *stage_graph.FIELDS[name]), {**inputs, **stage_graph.chat_template(recipe)}
    return stages.open_stage(name, out, fields, inputs, stage_graph.EXTENDABLE[name], by_default=by_default)


def resume(state: LoopState, out: Path) -> Log:
    """Restore the newest checkpoint of a stage, if it has one; return its log, truncated to that checkpoint."""
    saved = checkpoint.resume(out)
    if saved is not None:
        if missing := sorted(state.tensors().keys() - saved.tensors.keys()):
            raise DataError(
                f"{StageDirectory(out).checkpoints}: step {saved.step} has no {missing[0]}, so another version of "
                f"preferent wrote it; go on with that version, or remove {out} to do this stage again"
            )
        state.step, state.scalars = saved.step, dict(saved.scalars)
        state.restore(saved.tensors)
    log = Log(out)
    log.rewind(0 if saved is None else saved.step + 1)
    return log


def unfinished(state: LoopState, total: int) -> bool:
    """Return whether steps remain and no reason to stop is recorded."""
    return state.step < total and "stopped" not in state.scalars


def due(state: LoopState, every: int, total: int) -> bool:
    """Return whether an action that runs every `every` steps, and after the last one, is due."""
    return state.step % every == 0 or not unfinished(state, total)


def check_stop(recipe: Recipe, state: LoopState, out: Path) -> None:
    """Save and exit if a signal has requested it."""
    interruption.stop().check(lambda: save(recipe, state, out))


def save(recipe: Recipe, state: LoopState, out: Path) -> None:
    """Write a checkpoint; then remove the best weights that no checkpoint refers to."""
    folder, keep = StageDirectory(out).checkpoints, recipe.keep_checkpoints
    checkpoint.save(folder, state.step, state.tensors(), state.scalars, keep)
    step_folders.forget(out)


def keep_best(
    state: LoopState, optimizer: Optimizer, out: Path, measure: str, value: float, *, highest: bool = False
) -> None:
    """Save the optimizer's weights in `out/best` if `value` is the lowest so far (or the highest), else count.

    Only weights are saved, because no training continues from them. Earlier ones that no checkpoint refers to are
    removed.
    """
    scalars, worst = state.scalars, -math.inf if highest else math.inf
    best = scalars.get(f"best_{measure}", worst)
    if value > best if highest else value < best:
        scalars |= {f"best_{measure}": value, "best_step": state.step, "evaluations_since_best": 0}
        step_folders.forget(out)
        checkpoint.save(StageDirectory(out).best, state.step, optimizer.weights(), {}, keep=None)
    else:
        scalars["evaluations_since_best"] = scalars.get("evaluations_since_best", 0) + 1


def stop_early(state: LoopState, patience: int | None, measure: str) -> None:
    """Record a reason to stop if `patience` evaluations in a row brought no improvement."""
    if patience is not None and state.scalars["evaluations_since_best"] >= patience:
        state.scalars["stopped"] = f"no better validation {measure} in {patience} evaluations"


def origin(text: str, best_step: int, steps: int, folder: Path) -> str:
    """Return the line of a model card that says what was selected; print it if that is the start, unchanged."""
    unchanged = verdict_sentence.unchanged({"best_step": best_step, "steps": steps})
    if unchanged:
        print(f"{folder}: {unchanged}", file=sys.stderr)
    return f"{text} {unchanged}".strip()


def finish(stage: Stage, policy: Policy, optimizer: Optimizer, text: str, best_step: int, steps: int) -> None:
    """Write the selected policy, tuned as `text` says, as the model, and mark the stage done."""
    out = StageDirectory(stage.folder)
    card = f"# Policy tuned by preferent\n\n{origin(text, best_step, steps, stage.folder)}\n"
    saving.save(policy, out.model, optimizer.masters, card)
    stage.finish([out.model.name, out.metrics.name])


def restore_best(state: LoopState, optimizer: Optimizer, out: Path) -> int:
    """Restore the best weights, if any were saved; return the step of the weights."""
    step: int | None = state.scalars.get("best_step")
    if step is None:
        return state.step
    optimizer.restore(checkpoint.read(StageDirectory(out).best, step).tensors)
    return step
