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


def compare(asked: ComparisonRequest) -> list[str]:
    """Compare what is asked for, and say in lines what came out. The same again does nothing twice."""
    called = judge_selection.of(asked.judges, dict(asked.how))
    if len(asked.sides) == 1:
        folder = _alone(asked, called)
    else:
        folder = _together(asked, comparison_sides.of(asked.sides, asked.names), called)
    found = files.read_json(folder / "metrics.json")
    return [verdict_sentence.verdict_sentence(found), *advice(found), *exports.write(folder, asked.formats)]


def advice(found: Mapping[str, Any]) -> list[str]:
    """Where the headline's interval holds one half: what so many prompts can show, and how many it takes."""
    if not (size := found.get("sample_size")):
        return []
    there = found["judges"][found["headline"]]["prompts"]
    if size["detectable"] is None:
        return [f"so few prompts ({there}) show no difference, however large; compare on more"]
    wanted = f"; to see one of {size['win_rate']:.0%} you need about {size['prompts']}" if size["prompts"] else ""
    return [
        f"the interval holds 50 %: {there} prompts would show, four times in five, a rate of "
        f"{size['detectable']:.0%} or more{wanted}"
    ]


def _alone(asked: ComparisonRequest, called: JudgeSelection) -> Path:
    """The comparison folder of a run, judged again by whoever came to it; or one that is there and stays as it is."""
    folder = Path(asked.sides[0])
    if (there := _finished(folder)) is not None:
        if unread := _flags(asked):
            raise UsageError(f"{folder}: is a finished comparison, which stays as it is; leave out {', '.join(unread)}")
        return there
    found = comparison_sides.of(asked.sides)[0]
    if found.kind != "run":
        raise UsageError(f"{folder}: compare it with what? Give a second side; one alone is a run or a comparison")
    if unread := [flag for flag in _flags(asked) if flag not in ("--judge", "--set")]:
        raise UsageError(
            f"{folder}: one run alone is compared on its own test prompts, in its own folder; leave out "
            f"{', '.join(unread)}"
        )
    with stages.locked(folder):
        again = _with_judges(found.recipe(), called, asked.settings)
        task = next(task for task in stage_graph.build(again) if task.stage == "compare").at(folder)
        if "judge" in called.inputs and "judge" in task.inputs:
            raise UsageError(f"{folder}: has a reward model of its own that judges; name the answers as two sides")
        before = (folder / "recipe.yaml").read_bytes()
        files.write_atomic(folder / "recipe.yaml", recipe.dump(again, recipe.defaults_in(folder / "recipe.yaml")))
        try:
            do(*task.command(str(folder)), *_inputs(called.inputs))
        except PreferentError:
            files.write_atomic(folder / "recipe.yaml", before)
            raise
        do("report", "--recipe", str(folder / "recipe.yaml"), "--in", f"run={folder}", "--out", str(folder))
    return folder / "comparison"


def _finished(folder: Path) -> Path | None:
    """The finished comparison that a folder is, or that lies in the folder of a comparison of several sides."""
    inner = folder / "comparison"
    if (inner / "metrics.json").is_file() and not (folder / "data").exists():
        return inner
    whole = all((folder / name).is_file() for name in ("judgments.jsonl", "metrics.json"))
    return folder if whole and not (folder / "recipe.yaml").exists() else None


def _flags(asked: ComparisonRequest) -> list[str]:
    """The flags that were given of those that say how answers are made, read and judged."""
    given: dict[str, object] = {"--judge": asked.judges, "--names": asked.names, "--out": asked.out}
    given |= {"--prompts": asked.prompts, "--set": asked.settings, "--recipe": asked.recipe, "--shared": asked.shared}
    given |= {f"--{name}-column": getattr(asked.columns, name) for name in predictions.COLUMN_NAMES}
    given["--tag-columns"] = asked.columns.tags
    return [flag for flag, value in given.items() if value]


