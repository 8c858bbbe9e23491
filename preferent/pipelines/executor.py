"""Execution of a recipe in a run directory: finished stages are skipped, the others run as processes."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preferent import files, ranks
from preferent.config import defaults, model_reference, run_schema, stage_graph
from preferent.config import recipe as recipes
from preferent.config.recipe import Recipe, assign, dump, parse, pick
from preferent.config.stage_graph import Task
from preferent.data.formats import row_sources
from preferent.data.tokenizer.chat_templates import ChatOptions
from preferent.errors import DataError, Interrupted, PreferentError, UsageError
from preferent.pipelines.launchers import child_process
from preferent.pipelines.launchers.ray import Launch
from preferent.runs import environment, interruption, ownership, stages
from preferent.runs.digests import Digests
from preferent.runs.directory import DataDirectory, RunDirectory, StageDirectory
from preferent.runs.memory_choice import smaller
from preferent.runs.stages import read_stage

LINKED = (".safetensors",)
REMOTE = DataDirectory(Path()).remote.name


def execute(
    recipe: Recipe,
    out: Path,
    from_stage: str | None = None,
    of_run: Path | None = None,
    announce: Callable[[Task], None] = lambda task: None,
    launch: Launch | None = None,
    until: str | None = None,
) -> None:
    """Run the stages of a recipe in the run directory `out`, up to the stage `until`; finished stages are skipped.

    With `from_stage` and `of_run` the stages before `from_stage` are taken from another run. `announce` is called with
    each task before it runs, and `launch` runs the command of a stage that computes, elsewhere than here. Raises
    `PreferentError` with the exit code of the stage that failed.
    """
    if ranks.wanted() > 1:
        raise UsageError("WORLD_SIZE is above 1, but a run starts its processes by itself: set processes in the recipe")
    tasks = [task.at(out) for task in stage_graph.build(recipe)]
    last = len(tasks) - 1 if until is None else _places(tasks, "--until", until)[-1]
    model_reference.check(recipe)
    ChatOptions.of(recipe)
    for sources in (named for task in tasks for named in task.files.values()):
        row_sources.local_files(sources)
    with stages.locked(out, "run"):
        index(tasks, out)
        if from_stage is not None:
            _adopt(tasks, from_stage, of_run, out)
        digests = Digests.read(out)
        if recipe.continues:
            _keep_base(tasks, recipe, out, digests)
        before = RunDirectory(out).recipe.read_bytes() if RunDirectory(out).recipe.exists() else None
        files.write_atomic(RunDirectory(out).recipe, dump(recipe))
        worked = False
        by_default: dict[str, Any] = {}
        try:
            for number, task in enumerate(tasks[: last + 1], start=1):
                if number == 2:  # bad data are refused before the hub is asked for a model
                    settled, by_default = resolved(recipe)
                    files.write_atomic(RunDirectory(out).recipe, dump(recipe, by_default))
                    recipe = settled
                title = f"{number}/{len(tasks)} {task.name}"
                worked |= _perform(task, recipe, by_default, out, title, announce, digests, launch)
        except PreferentError as error:
            if before is not None and error.exit_code == UsageError.exit_code and not worked:
                files.write_atomic(RunDirectory(out).recipe, before)
            raise
        finally:
            index(tasks, out)
        digests.write()


def perform(out: Path, chosen: Callable[[Task], bool]) -> list[Task]:
    """Run the chosen stages of the recipe in the run directory `out`, and return them; finished ones are skipped.

    Nothing but each stage's own folder is held, so that stages which do not need each other may run at the same time,
    in other processes or on other machines that share the directory.
    """
    path = RunDirectory(out).recipe
    asked = recipes.load(path)[0]
    tasks = [task.at(out) for task in stage_graph.build(asked)]
    done = [task for task in tasks if chosen(task)]
    recipe, by_default = asked, dict[str, Any]()
    if any(task.stage != "data" for task in done):
        recipe, by_default = resolved(asked)
        if (settled := dump(asked, by_default)) != path.read_text():
            files.write_atomic(path, settled)
    digests = Digests.read(out)
    try:
        for task in done:
            _perform(task, recipe, by_default, out, task.name, lambda task: None, digests)
    finally:
        index(tasks, out)
    digests.write()
    return done


def resolved(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe with its open fields filled in for the models that it names, and the values filled in."""
    policy, reward = recipe.large_model_reference, defaults.reward_reference(recipe)
    sizes = {reference: model_reference.parameters(reference) for reference in dict.fromkeys((policy, reward))}
    return defaults.resolve(recipe, sizes[policy], sizes[reward])


def finished(task: Task, recipe: Recipe, root: Path, by_default: Mapping[str, Any], digests: Digests) -> bool:
    """Return whether a task was done with the present fields and inputs, without starting its stage.

    Only files that `digests` does not know are hashed. `by_default` are the values that the recipe leaves open. Raises
    `DataError` if the task was done and its outputs have changed since.
    """
    folder = root / task.folder
    if not StageDirectory(folder).done.exists() or not StageDirectory(folder).description.exists():
        return False
    settled = parse(assign(recipe.model_dump(mode="json"), task.settings))[0]
    fields = stages.flatten(pick(settled, *stage_graph.fields(task.stage, settled)))
    old = run_schema.translated(stages.read_stage(folder), fields, by_default)
    paths = _inputs(task, root)
    same = (
        _written(old["fields"]) == _written(fields)
        and set(old["inputs"]) == set(paths)
        and all(digests.of(path) == old["inputs"][name] for name, path in paths.items())
    )
    for name, digest in old["facts"].get("outputs", {}).items() if same else ():
        if digests.of(folder / name) != digest:
            raise DataError(
                f"{folder / name}: was changed, damaged or removed since {task.name} made it; restore it, or remove "
                f"{folder} to do that stage again"
            )
    return same


