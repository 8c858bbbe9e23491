"""Several answers to a prompt with ratings or ranks: from them to pairs, which share the weight of the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from preferent.data.formats.feedback.converted_records import FeedbackOptions, NoFeedback, with_equal_weights
from preferent.data.types import Preference, Prompt

MOST_ANSWERS = 64
"""Answers to a prompt of which all pairs are made."""


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """An answer, and a number that is larger for a better one."""

    text: str
    height: float
    model: str = ""


def pairs_of_ranking(
    prompt: Prompt,
    answers: Sequence[RankedAnswer],
    options: FeedbackOptions,
    is_scale: bool = False,
    annotator: str | None = None,
) -> tuple[Preference, ...]:
    """Return the pairs of answers to a prompt, the better one first: all, or neighbours only; equal heights are ties.

    On a scale, the strength of a pair is the difference. The pairs that are decided share the weight 1, the ties too.
    """
    ordered = sorted(answers, key=lambda answer: -answer.height)
    if len(ordered) > MOST_ANSWERS and not options.neighbours:
        raise NoFeedback(f"many answers: {len(ordered)} to one prompt; pair neighbours only with --neighbours")
    chosen = pairwise(ordered) if options.neighbours else combinations(ordered, 2)
    pairs = list(_pairs(prompt, chosen, is_scale, annotator))
    if not pairs:
        raise NoFeedback("one answer: a rating or a rank alone says not what it is better than")
    decided = [pair for pair in pairs if pair.choice != "tie"]
    ties = [pair for pair in pairs if pair.choice == "tie"]
    return (*with_equal_weights(decided), *with_equal_weights(ties))


def _pairs(
    prompt: Prompt, chosen: Iterator[tuple[RankedAnswer, RankedAnswer]], is_scale: bool, annotator: str | None
) -> Iterator[Preference]:
    for better, worse in chosen:
        if better.text == worse.text:
            continue
        difference = better.height - worse.height
        models = {"model_of_chosen": better.model, "model_of_rejected": worse.model}
        yield Preference(
            prompt,
            better.text,
            worse.text,
            0 if difference else "tie",
            strength=difference if is_scale and difference else None,
            annotator=annotator,
            extra={key: name for key, name in models.items() if name} if difference else {},
        )
