"""Several models side by side: what answers are missing is made, then judged."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferent import files, randomness
from preferent.commands import comparison_sides, judge_selection
from preferent.commands.comparison_sides import ComparisonSide
from preferent.commands.judge_selection import JudgeSelection
from preferent.config import recipe, stage_graph
from preferent.config.recipe import Recipe
from preferent.data import datasets, predictions
from preferent.data.formats import row_reader, row_writer
from preferent.data.predictions import Columns
from preferent.errors import PreferentError, UsageError
from preferent.evaluation import exports, verdict_sentence
from preferent.files import write_atomic, write_jsonl
from preferent.pipelines import finished_run
from preferent.pipelines.launchers import child_process
from preferent.runs import stages
from preferent.runs.directory import ComparisonDirectory, RunDirectory, StageDirectory

KEPT = (
    *("large_model_reference", "seed", "instruction", "prompt_sequence_length", "target_sequence_length"),
    *("precision", "threads", "device", "sampler", "infer", "compare"),
)
"""What a comparison takes over of the recipe it starts from: how prompts are read and answered, and who judges."""


@dataclass(frozen=True)
class ComparisonRequest:
    """What `preferent compare` was asked, in the words of its command line."""

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


def compare(request: ComparisonRequest) -> list[str]:
    """Compare what is asked for, and say in lines what came out. The same again does nothing twice."""
    called = judge_selection.of(request.judges, dict(request.how))
    if len(request.sides) == 1:
        folder = _alone(request, called)
    else:
        folder = _together(request, comparison_sides.of(request.sides, request.names), called)
    metrics = files.read_json(ComparisonDirectory(folder).metrics)
    return [verdict_sentence.verdict_sentence(metrics), *advice(metrics), *exports.write(folder, request.formats)]


def advice(metrics: Mapping[str, Any]) -> list[str]:
    """Return, where the headline's interval contains one half, what the prompts can show and how many are needed."""
    if not (size := metrics.get("sample_size")):
        return []
    there = metrics["judges"][metrics["headline"]]["prompts"]
    if size["detectable"] is None:
        return [f"so few prompts ({there}) show no difference, however large; compare on more"]
    wanted = f"; to see one of {size['win_rate']:.0%} you need about {size['prompts']}" if size["prompts"] else ""
    return [
        f"the interval holds 50 %: {there} prompts would show, four times in five, a rate of "
        f"{size['detectable']:.0%} or more{wanted}"
    ]


def _alone(request: ComparisonRequest, called: JudgeSelection) -> Path:
    """Judge the comparison of a run again by added judges; return its folder, or that of a finished comparison."""
    folder = Path(request.sides[0])
    if (there := _finished(folder)) is not None:
        if unread := _flags(request):
            raise UsageError(f"{folder}: is a finished comparison, which stays as it is; leave out {', '.join(unread)}")
        return there
    side = comparison_sides.of(request.sides)[0]
    if side.kind != "run":
        raise UsageError(f"{folder}: compare it with what? Give a second side; one alone is a run or a comparison")
    if unread := [flag for flag in _flags(request) if flag not in ("--judge", "--set")]:
        raise UsageError(
            f"{folder}: one run alone is compared on its own test prompts, in its own folder; leave out "
            f"{', '.join(unread)}"
        )
    with stages.locked(folder):
        again = _with_judges(side.recipe(), called, request.settings)
        task = next(task for task in stage_graph.build(again) if task.stage == "compare").at(folder)
        if "judge" in called.inputs and "judge" in task.inputs:
            raise UsageError(f"{folder}: has a reward model of its own that judges; name the answers as two sides")
        before = RunDirectory(folder).recipe.read_bytes()
        files.write_atomic(
            RunDirectory(folder).recipe, recipe.dump(again, recipe.defaults_in(RunDirectory(folder).recipe))
        )
        try:
            do(*task.command(str(folder)), *_inputs(called.inputs))
        except PreferentError:
            files.write_atomic(RunDirectory(folder).recipe, before)
            raise
        do("report", "--recipe", str(RunDirectory(folder).recipe), "--in", f"run={folder}", "--out", str(folder))
    return folder / "comparison"


