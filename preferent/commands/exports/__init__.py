"""Exports of a comparison: LLM Comparator, AlpacaEval, preference rows, CSV."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from preferent import files
from preferent.commands.exports import alpaca_eval, judged_preferences, llm_comparator
from preferent.commands.exports.finished_comparison import Comparison, read
from preferent.data import judgment_table
from preferent.errors import UsageError

__all__ = ["FORMATS", "Comparison", "read", "write"]


def _comparator(comparison: Comparison, path: Path) -> str:
    document = llm_comparator.convert(comparison)
    files.write_json(path, document)
    return f"{len(document['examples'])} examples"


def _alpaca(comparison: Comparison, path: Path) -> str:
    rows = alpaca_eval.convert(comparison)
    files.write_json(path, rows)
    return f"{len(rows)} annotations"


def _preferences(comparison: Comparison, path: Path) -> str:
    preferences = judged_preferences.convert(comparison)
    files.write_jsonl(path, preferences.rows)
    ties = sum(row["choice"] == "tie" for row in preferences.rows)
    return (
        f"{len(preferences.rows)} preferences by {comparison.headline}, {ties} of them ties; left out: "
        f"{preferences.identical} pairs of equal answers, {preferences.unparsable} verdicts that could not be parsed"
    )


def _csv(comparison: Comparison, path: Path) -> str:
    files.write_atomic(path, judgment_table.convert(comparison.judgments))
    return f"{len(comparison.judgments)} judgments"


FORMATS: Mapping[str, tuple[str, Callable[[Comparison, Path], str]]] = {
    "comparator": ("comparator.json", _comparator),
    "alpaca": ("annotations.json", _alpaca),
    "preferences": ("preferences.jsonl", _preferences),
    "csv": ("judgments.csv", _csv),
}
"""The file name of each format, and the function that writes it and returns a summary of its content."""


def write(folder: Path, formats: Sequence[str]) -> list[str]:
    """Write a finished comparison in these formats into its own folder, and return one line per file."""
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--write {name}: is not a format; the formats are {', '.join(FORMATS)}")
    if not formats:
        return []
    comparison = read(folder)
    paths = [(folder / FORMATS[name][0], FORMATS[name][1]) for name in formats]
    return [f"{path}: {write_file(comparison, path)}" for path, write_file in paths]
