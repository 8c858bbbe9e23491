"""Comparisons of runs, models and files of answers: missing answers are made first, then all are judged."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferent import files, randomness
from preferent.commands import comparison_sides, exports, judge_selection
from preferent.commands.comparison_sides import ComparisonSide
from preferent.commands.judge_selection import JudgeSelection
from preferent.config import recipe, stage_graph
from preferent.config.recipe import Recipe
from preferent.data import datasets, predictions
from preferent.data.formats import row_reader, row_writer
from preferent.data.prediction_columns import COLUMN_NAMES, Columns
from preferent.data.predictions import Answer
from preferent.errors import PreferentError, UsageError
from preferent.evaluation import verdict_sentence
from preferent.files import write_atomic, write_jsonl
from preferent.pipelines import finished_run
from preferent.pipelines.launchers import child_process
from preferent.runs import stages
from preferent.runs.directory import ComparisonDirectory, RunDirectory, StageDirectory

PROMPTS = "prompts.jsonl"
"""The file of prompts in the folder of a comparison."""

KEPT = (
    *("large_model_reference", "seed", "instruction", "prompt_sequence_length", "target_sequence_length"),
    *("chat_template", "chat_template_kwargs", "precision", "threads", "device", "sampler", "infer", "compare"),
)
"""The parts of a recipe that a comparison takes over: how prompts are read and answered, and who judges."""


@dataclass(frozen=True)
class ComparisonRequest:
    """The arguments of `preferent compare`."""

    sides: Sequence[str]
    names: Sequence[str] = ()
    prompts: Path | None = None
    judges: Sequence[str] = ()
    how: Mapping[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    shared: bool = False
    recipe: Path | None = None
    settings: Sequence[str] = ()
    formats: Sequence[str] = ()
    out: Path | None = None
    html: Path | None = None


def compare(request: ComparisonRequest) -> list[str]:
    """Compare the sides of a request; return the verdict in lines. The same request again repeats no finished work."""
    selection = judge_selection.of(request.judges, dict(request.how))
    if len(request.sides) == 1:
        folder = _compare_one(request, selection)
    else:
        folder = _compare_several(request, comparison_sides.of(request.sides, request.names), selection)
    metrics = files.read_json(ComparisonDirectory(folder).metrics)
    if request.html is not None:
        _write_page(folder, request.html)
    return [*verdict_sentence.summary(metrics), *exports.write(folder, request.formats)]


def _write_page(comparison: Path, page: Path) -> None:
    """Write the report of a comparison to a file; raise `UsageError` for one without the recipe beside its folder."""
    root = RunDirectory(comparison.parent)
    if root.comparison.folder != comparison or not root.recipe.exists():
        raise UsageError(f"--html {page}: {root.recipe} does not exist; name the folder that `preferent compare` made")
    do("report", "--recipe", str(root.recipe), "--in", f"run={comparison.parent}", "--out", str(page))


def _compare_one(request: ComparisonRequest, selection: JudgeSelection) -> Path:
    """Judge the comparison of a run again, also by added judges; return its folder. A finished comparison stays."""
    folder = Path(request.sides[0])
    if (comparison := _finished(folder)) is not None:
        if unread := _flags(request):
            raise UsageError(f"{folder}: is a finished comparison, which stays as it is; leave out {', '.join(unread)}")
        return comparison
    side = comparison_sides.of(request.sides)[0]
    if side.kind != "run":
        raise UsageError(f"{folder}: is neither a run nor a comparison; name a second side to compare it with")
    if unread := [flag for flag in _flags(request) if flag not in ("--judge", "--set")]:
        raise UsageError(
            f"{folder}: one run alone is compared on its own test prompts, in its own folder; leave out "
            f"{', '.join(unread)}"
        )
    with stages.locked(folder, "run"):
        again = _with_judges(side.recipe(), selection, request.settings)
        task = next(task for task in stage_graph.build(again) if task.stage == "compare").at(folder)
        if "judge" in selection.inputs and "judge" in task.inputs:
            raise UsageError(f"{folder}: has a reward model of its own that judges; name the answers as two sides")
        path = RunDirectory(folder).recipe
        before = path.read_bytes()
        files.write_atomic(path, recipe.dump(again, recipe.defaults_in(path)))
        try:
            do(*task.command(str(folder)), *_inputs(selection.inputs))
        except PreferentError:
            files.write_atomic(path, before)
            raise
        do("report", "--recipe", str(path), "--in", f"run={folder}", "--out", str(folder))
    return RunDirectory(folder).comparison.folder


def _finished(folder: Path) -> Path | None:
    """Return the folder of a finished comparison: `folder`, or that inside a comparison of several sides; else None."""
    directory = RunDirectory(folder)
    if directory.comparison.metrics.is_file() and not directory.data.folder.exists():
        return directory.comparison.folder
    alone = ComparisonDirectory(folder)
    complete = alone.judgments.is_file() and alone.metrics.is_file()
    return folder if complete and not directory.recipe.exists() else None


def _flags(request: ComparisonRequest) -> list[str]:
    """Return the flags of the request that decide how answers are made, read and judged."""
    flags: dict[str, object] = {"--judge": request.judges, "--names": request.names, "--out": request.out}
    flags |= {
        "--prompts": request.prompts,
        "--set": request.settings,
        "--recipe": request.recipe,
        "--shared": request.shared,
    }
    flags |= {f"--{name}-column": getattr(request.columns, name) for name in COLUMN_NAMES}
    flags["--tag-columns"] = request.columns.tags
    return [flag for flag, value in flags.items() if value]


def _compare_several(request: ComparisonRequest, sides: Sequence[ComparisonSide], selection: JudgeSelection) -> Path:
    """Compare two or more sides in a folder of their own; return the folder of the comparison.

    What is on disk already is read and joined before the folder is made, so that a mistake leaves nothing behind.
    """
    folder = request.out or Path("runs") / f"compare-{'-'.join(side.name for side in sides)}"
    base = _with_judges(_base(request, sides), selection, request.settings)
    rows = None if request.prompts is None else _prompt_rows(request.prompts, base.infer.max_prompts)
    joined = None if rows is not None else _joined(request, sides, _paths(sides), _own_prompts(sides))
    with stages.locked(folder, "run"):
        write_atomic(RunDirectory(folder).recipe, recipe.dump(base))
        prompts = _own_prompts(sides) if rows is None else folder / PROMPTS
        if rows is not None and prompts is not None:
            row_writer.write(rows, prompts)
            joined = _joined(request, sides, [_answers_of(side, prompts, folder) for side in sides], prompts)
        inputs = _with_own_judge(selection.inputs, sides)
        for key, side in zip(_keys(sides), sides, strict=True):
            inputs[key] = folder / "sides" / f"{side.name}.jsonl"
            write_jsonl(inputs[key], [predictions.row(answer) for answer in (joined or {})[key]])
        if prompts is not None:
            inputs["prompts"] = prompts
        names = ",".join(side.name for side in sides)
        words = ["compare", "--recipe", str(RunDirectory(folder).recipe), *_inputs(inputs), "--names", names]
        comparison = RunDirectory(folder).comparison.folder
        do(*words, "--out", str(comparison))
    return comparison


def _keys(sides: Sequence[ComparisonSide]) -> list[str]:
    """Return the names of the stage's inputs that hold the sides."""
    return ["a", "b", *(f"side.{side.name}" for side in sides[2:])]


