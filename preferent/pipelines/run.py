"""A run directory, open for reading in Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preferent import files
from preferent.errors import PlatformError
from preferent.evaluation import verdict_sentence
from preferent.evaluation.comparison_types import ComparisonMetrics


@dataclass(frozen=True)
class Run:
    """A run directory, read."""

    folder: Path

    def metrics(self, stage: str = "policy") -> list[dict[str, float | None]]:
        """The lines of `metrics.jsonl` of a stage folder (`sft`, `reward`, `judge`, `policy`)."""
        return self._rows(f"{stage}/metrics.jsonl")

    def predictions(self, model: str = "tuned") -> list[dict[str, Any]]:
        """The answers of a model (`base`, `tuned`, `original`) to the test prompts, as GCPC rows."""
        return self._rows(f"predictions/{model}/text.jsonl")

    def judgments(self) -> list[dict[str, Any]]:
        """What the judges said, in the AutoSxS columns, and whose answers `model_a` and `model_b` are."""
        return self._rows("comparison/judgments.jsonl")

    def verdict(self) -> ComparisonMetrics:
        """`comparison/metrics.json`: win rates with intervals, KL, lengths."""
        metrics: ComparisonMetrics = files.read_json(self._found("comparison/metrics.json"))
        return metrics

    def report(self) -> Path:
        """The report, one HTML file."""
        return self._found("report.html")

    def headline(self) -> str:
        """The verdict in a sentence."""
        return verdict_sentence.verdict_sentence(self.verdict())

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return files.read_jsonl(self._found(name))

    def _found(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            there = ", ".join(sorted(p.name for p in self.folder.glob("*"))) or "nothing"
            raise PlatformError(f"{path}: not there; in {self.folder} there is: {there}")
        return path
