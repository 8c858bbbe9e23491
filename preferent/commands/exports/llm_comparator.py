"""A comparison in the format of Google's LLM Comparator, an application with tables and histograms in a browser.

Every field that the schema declares is in every example, because the application stops at a missing one. A score is
3 (p - 1/2), where p is the judge's expected outcome for A. A is better above 0; the application counts a win beyond
0.25. The score of an unparsable verdict is null.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from preferent.commands.exports.finished_comparison import Comparison
from preferent.data import judgment_outcomes
from preferent.data.types import Judgment

Row = dict[str, Any]
LABELS = {"A": "A is better", "B": "B is better", "tie": "same", None: "unparsable"}
BELOW_ONE = 0.99
"""Maximum score if all scores are 1 or more, where the application would otherwise take a scale with another middle."""


def convert(comparison: Comparison) -> Row:
    """Return the JSON object."""
    judgments = {name: comparison.judgments_of(name) for name in comparison.metrics["judges"]}
    fields = _fields(comparison)
    examples = [_example(comparison, id, judgments, fields) for id in comparison.rows]
    ratings = [rating for example in examples for rating in example["individual_rater_scores"]]
    scores = [rating["score"] for rating in ratings if rating["score"] is not None]
    if scores and min(scores) >= 1:
        for rating in ratings:
            rating["score"] = None if rating["score"] is None else min(rating["score"], BELOW_ONE)
    return {
        "metadata": {"source_path": comparison.source, "custom_fields_schema": fields},
        "models": [{"name": comparison.name(side)} for side in ("a", "b")],
        "examples": examples,
    }


def _fields(comparison: Comparison) -> list[Row]:
    """Return the custom fields: lengths, KL if every row has it, the choice of each judge, the judge of a rating."""
    fields = [("id", "string"), ("length", "per_model_number")]
    if all(row["answers"]["a"]["kl"] is not None for row in comparison.rows.values()) and comparison.rows:
        fields.append(("kl", "number"))
    fields += [(f"choice of {name}", "category") for name in comparison.metrics["judges"]]
    fields += [("judge", "per_rating_string"), ("annotator", "per_rating_string")]
    return [{"name": name, "type": kind} for name, kind in fields]


def _example(
    comparison: Comparison, id: str, judgments: Mapping[str, Mapping[str, Sequence[Judgment]]], fields: Sequence[Row]
) -> Row:
    row = comparison.rows[id]
    headline = judgments.get(comparison.headline or "", {}).get(id, ())
    unit = comparison.metrics["length"]["unit"]
    expected = [value for judgment in headline if (value := judgment_outcomes.expectation(judgment)) is not None]
    values: Row = {"id": id, "length": [_length(row["answers"][side], unit) for side in ("a", "b")]}
    values["kl"] = row["answers"]["a"]["kl"]
    values |= {f"choice of {name}": _chosen(judged.get(id, ())) for name, judged in judgments.items()}
    return {
        "input_text": row["prompt"],
        "tags": list(row["tags"]),
        "output_text_a": row["answers"]["a"]["text"],
        "output_text_b": row["answers"]["b"]["text"],
        "score": score(sum(expected) / len(expected)) if expected else None,
        "individual_rater_scores": [
            rating for judged in judgments.values() for judgment in judged.get(id, ()) for rating in _ratings(judgment)
        ],
        "custom_fields": {field["name"]: values[field["name"]] for field in fields if field["name"] in values},
    }


def score(expected: float) -> float:
    """Return the application's score, from -1.5 (B) to 1.5 (A), for the expected outcome of A."""
    return 3 * (expected - 0.5)


def _length(answer: Mapping[str, Any], unit: str) -> int:
    """Return the length in the unit of the whole comparison, tokens or words."""
    return int(answer["tokens"]) if unit == "tokens" else len(answer["text"].split())


def _chosen(judgments: Sequence[Judgment]) -> str:
    """Return the choice of a judge, or "divided" for people who chose differently."""
    chosen = {judgment.choice if judgment_outcomes.parsed(judgment) else None for judgment in judgments}
    if not chosen:
        return "not asked"
    return LABELS[chosen.pop()] if len(chosen) == 1 else "divided"


def _ratings(judgment: Judgment) -> list[Row]:
    """Return one rating per verdict of a judgment, with its score for A; it is flipped if the judge saw B first."""
    known = {"judge": judgment.judge, "annotator": str(judgment.extra.get("annotator") or "")}
    several = judgment.extra.get("verdicts")
    if several is None:
        expected = judgment_outcomes.expectation(judgment)
        flipped = judgment.extra.get("first") == "b"
        return [_rating(judgment.choice, expected, flipped, judgment.explanation, known)]
    ratings = []
    for verdict in several:
        choice = verdict["choice"]
        expected = None if choice is None else verdict.get("probability")
        expected = judgment_outcomes.OUTCOMES[choice] if expected is None and choice is not None else expected
        explanation = judgment.explanation if choice == judgment.choice else ""
        ratings.append(_rating(choice, expected, verdict["first"] == "b", explanation, known))
    return ratings


def _rating(choice: str | None, expected: float | None, flipped: bool, rationale: str, known: Row) -> Row:
    return {
        "score": None if expected is None else score(expected),
        "rating_label": LABELS[choice],
        "is_flipped": flipped,
        "rationale": rationale,
        "custom_fields": dict(known),
    }
