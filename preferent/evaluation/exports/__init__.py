"""A comparison in the formats of others: LLM Comparator, AlpacaEval, preference rows, CSV."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from preferent import files
from preferent.errors import UsageError
from preferent.evaluation.exports import alpaca_eval, judged_preferences, judgment_table, llm_comparator
from preferent.evaluation.exports.finished_comparison import Comparison, read

__all__ = ["FORMATS", "Comparison", "read", "write"]


def _comparator(comparison: Comparison, path: Path) -> str:
    made = llm_comparator.made(comparison)
    files.write_json(path, made)
    return f"{len(made['examples'])} examples"


def _alpaca(comparison: Comparison, path: Path) -> str:
    rows = alpaca_eval.made(comparison)
    files.write_json(path, rows)
    return f"{len(rows)} annotations"


def _preferences(comparison: Comparison, path: Path) -> str:
    made = judged_preferences.made(comparison)
    files.write_jsonl(path, made.rows)
    ties = sum(row["choice"] == "tie" for row in made.rows)
    return (
        f"{len(made.rows)} preferences by {comparison.headline}, {ties} of them ties; left out: {made.identical} pairs "
        f"of equal answers, {made.unparsable} verdicts that could not be parsed"
    )


def _csv(comparison: Comparison, path: Path) -> str:
    files.write_atomic(path, judgment_table.made(comparison))
    return f"{len(comparison.judgments)} judgments"


FORMATS: Mapping[str, tuple[str, Callable[[Comparison, Path], str]]] = {
    "comparator": ("comparator.json", _comparator),
    "alpaca": ("annotations.json", _alpaca),
    "preferences": ("preferences.jsonl", _preferences),
    "csv": ("judgments.csv", _csv),
}
"""The file of each format, and what writes it and says what is in it."""


def write(folder: Path, formats: Sequence[str]) -> list[str]:
    """Write a finished comparison in these formats into its own folder, and say in a line each what is there."""
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--write {name}: no such format; there are {', '.join(FORMATS)}")
    if not formats:
        return []
    comparison = read(folder)
    paths = [(folder / FORMATS[name][0], FORMATS[name][1]) for name in formats]
    return [f"{path}: {made(comparison, path)}" for path, made in paths]
