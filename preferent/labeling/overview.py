"""Figures for the owner while people vote: progress, the habits of each annotator, and agreement."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import median
from typing import Any

from preferent.data.judgment_outcomes import OUTCOMES
from preferent.evaluation import statistics
from preferent.evaluation.statistics import agreement
from preferent.evaluation.statistics.agreement import percent
from preferent.labeling.events import CHOICES, AnnotatorHistory, HumanVote
from preferent.labeling.questions import Asks, Question, Verdict

RATINGS = {**OUTCOMES, "up": 1.0, "down": 0.0}
"""Verdicts as numbers."""


def figures(
    questions: Mapping[str, Question],
    queues: Mapping[str, Sequence[str]],
    histories: Mapping[str, AnnotatorHistory],
    asks: Asks = "pairs",
) -> dict[str, Any]:
    """Return progress, votes by choice, a row per annotator, and agreement; nothing reveals which model is ahead."""
    votes = {name: history.votes for name, history in histories.items()}
    count = Counter(vote.choice for history in histories.values() for vote in history.votes.values())
    return {
        "items": sum(not question.identical and question.gold is None for question in questions.values()),
        "identical": sum(question.identical for question in questions.values()),
        "votes": count.total(),
        "choices": {choice: count[choice] for choice in CHOICES[asks]},
        "flags": sum(len(history.flags) for history in histories.values()),
        "annotators": [_annotator(name, questions, queues.get(name, ()), votes[name]) for name in sorted(votes)],
        "agreement": agreement_of_people(questions, histories),
    }


def _annotator(
    name: str, questions: Mapping[str, Question], queue: Sequence[str], votes: Mapping[str, HumanVote]
) -> dict[str, Any]:
    """Return how an annotator votes. It shows habits: always left, always up, always a tie, too fast."""
    count = Counter(vote.choice for vote in votes.values())
    sided, judged = count["left"] + count["right"], len(votes) - count["skip"]
    seconds = [vote.seconds for vote in votes.values() if vote.seconds is not None]
    right = [vote.right(questions[key]) for key, vote in votes.items()]
    return {
        "name": name,
        "done": len(votes),
        "total": len({*queue, *votes}),
        "left_share": count["left"] / sided if sided else None,
        "tie_share": (count["tie"] + count["both_bad"]) / judged if judged else None,
        "up_share": count["up"] / judged if judged else None,
        "skips": count["skip"],
        "median_seconds": median(seconds) if seconds else None,
        "gold_right": right.count(True),
        "gold_total": len(right) - right.count(None),
        "last": max((vote.at for vote in votes.values()), default=None),
    }


def agreement_of_people(
    questions: Mapping[str, Question], histories: Mapping[str, AnnotatorHistory]
) -> dict[str, Any] | None:
    """Return how far people agree on the questions that several answered; None if there are none.

    `percent` is the agreement over all `pairs` of votes on one question, `cohen` is Cohen's kappa of every two people,
    and `krippendorff` is alpha over all people, with its 95 % interval. Control questions are left out. "Both bad"
    counts as a tie, and a skip is not a vote.
    """
    verdicts = {
        name: {key: vote.verdict for key, vote in history.votes.items() if vote.verdict and not questions[key].gold}
        for name, history in sorted(histories.items())
    }
    pairs: list[tuple[Verdict, Verdict]] = []
    cohen = {}
    for first, second in combinations(verdicts, 2):
        shared = [(verdicts[first][key], verdicts[second][key]) for key in verdicts[first] if key in verdicts[second]]
        if shared:
            pairs += shared
            cohen[f"{first}|{second}"] = agreement.cohen([a for a, _ in shared], [b for _, b in shared])
    if not pairs:
        return None
    keys = list(dict.fromkeys(key for verdict in verdicts.values() for key in verdict))
    ratings = [[RATINGS[verdict[key]] if key in verdict else None for key in keys] for verdict in verdicts.values()]
    alpha = agreement.alpha(ratings, [questions[key].prompt.key for key in keys])
    return {
        "percent": percent([a for a, _ in pairs], [b for _, b in pairs]),
        "krippendorff": alpha.alpha,
        "interval": alpha.interval,
        "cohen": cohen,
        "pairs": len(pairs),
    }


def rates(
    questions: Mapping[str, Question], histories: Mapping[str, AnnotatorHistory], passed: Mapping[str, Collection[str]]
) -> list[dict[str, Any]]:
    """Return the win rate of each pair of models, which the owner sees only on request.

    As in the judgments, a pair of identical answers is a tie of everybody who `passed` it.
    """
    rows: dict[tuple[str, str], list[tuple[float, str, float]]] = {}
    for name, history in histories.items():
        verdicts = {key: vote.verdict for key, vote in history.votes.items()}
        for key, verdict in (dict.fromkeys(passed.get(name, ()), "tie") | verdicts).items():
            question = questions[key]
            if question.gold is None and verdict is not None:
                row = OUTCOMES[verdict], question.prompt.key, 1 / question.probability
                rows.setdefault((question.model_a, question.model_b), []).append(row)
    return [_rate(models, rows[models]) for models in sorted(rows)]


def thumb_rates(questions: Mapping[str, Question], histories: Mapping[str, AnnotatorHistory]) -> list[dict[str, Any]]:
    """Return the share of thumbs up of each model, which the owner sees only on request, with its interval.

    An answer that two models gave counts for both.
    """
    rows: dict[str, list[tuple[float, str, float]]] = {}
    for history in histories.values():
        for key, vote in history.votes.items():
            question, verdict = questions[key], vote.verdict
            if question.gold is None and verdict is not None:
                row = RATINGS[verdict], question.prompt.key, 1 / question.probability
                for model in dict.fromkeys((question.model_a, question.model_b or question.model_a)):
                    rows.setdefault(model, []).append(row)
    return [_thumb_rate(model, rows[model]) for model in sorted(rows)]


def _thumb_rate(model: str, rows: Sequence[tuple[float, str, float]]) -> dict[str, Any]:
    thumbs, prompts, weights = zip(*rows, strict=True)
    share = statistics.win_rate(thumbs, prompts, weights=weights)
    up = sum(thumb == 1 for thumb in thumbs)
    return {
        "model": model,
        "up_share": share.win_rate,
        "interval": share.interval,
        "up": up,
        "down": len(thumbs) - up,
    }


def _rate(models: tuple[str, str], rows: Sequence[tuple[float, str, float]]) -> dict[str, Any]:
    outcomes, prompts, weights = zip(*rows, strict=True)
    rate = statistics.win_rate(outcomes, prompts, weights=weights)
    return {"model_a": models[0], "model_b": models[1]} | asdict(rate)
