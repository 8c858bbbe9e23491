"""The run directory: where a run keeps what. No other module spells these names.

docs/run.md describes the layout, which is a public interface. Every path is relative to the root that a directory is
made with, so `RunDirectory(Path())` gives the names as a message shows them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preferent.errors import UsageError

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class StageDirectory:
    """The folder of one stage. A stage writes only some of these files; docs/run.md says which."""

    folder: Path

    @property
    def description(self) -> Path:
        """What was asked of the stage, of which inputs, and what it learnt on the way."""
        return self.folder / "stage.json"

    @property
    def done(self) -> Path:
        """The marker that the stage is finished, written last."""
        return self.folder / "DONE"

    @property
    def metrics(self) -> Path:
        """A line of numbers per step."""
        return self.folder / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """A line of times per step."""
        return self.folder / "timings.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights of the best validation so far."""
        return self.folder / "best"

    @property
    def model(self) -> Path:
        """The model that the stage delivers."""
        return self.folder / "model"

    @property
    def rollouts(self) -> Path:
        """The folder of sampled and scored answers."""
        return self.folder / "rollouts"

    @property
    def samples(self) -> Path:
        """The rollouts as text."""
        return self.rollouts / "samples.jsonl"

    @property
    def score(self) -> Path:
        """How raw scores become the score that tuning raises."""
        return self.folder / "score.json"

    @property
    def quality(self) -> Path:
        """How good a reward model is on held-out pairs."""
        return self.folder / "quality.json"

    @property
    def mistakes(self) -> Path:
        """The held-out pairs that a reward model got most wrong."""
        return self.folder / "mistakes.jsonl"

    @property
    def initial_answers(self) -> Path:
        """Answers of the model that a reward model starts from, as token ids."""
        return self.folder / ".samples.json"

    @property
    def answers(self) -> Path:
        """The predictions of a stage that answers prompts."""
        return self.folder / "text.jsonl"

    @property
    def parts(self) -> Path:
        """The folder of the predictions made so far."""
        return self.folder / "parts"


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The folder of the stage `data`."""

    folder: Path

    @property
    def counts(self) -> Path:
        """The counts of rows, by file and by part."""
        return self.folder / "counts.json"

    @property
    def dropped(self) -> Path:
        """The rows that cannot be used, with the reasons."""
        return self.folder / "dropped.jsonl"

    @property
    def remote(self) -> Path:
        """The folder of the copies of remote files."""
        return self.folder / "remote"

    @property
    def remote_index(self) -> Path:
        """The addresses of the copies, with sizes, digests and versions."""
        return self.remote / "index.json"

    def rows(self, kind: str, part: str) -> Path:
        """Return the path of a part: `prompt` or `preference`; `train`, `validation`, `test` or `judge`."""
        return self.folder / kind / f"{part}.jsonl"


@dataclass(frozen=True, slots=True)
class ComparisonDirectory:
    """The folder of a comparison."""

    folder: Path

    @property
    def metrics(self) -> Path:
        """The verdict in numbers."""
        return self.folder / "metrics.json"

    @property
    def judgments(self) -> Path:
        """Every judgment, in the columns of AutoSxS."""
        return self.folder / "judgments.jsonl"

    @property
    def answers(self) -> Path:
        """The answers of all sides to each prompt."""
        return self.folder / "answers.jsonl"

    @property
    def gold(self) -> Path:
        """The verdict by the true preference, where it is known (quickstart)."""
        return self.folder / "gold.json"


@dataclass(frozen=True, slots=True)
class LabelDirectory:
    """A folder of labels."""

    folder: Path

    @property
    def database(self) -> Path:
        """The questions about pairs, and everything that people said of them."""
        return self.folder / "labels.sqlite"

    @property
    def thumbs_database(self) -> Path:
        """The questions about single answers, and everything that people said of them."""
        return self.folder / "thumbs.sqlite"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """A run directory."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def index(self) -> Path:
        """The state of every stage, rebuilt from their descriptions."""
        return self.root / "run.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def data(self) -> DataDirectory:
        return DataDirectory(self.root / "data")

    @property
    def counts(self) -> Path:
        """What the data held, in numbers."""
        return self.data.counts

    def prompts(self, part: Part) -> Path:
        """Return the prompts of a part."""
        return self.data.rows("prompt", part)

    def preferences(self, part: Part) -> Path:
        """Return the preferences of a part."""
        return self.data.rows("preference", part)

    def stage(self, name: str) -> StageDirectory:
        """Return the folder of a stage: `sft`, `reward`, `judge`, `policy`, `predictions/base`, and so on."""
        return StageDirectory(self.root / name)

    @property
    def policy(self) -> StageDirectory:
        return self.stage("policy")

    def predictions(self, model: str) -> Path:
        """Return the answers of a model (`base`, `tuned`, `original`) to the test prompts."""
        return self.stage(f"predictions/{model}").answers

    @property
    def comparison(self) -> ComparisonDirectory:
        return ComparisonDirectory(self.root / "comparison")

    @property
    def calls(self) -> Path:
        """The replies of language models that judge."""
        return self.root / "calls"

    @property
    def labels(self) -> Path:
        """The labels that people gave on test prompts."""
        return self.root / "labels"

    @property
    def training_labels(self) -> Path:
        """The labels that people gave on training prompts."""
        return self.labels / "train"

    def is_run(self) -> bool:
        """Return whether this is a run directory: it has a recipe."""
        return self.recipe.is_file()

    def require_run(self) -> None:
        """Raise `UsageError` if this is not a run directory."""
        if not self.root.is_dir():
            raise UsageError(f"{self.root}: no such run directory; make one with `preferent run RECIPE`")
        if not self.is_run():
            raise UsageError(
                f"{self.root}: is not a run directory: it contains no recipe.yaml; name the `--out` of a run"
            )

    def entries(self) -> Iterator[Path]:
        """Yield what lies in the directory, sorted by name."""
        return iter(sorted(self.root.glob("*")))
