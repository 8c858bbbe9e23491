"""What the components do: stages of a run, and copies of what they made where users of GCPC look for it."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent import files
from preferent.config import stage_graph
from preferent.config.recipe import Recipe, dump, load, parse
from preferent.config.stage_graph import Task
from preferent.data import datasets
from preferent.data.formats import row_reader, row_writer
from preferent.errors import PreferentError
from preferent.evaluation import verdict_sentence
from preferent.kubeflow import object_store, parameters
from preferent.pipelines import executor
from preferent.pipelines.launchers import child_process
from preferent.runs import metrics, remote_files
from preferent.runs.directory import RunDirectory, StageDirectory

REWARD = ("rank_loss", "val/accuracy", "val/rank_loss")
CURVES: dict[str, tuple[str, ...]] = {
    "reward": REWARD,
    "judge": REWARD,
    "policy": ("reward", "kl_loss", "objective/kl", "val/score", "val/kl"),
}
"""The metrics whose last values a page of Kubeflow shows, by the folder of their stage."""


@contextlib.contextmanager
def told() -> Iterator[None]:
    """End the component with the message of an error that a user can mend, without a traceback."""
    try:
        yield
    except PreferentError as error:
        raise SystemExit(f"preferent: {error}") from None


def begin(pipeline_root: str, name: str, kind: str, values: Mapping[str, Any], further: str) -> str:
    """Write the recipe of a run, and return where the run lies; refuse the place of another run.

    The same parameters again go on with the run, and so do more training steps.
    """
    merged = parameters.merged(values, further)
    run = parameters.run_place(pipeline_root, parameters.run_name(name, kind, merged))
    folder = object_store.local(run)
    known, recipe = parameters.artifacts_folder(folder) / "parameters.json", RunDirectory(folder).recipe
    if known.exists():
        parameters.refuse_changes(files.read_json(known), merged, run)
    if not known.exists() or not recipe.exists() or files.read_json(known) != merged:
        files.write_atomic(recipe, dump(parse(merged)[0]))
        files.write_json(known, merged)
    return object_store.kept(run, folder)


def stages(run: str, chosen: Callable[[Task], bool]) -> None:
    """Run the chosen stages of a run; finished ones are skipped."""
    with told():
        folder = object_store.local(run)
        executor.perform(folder, chosen)
        object_store.kept(run, folder)


def verb(*words: str) -> None:
    """Run `preferent WORDS`; raise the error of the command if it fails."""
    if error := child_process.run_verb(words):
        raise error


def infer(run: Path, model: str, prompts: Path, name: str, settings: Sequence[str]) -> Path:
    """Answer the prompts in a file of rows in the folder `name` of a run; return the path of the answers."""
    changed = [word for setting in (*settings, "infer.max_prompts=null") for word in ("--set", setting)]
    inputs = ["--in", f"model={model}", "--in", f"prompts={prompts}"]
    verb("infer", "--recipe", str(RunDirectory(run).recipe), *changed, *inputs, "--out", str(run / name))
    return StageDirectory(run / name).answers


def recipe_of(run: str) -> Recipe:
    """Return the recipe of a run."""
    return load(RunDirectory(object_store.local(run)).recipe)[0]


def trained_rewards(run: str) -> tuple[str, ...]:
    """Return the names of the reward models that a run trains to tune against."""
    return tuple(stage_graph.rewards(recipe_of(run)))


def _beside(run: str) -> Path:
    """Return the folder beside a run where users of GCPC look for what it made."""
    return parameters.artifacts_folder(object_store.local(run))


def publish(source: Path, target: str | Path) -> str:
    """Link or copy a file or folder to `target`, which is replaced; return the path of `target`."""
    target = Path(target)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=executor.link_or_copy, ignore=shutil.ignore_patterns(".*"))
    elif source.exists():
        target.unlink(missing_ok=True)
        executor.link_or_copy(str(source), str(target))
    return str(target)


def publish_stage(run: str, folder: str, task: str, model: str | Path, events: str | Path) -> str:
    """Publish the model and the curves of a stage as artifacts, and beside the run; return the path of its model, or an
    empty text if the run has no such stage.

    Curves lie below `train`, as GCPC puts them.
    """
    stage, beside = StageDirectory(object_store.local(run) / folder), _beside(run) / task
    if not stage.model.exists():
        return ""
    for place in (Path(events), beside / "tensorboard_metrics"):
        publish(stage.tensorboard, place / "train")
    publish(stage.model, model)
    return object_store.kept(run, publish(stage.model, beside / "model"))


def last_values(run: str, folder: str) -> dict[str, float]:
    """Return the last value of each curve of a stage that a page of Kubeflow shows."""
    path = RunDirectory(object_store.local(run)).stage(folder).metrics
    shown: dict[str, float] = {}
    for row in metrics.read(path) if path.exists() else []:
        shown |= {name: row[name] for name in CURVES[folder] if row.get(name) is not None}  # type: ignore[misc]
    return shown


def log(shown: Any, figures: Mapping[str, float]) -> None:
    """Put figures into an artifact of metrics."""
    for name, number in figures.items():
        shown.log_metric(name, number)


def verdict(run: str) -> tuple[str, dict[str, float]]:
    """Return the verdict of a run in a sentence, and its figures as a page of Kubeflow shows them."""
    figures = files.read_json(RunDirectory(object_store.local(run)).comparison.metrics)
    return verdict_sentence.verdict_sentence(figures), headline_figures(figures)


def headline_figures(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the win rate of the headline judge, its interval and accuracy, and the KL."""
    shown: dict[str, float] = {}
    if name := figures.get("headline"):
        judge = figures["judges"][name]
        shown = {"win_rate": judge["win_rate"], "win_rate_low": judge["interval"][0]}
        shown["win_rate_high"] = judge["interval"][1]
        if judge.get("accuracy"):
            shown["judge_accuracy"] = judge["accuracy"]["share"]
    if figures.get("kl"):
        shown["kl"] = figures["kl"]["mean"]
    return shown


