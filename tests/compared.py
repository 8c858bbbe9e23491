"""A comparison as the files of a run say it, with every kind of judge: reward models, a language model, three people.

    make(root)                                     # comparison/ and predictions/ of a run directory
    make(root, prompts=["..."], tuned=["..."])     # with texts of one's own

What is judged is drawn with a fixed seed; figures are those that `compare` makes of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files
from preferent.data.judgments import write
from preferent.data.predictions import Answer
from preferent.data.types import Judgment
from preferent.evaluation import statistics
from preferent.evaluation.comparison_summary import verdict
from preferent.evaluation.judge_results import JudgeResults, by_scores, called, paired
from preferent.evaluation.judges import judge_summary

SENTENCE = "the sun rose over a quiet river and nobody asked why boats had left before dawn"
PEOPLE = ("ann", "bob", "eve")


def sentences(count: int, words: int, seed: int) -> list[str]:
    """Texts of about so many words, no two alike."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(words - words // 4, words + words // 4 + 1, count)
    return [f"Text {i}: {' '.join(generator.choice(SENTENCE.split(), n))}." for i, n in enumerate(lengths)]


def make(
    root: Path,
    prompts: Sequence[str] = (),
    tuned: Sequence[str] = (),
    headline: str | None = "judge",
    extra: Mapping[str, Sequence[str]] | None = None,
    judges: Sequence[str] = ("judge", "reward", "gpt", "people"),
    lead: float = 0.8,
    unparsable: float = 0.05,
    words: Mapping[str, Sequence[str]] | None = None,
    length: int = 40,
) -> dict[str, Any]:
    """Write the comparison of `tuned` answers with base ones (and `extra` sides); returns the metrics.

    `lead` is how much better the judges find tuned answers, in standard deviations; `words` are the `explanations` and
    `notes`, and the names of `people`, used in turn; `length` counts the words of answers not given.
    """
    prompts = list(prompts) or sentences(60, 3 * length, 1)
    n = len(prompts)
    texts = {"a": list(tuned) or sentences(n, length, 2), "b": sentences(n, length, 3)} | dict(extra or {})
    answers = {side: [answer(i, prompts[i], text) for i, text in enumerate(found)] for side, found in texts.items()}
    names = {"a": "tuned", "b": "base"} | {side: side.removeprefix("side.") for side in extra or {}}
    generator = np.random.default_rng(4)
    better = lead + generator.normal(size=n)
    opinions = [opinion(name, answers, names, better, generator, unparsable, words or {}, headline) for name in judges]
    judgments, metrics = verdict(answers, opinions, headline, names)
    write(judgments, root / "comparison" / "judgments.jsonl")
    files.write_json(root / "comparison" / "metrics.json", metrics)
    for side, rows in answers.items():
        files.write_jsonl(root / "predictions" / names[side] / "text.jsonl", [prediction(one) for one in rows])
    return metrics


def answer(place: int, prompt: str, text: str) -> Answer:
    """An answer of a run: what `infer` says of it, and two slices."""
    tags = ("topic=law" if place % 2 else "topic=health",)
    return Answer(str(place), prompt, "", text, len(text.split()), place % 7 > 0, 2.0 + place % 3, tags=tags)


def prediction(one: Answer) -> dict[str, Any]:
    return {
        "id": one.id,
        "inputs": {"inputs_pretokenized": one.prompt, "targets_pretokenized": one.reference},
        "prediction": one.text,
        "tokens": one.tokens,
        "ended": one.ended,
        "kl": one.kl,
    }