def _together(asked: ComparisonRequest, sides: Sequence[ComparisonSide], called: JudgeSelection) -> Path:
    """Two or more sides, in a folder of their own."""
    folder = asked.out or Path("runs") / f"compare-{'-'.join(one.name for one in sides)}"
    with stages.locked(folder):
        base = _with_judges(_base(asked, sides), called, asked.settings)
        write_atomic(folder / "recipe.yaml", recipe.dump(base))
        prompts = _prompts(asked.prompts, sides, folder, base.infer.max_prompts)
        files = [_answered(one, prompts if asked.prompts else None, folder) for one in sides]
        keys = ["a", "b", *(f"side.{one.name}" for one in sides[2:])]
        if missing := asked.columns.missing([predictions.first_row(path) for path in files]):
            raise UsageError(f"{', '.join(missing)}: no file of answers has such a column")
        given = {key: predictions.read(path, asked.columns) for key, path in zip(keys, files, strict=True)}
        joined = predictions.join(given, asked.shared, datasets.load_prompts(prompts) if prompts is not None else [])
        inputs = _judged_by(called.inputs, sides)
        for key, one in zip(keys, sides, strict=True):
            path = folder / "sides" / f"{one.name}.jsonl"
            write_jsonl(path, [predictions.row(each) for each in joined[key]])
            inputs[key] = path
        if prompts is not None:
            inputs["prompts"] = prompts
        names = ",".join(one.name for one in sides)
        words = ["compare", "--recipe", str(folder / "recipe.yaml"), *_inputs(inputs), "--names", names]
        do(*words, "--out", str(folder / "comparison"))
    return folder / "comparison"


def _inputs(paths: Mapping[str, Path]) -> list[str]:
    return [word for name, path in paths.items() for word in ("--in", f"{name}={path}")]


def _base(asked: ComparisonRequest, sides: Sequence[ComparisonSide]) -> Recipe:
    """The recipe that a comparison starts from: the one that is named, that of the first run, or the defaults."""
    runs = [one for one in sides if one.kind == "run"]
    if asked.recipe is not None:
        values = recipe.load(asked.recipe)[0].model_dump(mode="json")
    elif runs:
        values = runs[0].recipe().model_dump(mode="json") | {"compare": {}}
    else:
        values = {}
    kept = {name: values[name] for name in KEPT if name in values}
    models = [one.place for one in sides if one.kind == "model"]
    return recipe.parse({"large_model_reference": models[0] if models else "none"} | kept)[0]


def _with_judges(found: Recipe, called: JudgeSelection, settings: Sequence[str]) -> Recipe:
    """The recipe with these language models among its judges; one of the same name is described anew."""
    values = found.model_dump(mode="json")
    new = {judge["name"] for judge in called.judges}
    kept = [judge for judge in values["compare"]["judges"] if judge["name"] not in new]
    values["compare"]["judges"] = kept + called.judges
    return recipe.parse(recipe.assign(values, settings))[0]


def _judged_by(inputs: Mapping[str, Path], sides: Sequence[ComparisonSide]) -> dict[str, Path]:
    """Who judges; where no reward model is named, the independent one of the first run that has one."""
    there = [one.folder / "judge/model" for one in sides if one.kind == "run"]
    own = next((path for path in there if path.is_dir()), None)
    if "judge" in inputs or own is None:
        return dict(inputs)
    print(f"the independent judge is {own}", file=sys.stderr)
    return {"judge": own, **inputs}


