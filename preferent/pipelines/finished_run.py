"""A finished run: its recipe, and the paths of its base model, tuned policy and reward models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preferent.config import model_reference, recipe, stage_graph
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.data.types import Prompt
from preferent.errors import PlatformError
from preferent.runs.directory import RunDirectory


@dataclass(frozen=True)
class FinishedRun:
    """A run directory that has a tuned policy; `of` reads it.

    `tuned` is a model folder of the run. `rewards` are the reward models that it trained and those that its recipe
    names; it is empty if the run optimised a function alone, or learnt from the preferences themselves.
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
        """Return the folder of the model that tuning started from; raise `PlatformError` if it is not available."""
        task = next(task for task in stage_graph.build(self.recipe) if task.name == "infer-base")
        inside = task.inputs.get("model")
        return self.folder / inside if inside else model_reference.resolve(task.outside["model"])

    def first_prompt(self) -> Prompt | None:
        """Return the first training prompt."""
        path = RunDirectory(self.folder).prompts("train")
        return next(iter(datasets.load_prompts(path)), None) if path.exists() else None

    def converses(self) -> bool:
        """Return whether the run's prompts are conversations, judged by the first training prompt."""
        prompt = self.first_prompt()
        return prompt is not None and bool(prompt.messages)


def of(folder: Path) -> FinishedRun:
    """Return the finished run in a folder.

    Raises `UsageError` if the folder is not a run directory, and `PlatformError` if it has no tuned policy yet.
    """
    directory = RunDirectory(folder)
    directory.require_run()
    settings, _ = recipe.load(directory.recipe)
    tuned = directory.policy.model
    if not tuned.is_dir() or not directory.policy.done.exists():
        raise PlatformError(
            f"{folder}: has no tuned policy yet; finish it: preferent run {directory.recipe} --out {folder}"
        )
    if settings.chat_template is not None:  # the copy in the run is there wherever the run is
        settings = settings.model_copy(update={"chat_template": str(tuned / "chat_template.jinja")})
    trained = {name: folder / path for name, path in stage_graph.rewards(settings).items()}
    named = {name: Path(reference) for name, reference in stage_graph.foreign(settings).items()}
    return FinishedRun(folder, settings, tuned, trained | ({} if stage_graph.direct(settings) else named))
