"""The last lines of a run: the verdict, what it takes to see a difference, and the findings of the doctor."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from preferent import files
from preferent.doctor import examination, run_history
from preferent.doctor.findings import SICK, SUSPICIOUS, Finding
from preferent.evaluation import verdict_sentence
from preferent.evaluation.comparison_types import ComparisonMetrics
from preferent.runs.directory import RunDirectory


def lines(folder: Path) -> list[str]:
    """Return the last lines of a finished run."""
    run = RunDirectory(folder)
    metrics: ComparisonMetrics = files.read_json(run.comparison.metrics)
    policy = files.read_json(run.policy.description) if run.policy.description.exists() else {}
    unchanged = verdict_sentence.unchanged(policy.get("facts", {}))
    findings = examination.examine(run_history.read(folder))
    return [
        *verdict_sentence.summary(metrics),
        *([unchanged] if unchanged else []),
        *([named(findings, folder)] if findings else []),
    ]


def named(findings: Sequence[Finding], folder: Path) -> str:
    """Return the names of findings in a line, with the command that shows them."""
    kinds = [(kind, [one.name for one in findings if one.severity == kind]) for kind in (SICK, SUSPICIOUS)]
    counted = "; ".join(f"{len(names)} {kind}: {', '.join(_counted(names))}" for kind, names in kinds if names)
    total = f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"
    return f"doctor: {total} ({counted}); preferent doctor {folder} shows them"


def _counted(names: Sequence[str]) -> list[str]:
    return [name if count == 1 else f"{name} × {count}" for name, count in Counter(names).items()]