def publish_data(run: str, prompts: str, preferences: str) -> None:
    """Publish the rows of a run, divided, as artifacts."""
    folder = RunDirectory(object_store.local(run)).data.folder
    publish(folder / "prompt", prompts)
    publish(folder / "preference", preferences)


def preferences_of(run: str) -> str:
    """Return the folder of the preferences of a run, divided by prompt."""
    return object_store.kept(run, RunDirectory(object_store.local(run)).data.folder / "preference")


def row_counts(run: str) -> dict[str, float]:
    """Return the number of rows in each part of the data."""
    parts = files.read_json(RunDirectory(object_store.local(run)).counts)["parts"]
    return {f"{kind} {part}": float(count) for kind, by_part in parts.items() for part, count in by_part.items()}


def publish_model(run: str, folder: str, target: str) -> None:
    """Publish the model of a stage as an artifact; nothing if the run has no such stage."""
    publish(StageDirectory(object_store.local(run) / folder).model, target)


def whole_model(run: str) -> str:
    """Return the path of the tuned model with its adapter, if it is one, merged into the base."""
    model = RunDirectory(object_store.local(run)).policy.model
    if not (model / "adapter_config.json").exists():
        return object_store.kept(run, model)
    merged = _beside(run) / "reinforcer" / f"merged-{files.fingerprint(model)[-8:]}"
    if not merged.exists():
        unfinished = merged.with_name(".merged.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with told():
            verb("export", str(object_store.local(run)), "--out", str(unfinished))
        unfinished.rename(merged)
    return object_store.kept(run, merged)


def publish_judgments(run: str, target: str) -> None:
    publish(RunDirectory(object_store.local(run)).comparison.judgments, target)


def publish_report(run: str, target: str) -> None:
    publish(RunDirectory(object_store.local(run)).report, target)


def write_text(path: str, text: str) -> None:
    """Write an output parameter to the file that Kubeflow reads it from."""
    files.write_atomic(Path(path), text)


def publish_predictions(run: str, tuned: str, untuned: str) -> str:
    """Publish the answers of tuned model and base as artifacts; return the folder `output_prediction_gcs_path`.

    That folder, beside the run, holds the one file `text.jsonl`; beside it lie both files under the names of the
    course, `eval_results_tuned.jsonl` and `eval_results_untuned.jsonl`.
    """
    directory, beside = RunDirectory(object_store.local(run)), _beside(run) / "bulk-inferrer"
    for model, name, artifact in (("tuned", "tuned", tuned), ("base", "untuned", untuned)):
        path = directory.predictions(model)
        publish(path, beside / f"eval_results_{name}.jsonl")
        publish(path, Path(artifact) / path.name)
    answers = directory.predictions("tuned")
    publish(answers, beside / "output_prediction_gcs_path" / answers.name)
    return object_store.kept(run, beside / "output_prediction_gcs_path")


def answer(run: str, model: str, prompts: str, side: str) -> Path:
    """Answer every prompt of a dataset with a model, in the folder of a run; return the path of the answers.

    Side b draws other answers than side a where both are the same model.
    """
    folder = object_store.local(run)
    settings = [f"seed={2 * recipe_of(run).seed + (side == 'b')}"] if side else []
    with told():
        source = prompt_rows(prompts, folder / "prompts.jsonl")
        return infer(folder, str(object_store.local(model)), source, "answers", settings)


def prompt_rows(prompts: str, target: Path) -> Path:
    """Write the prompts of a dataset, which may be remote, as rows to a file; return its path."""
    with remote_files.copied([prompts]):
        rows: Sequence[Any] = row_reader.kept(datasets.read([prompts], "prompt"))
    row_writer.write(rows, target)
    return target


def publish_answers(run: str, answers: Path, target: str) -> str:
    """Publish a file of answers as an artifact; return the folder `output_prediction_gcs_path` beside the run."""
    publish(answers, Path(target) / answers.name)
    beside = _beside(run) / "output_prediction_gcs_path"
    publish(answers, beside / answers.name)
    return object_store.kept(run, beside)