def _prompts(given: Path | None, sides: Sequence[ComparisonSide], folder: Path, most: int | None) -> Path | None:
    """The prompts file, written as the data have it; without one that of the first run, whose answers are compared."""
    if given is not None:
        rows = row_reader.kept(datasets.read([str(given)], "prompt"))
        if most is not None and most < len(rows):
            print(f"{given}: the first {most} of {len(rows)} prompts are taken (infer.max_prompts)", file=sys.stderr)
        row_writer.write(rows[:most], folder / "prompts.jsonl")
        return folder / "prompts.jsonl"
    models = [one.name for one in sides if one.kind == "model"]
    if models:
        raise UsageError(f"{', '.join(models)}: is a model; name what it is to answer: --prompts FILE")
    there = [one.folder / "data/prompt/test.jsonl" for one in sides if one.kind == "run"]
    return next((path for path in there if path.exists()), None)


def _answered(one: ComparisonSide, prompts: Path | None, folder: Path) -> Path:
    """The answers of a side, made where they are not there."""
    if one.kind == "file" or prompts is None:
        return predictions.prediction_file(one.answers())
    return infer(one.model(), prompts, folder / "answers" / one.name, folder / "recipe.yaml")


def infer(model: str, prompts: Path, out: Path, asked: Path, settings: Sequence[str] = ()) -> Path:
    """A model's answers to prompts, one each, by the stage of that name."""
    changed = [word for setting in (*settings, "infer.best_of=1") for word in ("--set", setting)]
    inputs = ["--in", f"model={model}", "--in", f"prompts={prompts}"]
    do("infer", "--recipe", str(asked), *changed, *inputs, "--out", str(out))
    return out / "text.jsonl"


def do(*words: str) -> None:
    """Run a command of ours; raises with its exit code where it fails."""
    if code := child_process.run_here([sys.executable, "-m", "preferent", *words]):
        failure = PreferentError(
            f"{words[0]} failed (exit code {code}); once the cause is gone, the same command goes on from here; this "
            f"step alone: preferent {shlex.join(words)}"
        )
        failure.exit_code = code
        raise failure


@dataclass(frozen=True, slots=True)
class SampledPairs:
    """Two files of answers for people to choose from, what was asked, and what the models are called."""

    predictions: tuple[Path, Path]
    prompts: Path
    models: tuple[str, str]


def sampled(
    prompts: Path, models: Sequence[str], out: Path, number: int | None = None, names: Sequence[str] = ()
) -> SampledPairs:
    """Two answers to each of `number` prompts: of two models one each, of one model two, sampled with two seeds.

    Prompts are read and answered as the recipe of the first run among the models says.
    """
    with stages.locked(out):
        sides = comparison_sides.of(models if len(models) == 2 else [models[0]] * 2, names)
        found = _base(ComparisonRequest(models), sides)
        files.write_atomic(out / "recipe.yaml", recipe.dump(found))
        chosen = _drawn(row_reader.kept(datasets.read([str(prompts)], "prompt")), found.seed, number)
        row_writer.write(chosen, out / "prompts.jsonl")
        paths = []
        for place, one in enumerate(sides):
            settings = ["infer.sampling_strategy=temperature_sampling", f"infer.max_prompts={max(len(chosen), 1)}"]
            settings += [f"seed={found.seed + place}"] if len(models) == 1 else []
            folder = out / "answers" / one.name
            paths.append(infer(one.model(), out / "prompts.jsonl", folder, out / "recipe.yaml", settings))
    return SampledPairs((paths[0], paths[1]), out / "prompts.jsonl", (sides[0].name, sides[1].name))


def of_run(folder: Path, out: Path, number: int | None) -> SampledPairs:
    """Base and tuned model of a run on prompts that it trained on: what the next round learns from."""
    models = [str(folder), str(finished_run.of(folder).base())]
    return sampled(folder / "data/prompt/train.jsonl", models, out, number, ("tuned", "base"))


def _drawn(prompts: Sequence[Any], seed: int, number: int | None) -> list[Any]:
    """`number` of the prompts, drawn by the seed, in their order; all where no number is given."""
    if number is None or number >= len(prompts):
        return list(prompts)
    order = randomness.permutation(seed, "label", 0, len(prompts))
    return [prompts[place] for place in sorted(order[:number].tolist())]
