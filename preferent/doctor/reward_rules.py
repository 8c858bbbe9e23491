"""Rules about reward model and judge: their training, their accuracy, and their confidence."""

import math
from collections.abc import Iterator

from preferent.doctor.findings import RELATIVE, SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import RunHistory
from preferent.evaluation.reward_findings import BY_LENGTH, OVER_CONFIDENT

AT_CHANCE = math.log(2) - 0.01
"""log 2 is the loss of a model that cannot tell the answers apart."""
ERRORS = 2.0
"""Standard errors within which an accuracy cannot be told from another."""
OVER_TRAINED = 1.25
"""Ratio of the last validation loss to the lowest; above it the later steps were useless."""
STILL = 0.98
"""Ratio of the last validation loss to the lowest before it; a fall of 2 % shows that the curve has not flattened."""
EPOCHS = 10
"""One epoch is usual (Stiennon 2020, Ouyang 2022, Huang 2024), two can be better (RewardBench 2)."""


def loss_at_chance(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        losses = history.curve(folder, "rank_loss")
        if losses.long and losses.late > AT_CHANCE:
            yield Finding(
                "loss-at-chance",
                SICK,
                f"The {folder} model cannot tell chosen from rejected even in training: its loss stays at log 2.",
                (losses.mean(losses.first), losses.mean(losses.last)),
                "Raise reward.learning_rate (small models need 1e-4 and more) or train longer; check that `choice` is "
                "right.",
            )


def no_better_than_trivial(history: RunHistory) -> Iterator[Finding]:
    """Compare with preferring the longer or the shorter answer, and with chance."""
    for folder in history.qualities:
        part, figures = history.held_out(folder)
        if not figures:
            continue
        accuracy, longer = figures["accuracy"], figures["longer_accuracy"]
        trivial, error = max(longer, 1 - longer), math.sqrt(accuracy * (1 - accuracy) / figures["count"])
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
                _quality(folder, part, "count", figures["count"]),
            ),
            "Use more or cleaner preferences, or a larger model; see few-pairs, over-trained and loss-at-chance.",
        )


def no_better_than_words(history: RunHistory) -> Iterator[Finding]:
    """Compare with a Bradley-Terry model of TF-IDF that learned from the same pairs."""
    for folder in history.qualities:
        words = history.qualities[folder].get("rules", {}).get("words")
        if not words or words["lead"] > 0:
            continue
        part, _ = history.held_out(folder)
        yield Finding(
            "no-better-than-words",
            SUSPICIOUS,
            f"The {folder} model is not better than a bag of words that learned from the preferences.",
            (
                _quality(folder, part, "accuracy of the bag of words", words["share"]),
                _quality(folder, part, "lead over it", words["lead"]),
            ),
            "Use a larger model, more preferences, or other training settings; PPO would exploit single words.",
        )


def over_confident(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        part, figures = history.held_out(folder)
        bins = history.qualities.get(folder, {}).get("reliability", [])
        count = sum(group["count"] for group in bins)
        if not count or not figures:
            continue
        gap = sum(group["count"] * (group["confidence"] - group["accuracy"]) for group in bins) / count
        if gap > max(OVER_CONFIDENT, ERRORS * 0.5 / math.sqrt(count)):
            yield Finding(
                "over-confident",
                SUSPICIOUS,
                f"The {folder} model is more confident than accurate: its scores are too far apart.",
                (
                    _quality(folder, part, "ece", figures["ece"]),
                    Evidence(_file(folder), "mean confidence over accuracy", gap),
                ),
                "Lower reward_model_train_steps, raise reward.weight_decay, or set reward.normalize: std.",
            )


def scores_follow_length(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        part, figures = history.held_out(folder)
        if figures and abs(figures["length_correlation"]) > BY_LENGTH:
            yield Finding(
                "scores-follow-length",
                SUSPICIOUS,
                f"The {folder} model's scores follow the length of the answers.",
                (_quality(folder, part, "length_correlation", figures["length_correlation"]),),
                "Use pairs of similar length, or pairs in which the longer answer is as often the worse one; PPO would "
                "exploit length.",
            )


def over_trained(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        losses = history.curve(folder, "validation/loss")
        if len(losses) > 1 and losses.values[-1] > OVER_TRAINED * losses.values.min():
            yield Finding(
                "over-trained",
                SUSPICIOUS,
                f"The {folder} model's validation loss rose again long before the end; the model with the lowest loss "
                "is kept, but it is an early one.",
                (losses.at(int(losses.values.argmin())), losses.at(-1)),
                "Lower reward_model_train_steps or the learning rate, raise reward.weight_decay, or add preferences.",
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
                "Raise reward_model_train_steps; the same run continues from its last checkpoint.",
            )


def many_epochs(history: RunHistory) -> Iterator[Finding]:
    for folder in history.qualities:
        epochs = history.facts(folder).get("epochs", 0.0)
        if epochs > EPOCHS:
            yield Finding(
                "many-epochs",
                SUSPICIOUS,
                f"The {folder} model saw every pair more than {EPOCHS} times; once or twice is usual.",
                (Evidence(RELATIVE.stage(folder).description.as_posix(), "epochs", epochs),),
                "Lower reward_model_train_steps, or add preferences; for the judge, raise compare.judge_share.",
            )


def _quality(folder: str, part: str, name: str, value: float) -> Evidence:
    return Evidence(_file(folder), f"{part} {name}", value)


def _file(folder: str) -> str:
    return RELATIVE.stage(folder).quality.as_posix()


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
