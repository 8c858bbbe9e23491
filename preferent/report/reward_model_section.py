"""The reward model on the page: its `quality.json` and `mistakes.jsonl` as sentences and rows of tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent import files
from preferent.evaluation import reward_findings
from preferent.report.interval_tables import IntervalRow, IntervalTable, percent, row

LONGEST = 2000
"""Characters of a text that the page shows."""

Figures = Mapping[str, Any]


def section(folder: Path) -> dict[str, Any]:
    """Sentences, tables and mistakes of the reward model in a folder; empty where it has not been measured."""
    path, worst = folder / "quality.json", folder / "mistakes.jsonl"
    quality = files.read_json(path) if path.exists() else {}
    detailed = "reported" in quality
    return {
        "remarks": reward_findings.remarks(quality),
        "tables": [table for table in tables(quality) if table.rows] if detailed else [],
        "mistakes": [mistake(row) for row in files.read_jsonl(worst)] if worst.exists() else [],
    }


def tables(quality: Figures) -> list[IntervalTable]:
    """Everything that is a share of the reported pairs."""
    by_confidence, by_strength = quality["by_confidence"], quality["by_strength"]
    return [
        _table("Beside rules that need no model", _rules(quality), "What prefers", "Model’s lead"),
        _table("By the model’s confidence", [_bucket(one) for one in by_confidence], "Score difference", "Confidence"),
        _table("By how clear the choice was", [_bucket(one) for one in by_strength], "Strength", "Confidence"),
        _table("By length and position", _habits(quality), "Share of pairs"),
        _table("Beside sampled answers", _samples(quality), "Share of prompts", "Mean score", "Sampled"),
    ]


def _table(caption: str, rows: Sequence[IntervalRow], first: str, *more: str) -> IntervalTable:
    return IntervalTable(caption, (first, "Share", "95 % interval", "Pairs", *more), rows)


def share(name: str, found: Figures, *more: str, colour: int = 1) -> IntervalRow:
    """A share of pairs with its interval; `more` are further cells."""
    return row(name, found["share"], found["interval"], str(found["count"]), *more, colour=colour)


def _rules(quality: Figures) -> list[IntervalRow]:
    rules = quality["rules"]
    found = [share(reward_findings.RULES[name], one, _lead(one), colour=4) for name, one in rules.items()]
    return [share("the model", quality["accuracy"], ""), *found]


def _lead(found: Figures) -> str:
    low, high = found["lead_interval"]
    return f"{reward_findings.points(found['lead'])} ({reward_findings.points(low)} to {reward_findings.points(high)})"


def _bucket(found: Figures) -> IntervalRow:
    low, high = found["low"], found["high"]
    name = "not said" if low is None else f"{low:.3g}" if low == high else f"{low:.2f} to {high:.2f}"
    return share(name, found, percent(found["confidence"], 1))


def _habits(quality: Figures) -> list[IntervalRow]:
    named = {
        "right where the longer was chosen": quality["length"]["longer_won"],
        "right where the shorter was chosen": quality["length"]["shorter_won"],
        "the model prefers the longer": quality["length"]["longer_preferred"],
        "the model prefers the first": quality["position"]["first_preferred"],
        "people chose the first": quality["position"]["first_chosen"],
    }
    return [share(name, found) for name, found in named.items() if found]


def _samples(quality: Figures) -> list[IntervalRow]:
    found = quality.get("samples")
    if not found:
        return []
    sampled = _spread(found["sampled"])
    return [
        share(f"the {side} answer scores above the sampled one", found[f"{side}_above"], _spread(found[side]), sampled)
        for side in ("chosen", "rejected")
    ]


def _spread(found: Figures) -> str:
    return f"{found['mean']:.3g} ± {found['sd']:.3g}".replace("-", "−")


def mistake(found: Figures) -> dict[str, Any]:
    """What the page shows of a row of `mistakes.jsonl`."""
    turns = found.get("messages", [])
    prompt = found.get("input_text") or "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    answers = [
        {
            "text": shortened(found[f"candidate_{place}"]),
            "score": f"{found[f'score_{place}']:.3g}".replace("-", "−"),
            "chosen": found["choice"] == place,
        }
        for place in (0, 1)
    ]
    sure = percent(found["confidence"], 1)
    return {"source": found["source"], "confidence": sure, "prompt": shortened(prompt), "answers": answers}


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
