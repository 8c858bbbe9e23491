"""Rules about a policy that learned from the preferences themselves: which answers it prefers, and what befell them."""

from collections.abc import Iterator

from preferent.doctor.findings import SICK, SUSPICIOUS, Finding
from preferent.doctor.run_history import RunHistory

FALLEN = 1.5
"""Times the nats of the chosen answers at first: the policy gives them up together with the rejected ones."""
BY_HEART = 0.2
"""Share of pairs: twenty points between training and validation are more than either wavers by."""


def prefers_the_rejected(history: RunHistory) -> Iterator[Finding]:
    margin = history.curve("policy", "margin")
    if history.direct and margin.long and margin.late < 0:
        yield Finding(
            "prefers-the-rejected",
            SICK,
            "The policy moved towards the rejected answers and away from the chosen ones.",
            (margin.mean(margin.first), margin.mean(margin.last)),
            "See that `choice` is right; lower dpo.learning_rate.",
        )


def chosen_given_up(history: RunHistory) -> Iterator[Finding]:
    chosen = history.curve("policy", "log_probs/chosen")
    if history.direct and chosen.long and chosen.late < FALLEN * chosen.early:
        yield Finding(
            "chosen-given-up",
            SUSPICIOUS,
            "The chosen answers became much less likely, too: the loss only asks that the rejected ones fall further, "
            "and what rises instead are answers that nobody compared.",
            (chosen.mean(chosen.first), chosen.mean(chosen.last)),
            "Raise kl_coeff, lower dpo.learning_rate or dpo.train_steps, or do an sft on the chosen answers first.",
        )


def never_below_the_start(history: RunHistory) -> Iterator[Finding]:
    """The first training loss is that of the reference itself, but where the loss has no reference."""
    losses, first = history.curve("policy", "validation/loss"), history.curve("policy", "loss")
    if not history.direct or not len(losses) or history.fields("policy").get("dpo.loss") == "reference_free":
        return
    if first.steps[0] == 1 and losses.values.min() >= first.values[0]:
        yield Finding(
            "never-below-the-start",
            SICK,
            "On validation pairs no checkpoint had a lower loss than the policy that it started from.",
            (first.at(0), losses.at(int(losses.values.argmin()))),
            "Lower dpo.learning_rate, raise kl_coeff, or give more preferences; see few-pairs.",
        )


def pairs_by_heart(history: RunHistory) -> Iterator[Finding]:
    training, held_out = history.curve("policy", "accuracy"), history.curve("policy", "validation/accuracy")
    if history.direct and training.long and len(held_out) and training.late > held_out.values[-1] + BY_HEART:
        yield Finding(
            "pairs-by-heart",
            SUSPICIOUS,
            "The policy ranks the pairs it learned from much better than others: it knows them by heart.",
            (training.mean(training.last), held_out.at(-1)),
            "Lower dpo.train_steps to one to three epochs, or give more preferences.",
        )


RULES = (prefers_the_rejected, chosen_given_up, never_below_the_start, pairs_by_heart)
