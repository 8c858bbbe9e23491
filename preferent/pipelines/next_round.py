"""The recipe of the round after a run: what people said of that run is learnt from."""

import sys
from pathlib import Path

from preferent.config.recipe import Recipe, parse
from preferent.config.sections import paths
from preferent.errors import PlatformError
from preferent.pipelines import finished_run

LABELS, TIES = Path("labels/train/preferences.jsonl"), Path("labels/train/ties.jsonl")


def with_labels(recipe: Recipe, earlier: Path) -> Recipe:
    """Return the recipe of the round after `earlier`: it learns from the old preferences and from what people said of
    that run and of those before it, and is compared with all of them.

    Raises `PlatformError` where `earlier` has no policy or nobody has labelled.
    """
    chain = [*finished_run.of(earlier).recipe.continues, str(earlier)]
    every = [Path(folder) / name for folder in chain for name in (LABELS, TIES)]
    labels = [str(path) for path in every if path.exists() and path.stat().st_size]
    if str(earlier / LABELS) not in labels:
        raise PlatformError(
            f"{earlier / LABELS}: no preferences to learn from; people give them with `preferent label {earlier} --on "
            f"train`, and `preferent label {earlier / LABELS.parent} --export` writes them out. What they say of test "
            f"prompts (in {earlier / 'labels'}) measures, and teaches nothing: no round is judged by what it has learnt"
        )
    given = [*paths(recipe.preference_dataset), *labels]
    values = recipe.model_dump(mode="json") | {"continues": chain, "preference_dataset": list(dict.fromkeys(given))}
    if recipe.data.format not in ("auto", "gcpc"):
        print(f"data.format: {recipe.data.format} becomes auto, as labels are written as gcpc", file=sys.stderr)
    values["data"]["format"] = "auto"
    return parse(values)[0]
