"""Everything that the command line does, as Python calls: a recipe that is run, and a run that is read and used.

Each call raises a `preferent.errors.PreferentError` where the command line would print a message; its `exit_code` is
the one of the command line, and its `__cause__` is the error of the stage that failed.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from preferent import files
from preferent.commands import compare_runs, plan
from preferent.config import recipe as recipes
from preferent.config.recipe import Recipe
from preferent.doctor import examination, run_history
from preferent.doctor.findings import Finding
from preferent.errors import PlatformError
from preferent.evaluation import verdict_sentence
from preferent.evaluation.comparison_types import ComparisonMetrics
from preferent.labeling import serving
from preferent.pipelines import executor
from preferent.report import page
from preferent.runs import metrics
from preferent.runs.directory import RunDirectory


@dataclass(frozen=True)
class Run:
    """A run directory: `Run("runs/my")`. Nothing is read before it is asked for, and reading imports no torch."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def directory(self) -> RunDirectory:
        """The paths of the run's files."""
        return RunDirectory(self.folder)

    def metrics(self, stage: str = "policy") -> list[dict[str, float | None]]:
        """Return the lines of `metrics.jsonl` of a stage folder (`sft`, `reward`, `judge`, `policy`)."""
        return metrics.read(self._existing(self.directory.stage(stage).metrics))

    def predictions(self, model: str = "tuned") -> list[dict[str, Any]]:
        """Return the answers of a model (`base`, `tuned`, `original`) to the test prompts, as GCPC rows."""
        return files.read_jsonl(self._existing(self.directory.predictions(model)))

    def judgments(self) -> list[dict[str, Any]]:
        """Return what the judges said, in the AutoSxS columns; `model_a` and `model_b` name the sides."""
        return files.read_jsonl(self._existing(self.directory.comparison.judgments))

    def verdict(self) -> ComparisonMetrics:
        """Return `comparison/metrics.json`: win rates with intervals, KL, lengths."""
        figures: ComparisonMetrics = files.read_json(self._existing(self.directory.comparison.metrics))
        return figures

    def headline(self) -> str:
        """Return the verdict in a sentence."""
        return verdict_sentence.verdict_sentence(self.verdict())

    def recipe(self) -> "LoadedRecipe":
        """Return the recipe that the run was made with."""
        return load_recipe(self._existing(self.directory.recipe))

    def report(self) -> Path:
        """Draw the report from the files of the run; return the path of the HTML file."""
        page.main(self.recipe().recipe, {"run": self.folder}, self.folder)
        return self.directory.report

    def doctor(self) -> list[Finding]:
        """Return the known failure modes that were found in the run, the sick ones first."""
        return examination.examine(run_history.read(self.folder))

    def compare(
        self,
        *others: str | Path,
        judges: Sequence[str] = (),
        names: Sequence[str] = (),
        prompts: str | Path | None = None,
        out: str | Path | None = None,
    ) -> list[str]:
        """Compare the run's tuned model with other runs, models or files of answers; return the verdict in lines.

        Without others the run's own comparison is judged again by `judges`. `judges` and `names` are what `--judge` and
        `--names` of `preferent compare` take; a comparison of several sides goes to `out`.
        """
        return compare_runs.compare(
            compare_runs.ComparisonRequest(
                sides=[str(self.folder), *map(str, others)],
                names=names,
                prompts=None if prompts is None else Path(prompts),
                judges=judges,
                out=None if out is None else Path(out),
            )
        )

    def label(
        self, *, number: int | None = None, annotators: Sequence[str] = (), overlap: int = 1, port: int | None = None
    ) -> None:
        """Serve the page on which people say which of two answers is better, until the process is interrupted.

        Votes go to `labels` in the run directory, as with `preferent label RUN`; `export_labels` writes them out.
        """
        serving.serve(folder=self.folder, number=number, annotators=annotators, overlap=overlap, port=port)

    def export_labels(self) -> str:
        """Write the judgments and preferences that people's votes amount to; return their counts in a sentence."""
        return serving.export(self.folder)

    def export(self, out: str | Path, what: Literal["merged", "adapter", "reward", "gguf"] = "merged") -> str:
        """Write the tuned policy or the reward model to `out` for other programs; return what was written."""
        from preferent.commands.inference import export  # imports torch

        return export.deliver(self.folder, Path(out), what)

    def _existing(self, path: Path) -> Path:
        if not path.exists():
            names = ", ".join(entry.name for entry in self.directory.entries()) or "nothing"
            raise PlatformError(f"{path}: does not exist; {self.folder} contains: {names}")
        return path


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that was read and checked: load it with `load_recipe`."""

    recipe: Recipe
    ignored: Sequence[str] = field(default_factory=list)
    """Keys that mean something only on Google Cloud."""

    def plan(self, out: str | Path = "runs/plan", sizes: bool = True) -> str:
        """Return what a run in `out` would do and need, as `preferent plan` prints it."""
        return plan.describe(self.recipe, self.ignored, Path(out), sizes)

    def run(self, out: str | Path) -> Run:
        """Do everything that the recipe asks for in the run directory `out`; the same call again resumes."""
        if self.ignored:
            print(f"ignored, they mean something only on Google Cloud: {', '.join(self.ignored)}", file=sys.stderr)
        executor.execute(self.recipe, Path(out))
        return Run(Path(out))


def load_recipe(source: Mapping[str, Any] | str | Path, settings: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe from a YAML file, or from a dictionary such as GCPC's `parameter_values`.

    `settings` are `KEY=VALUE` texts, as `--set` takes them, and apply to a file. Raises `UsageError` where the recipe
    is wrong, naming the key.
    """
    if isinstance(source, Mapping):
        return LoadedRecipe(*recipes.parse(dict(source)))
    return LoadedRecipe(*recipes.load(Path(source), list(settings)))