def _paths(sides: Sequence[ComparisonSide]) -> list[Path]:
    """Return the files of the answers that exist; raise `UsageError` for a model, which has none without prompts."""
    for side in sides:
        if side.kind == "model":
            here = "is a model" if side.folder.is_dir() else "is no file or folder here, so it is taken for a model"
            raise UsageError(f"{side.place}: {here}; name the prompts that it is to answer: --prompts FILE")
    return [predictions.prediction_file(side.answers()) for side in sides]


def _joined(
    request: ComparisonRequest, sides: Sequence[ComparisonSide], paths: Sequence[Path], prompts: Path | None
) -> dict[str, list[Answer]]:
    """Return the answers of every side to the same prompts, by the stage's inputs."""
    answers = dict(zip(_keys(sides), predictions.read_sides(paths, request.columns), strict=True))
    names = dict(zip(_keys(sides), (side.name for side in sides), strict=True))
    known = [] if prompts is None else datasets.load_prompts(prompts)
    return predictions.join(answers, request.shared, known, names)


def _inputs(paths: Mapping[str, Path]) -> list[str]:
    return [word for name, path in paths.items() for word in ("--in", f"{name}={path}")]


def _base(request: ComparisonRequest, sides: Sequence[ComparisonSide]) -> Recipe:
    """Return the recipe that a comparison starts from: the one named, that of the first run, or the defaults.

    Models that a run made have its chat template in their folders, so a run's is for no other model.
    """
    runs = [side for side in sides if side.kind == "run"]
    if request.recipe is not None:
        values = recipe.load(request.recipe)[0].model_dump(mode="json")
    elif runs:
        values = runs[0].recipe().model_dump(mode="json") | {"compare": {}, "chat_template": None}
    else:
        values = {}
    kept = {name: values[name] for name in KEPT if name in values}
    models = [side.place for side in sides if side.kind == "model"]
    return recipe.parse({"large_model_reference": models[0] if models else "none"} | kept)[0]


def _with_judges(base: Recipe, selection: JudgeSelection, settings: Sequence[str]) -> Recipe:
    """Return the recipe with these language models among its judges; each replaces one of the same name."""
    values = base.model_dump(mode="json")
    new = {judge["name"] for judge in selection.judges}
    kept = [judge for judge in values["compare"]["judges"] if judge["name"] not in new]
    values["compare"]["judges"] = kept + selection.judges
    return recipe.parse(recipe.assign(values, settings))[0]