def opinion(
    name: str,
    answers: Mapping[str, Sequence[Answer]],
    names: Mapping[str, str],
    better: np.ndarray,
    generator: np.random.Generator,
    unparsable: float,
    words: Mapping[str, Sequence[str]],
    headline: str | None,
) -> JudgeResults:
    """What one judge says, by chance and by `better`, how much the tuned answer of each pair is."""
    n = len(better)
    if name in ("judge", "reward"):
        scores = {side: generator.normal(size=n) * 0.5 for side in answers}
        scores["a"] = scores["a"] + better
        return by_scores(name, scores, answers, None, names)
    pairs = paired(answers, "a", "b", None)
    blank = [Judgment(one.id, "", one.context, one.response_a, one.response_b, "tie", 0.5, name) for one in pairs]
    rows = []
    for place, one in enumerate(blank):
        if name == "people":
            for number, person in enumerate(words.get("people", PEOPLE)[: 1 + place % 3]):
                rows.append(voted(one, place, number, person, better[place] + generator.normal(), words))
        else:
            rows.append(asked(one, place, better[place] + generator.normal(size=2), generator, unparsable, words))
    kind = "people" if name == "people" else "language_model"
    facts = voters(rows) if name == "people" else {"order": summary(rows).order()}
    return JudgeResults(name, kind, {("a", "b"): called(rows, names["a"], names["b"])}, facts=facts)


def voters(rows: Sequence[Judgment]) -> dict[str, Any]:
    """Who voted, and how often for what stood first."""
    decided = [(one, "A" if one.extra["first"] == "a" else "B") for one in rows if one.choice != "tie"]
    slot = statistics.win_rate([float(one.choice == first) for one, first in decided], [one.id for one, _ in decided])
    return {
        "annotators": len({one.extra["annotator"] for one in rows}),
        "both_bad": sum(one.extra["both_bad"] for one in rows),
        "order": {"verdicts": len(rows), "first_slot": slot.win_rate, "first_slot_interval": slot.interval},
    }


def summary(rows: Sequence[Judgment]) -> judge_summary.JudgeSummary:
    """What a language model did."""
    verdicts = [[judge_summary.JudgeVerdict(**one) for one in row.extra["verdicts"]] for row in rows]
    return judge_summary.summarize(verdicts, 1, {}, 0, ())


def voted(
    one: Judgment, place: int, number: int, person: str, lead: float, words: Mapping[str, Sequence[str]]
) -> Judgment:
    """One person's vote."""
    choice = "A" if lead > 0.3 else "B" if lead < -0.3 else "tie"
    notes = words.get("notes", ("",))
    extra = {
        "annotator": person,
        "both_bad": choice == "tie" and place % 2 == 0,
        "strength": None if choice == "tie" else 1 + place % 3,
        "note": notes[place % len(notes)] if number == 0 else "",
        "flagged": place == 5,
        "seconds": 4.5,
        "first": "a" if (place + number) % 2 else "b",
        "probability": 1.0,
        "gold": False,
    }
    return replace(one, choice=choice, confidence=0.5 if choice == "tie" else 1.0, extra=extra)


def asked(
    one: Judgment,
    place: int,
    leads: np.ndarray,
    generator: np.random.Generator,
    unparsable: float,
    words: Mapping[str, Sequence[str]],
) -> Judgment:
    """A language model's verdicts in both orders; it likes the first place."""
    verdicts = []
    for first, lead in zip("ab", leads, strict=True):
        seen = lead + (0.5 if first == "a" else -0.5)
        choice = None if generator.random() < unparsable else "A" if seen > 0 else "B"
        verdicts.append({"first": first, "vote": 0, "choice": choice, "probability": None})
    parsed = [{"A": 1.0, "B": 0.0}[found["choice"]] for found in verdicts if found["choice"]]
    mean = float(np.mean(parsed)) if parsed else 0.5
    choice = "A" if mean > 0.5 else "B" if mean < 0.5 else "tie"
    explanations = words.get("explanations", ("It says more, and what it says is right.",))
    explanation = explanations[place % len(explanations)]
    confidence = max(mean, 1 - mean)
    return replace(one, choice=choice, confidence=confidence, explanation=explanation, extra={"verdicts": verdicts})