def _finished(folder: Path) -> Path | None:
    """Return the folder of a finished comparison: this folder, or the one inside a comparison of several sides; else
    None."""
    inner = folder / "comparison"
    if ComparisonDirectory(inner).metrics.is_file() and not (folder / "data").exists():
        return inner
    alone = ComparisonDirectory(folder)
    whole = alone.judgments.is_file() and alone.metrics.is_file()
    return folder if whole and not RunDirectory(folder).recipe.exists() else None


def _flags(request: ComparisonRequest) -> list[str]:
    """Return the flags that were given of those that say how answers are made, read and judged."""
    flags: dict[str, object] = {"--judge": request.judges, "--names": request.names, "--out": request.out}
    flags |= {
        "--prompts": request.prompts,
        "--set": request.settings,
        "--recipe": request.recipe,
        "--shared": request.shared,
    }
    flags |= {f"--{name}-column": getattr(request.columns, name) for name in predictions.COLUMN_NAMES}
    flags["--tag-columns"] = request.columns.tags
    return [flag for flag, value in flags.items() if value]


def _together(request: ComparisonRequest, sides: Sequence[ComparisonSide], called: JudgeSelection) -> Path:
    """Compare two or more sides in a folder of their own."""
    folder = request.out or Path("runs") / f"compare-{'-'.join(side.name for side in sides)}"
    with stages.locked(folder):
        base = _with_judges(_base(request, sides), called, request.settings)
        write_atomic(RunDirectory(folder).recipe, recipe.dump(base))
        prompts = _prompts(request.prompts, sides, folder, base.infer.max_prompts)
        files = [_answered(side, prompts if request.prompts else None, folder) for side in sides]
        keys = ["a", "b", *(f"side.{side.name}" for side in sides[2:])]
        if missing := request.columns.missing([predictions.first_row(path) for path in files]):
            raise UsageError(f"{', '.join(missing)}: no file of answers has such a column")
        answers = {key: predictions.read(path, request.columns) for key, path in zip(keys, files, strict=True)}
        joined = predictions.join(
            answers, request.shared, datasets.load_prompts(prompts) if prompts is not None else []
        )
        inputs = _judged_by(called.inputs, sides)
        for key, side in zip(keys, sides, strict=True):
            path = folder / "sides" / f"{side.name}.jsonl"
            write_jsonl(path, [predictions.row(each) for each in joined[key]])
            inputs[key] = path
        if prompts is not None:
            inputs["prompts"] = prompts
        names = ",".join(side.name for side in sides)
        words = ["compare", "--recipe", str(RunDirectory(folder).recipe), *_inputs(inputs), "--names", names]
        do(*words, "--out", str(folder / "comparison"))
    return folder / "comparison"


def _inputs(paths: Mapping[str, Path]) -> list[str]:
    return [word for name, path in paths.items() for word in ("--in", f"{name}={path}")]


def _base(request: ComparisonRequest, sides: Sequence[ComparisonSide]) -> Recipe:
    """Return the recipe that a comparison starts from: the named one, that of the first run, or the defaults."""
    runs = [side for side in sides if side.kind == "run"]
    if request.recipe is not None:
        values = recipe.load(request.recipe)[0].model_dump(mode="json")
    elif runs:
        values = runs[0].recipe().model_dump(mode="json") | {"compare": {}}
    else:
        values = {}
    kept = {name: values[name] for name in KEPT if name in values}
    models = [side.place for side in sides if side.kind == "model"]
    return recipe.parse({"large_model_reference": models[0] if models else "none"} | kept)[0]


def _with_judges(base: Recipe, called: JudgeSelection, settings: Sequence[str]) -> Recipe:
    """Return the recipe with these language models among its judges; one of the same name is described anew."""
    values = base.model_dump(mode="json")
    new = {judge["name"] for judge in called.judges}
    kept = [judge for judge in values["compare"]["judges"] if judge["name"] not in new]
    values["compare"]["judges"] = kept + called.judges
    return recipe.parse(recipe.assign(values, settings))[0]


