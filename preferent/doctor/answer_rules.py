"""Rules about the policy's answers while it learns, and the scores they get."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from preferent.doctor.findings import SICK, SUSPICIOUS, Evidence, Finding
from preferent.doctor.run_history import Row, RunHistory
from preferent.evaluation.statistics import rank_correlation
from preferent.rewards.normalization import ScoreNormalization

SAMPLES = "policy/rollouts/samples.jsonl"
ENDED = 0.8
ENDED_AT_ALL = 0.5
"""Shares of answers: healthy runs end 95 % and more; where most are cut, most scores are reward.missing_eos_score."""
LONGER = 1.25
WITH_LENGTH = 0.8
"""Growth of the mean length, and rank correlation of length with score over the steps."""
DISTINCT = 0.5
"""Share of different answers in a batch of different prompts; healthy runs: 0.88 to 1."""
FEW = 8
"""Answers below which a mean or a share says nothing."""
CONSTANT = 1e-6
GAIN = 10.0
"""Raw scores usually deviate by 0.3 to 4: a gain beyond 10 or below 1/10 is no reward model's usual scale."""


def answers_do_not_end(history: RunHistory) -> Iterator[Finding]:
    ended = history.curve("policy", "tokens/ended")
    if ended.long and ended.late < ENDED:
        yield Finding(
            "answers-do-not-end",
            SICK if ended.late < ENDED_AT_ALL else SUSPICIOUS,
            "Answers are cut at target_sequence_length instead of ending by themselves.",
            (ended.mean(ended.first), ended.mean(ended.last)),
            "Raise target_sequence_length; where the start does not end either, do an sft on complete answers first; "
            "else lower reward.missing_eos_score.",
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
            "Scores rose as answers grew longer: the policy may have learned to be long, not good.",
            (length.mean(length.first), length.mean(length.last), shown),
            "Read the examples in the report; see scores-follow-length; give preferences in which the shorter wins.",
        )


def diversity_gone(history: RunHistory) -> Iterator[Finding]:
    first, last = _batch(history, 0), _batch(history, -1)
    if len(last) < FEW or _distinct(last) >= DISTINCT or _distinct(last) >= DISTINCT * _distinct(first):
        return
    yield Finding(
        "diversity-gone",
        SUSPICIOUS,
        "The policy gives many prompts the same answer, which it did not do at first.",
        tuple(_of(rows, "different answers, share", _distinct(rows)) for rows in (first, last)),
        "Raise kl_coeff, take an earlier checkpoint, and see what in the reward likes that answer.",
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
            "All answers get the same score, so there is nothing to learn.",
            (_of(rows, "lowest score", float(scores.min())), _of(rows, "highest score", float(scores.max()))),
            "See that the reward reads the answer: try it on two answers to one prompt.",
        )


def not_ending_pays(history: RunHistory) -> Iterator[Finding]:
    missing = history.fields("policy").get("reward.missing_eos_score")
    rows = [row for row in _batch(history, 0) if row["ended"]]
    if missing is None or not history.score or len(rows) < FEW:
        return
    score = float(_scores(history, rows).mean())
    if score < missing:
        yield Finding(
            "not-ending-pays",
            SICK,
            "An answer that does not end scores better than the mean one that does: the policy will learn not to end.",
            (
                _of(rows, "mean score of ended answers", score),
                Evidence("policy/stage.json", "missing_eos_score", missing),
            ),
            "Lower reward.missing_eos_score well below the scores of answers, or reward.normalize: bias.",
        )


def extreme_gain(history: RunHistory) -> Iterator[Finding]:
    terms = ScoreNormalization.parse(history.score).terms if history.score else ()
    gains = [normalizer.gain for term in terms for normalizer in term.members.values()]
    gain = max(gains, key=lambda gain: abs(math.log(gain)), default=1.0)
    if not 1 / GAIN <= gain <= GAIN:
        yield Finding(
            "extreme-gain",
            SUSPICIOUS,
            "Scores are stretched or shrunk by more than ten: the reward hardly tells answers apart, or its scale ran "
            "away.",
            (Evidence("policy/score.json", "gain", gain),),
            "See reward/quality.json: is it better than chance? With reward.normalize: bias the scale stays.",
        )


def _batch(history: RunHistory, place: int) -> Sequence[Row]:
    """The rollouts of the first step (0) or of the last (-1)."""
    if not history.samples:
        return []
    step = history.samples[place]["step"]
    return [row for row in history.samples if row["step"] == step]


def _scores(history: RunHistory, rows: Sequence[Row]) -> np.ndarray:
    """The scores [n] of rollouts on the run's scale; raw, their sum, where there is none."""
    raw = {name: np.array([row["scores"][name] for row in rows]) for name in rows[0]["scores"]}
    return ScoreNormalization.parse(history.score)(raw) if history.score else np.sum(list(raw.values()), axis=0)


def _distinct(rows: Sequence[Row]) -> float:
    """The share of different answers, each prompt counted once."""
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
