"""Differences between the sides besides the preference: KL, lengths, ends, duplicates, ROUGE."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np

from preferent.data.predictions import Answer, Answers
from preferent.evaluation import statistics
from preferent.evaluation.comparison_types import BestOfFigures, DuplicateFigures, KLFigures, LengthFigures
from preferent.evaluation.statistics import best_of, rouge


def divergence(answers: Sequence[Answer]) -> KLFigures | None:
    """Return the KL to the reference in nats per answer: mean over prompts, standard error, rows, and mean of k1."""
    rows = [(answer.prompt, answer.kl, answer.kl_k1) for answer in answers if answer.kl is not None]
    if not rows:
        return None
    mean = statistics.mean([kl for _, kl, _ in rows if kl is not None], [prompt for prompt, _, _ in rows])
    figures = cast(KLFigures, asdict(mean))
    rows_k1 = [(prompt, k1) for prompt, _, k1 in rows if k1 is not None]
    if rows_k1:
        figures["k1_mean"] = statistics.mean([k1 for _, k1 in rows_k1], [prompt for prompt, _ in rows_k1]).mean
    return figures


def selection(answers: Sequence[Answer]) -> BestOfFigures | None:
    """Return, where each answer is the best of n: n, a bound on the KL from the policy, and the expected score of the
    best of 1, 2, 4, …, estimated from all n."""
    rows = [answer.scores for answer in answers if answer.scores is not None]
    n = min((len(scores) for scores in rows), default=1)
    if n == 1 or len(rows) < len(answers):
        return None
    counts = [*(2**power for power in range(n.bit_length()) if 2**power < n), n]
    score = {str(k): float(np.mean([best_of.expected(scores, scores, k) for scores in rows])) for k in counts}
    return {"n": n, "kl_bound": best_of.kl_bound(n), "score": score}


def measured(answers: Answers) -> tuple[dict[str, list[int]], str]:
    """Return every side's answer lengths and their unit: tokens, or words where a row has no count of tokens."""
    tokens = {side: [answer.tokens for answer in rows if answer.tokens is not None] for side, rows in answers.items()}
    if all(len(tokens[side]) == len(rows) for side, rows in answers.items()):
        return tokens, "tokens"
    return {side: [len(answer.text.split()) for answer in rows] for side, rows in answers.items()}, "words"


def lengths(answers: Answers) -> LengthFigures:
    """Return the mean lengths of a and b and their difference, and the mean of every further side."""
    prompts = [answer.prompt for answer in answers["a"]]
    by_side, unit = measured(answers)
    figures: dict[str, Any] = {"unit": unit} | asdict(statistics.lengths(by_side["a"], by_side["b"], prompts))
    further = {side: statistics.mean(by_side[side], prompts).mean for side in by_side if side not in ("a", "b")}
    return cast(LengthFigures, figures | {f"mean_{side}": mean for side, mean in further.items()})


def ended(answers: Answers) -> dict[str, float]:
    """Return the share of answers that ended by themselves, for each side whose rows say so."""
    known = {side: [answer.ended for answer in rows if answer.ended is not None] for side, rows in answers.items()}
    return {side: float(np.mean(ends)) for side, ends in known.items() if ends}


def duplicates(answers: Answers) -> dict[str, DuplicateFigures]:
    """Return each side's answers that occur for several prompts: count of rows, share, and the most frequent."""
    figures: dict[str, DuplicateFigures] = {}
    for side, rows in answers.items():
        prompts: dict[str, set[str]] = {}
        for place, answer in enumerate(rows):
            prompts.setdefault(answer.text, set()).add(answers["a"][place].prompt)
        count = Counter(answer.text for answer in rows)
        repeated = [text for text in count if len(prompts[text]) > 1]
        several = sum(count[text] for text in repeated)
        most = max(repeated, key=count.__getitem__, default=None)
        figures[side] = {
            "rows": several,
            "share": several / len(rows),
            "most": most,
            "count": count[most] if most else 0,
        }
    return figures


def rouges(answers: Answers) -> dict[str, Any] | None:
    """Return the mean ROUGE of each side over the rows that have a reference; None where none has."""
    rows = [index for index, answer in enumerate(answers["a"]) if answer.reference]
    if not rows:
        return None
    figures: dict[str, Any] = {"n": len(rows)}
    for side, side_answers in answers.items():
        scores = [rouge.scores(answers["a"][index].reference, side_answers[index].text) for index in rows]
        figures[side] = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return figures


def difficulty(answers: Sequence[Answer]) -> dict[str, float] | None:
    """Return each prompt's difficulty by AlpacaEval's measure; None unless all rows of the prompts file have it.

    The difficulty is the key `instruction_difficulty` of a row.
    """
    known = {
        answer.id: answer.prompt_record.extra.get("instruction_difficulty")
        for answer in answers
        if answer.prompt_record is not None
    }
    if len(known) < len(answers) or not all(isinstance(level, int | float) for level in known.values()):
        return None
    return {id: float(level) for id, level in known.items() if level is not None}
