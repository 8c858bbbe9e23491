"""`preferent doctor RUN`: checks the files of a run for known failure modes.

A rule is a function from the run's history to findings. It reads the numbers in the files and does not run a model.
"""

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from preferent.doctor import (
    answer_rules,
    comparison_rules,
    curve_rules,
    data_rules,
    dpo_rules,
    policy_rules,
    reward_rules,
)
from preferent.doctor.findings import SICK, SUSPICIOUS, Finding
from preferent.doctor.run_history import RunHistory, read
from preferent.errors import DataError, PreferentError

Rule = Callable[[RunHistory], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    *data_rules.RULES,
    *curve_rules.RULES,
    *reward_rules.RULES,
    *policy_rules.RULES,
    *dpo_rules.RULES,
    *answer_rules.RULES,
    *comparison_rules.RULES,
)
WIDTH = 100


def main(root: Path, as_json: bool) -> None:
    """Print the findings about a run directory; raise `DataError` if one of them is `sick`."""
    history = read(root)
    findings = examine(history)
    print(to_json(findings) if as_json else render(root, history, findings))
    sick = sum(finding.severity == SICK for finding in findings)
    if sick:
        raise DataError(
            f"{root}: {sick} of {len(findings)} findings are sick: do not trust the result; follow their advice"
        )


def examine(history: RunHistory) -> list[Finding]:
    """Return all findings, the sick ones first."""
    findings = [finding for rule in RULES for finding in rule(history)]
    return sorted(findings, key=lambda finding: finding.severity != SICK)


def sick(root: Path) -> list[str]:
    """Return what is sick about a run, a sentence each; if the run cannot be read, the reason for that."""
    try:
        findings = examine(read(root))
    except PreferentError as error:
        return [f"preferent doctor could not read the run: {error}"]
    return [finding.says for finding in findings if finding.severity == SICK]


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as a JSON list."""
    return json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False)


def render(root: Path, history: RunHistory, findings: Sequence[Finding]) -> str:
    """Return the findings in words, and the files that could not be checked."""
    counted = {severity: sum(finding.severity == severity for finding in findings) for severity in (SICK, SUSPICIOUS)}
    counts = ", ".join(f"{count} {severity}" for severity, count in counted.items() if count) or "nothing found"
    parts = [f"{root}: {counts}; {len(RULES)} rules", *map(_paragraph, findings)]
    if history.missing:
        parts.append(_wrapped(f"Missing, and therefore not checked: {', '.join(history.missing)}"))
    return "\n\n".join(parts)


def _paragraph(finding: Finding) -> str:
    evidence = [f"  {evidence}" for evidence in finding.evidence]
    says, advice = _wrapped(finding.says, "  "), _wrapped(f"What to do: {finding.advice}", "  ")
    return "\n".join([f"{finding.severity}: {finding.name}", says, *evidence, advice])


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