def _written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value: a version that did not know a field wrote none, which is null."""
    return {key: value for key, value in fields.items() if value is not None}


def _inputs(task: Task, root: Path) -> dict[str, Path | None]:
    """Return the paths of a task's inputs by name; None for a model that is not on this machine."""
    paths: dict[str, Path | None] = {name: root / path for name, path in task.inputs.items()}
    paths |= {name: model_reference.cached(reference) for name, reference in task.outside.items()}
    for name, sources in task.files.items():
        paths |= {f"{name}{i}": Path(file) for i, file in enumerate(row_sources.local_files(sources))}
    return paths


def _perform(
    task: Task,
    recipe: Recipe,
    by_default: Mapping[str, Any],
    root: Path,
    title: str,
    announce: Callable[[Task], None],
    digests: Digests,
    launch: Launch | None = None,
) -> bool:
    """Run a task unless it is done; return whether it ran."""
    interruption.stop().check()
    if finished(task, recipe, root, by_default, digests):
        print(f"{title}: done already", file=sys.stderr)
        return False
    if task.stage not in environment.BY_ONE:  # what a later stage would refuse; a run that is done asks no hub
        model_reference.check(recipe, fetch=True)
    announce(task)
    print(title, file=sys.stderr)
    words = task.command(str(root))
    before = {} if task.stage == "report" else digests.stamps(_inputs(task, root))
    run = launch if launch and task.stage not in environment.BY_ONE else child_process.run_verb
    error = run(words, environment.processes(recipe, task.stage))
    if error is not None:
        code = error.exit_code
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Interrupted(f"stopped in {task.name}; the same command goes on from here", code - 128)
        advice = smaller(task.stage, root / task.folder)
        killed = f" It was killed from outside, as happens when memory runs out.\n{advice}\n"
        failure = PreferentError(
            f"{task.name} failed (exit code {code}); what is done is kept in {root}."
            f"{killed if code == 128 + signal.SIGKILL else ' '}Once the cause is gone, "
            f"the same command goes on from here; this stage alone: preferent {shlex.join(words)}"
        )
        failure.exit_code = code
        raise failure from error
    if before:
        digests.learn(before, _inputs(task, root), root / task.folder)
    return True


def index(tasks: Sequence[Task], root: Path) -> None:
    """Write `run.json`: the folder of every stage, whether it is done, and the facts of its `stage.json`.

    The report is written again every time: it has neither a `stage.json` nor a `DONE`.
    """
    stages = {}
    for task in tasks:
        folder = root / task.folder
        path = StageDirectory(folder).description
        marker = RunDirectory(folder).report if task.stage == "report" else StageDirectory(folder).done
        stages[task.name] = {
            "folder": task.folder,
            "done": marker.exists(),
            "facts": read_stage(folder).get("facts", {}) if path.exists() else {},
        }
    files.write_json(RunDirectory(root).index, {"schema": 1, "stages": stages})


def _adopt(tasks: Sequence[Task], from_stage: str, of_run: Path | None, root: Path) -> None:
    """Copy the finished folders of the stages before `from_stage` from another run, except those that exist."""
    first = _places(tasks, "--from", from_stage)[0]
    if of_run is None or not of_run.is_dir():
        raise UsageError(f"--from {from_stage}: name the run to take the earlier stages from: --of OLD_RUN")
    if of_run.resolve() == root.resolve():
        raise UsageError(f"--from {from_stage} --of {of_run}: is the run directory itself; name a new one with --out")
    for task in tasks[:first]:
        source, target = of_run / task.folder, root / task.folder
        if not StageDirectory(target).description.exists() and StageDirectory(source).done.exists():
            _take(source, target)


def _places(tasks: Sequence[Task], flag: str, stage: str) -> list[int]:
    """Return the places of a stage, by its name or its folder, else by its verb; `flag` is where the user named it."""
    named = [place for place, task in enumerate(tasks) if stage in (task.name, task.folder)]
    if places := named or [place for place, task in enumerate(tasks) if stage == task.stage]:
        return places
    raise UsageError(f"{flag} {stage}: no such stage; this recipe has {', '.join(task.name for task in tasks)}")


def _keep_base(tasks: Sequence[Task], recipe: Recipe, root: Path, digests: Digests) -> None:
    """Copy the base model that the last round trained, if this round would train the same one."""
    for task in tasks:
        source, target = Path(recipe.continues[-1]) / task.folder, root / task.folder
        if task.stage != "sft" or StageDirectory(target).description.exists():
            continue
        here = replace(
            task, outside={name: str(model_reference.resolve(model)) for name, model in task.outside.items()}
        )
        settled, by_default = resolved(recipe)
        if finished(here, settled, source.parent, by_default, digests):
            _take(source, target)


def _take(source: Path, target: Path) -> None:
    """Copy the folder of a finished stage, completely or not at all."""
    ownership.check(target, "stage")
    unfinished = target.with_name(f".{target.name}.taken")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, copy_function=link_or_copy, ignore=shutil.ignore_patterns(".*"))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)


def link_or_copy(source: str, target: str) -> None:
    """Link weights and copies of remote files, which are never written in place; copy other files, and what is on
    another file system."""
    if source.endswith(LINKED) or Path(source).parent.name == REMOTE:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
