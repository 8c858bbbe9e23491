"""A comparison as AlpacaEval's annotations: `output_2` is the model (a), `output_1` the baseline (b).

`preference` is 1 plus the outcome for the model, in [1, 2]; AlpacaEval's win rate is the mean of preference - 1.
"""

from typing import Any

from preferent.commands.exports.finished_comparison import Comparison
from preferent.data import judgment_outcomes


def convert(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one row per pair and judge; `preference` is null if no verdict of the judge could be parsed."""
    rows = []
    for name in comparison.metrics["judges"]:
        for id, judgments in comparison.judgments_of(name).items():
            outcome = judgment_outcomes.outcome(judgments)
            rows.append(
                {
                    "instruction": comparison.rows[id]["prompt"],
                    "output_1": judgments[0].response_b,
                    "generator_1": comparison.name("b"),
                    "output_2": judgments[0].response_a,
                    "generator_2": comparison.name("a"),
                    "annotator": name,
                    "preference": None if outcome is None else 1 + outcome,
                }
            )
    return rows
