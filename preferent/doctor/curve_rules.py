"""Rules about any training curve: non-finite numbers, learning rates, gradients, and the supervised loss."""

from collections.abc import Iterator

import numpy as np

from preferent.config.defaults import TUNING
from preferent.doctor.findings import RELATIVE, SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import Curve, RunHistory

NO_RATE = min(tuning.full_rate for tuning in TUNING.values()) / 1000
"""A thousandth of the smallest default; AdamW moves a weight by about the learning rate per step."""
SPIKE = 20.0
"""Ratio to the median norm; at most 8 in healthy runs after the first tenth, which has warm-up and a new head."""
GRADIENTS = ("gradient_norm", "policy/gradient_norm", "val/gradient_norm")
WORSE = 1.05
"""Ratio of the validation loss to its minimum; supervised runs fluctuate by less than five per cent."""
MAY_BE_NULL = ("val/explained_variance",)
"""Undefined if all returns are equal, as at the optimum."""


def not_finite(history: RunHistory) -> Iterator[Finding]:
    for folder in history.curves:
        places = [
            (row["step"], name)
            for row in history.curves[folder]
            for name, figure in row.items()
            if figure is None and name not in MAY_BE_NULL
        ]
        if places:
            step, name = places[0]
            yield Finding(
                "not-finite",
                SICK,
                f"A number of {folder} is not finite: whatever was learned after it is meaningless.",
                (Evidence(RELATIVE.stage(folder).metrics.as_posix(), name, "null", (step, step)),),
                "Lower the learning rate or max_grad_norm; with reward.sources, check what the function returns.",
            )


def learning_rate_zero(history: RunHistory) -> Iterator[Finding]:
    for folder in history.curves:
        rates = history.curve(folder, "learning_rate")
        if len(rates) and rates.values.max() < NO_RATE:
            yield Finding(
                "learning-rate-zero",
                SICK,
                f"The learning rate of {folder} is practically zero: nothing was learned.",
                (rates.at(int(rates.values.argmax())),),
                "Raise the section's learning_rate, or the learning_rate_multiplier that it is multiplied by.",
            )


def warmup_unfinished(history: RunHistory) -> Iterator[Finding]:
    for folder in history.curves:
        rates = history.curve(folder, "learning_rate")
        if rates.long and np.all(np.diff(rates.values) > 0):
            yield Finding(
                "warmup-unfinished",
                SUSPICIOUS,
                f"The learning rate of {folder} still rises at the last step: the warm-up is longer than the run.",
                (rates.at(0), rates.at(-1)),
                "Lower the section's warmup_steps, or train longer.",
            )


def no_gradient(history: RunHistory) -> Iterator[Finding]:
    for norms in _norms(history):
        if len(norms) and norms.values.max() == 0:
            yield Finding(
                "no-gradient",
                SICK,
                "The gradient is zero at every step: nothing can be learned from these scores or losses.",
                (norms.at(0), norms.at(-1)),
                "Check that scores differ between answers, and that lora_dim trains layers that the model has.",
            )


def gradient_spikes(history: RunHistory) -> Iterator[Finding]:
    for norms in _norms(history):
        settled = norms.values[len(norms) // 10 :]
        if norms.long and settled.max() > SPIKE * (median := float(np.median(settled))) > 0:
            place = len(norms) // 10 + int(settled.argmax())
            yield Finding(
                "gradient-spikes",
                SUSPICIOUS,
                f"A gradient is more than {SPIKE:.0f} times the usual one; clipping limits the step, not the cause.",
                (norms.at(place), Evidence(norms.file, f"median {norms.figure}", median)),
                "Look at the batch of that step (policy/rollouts); lower the learning rate, or add warm-up.",
            )


def sft_over_trained(history: RunHistory) -> Iterator[Finding]:
    losses = history.curve("sft", "validation/loss")
    if len(losses) > 1 and losses.values[-1] > WORSE * losses.values.min():
        yield Finding(
            "sft-over-trained",
            SUSPICIOUS,
            "Supervised fine-tuning got worse on held-out text, and tuning starts from its last state.",
            (losses.at(int(losses.values.argmin())), losses.at(-1)),
            "Lower sft.train_steps to the step with the lowest validation loss.",
        )


def _norms(history: RunHistory) -> Iterator[Curve]:
    return (history.curve(folder, name) for folder in history.curves for name in GRADIENTS)


RULES = (not_finite, learning_rate_zero, warmup_unfinished, no_gradient, gradient_spikes, sft_over_trained)
