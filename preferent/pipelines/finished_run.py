"""What a finished run has made: its recipe, and where base, tuned policy and reward models are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preferent.config import model_reference, recipe, stage_graph
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.errors import PlatformError, UsageError
from preferent.runs.directory import RunDirectory


@dataclass(frozen=True)
class FinishedRun:
    """A run directory whose policy is there: read it with `of`.

    `tuned` and `rewards` are model folders of the run, and the reward models that its recipe names; there are no
    rewards where the run optimised a function alone, or learnt from the preferences themselves.
    """

    folder: Path
    recipe: Recipe
    tuned: Path
    rewards: Mapping[str, Path]

    @property
    def adapter(self) -> bool:
        """Whether the policy is a LoRA adapter."""
        return (self.tuned / "adapter_config.json").exists()

    def base(self) -> Path:
        """Return the folder of the model that tuning started from; raise `PlatformError` where it cannot be had."""
        task = next(task for task in stage_graph.build(self.recipe) if task.name == "infer-base")
        inside = task.inputs.get("model")
        return self.folder / inside if inside else model_reference.resolve(task.outside["model"])

    def converses(self) -> bool:
        """Return whether the run's prompts are conversations, told by the first one it trained on."""
        path = RunDirectory(self.folder).prompts("train")
        prompts = datasets.load_prompts(path) if path.exists() else []
        return bool(prompts and prompts[0].messages)


def of(folder: Path) -> FinishedRun:
    """Return the finished run in a folder; raise if it is not a run (2) or has no policy yet (3)."""
    if not RunDirectory(folder).recipe.is_file():
        raise UsageError(f"{folder}: is not a run directory: it contains no recipe.yaml; name the `--out` of a run")
    found, _ = recipe.load(RunDirectory(folder).recipe)
    tuned = RunDirectory(folder).policy.model
    if not tuned.is_dir() or not RunDirectory(folder).policy.done.exists():
        raise PlatformError(
            f"{folder}: has no tuned policy yet; finish it: preferent run {folder / 'recipe.yaml'} --out {folder}"
        )
    trained = {name: folder / path for name, path in stage_graph.rewards(found).items()}
    named = {name: Path(reference) for name, reference in stage_graph.foreign(found).items()}
    return FinishedRun(folder, found, tuned, trained | ({} if stage_graph.direct(found) else named))
