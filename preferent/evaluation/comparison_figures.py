"""What differs between the sides besides who is preferred: KL, lengths, ends, duplicates, ROUGE."""

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
    """KL to the reference in nats an answer: mean over prompts, standard error, rows; and the k1 estimate's mean."""
    rows = [(answer.prompt, answer.kl, answer.kl_k1) for answer in answers if answer.kl is not None]
    if not rows:
        return None
    mean = statistics.mean([kl for _, kl, _ in rows if kl is not None], [prompt for prompt, _, _ in rows])
    found = cast(KLFigures, asdict(mean))
    k1 = [(prompt, value) for prompt, _, value in rows if value is not None]
    if k1:
        found["k1_mean"] = statistics.mean([value for _, value in k1], [prompt for prompt, _ in k1]).mean
    return found


def selection(answers: Sequence[Answer]) -> BestOfFigures | None:
    """Where each answer is the best of n: n, how far keeping the best moves them from the policy at the most, and what
    the best of 1, 2, 4, … scores, estimated from all n."""
    rows = [answer.scores for answer in answers if answer.scores is not None]
    n = min((len(scores) for scores in rows), default=1)
    if n == 1 or len(rows) < len(answers):
        return None
    counts = [*(2**power for power in range(n.bit_length()) if 2**power < n), n]
    score = {str(k): float(np.mean([best_of.expected(scores, scores, k) for scores in rows])) for k in counts}
    return {"n": n, "kl_bound": best_of.kl_bound(n), "score": score}


def measured(answers: Answers) -> tuple[dict[str, list[int]], str]:
    """Every side's answer lengths, in tokens, or in words where some row does not say its tokens."""
    tokens = {side: [answer.tokens for answer in rows if answer.tokens is not None] for side, rows in answers.items()}
    if all(len(tokens[side]) == len(rows) for side, rows in answers.items()):
        return tokens, "tokens"
    return {side: [len(answer.text.split()) for answer in rows] for side, rows in answers.items()}, "words"


def lengths(answers: Answers) -> LengthFigures:
    """Mean lengths of a and b and how they differ; and the mean of every further side."""
    prompts = [answer.prompt for answer in answers["a"]]
    by_side, unit = measured(answers)
    found: dict[str, Any] = {"unit": unit} | asdict(statistics.lengths(by_side["a"], by_side["b"], prompts))
    further = {side: statistics.mean(by_side[side], prompts).mean for side in by_side if side not in ("a", "b")}
    return cast(LengthFigures, found | {f"mean_{side}": mean for side, mean in further.items()})


def ended(answers: Answers) -> dict[str, float]:
    """The share of answers that ended by themselves, of each side that says it."""
    said = {side: [answer.ended for answer in rows if answer.ended is not None] for side, rows in answers.items()}
    return {side: float(np.mean(values)) for side, values in said.items() if values}


def duplicates(answers: Answers) -> dict[str, DuplicateFigures]:
    """Of each side the answers that it gave to several prompts: how many rows, their share, and the most frequent."""
    found: dict[str, DuplicateFigures] = {}
    for side, rows in answers.items():
        prompts: dict[str, set[str]] = {}
        for place, answer in enumerate(rows):
            prompts.setdefault(answer.text, set()).add(answers["a"][place].prompt)
        count = Counter(answer.text for answer in rows)
        repeated = [text for text in count if len(prompts[text]) > 1]
        several = sum(count[text] for text in repeated)
        most = max(repeated, key=count.__getitem__, default=None)
        found[side] = {"rows": several, "share": several / len(rows), "most": most, "count": count[most] if most else 0}
    return found


def rouges(answers: Answers) -> dict[str, Any] | None:
    """Mean ROUGE of each side over the rows that have a reference; None where none has."""
    rows = [index for index, answer in enumerate(answers["a"]) if answer.reference]
    if not rows:
        return None
    found: dict[str, Any] = {"n": len(rows)}
    for side, given in answers.items():
        scores = [rouge.scores(answers["a"][index].reference, given[index].text) for index in rows]
        found[side] = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return found


def difficulty(answers: Sequence[Answer]) -> dict[str, float] | None:
    """How hard each prompt is by AlpacaEval's measure, the key `instruction_difficulty` of its row in the prompts file;
    None unless all say it."""
    found = {
        one.id: one.prompt_record.extra.get("instruction_difficulty")
        for one in answers
        if one.prompt_record is not None
    }
    if len(found) < len(answers) or not all(isinstance(value, int | float) for value in found.values()):
        return None
    return {id: float(value) for id, value in found.items() if value is not None}
