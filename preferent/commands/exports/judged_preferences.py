"""The judged pairs as preferences to train on (RLAIF, Bai et al. 2022), with the choices of the headline judge."""

from dataclasses import dataclass, replace
from typing import Any

from preferent import randomness
from preferent.commands.exports.finished_comparison import Comparison
from preferent.data import judgment_outcomes
from preferent.data.formats import row_writer
from preferent.data.types import Choice, Judgment, Preference, digest

CHOICES: dict[str, Choice] = {"A": 0, "B": 1, "tie": "tie"}


@dataclass(frozen=True, slots=True)
class JudgedPreferences:
    """The rows, in GCPC's keys, and the numbers of judgments left out: equal answers, and unparsable verdicts."""

    rows: list[dict[str, Any]]
    identical: int
    unparsable: int


def convert(comparison: Comparison) -> JudgedPreferences:
    """Return one row per judgment of the headline judge; ties are kept as ties."""
    judgments = [judgment for several in comparison.judgments_of(comparison.headline).values() for judgment in several]
    readable = [judgment for judgment in judgments if judgment_outcomes.parsed(judgment)]
    useful = [judgment for judgment in readable if judgment.response_a != judgment.response_b]
    rows = [row_writer.row(_preference(comparison, judgment)) or {} for judgment in useful]
    return JudgedPreferences(rows, len(readable) - len(useful), len(judgments) - len(readable))


def _preference(comparison: Comparison, judgment: Judgment) -> Preference:
    """Return a judgment as a preference.

    A takes the place where people saw it, or otherwise a pseudo-random place keyed by the row. A fixed place would
    reveal the model.
    """
    prompt = comparison.prompt(judgment.id, judgment.inference_context)
    models = {"model_0": comparison.name("a"), "model_1": comparison.name("b")}
    known = {
        name: judgment.extra[name]
        for name in ("first", "both_bad", "note", "seconds", "probability")
        if name in judgment.extra
    }
    pair = Preference(
        replace(prompt, id=""),
        judgment.response_a,
        judgment.response_b,
        CHOICES[judgment.choice],
        judgment.id,
        None if judgment.extra.get("strength") is None else float(judgment.extra["strength"]),
        str(judgment.extra.get("annotator") or judgment.judge),
        {**prompt.extra, "confidence": judgment.confidence, **known, **models},
    )
    if judgment.extra.get("first") == "a" or ("first" not in judgment.extra and _coin(pair) < 0.5):
        return pair
    changed = {**pair.extra, "model_0": models["model_1"], "model_1": models["model_0"]}
    return replace(pair.swap(), extra=changed)


def _coin(pair: Preference) -> float:
    item = int(digest(pair.prompt.key, *sorted((pair.candidate_0, pair.candidate_1))), 16)
    return float(randomness.uniforms(0, "position", item, 0))
