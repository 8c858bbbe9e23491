"""Executes the graph of a recipe in a run directory: skips what is done, runs the rest, says what failed."""

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preferent import files
from preferent.config import defaults, model_reference, run_schema, stage_graph
from preferent.config.recipe import Recipe, assign, dump, parse, pick
from preferent.config.stage_graph import Task
from preferent.data.formats import row_sources
from preferent.errors import ERROR_FILE, DataError, Interrupted, PreferentError, UsageError, smaller
from preferent.pipelines.launchers import child_process
from preferent.runs import interruption, stages
from preferent.runs.digests import Digests
from preferent.runs.stages import read_stage

LINKED = (".safetensors",)


def execute(
    recipe: Recipe,
    out: Path,
    from_stage: str | None = None,
    of_run: Path | None = None,
    announce: Callable[[Task], None] = lambda task: None,
) -> None:
    """Do everything the recipe asks for in the run directory `out`; what is done already is not done again.

    With `from_stage` and `of_run` the stages before `from_stage` are taken from another run. `announce` is called with
    each task that is about to be done. Raises `PreferentError` with the exit code of the stage that failed.
    """
    tasks = [task.at(out) for task in stage_graph.build(recipe)]
    model_reference.check(recipe)
    with stages.locked(out):
        if from_stage is not None:
            _adopt(tasks, from_stage, of_run, out)
        digests = Digests.read(out)
        if recipe.continues:
            _keep_base(tasks, recipe, out, digests)
        before = (out / "recipe.yaml").read_bytes() if (out / "recipe.yaml").exists() else None
        files.write_atomic(out / "recipe.yaml", dump(recipe))
        worked = False
        by_default: dict[str, Any] = {}
        try:
            for number, task in enumerate(tasks, start=1):
                if number == 2:  # bad data are refused before a model is looked for on the hub
                    settled, by_default = resolved(recipe)
                    files.write_atomic(out / "recipe.yaml", dump(recipe, by_default))
                    recipe = settled
                title = f"{number}/{len(tasks)} {task.name}"
                worked |= _perform(task, recipe, by_default, out, title, announce, digests)
        except PreferentError as error:
            if before is not None and error.exit_code == UsageError.exit_code and not worked:
                files.write_atomic(out / "recipe.yaml", before)
            raise
        finally:
            _index(tasks, out)
        digests.write()


