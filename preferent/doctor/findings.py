"""Findings of the rules: a name, a severity, the figures that show it, and advice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preferent.runs.directory import RunDirectory

SICK: Literal["sick"] = "sick"
SUSPICIOUS: Literal["suspicious"] = "suspicious"
Severity = Literal["sick", "suspicious"]
RELATIVE = RunDirectory(Path())
"""Paths as evidence names them: relative to the run directory."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A figure and the file that contains it; `steps` are the first and the last step that a mean is taken over."""

    file: str
    figure: str
    value: float | str
    steps: tuple[int, int] | None = None

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        return f"{self.file}{self._when()}: {self.figure} {shown}"

    def _when(self) -> str:
        if self.steps is None:
            return ""
        first, last = self.steps
        return f", step {first}" if first == last else f", steps {first} to {last}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem: `sick` if the result cannot be trusted or is missing, `suspicious` if it needs a check."""

    name: str
    severity: Severity
    says: str
    evidence: tuple[Evidence, ...]
    advice: str

    def __str__(self) -> str:
        return f"{self.severity}, {self.name}: {self.says} {self.advice}"
