"""The Python calls: `LoadedRecipe` plans and runs a recipe, `Run` reads a run directory and works with it.

Each call raises a `preferent.errors.PreferentError` where the command line would print a message; its `exit_code` is
the one of the command line, and its `__cause__` is the error of the stage that failed.
"""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from preferent import files
from preferent.commands import compare_runs, plan
from preferent.commands.cards import hardware
from preferent.commands.cards.hardware import Machines
from preferent.commands.time_estimate import Speeds, Work
from preferent.config import recipe as recipes
from preferent.config.memory_estimate import ModelFacts
from preferent.config.recipe import Recipe
from preferent.doctor import examination, run_history
from preferent.doctor.findings import Finding
from preferent.errors import PlatformError, UsageError
from preferent.evaluation import verdict_sentence
from preferent.evaluation.comparison_types import ComparisonMetrics
from preferent.labeling import serving
from preferent.pipelines import executor, next_round, run_summary
from preferent.pipelines.launchers import ray
from preferent.report import page
from preferent.runs import metrics
from preferent.runs.directory import RunDirectory


@dataclass(frozen=True, init=False)
class Run:
    """A run directory: `Run("runs/my")`. Each method reads the files it needs when it is called, without torch."""

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        object.__setattr__(self, "folder", Path(folder))

    @property
    def directory(self) -> RunDirectory:
        """The paths of the run's files."""
        return RunDirectory(self.folder)

    def metrics(self, stage: str = "policy") -> list[dict[str, float | None]]:
        """Return the lines of `metrics.jsonl` of a stage folder (`sft`, `reward`, `judge`, `policy`)."""
        return metrics.read(self._existing(self.directory.stage(stage).metrics))

    def predictions(self, model: str = "tuned") -> list[dict[str, Any]]:
        """Return the answers of a model (`base`, `tuned`, `original`) to the test prompts.

        The rows are those of GCPC's (Google Cloud Pipeline Components') bulk inference.
        """
        return files.read_jsonl(self._existing(self.directory.predictions(model)))

    def judgments(self) -> list[dict[str, Any]]:
        """Return the judgments of all judges in the AutoSxS columns; `model_a` and `model_b` name the sides."""
        return files.read_jsonl(self._existing(self.directory.comparison.judgments))

    def verdict(self) -> ComparisonMetrics:
        """Return `comparison/metrics.json`: win rates with intervals, KL, lengths."""
        figures: ComparisonMetrics = files.read_json(self._existing(self.directory.comparison.metrics))
        return figures

    def headline(self) -> str:
        """Return the verdict in a sentence."""
        return verdict_sentence.verdict_sentence(self.verdict())

    def summary(self) -> list[str]:
        """Return the last lines of `preferent run`: the verdict, what it lacks, and the names of doctor's findings."""
        return run_summary.lines(self.folder)

    def recipe(self) -> "LoadedRecipe":
        """Return the recipe that the run was made with."""
        return load_recipe(self._existing(self.directory.recipe))

    def report(self) -> Path:
        """Write the report from the files of the run; return the path of the HTML file."""
        page.main(self.recipe().recipe, {"run": self.folder}, self.folder, examination.sick(self.folder))
        return self.directory.report

    def doctor(self) -> list[Finding]:
        """Return the findings about known failure modes, those of severity `sick` first."""
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

        Without others the run's own comparison is judged again, also by `judges`. The arguments are those of
        `preferent compare`: `judges` takes the values of `--judge`, `out` is the folder of a comparison with others.
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
        self,
        *,
        number: int | None = None,
        annotators: Sequence[str] = (),
        overlap: int = 1,
        port: int | None = None,
        thumbs: bool = False,
    ) -> None:
        """Serve the page on which people choose the better of two answers, until the process is interrupted.

        With `thumbs` they say of one answer at a time whether it is good. Votes are stored in `labels` in the run
        directory, as by `preferent label RUN`; `export_labels` exports them.
        """
        serving.serve(
            folder=self.folder, number=number, annotators=annotators, overlap=overlap, port=port, thumbs=thumbs
        )

    def export_labels(self, thumbs: bool = False) -> str:
        """Write people's votes as judgments and preferences, or their thumbs; return the counts in a sentence."""
        return serving.export(self.folder, "thumbs" if thumbs else "pairs")

    def export(
        self,
        out: str | Path,
        what: Literal["merged", "adapter", "reward", "gguf"] = "merged",
        precision: Literal["bf16", "f16"] | None = None,
    ) -> str:
        """Write the tuned policy or the reward model to `out` for other programs; return what was written.

        `precision` is that of the matrices in a GGUF file; default: bf16 for a model stored in bfloat16, else f16.
        """
        from preferent.commands.inference import export  # imports torch

        return export.write(self.folder, Path(out), what, precision)

    def _existing(self, path: Path) -> Path:
        if not path.exists():
            names = ", ".join(entry.name for entry in self.directory.entries()) or "nothing"
            raise PlatformError(f"{path}: does not exist; {self.folder} contains: {names}")
        return path


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that was read and checked by `load_recipe`."""

    recipe: Recipe
    ignored: Sequence[str] = field(default_factory=list)
    """The keys that have a meaning on Google Cloud only."""

    def plan(
        self,
        out: str | Path = "runs/plan",
        sizes: bool = True,
        commands: bool = False,
        memory: int | None = None,
        calibrate: bool = False,
        card: str | None = None,
        gpus: int | None = None,
        nodes: int = 1,
        link: float | None = None,
        network: float | None = None,
    ) -> str:
        """Return what a run in `out` would do and need, as `preferent plan` prints it.

        Without `sizes` it has no memory; with `commands` it has the command of each stage. `memory` is that of a GPU in
        bytes; default: that of this machine's device. To `calibrate` times this machine for half a minute, and adds how
        long each stage would take on it.

        With the name of a `card`, such as `"h100-80g"`, memory and time are those of its data sheet. With several
        `gpus` on each of some `nodes` the plan says what each of them holds and sends; `link` and `network` are the
        bytes per second between GPUs of a node, and between nodes. By default there are as many as the recipe's
        `processes`, as in a run, which divide the memory and the cores of a machine without GPUs.
        """
        measure: Callable[[ModelFacts, Work], Speeds] | None = None
        if calibrate:
            from preferent.commands.inference import machine_speed  # imports torch

            measure = machine_speed.measure
        known = None if card is None else hardware.named(card)
        machines = Machines(gpus or 1, nodes, link or (None if known is None else known.link), network)
        if gpus is None:
            machines = hardware.as_run(machines, self.recipe, card is not None or memory is not None)
        return plan.describe(self.recipe, self.ignored, Path(out), sizes, commands, memory, measure, machines, known)

    def with_labels(self, earlier: str | Path) -> "LoadedRecipe":
        """Return the recipe of the round after the run `earlier`: it also learns from the labels of that run."""
        return LoadedRecipe(next_round.with_labels(self.recipe, Path(earlier)), self.ignored)

    def run(
        self,
        out: str | Path,
        from_stage: str | None = None,
        of_run: str | Path | None = None,
        launcher: Literal["process", "ray"] = "process",
        address: str | None = None,
        until: str | None = None,
    ) -> Run:
        """Do everything that the recipe asks for in the run directory `out`; the same call again resumes.

        With `from_stage` and `of_run` the stages before `from_stage` are taken from the run `of_run`; with `until` the
        stages behind that one are left for another call. The `launcher` says where stages compute: in processes here,
        or on the nodes of the Ray cluster at an `address` (default: one that is begun here).
        """
        if address is not None and launcher != "ray":
            raise UsageError("--address is that of a Ray cluster; give --launcher ray too")
        if self.ignored:
            print(f"ignored, they mean something only on Google Cloud: {', '.join(self.ignored)}", file=sys.stderr)
        earlier = None if of_run is None else Path(of_run)
        with contextlib.ExitStack() as stack:
            on_gpu = self.recipe.device != "cpu"
            launch = stack.enter_context(ray.joined(address, on_gpu)) if launcher == "ray" else None
            executor.execute(self.recipe, Path(out), from_stage, earlier, launch=launch, until=until)
        return Run(Path(out))


def load_recipe(source: Mapping[str, Any] | str | Path, settings: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe from a YAML file, or from a dictionary such as the `parameter_values` of
    GCPC (Google Cloud Pipeline Components).

    `settings` are `KEY=VALUE` texts, as `--set` takes them, and apply to a file. Raises `UsageError` with the key if
    the recipe is wrong.
    """
    if isinstance(source, Mapping):
        return LoadedRecipe(*recipes.parse(dict(source)))
    return LoadedRecipe(*recipes.load(Path(source), list(settings)))