def _with_own_judge(inputs: Mapping[str, Path], sides: Sequence[ComparisonSide]) -> dict[str, Path]:
    """Return the inputs; without a reward model among them, add the independent judge of the first run that has one."""
    models = [RunDirectory(side.folder).stage("judge").model for side in sides if side.kind == "run"]
    own = next((path for path in models if path.is_dir()), None)
    if "judge" in inputs or own is None:
        return dict(inputs)
    print(f"the independent judge is {own}", file=sys.stderr)
    return {"judge": own, **inputs}


def _prompt_rows(source: Path, most: int | None) -> list[Any]:
    """Return the prompts in a file, at most `most` of them."""
    rows = row_reader.kept(datasets.read([str(source)], "prompt"))
    if most is not None and most < len(rows):
        print(f"{source}: using the first {most} of {len(rows)} prompts (infer.max_prompts)", file=sys.stderr)
    return list(rows[:most])


def _own_prompts(sides: Sequence[ComparisonSide]) -> Path | None:
    """Return the file of the test prompts of the first run, if one of the sides is a run."""
    paths = [RunDirectory(side.folder).prompts("test") for side in sides if side.kind == "run"]
    return next((path for path in paths if path.exists()), None)


def _answers_of(side: ComparisonSide, prompts: Path, folder: Path) -> Path:
    """Return the path of the answers of a side to these prompts; a run or a model makes them."""
    if side.kind == "file":
        return predictions.prediction_file(side.answers())
    return infer(side.model(), prompts, folder / "answers" / side.name, RunDirectory(folder).recipe)


def infer(model: str, prompts: Path, out: Path, recipe_file: Path, settings: Sequence[str] = ()) -> Path:
    """Answer each prompt once with a model, by the stage `infer`; return the path of the answers."""
    changed = [word for setting in (*settings, "infer.best_of=1") for word in ("--set", setting)]
    inputs = ["--in", f"model={model}", "--in", f"prompts={prompts}"]
    do("infer", "--recipe", str(recipe_file), *changed, *inputs, "--out", str(out))
    return StageDirectory(out).answers


def do(*words: str) -> None:
    """Run `preferent WORDS`; raise `PreferentError` with its exit code if it fails."""
    if error := child_process.run_verb(words):
        failure = PreferentError(
            f"{words[0]} failed (exit code {error.exit_code}); once the cause is gone, the same command goes on from "
            f"here; this step alone: preferent {shlex.join(words)}"
        )
        failure.exit_code = error.exit_code
        raise failure from error


@dataclass(frozen=True, slots=True)
class SampledPairs:
    """Two files of answers for people to choose from, the file of their prompts, and the names of the models."""

    predictions: tuple[Path, Path]
    prompts: Path
    models: tuple[str, str]


def sample(
    prompts: Path,
    models: Sequence[str],
    out: Path,
    number: int | None = None,
    names: Sequence[str] = (),
    chat_template: str | None = None,
) -> SampledPairs:
    """Sample two answers to each of `number` prompts: one of each of two models, or two of one model by two seeds.

    Prompts are read and answered as the recipe of the first run among the models says.
    """
    with stages.locked(out, "run"):
        sides = comparison_sides.of(models if len(models) == 2 else [models[0]] * 2, names)
        base = _base(ComparisonRequest(models), sides)
        files.write_atomic(RunDirectory(out).recipe, recipe.dump(base))
        chosen = _draw(row_reader.kept(datasets.read([str(prompts)], "prompt")), base.seed, number)
        row_writer.write(chosen, out / PROMPTS)
        paths = []
        for place, side in enumerate(sides):
            settings = ["infer.sampling_strategy=temperature_sampling", f"infer.max_prompts={max(len(chosen), 1)}"]
            settings += [f"seed={base.seed + place}"] if len(models) == 1 else []
            settings += [] if chat_template is None else [f"chat_template={json.dumps(chat_template)}"]
            folder = out / "answers" / side.name
            paths.append(infer(side.model(), out / PROMPTS, folder, RunDirectory(out).recipe, settings))
    return SampledPairs((paths[0], paths[1]), out / PROMPTS, (sides[0].name, sides[1].name))


def sample_of_run(folder: Path, out: Path, number: int | None) -> SampledPairs:
    """Sample answers of base and tuned model of a run to its training prompts, for the next round to learn from."""
    finished = finished_run.of(folder)
    models, prompts = [str(folder), str(finished.base())], RunDirectory(folder).prompts("train")
    return sample(prompts, models, out, number, ("tuned", "base"), finished.recipe.chat_template)


def _draw(prompts: Sequence[Any], seed: int, number: int | None) -> list[Any]:
    """Return `number` of the prompts, drawn by the seed, in their order; without a number all of them."""
    if number is None or number >= len(prompts):
        return list(prompts)
    order = randomness.permutation(seed, "label", 0, len(prompts))
    return [prompts[place] for place in sorted(order[:number].tolist())]
