"""The reward model on the page: its `quality.json` and `mistakes.jsonl` as sentences and rows of tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from preferent import files
from preferent.evaluation import reward_findings
from preferent.evaluation.quality_types import BucketFigures, QualityFigures, RuleFigures, ShareFigures, SpreadFigures
from preferent.report.interval_tables import IntervalRow, IntervalTable, percent, row
from preferent.runs.directory import StageDirectory

LONGEST = 2000
"""Characters of a text that the page shows."""


def section(stage: StageDirectory) -> dict[str, Any]:
    """Return sentences, tables and mistakes of a reward model; empty if it was not measured."""
    quality: QualityFigures = files.read_json(stage.quality) if stage.quality.exists() else {}
    detailed = "reported" in quality
    mistakes = files.read_jsonl(stage.mistakes) if stage.mistakes.exists() else []
    return {
        "remarks": reward_findings.remarks(quality),
        "tables": [table for table in tables(quality) if table.rows] if detailed else [],
        "mistakes": [mistake(pair) for pair in mistakes],
    }


def tables(quality: QualityFigures) -> list[IntervalTable]:
    """Return all shares of the reported pairs."""
    confidence = [_bucket(bucket) for bucket in quality["by_confidence"]]
    strength = [_bucket(bucket) for bucket in quality["by_strength"]]
    return [
        _table("Beside rules that need no model", _rules(quality), "What prefers", "Model’s lead"),
        _table("By the model’s confidence", confidence, "Score difference", "Confidence"),
        _table("By how clear the choice was", strength, "Strength", "Confidence"),
        _table("By length and position", _habits(quality), "Share of pairs"),
        _table("Beside sampled answers", _samples(quality), "Share of prompts", "Mean score", "Sampled"),
    ]


def _table(caption: str, rows: Sequence[IntervalRow], first: str, *more: str) -> IntervalTable:
    return IntervalTable(caption, (first, "Share", "95 % interval", "Pairs", *more), rows)


def share(name: str, figures: ShareFigures, *more: str, colour: int = 1) -> IntervalRow:
    """Return a share of pairs with its interval as a row; `more` are further cells."""
    return row(name, figures["share"], figures["interval"], str(figures["count"]), *more, colour=colour)


def _rules(quality: QualityFigures) -> list[IntervalRow]:
    rules = [share(reward_findings.RULES[name], rule, _lead(rule), colour=4) for name, rule in quality["rules"].items()]
    return [share("the model", quality["accuracy"], ""), *rules]


def _lead(rule: RuleFigures) -> str:
    low, high = rule["lead_interval"]
    return f"{reward_findings.points(rule['lead'])} ({reward_findings.points(low)} to {reward_findings.points(high)})"


def _bucket(bucket: BucketFigures) -> IntervalRow:
    low, high = bucket["low"], bucket["high"]
    name = "unknown" if low is None else f"{low:.3g}" if low == high else f"{low:.2f} to {high:.2f}"
    return share(name, bucket, percent(bucket["confidence"], 1))


def _habits(quality: QualityFigures) -> list[IntervalRow]:
    named = {
        "right where the longer was chosen": quality["length"]["longer_won"],
        "right where the shorter was chosen": quality["length"]["shorter_won"],
        "the model prefers the longer": quality["length"]["longer_preferred"],
        "the model prefers the first": quality["position"]["first_preferred"],
        "people chose the first": quality["position"]["first_chosen"],
    }
    return [share(name, figures) for name, figures in named.items() if figures]


def _samples(quality: QualityFigures) -> list[IntervalRow]:
    samples = quality.get("samples")
    if not samples:
        return []
    sampled = _spread(samples["sampled"])
    sides = {
        "chosen": (samples["chosen_above"], samples["chosen"]),
        "rejected": (samples["rejected_above"], samples["rejected"]),
    }
    return [
        share(f"the {side} answer scores above the sampled one", above, _spread(scores), sampled)
        for side, (above, scores) in sides.items()
    ]


def _spread(scores: SpreadFigures) -> str:
    return f"{scores['mean']:.3g} ± {scores['sd']:.3g}".replace("-", "−")


def mistake(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a row of `mistakes.jsonl`."""
    turns = pair.get("messages", [])
    prompt = pair.get("input_text") or "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    answers = [
        {
            "text": shortened(pair[f"candidate_{place}"]),
            "score": f"{pair[f'score_{place}']:.3g}".replace("-", "−"),
            "chosen": pair["choice"] == place,
        }
        for place in (0, 1)
    ]
    confidence = percent(pair["confidence"], 1)
    return {"source": pair["source"], "confidence": confidence, "prompt": shortened(prompt), "answers": answers}


def shortened(text: str) -> str:
    """Return a text, cut at the end if it is too long for the page."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
