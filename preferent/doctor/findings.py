"""What a rule found: a name, how bad it is, the figures that show it, and what to do."""

from dataclasses import dataclass
from typing import Literal

SICK: Literal["sick"] = "sick"
SUSPICIOUS: Literal["suspicious"] = "suspicious"
Severity = Literal["sick", "suspicious"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One figure, where it is written; `steps` are the first and the last step that a mean was taken over."""

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
    """`sick`: the result cannot be trusted, or there is none; `suspicious`: look before you trust it."""

    name: str
    severity: Severity
    says: str
    evidence: tuple[Evidence, ...]
    advice: str
