"""The recipe of the round after a run, which also learns from the labels of that run."""

import sys
from pathlib import Path

from preferent.config.recipe import Recipe, parse
from preferent.config.sections import paths
from preferent.errors import PlatformError
from preferent.pipelines import finished_run
from preferent.runs.directory import RunDirectory

FOLDER = RunDirectory(Path()).training_labels
LABELS, TIES, THUMBS = (FOLDER / f"{name}.jsonl" for name in ("preferences", "ties", "thumbs"))


def with_labels(recipe: Recipe, earlier: Path) -> Recipe:
    """Return the recipe of the round after the run `earlier`.

    The round learns from the old preferences and from the labels of `earlier` and of the runs before it, and is
    compared with all of them. Raises `PlatformError` if `earlier` has no policy or no labels.
    """
    chain = [*finished_run.of(earlier).recipe.continues, str(earlier)]
    label_files = [Path(folder) / name for folder in chain for name in (LABELS, TIES, THUMBS)]
    labels = [str(path) for path in label_files if path.exists() and path.stat().st_size]
    if not {str(earlier / LABELS), str(earlier / THUMBS)} & {*labels}:
        raise PlatformError(
            f"{earlier / LABELS}: no preferences to learn from, and no thumbs; collect them with `preferent label "
            f"{earlier} --on train`, with --thumbs or without, and export them with `preferent label "
            f"{earlier / FOLDER} --export`. Labels on test prompts "
            f"(in {RunDirectory(earlier).labels}) are for the verdict only, so no round is judged by what it learnt"
        )
    files = [*paths(recipe.preference_dataset), *labels]
    values = recipe.model_dump(mode="json") | {"continues": chain, "preference_dataset": list(dict.fromkeys(files))}
    if recipe.data.format not in ("auto", "gcpc"):
        print(f"data.format: {recipe.data.format} becomes auto, because labels are written as gcpc", file=sys.stderr)
    values["data"]["format"] = "auto"
    return parse(values)[0]
