"""Rules about a policy that learned directly from the preferences: its preferences and its log-probabilities."""

from collections.abc import Iterator

from preferent.doctor.findings import SICK, SUSPICIOUS, Finding
from preferent.doctor.run_history import RunHistory

FALLEN = 1.5
"""Ratio to the nats of the chosen answers at first; above it, the policy gives them up with the rejected ones."""
BY_HEART = 0.2
"""Difference of shares of pairs; training and validation accuracy each fluctuate by less than twenty points."""


def prefers_the_rejected(history: RunHistory) -> Iterator[Finding]:
    margin = history.curve("policy", "margin")
    if history.direct and margin.long and margin.late < 0:
        yield Finding(
            "prefers-the-rejected",
            SICK,
            "The policy moved towards the rejected answers and away from the chosen ones.",
            (margin.mean(margin.first), margin.mean(margin.last)),
            "Check that `choice` is right; lower dpo.learning_rate.",
        )


def chosen_given_up(history: RunHistory) -> Iterator[Finding]:
    chosen = history.curve("policy", "log_probs/chosen")
    if history.direct and chosen.long and chosen.late < FALLEN * chosen.early:
        yield Finding(
            "chosen-given-up",
            SUSPICIOUS,
            "The chosen answers became much less likely, too: the loss only makes the rejected ones fall further, and "
            "answers that nobody compared rise instead.",
            (chosen.mean(chosen.first), chosen.mean(chosen.last)),
            "Raise kl_coeff, lower dpo.learning_rate or dpo.train_steps, or run sft on the chosen answers first.",
        )


def never_below_the_start(history: RunHistory) -> Iterator[Finding]:
    """Compare with the first training loss, which is that of the reference unless the loss has no reference."""
    losses, first = history.curve("policy", "validation/loss"), history.curve("policy", "loss")
    if not history.direct or not len(losses) or history.fields("policy").get("dpo.loss") == "reference_free":
        return
    if first.steps[0] == 1 and losses.values.min() >= first.values[0]:
        yield Finding(
            "never-below-the-start",
            SICK,
            "On validation pairs no checkpoint had a lower loss than the policy at the start.",
            (first.at(0), losses.at(int(losses.values.argmin()))),
            "Lower dpo.learning_rate, raise kl_coeff, or add preferences; see few-pairs.",
        )


def pairs_by_heart(history: RunHistory) -> Iterator[Finding]:
    training, held_out = history.curve("policy", "accuracy"), history.curve("policy", "validation/accuracy")
    if history.direct and training.long and len(held_out) and training.late > held_out.values[-1] + BY_HEART:
        yield Finding(
            "pairs-by-heart",
            SUSPICIOUS,
            "The policy ranks the pairs that it learned from much better than others: it memorised them.",
            (training.mean(training.last), held_out.at(-1)),
            "Lower dpo.train_steps to one to three epochs, or add preferences.",
        )


RULES = (prefers_the_rejected, chosen_given_up, never_below_the_start, pairs_by_heart)
