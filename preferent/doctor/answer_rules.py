"""Rules about the answers of the policy during training, and about their scores."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from preferent.doctor.findings import RELATIVE, SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import Row, RunHistory
from preferent.evaluation.statistics import rank_correlation
from preferent.rewards.normalization import ScoreNormalization

SAMPLES = RELATIVE.policy.samples.as_posix()
ENDED = 0.8
ENDED_AT_ALL = 0.5
"""Shares that end: 95 % and more in healthy runs; if most are cut, most scores are reward.missing_eos_score."""
LONGER = 1.25
WITH_LENGTH = 0.8
"""Growth of the mean length, and rank correlation of length with score over the steps."""
BELOW = 0.25
"""Share of ended answers that score less than one that does not end. In three runs with .31, .39 and .55 of them, the
share that ends fell to .87, .81 and .43."""
DISTINCT = 0.5
"""Share of different answers in a batch of different prompts; 0.88 to 1 in healthy runs."""
FEW = 8
"""Number of answers below which a mean or a share is meaningless."""
CONSTANT = 1e-6
GAIN = 10.0
"""Raw scores usually have a standard deviation of 0.3 to 4; a gain above 10 or below 1/10 is unusual."""


def answers_do_not_end(history: RunHistory) -> Iterator[Finding]:
    ended = history.curve("policy", "tokens/ended")
    if ended.long and ended.late < ENDED:
        yield Finding(
            "answers-do-not-end",
            SICK if ended.late < ENDED_AT_ALL else SUSPICIOUS,
            "Answers are cut at target_sequence_length instead of ending by themselves.",
            (ended.mean(ended.first), ended.mean(ended.last)),
            "Raise target_sequence_length. If the model did not end its answers before tuning either, run sft on "
            "complete answers first; otherwise lower reward.missing_eos_score.",
        )


def reward_rises_with_length(history: RunHistory) -> Iterator[Finding]:
    length, score = history.curve("policy", "tokens/length"), history.curve("policy", "objective/scores")
    if not length.long or len(length) != len(score) or length.late < LONGER * length.early:
        return
    correlation = rank_correlation(length.values, score.values)
    if correlation > WITH_LENGTH:
        shown = Evidence(length.file, "rank correlation of tokens/length and objective/scores", correlation)
        yield Finding(
            "reward-rises-with-length",
            SUSPICIOUS,
            "Scores rose as answers grew longer: the policy may have learned to write longer, not better, answers.",
            (length.mean(length.first), length.mean(length.last), shown),
            "Read the examples in the report; see scores-follow-length; add preferences for shorter answers.",
        )


def diversity_gone(history: RunHistory) -> Iterator[Finding]:
    first, last = _batch(history, 0), _batch(history, -1)
    if len(last) < FEW or _distinct(last) >= DISTINCT or _distinct(last) >= DISTINCT * _distinct(first):
        return
    yield Finding(
        "diversity-gone",
        SUSPICIOUS,
        "The policy gives the same answer to many prompts, which it did not do at first.",
        tuple(_of(rows, "different answers, share", _distinct(rows)) for rows in (first, last)),
        "Raise kl_coeff or take an earlier checkpoint, and find out why the reward scores that answer high.",
    )


def constant_scores(history: RunHistory) -> Iterator[Finding]:
    rows = _batch(history, 0)
    if len(rows) < FEW:
        return
    scores = _scores(history, rows)
    if scores.std() <= CONSTANT * max(1.0, float(np.abs(scores).max())):
        yield Finding(
            "constant-scores",
            SICK,
            "All answers get the same score, so that there is nothing to learn.",
            (_of(rows, "lowest score", float(scores.min())), _of(rows, "highest score", float(scores.max()))),
            "Check that the reward depends on the answer: try it on two answers to one prompt.",
        )


def not_ending_pays(history: RunHistory) -> Iterator[Finding]:
    missing = history.fields("policy").get("reward.missing_eos_score")
    rows = [row for row in _batch(history, 0) if row["ended"]]
    if missing is None or not history.score or len(rows) < FEW:
        return
    scores = _scores(history, rows)
    mean, below = float(scores.mean()), float((scores < missing).mean())
    if mean >= missing and below < BELOW:
        return
    beaten = "the mean of those that end" if mean < missing else "many of those that end"
    yield Finding(
        "not-ending-pays",
        SICK if mean < missing else SUSPICIOUS,
        f"An answer that does not end scores higher than {beaten}: the policy learns not to end.",
        (
            _of(rows, "mean score of ended answers", mean),
            _of(rows, "ended answers that score less, share", below),
            Evidence(RELATIVE.policy.description.as_posix(), "missing_eos_score", missing),
        ),
        "Lower reward.missing_eos_score well below the scores of answers, or set reward.normalize: bias.",
    )


def extreme_gain(history: RunHistory) -> Iterator[Finding]:
    terms = ScoreNormalization.parse(history.score).terms if history.score else ()
    gains = [normalizer.gain for term in terms for normalizer in term.members.values()]
    gain = max(gains, key=lambda gain: abs(math.log(gain)), default=1.0)
    if not 1 / GAIN <= gain <= GAIN:
        yield Finding(
            "extreme-gain",
            SUSPICIOUS,
            "Scores are scaled by more than a factor of ten: the reward hardly distinguishes answers, or its scale "
            "diverged.",
            (Evidence(RELATIVE.policy.score.as_posix(), "gain", gain),),
            "Check in reward/quality.json that the model beats chance. reward.normalize: bias keeps the scale.",
        )


def _batch(history: RunHistory, place: int) -> Sequence[Row]:
    """Return the rollouts of the first step (0) or of the last (-1)."""
    if not history.samples:
        return []
    step = history.samples[place]["step"]
    return [row for row in history.samples if row["step"] == step]


def _scores(history: RunHistory, rows: Sequence[Row]) -> np.ndarray:
    """Return the scores [n] of rollouts on the run's scale; without a scale, the sum of the raw scores."""
    raw = {name: np.array([row["scores"][name] for row in rows]) for name in rows[0]["scores"]}
    return ScoreNormalization.parse(history.score)(raw) if history.score else np.sum(list(raw.values()), axis=0)


def _distinct(rows: Sequence[Row]) -> float:
    """Return the share of different answers; each prompt counts once."""
    by_prompt = {row["prompt_index"]: row["answer"] for row in rows}
    return len(set(by_prompt.values())) / len(by_prompt)


def _of(rows: Sequence[Row], figure: str, value: float) -> Evidence:
    return Evidence(SAMPLES, figure, value, (rows[0]["step"], rows[0]["step"]))


RULES = (
    answers_do_not_end,
    reward_rises_with_length,
    diversity_gone,
    constant_scores,
    not_ending_pays,
    extreme_gain,
)