def _judged_by(inputs: Mapping[str, Path], sides: Sequence[ComparisonSide]) -> dict[str, Path]:
    """Return the judges; where no reward model is named, the independent one of the first run that has one."""
    there = [RunDirectory(side.folder).stage("judge").model for side in sides if side.kind == "run"]
    own = next((path for path in there if path.is_dir()), None)
    if "judge" in inputs or own is None:
        return dict(inputs)
    print(f"the independent judge is {own}", file=sys.stderr)
    return {"judge": own, **inputs}


def _prompts(source: Path | None, sides: Sequence[ComparisonSide], folder: Path, most: int | None) -> Path | None:
    """Return the prompts file, written as the data have it; without one that of the first run, whose answers are
    compared."""
    if source is not None:
        rows = row_reader.kept(datasets.read([str(source)], "prompt"))
        if most is not None and most < len(rows):
            print(f"{source}: the first {most} of {len(rows)} prompts are taken (infer.max_prompts)", file=sys.stderr)
        row_writer.write(rows[:most], folder / "prompts.jsonl")
        return folder / "prompts.jsonl"
    models = [side.name for side in sides if side.kind == "model"]
    if models:
        raise UsageError(f"{', '.join(models)}: is a model; name what it is to answer: --prompts FILE")
    there = [RunDirectory(side.folder).prompts("test") for side in sides if side.kind == "run"]
    return next((path for path in there if path.exists()), None)


def _answered(side: ComparisonSide, prompts: Path | None, folder: Path) -> Path:
    """Return the answers of a side, made where they are not there."""
    if side.kind == "file" or prompts is None:
        return predictions.prediction_file(side.answers())
    return infer(side.model(), prompts, folder / "answers" / side.name, RunDirectory(folder).recipe)


def infer(model: str, prompts: Path, out: Path, recipe_file: Path, settings: Sequence[str] = ()) -> Path:
    """Return a model's answers to prompts, one each, by the stage of that name."""
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
    """Two files of answers for people to choose from, what was asked, and what the models are called."""

    predictions: tuple[Path, Path]
    prompts: Path
    models: tuple[str, str]


def sampled(
    prompts: Path, models: Sequence[str], out: Path, number: int | None = None, names: Sequence[str] = ()
) -> SampledPairs:
    """Return two answers to each of `number` prompts: of two models one each, of one model two, sampled with two
    seeds.

    Prompts are read and answered as the recipe of the first run among the models says.
    """
    with stages.locked(out):
        sides = comparison_sides.of(models if len(models) == 2 else [models[0]] * 2, names)
        base = _base(ComparisonRequest(models), sides)
        files.write_atomic(RunDirectory(out).recipe, recipe.dump(base))
        chosen = _drawn(row_reader.kept(datasets.read([str(prompts)], "prompt")), base.seed, number)
        row_writer.write(chosen, out / "prompts.jsonl")
        paths = []
        for place, side in enumerate(sides):
            settings = ["infer.sampling_strategy=temperature_sampling", f"infer.max_prompts={max(len(chosen), 1)}"]
            settings += [f"seed={base.seed + place}"] if len(models) == 1 else []
            folder = out / "answers" / side.name
            paths.append(infer(side.model(), out / "prompts.jsonl", folder, RunDirectory(out).recipe, settings))
    return SampledPairs((paths[0], paths[1]), out / "prompts.jsonl", (sides[0].name, sides[1].name))


def of_run(folder: Path, out: Path, number: int | None) -> SampledPairs:
    """Base and tuned model of a run on prompts that it trained on: what the next round learns from."""
    models = [str(folder), str(finished_run.of(folder).base())]
    return sampled(RunDirectory(folder).prompts("train"), models, out, number, ("tuned", "base"))


def _drawn(prompts: Sequence[Any], seed: int, number: int | None) -> list[Any]:
    """`number` of the prompts, drawn by the seed, in their order; all where no number is given."""
    if number is None or number >= len(prompts):
        return list(prompts)
    order = randomness.permutation(seed, "label", 0, len(prompts))
    return [prompts[place] for place in sorted(order[:number].tolist())]