def resolved(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe with its open fields filled in for the models that it names, and the values filled in."""
    policy, reward = recipe.large_model_reference, defaults.reward_reference(recipe)
    sizes = {reference: model_reference.parameters(reference) for reference in dict.fromkeys((policy, reward))}
    return defaults.resolve(recipe, sizes[policy], sizes[reward])


def finished(task: Task, recipe: Recipe, root: Path, by_default: Mapping[str, Any], digests: Digests) -> bool:
    """Return whether a task is done, of these very fields and inputs, as far as can be seen without starting it; only
    files that `digests` does not know are hashed.

    `by_default` are the values of the recipe that nobody asked for. Raises `DataError` where it is, and what it made is
    not what it was then.
    """
    folder = root / task.folder
    if not (folder / "DONE").exists() or not (folder / "stage.json").exists():
        return False
    asked = parse(assign(recipe.model_dump(mode="json"), task.settings))[0]
    fields = stages.flatten(pick(asked, *stage_graph.fields(task.stage, asked)))
    old = run_schema.translated(stages.read_stage(folder), fields, by_default)
    paths = _inputs(task, root)
    same = (
        old["fields"] == fields
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


def _inputs(task: Task, root: Path) -> dict[str, Path | None]:
    """Return what a task reads, by the names that its stage gives it; None for a model that is not on this machine."""
    paths: dict[str, Path | None] = {name: root / path for name, path in task.inputs.items()}
    paths |= {name: model_reference.cached(reference) for name, reference in task.outside.items()}
    for name, given in task.files.items():
        local = [file for file in row_sources.expand(given) if "://" not in file]
        paths |= {f"{name}{i}": Path(file) for i, file in enumerate(local)}
    return paths


def _perform(
    task: Task,
    recipe: Recipe,
    by_default: Mapping[str, Any],
    root: Path,
    title: str,
    announce: Callable[[Task], None],
    digests: Digests,
) -> bool:
    """Do a task; says whether there was anything to do."""
    interruption.stop().check()
    if finished(task, recipe, root, by_default, digests):
        print(f"{title}: done already", file=sys.stderr)
        return False
    announce(task)
    print(title, file=sys.stderr)
    words = task.command(str(root))
    before = {} if task.stage == "report" else digests.stamps(_inputs(task, root))
    code, message = _run_stage(words)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise Interrupted(f"stopped in {task.name}; the same command goes on from here", code - 128)
    if code != 0:
        killed = f" It was killed from outside, as happens when memory runs out.\n{smaller(task.stage)}\n"
        failure = PreferentError(
            f"{task.name} failed (exit code {code}); what is done is kept in {root}."
            f"{killed if code == 128 + signal.SIGKILL else ' '}Once the cause is gone, "
            f"the same command goes on from here; this stage alone: preferent {shlex.join(words)}"
        )
        failure.exit_code = code
        raise failure from (PreferentError(message) if message else None)
    if before:
        digests.learn(before, _inputs(task, root), root / task.folder)
    return True


def _run_stage(words: Sequence[str]) -> tuple[int, str]:
    """Run a stage in a process of its own; return its exit code and its error message, if it left one."""
    with tempfile.TemporaryDirectory() as folder:
        message = Path(folder) / "error"
        environment = os.environ | {"PYTHONUNBUFFERED": "1", ERROR_FILE: str(message)}
        code = child_process.run_here([sys.executable, "-m", "preferent", *words], env=environment)
        return code, message.read_text() if message.exists() else ""


def _index(tasks: Sequence[Task], root: Path) -> None:
    """Write `run.json`: for every stage its folder, whether it is done, and what its `stage.json` found out.

    The report is made anew every time: it has no `stage.json` and no `DONE`.
    """
    stages = {}
    for task in tasks:
        folder = root / task.folder
        path = folder / "stage.json"
        stages[task.name] = {
            "folder": task.folder,
            "done": (folder / ("report.html" if task.stage == "report" else "DONE")).exists(),
            "facts": read_stage(folder).get("facts", {}) if path.exists() else {},
        }
    files.write_json(root / "run.json", {"schema": 1, "stages": stages})


def _adopt(tasks: Sequence[Task], from_stage: str, of_run: Path | None, root: Path) -> None:
    """Take over the finished folders of the stages before `from_stage`; what is there already stays."""
    first = next((i for i, task in enumerate(tasks) if from_stage in (task.name, task.folder)), None)
    if first is None:
        first = next((i for i, task in enumerate(tasks) if from_stage == task.stage), None)
    if first is None:
        raise UsageError(f"--from {from_stage}: no such stage; this recipe has {', '.join(t.name for t in tasks)}")
    if of_run is None or not of_run.is_dir():
        raise UsageError(f"--from {from_stage}: name the run to take the earlier stages from: --of OLD_RUN")
    if of_run.resolve() == root.resolve():
        raise UsageError(f"--from {from_stage} --of {of_run}: starts again in a new directory; name one with --out")
    for task in tasks[:first]:
        source, target = of_run / task.folder, root / task.folder
        if not (target / "stage.json").exists() and (source / "DONE").exists():
            _take(source, target)


def _keep_base(tasks: Sequence[Task], recipe: Recipe, root: Path, digests: Digests) -> None:
    """Take over the base model that the last round trained, where this round would make the same."""
    for task in tasks:
        source, target = Path(recipe.continues[-1]) / task.folder, root / task.folder
        if task.stage != "sft" or (target / "stage.json").exists():
            continue
        here = replace(
            task, outside={name: str(model_reference.resolve(model)) for name, model in task.outside.items()}
        )
        settled, by_default = resolved(recipe)
        if finished(here, settled, source.parent, by_default, digests):
            _take(source, target)


def _take(source: Path, target: Path) -> None:
    """Copy a finished stage's folder so that it is there whole or not at all."""
    unfinished = target.with_name(f".{target.name}.taken")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(".*"))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(unfinished, target)


def _link_or_copy(source: str, target: str) -> None:
    """Link weights, which are never written in place; copy everything else, and across file systems."""
    if source.endswith(LINKED):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
