"""Rules about reward model and judge: whether they learned, what from, and how sure of themselves they are."""

import math
from collections.abc import Iterator

from preferent.doctor.findings import SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import RunHistory
from preferent.evaluation.reward_findings import BY_LENGTH, OVER_CONFIDENT

AT_CHANCE = math.log(2) - 0.01
"""log 2 is the loss of a model that cannot tell the answers apart."""
ERRORS = 2.0
"""Standard errors within which an accuracy cannot be told from another."""
OVER_TRAINED = 1.25
"""Last validation loss over the least: beyond it the later steps were for nothing."""
STILL = 0.98
"""Last validation loss over the one before: a fall of 2 % is a curve that has not flattened."""
EPOCHS = 10
"""One epoch is the rule (Stiennon 2020, Ouyang 2022, Huang 2024), two can be better (RewardBench 2)."""


def loss_at_chance(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        losses = history.curve(folder, "rank_loss")
        if losses.long and losses.late > AT_CHANCE:
            yield Finding(
                "loss-at-chance",
                SICK,
                f"The {folder} model cannot tell chosen from rejected even in training: its loss stays at log 2.",
                (losses.mean(losses.first), losses.mean(losses.last)),
                "Raise reward.learning_rate (small models want 1e-4 and more) or train longer; see that `choice` is "
                "right.",
            )


def no_better_than_trivial(history: RunHistory) -> Iterator[Finding]:
    """The longer answer, the shorter answer, or a coin."""
    for folder in history.qualities:
        part, found = history.held_out(folder)
        if not found:
            continue
        accuracy, longer = found["accuracy"], found["longer_accuracy"]
        trivial, error = max(longer, 1 - longer), math.sqrt(accuracy * (1 - accuracy) / found["count"])
        if accuracy > trivial + ERRORS * error:
            continue
        sick = accuracy <= trivial
        yield Finding(
            "no-better-than-trivial",
            SICK if sick else SUSPICIOUS,
            f"The {folder} model {'is' if sick else 'may be'} no better than preferring the longer or the shorter "
            "answer.",
            (
                _quality(folder, part, "accuracy", accuracy),
                _quality(folder, part, "longer_accuracy", longer),
                _quality(folder, part, "accuracy of the shorter", 1 - longer),
                _quality(folder, part, "count", found["count"]),
            ),
            "More or cleaner preferences; a larger model; see few-pairs, over-trained and loss-at-chance.",
        )


def no_better_than_words(history: RunHistory) -> Iterator[Finding]:
    """A Bradley-Terry model of TF-IDF, learned from the same pairs."""
    for folder in history.qualities:
        found = history.qualities[folder].get("rules", {}).get("words")
        if not found or found["lead"] > 0:
            continue
        part, _ = history.held_out(folder)
        yield Finding(
            "no-better-than-words",
            SUSPICIOUS,
            f"The {folder} model is no better than a bag of words learned from preferences.",
            (
                _quality(folder, part, "accuracy of the bag of words", found["share"]),
                _quality(folder, part, "lead over it", found["lead"]),
            ),
            "A larger model, more preferences, or other training; PPO will look for the words that pay.",
        )


def over_confident(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        part, found = history.held_out(folder)
        bins = history.qualities.get(folder, {}).get("reliability", [])
        count = sum(one["count"] for one in bins)
        if not count:
            continue
        gap = sum(one["count"] * (one["confidence"] - one["accuracy"]) for one in bins) / count
        if gap > max(OVER_CONFIDENT, ERRORS * 0.5 / math.sqrt(count)):
            evidence = _quality(folder, part, "ece", found["ece"])
            yield Finding(
                "over-confident",
                SUSPICIOUS,
                f"The {folder} model is surer of its choices than it is right: its scores are too far apart.",
                (evidence, Evidence(f"{folder}/quality.json", "mean confidence over accuracy", gap)),
                "Fewer reward_model_train_steps, reward.weight_decay, or reward.normalize: std.",
            )


def scores_follow_length(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        part, found = history.held_out(folder)
        if found and abs(found["length_correlation"]) > BY_LENGTH:
            yield Finding(
                "scores-follow-length",
                SUSPICIOUS,
                f"The {folder} model's scores go with the length of the answers.",
                (_quality(folder, part, "length_correlation", found["length_correlation"]),),
                "Pairs of like length, or of which the longer is as often the worse; PPO will find the short cut.",
            )


def over_trained(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        losses = history.curve(folder, "validation/loss")
        if len(losses) > 1 and losses.values[-1] > OVER_TRAINED * losses.values.min():
            yield Finding(
                "over-trained",
                SUSPICIOUS,
                f"The {folder} model's validation loss rose again long before the end; the model of the least loss is "
                "kept, but it is an early one.",
                (losses.at(int(losses.values.argmin())), losses.at(-1)),
                "Fewer reward_model_train_steps, a lower rate, reward.weight_decay, or more preferences.",
            )


def still_improving(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        losses = history.curve(folder, "validation/loss")
        if len(losses) > 2 and losses.values[-1] < STILL * losses.values[:-1].min():
            yield Finding(
                "still-improving",
                SUSPICIOUS,
                f"The {folder} model was still getting better when training ended.",
                (losses.at(-2), losses.at(-1)),
                "Raise reward_model_train_steps: the same run goes on from its last checkpoint.",
            )


def many_epochs(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        epochs = history.facts(folder).get("epochs", 0.0)
        if epochs > EPOCHS:
            yield Finding(
                "many-epochs",
                SUSPICIOUS,
                f"The {folder} model saw every pair more than {EPOCHS} times; one or two are usual.",
                (Evidence(f"{folder}/stage.json", "epochs", epochs),),
                "Fewer reward_model_train_steps, or more preferences; for the judge, a larger compare.judge_share.",
            )


def _quality(folder: str, part: str, name: str, value: float) -> Evidence:
    return Evidence(f"{folder}/quality.json", f"{part} {name}", value)


RULES = (
    loss_at_chance,
    no_better_than_trivial,
    no_better_than_words,
    over_confident,
    scores_follow_length,
    over_trained,
    still_improving,
    many_epochs,
)
