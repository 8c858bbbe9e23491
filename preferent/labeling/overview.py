"""What the owner sees while people vote: progress, how each of them votes, and how far they agree."""

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
from preferent.labeling.questions import Question, Verdict


def figures(
    questions: Mapping[str, Question], queues: Mapping[str, Sequence[str]], histories: Mapping[str, AnnotatorHistory]
) -> dict[str, Any]:
    """Progress, votes by choice, a row for each annotator, and agreement; nothing tells which model is ahead."""
    votes = {name: history.votes for name, history in histories.items()}
    chosen = Counter(vote.choice for given in votes.values() for vote in given.values())
    return {
        "items": sum(not each.identical and each.gold is None for each in questions.values()),
        "identical": sum(each.identical for each in questions.values()),
        "votes": chosen.total(),
        "choices": {choice: chosen[choice] for choice in CHOICES},
        "flags": sum(len(history.flags) for history in histories.values()),
        "annotators": [_annotator(name, questions, queues.get(name, ()), votes[name]) for name in sorted(votes)],
        "agreement": agreement_of_people(questions, histories),
    }


def _annotator(
    name: str, questions: Mapping[str, Question], queue: Sequence[str], votes: Mapping[str, HumanVote]
) -> dict[str, Any]:
    """How somebody votes: a habit (always left, always a tie, too fast) shows here."""
    count = Counter(vote.choice for vote in votes.values())
    sided, given = count["left"] + count["right"], len(votes) - count["skip"]
    seconds = [vote.seconds for vote in votes.values() if vote.seconds is not None]
    right = [vote.right(questions[key]) for key, vote in votes.items()]
    return {
        "name": name,
        "done": len(votes),
        "total": len({*queue, *votes}),
        "left_share": count["left"] / sided if sided else None,
        "tie_share": (count["tie"] + count["both_bad"]) / given if given else None,
        "skips": count["skip"],
        "median_seconds": median(seconds) if seconds else None,
        "gold_right": sum(each is True for each in right),
        "gold_total": sum(each is not None for each in right),
        "last": max((vote.at for vote in votes.values()), default=None),
    }


def agreement_of_people(
    questions: Mapping[str, Question], histories: Mapping[str, AnnotatorHistory]
) -> dict[str, Any] | None:
    """How far people who answered the same questions agree, control questions left out; None where nobody did.

    `percent` is over all `pairs` of votes on one question, `cohen` is Cohen's kappa of every two people, `krippendorff`
    is alpha over all of them, whoever answered what, with its 95 % interval. That both are bad is a tie; a skip is no
    vote.
    """
    verdicts = {
        name: {key: vote.verdict for key, vote in history.votes.items() if vote.verdict and not questions[key].gold}
        for name, history in sorted(histories.items())
    }
    said: list[tuple[Verdict, Verdict]] = []
    cohen = {}
    for one, other in combinations(verdicts, 2):
        both = [(verdicts[one][key], verdicts[other][key]) for key in verdicts[one] if key in verdicts[other]]
        if both:
            said += both
            cohen[f"{one}|{other}"] = agreement.cohen([a for a, _ in both], [b for _, b in both])
    if not said:
        return None
    keys = list(dict.fromkeys(key for given in verdicts.values() for key in given))
    ratings = [[OUTCOMES[given[key]] if key in given else None for key in keys] for given in verdicts.values()]
    alpha = agreement.alpha(ratings, [questions[key].prompt.key for key in keys])
    return {
        "percent": percent([a for a, _ in said], [b for _, b in said]),
        "krippendorff": alpha.alpha,
        "interval": alpha.interval,
        "cohen": cohen,
        "pairs": len(said),
    }


def rates(
    questions: Mapping[str, Question], histories: Mapping[str, AnnotatorHistory], passed: Mapping[str, Collection[str]]
) -> list[dict[str, Any]]:
    """Who is ahead, for each pair of models: what the owner sees only on asking for it.

    As in the judgments, a pair of identical answers is a tie of everybody who `passed` it.
    """
    found: dict[tuple[str, str], list[tuple[float, str, float]]] = {}
    for name, history in histories.items():
        said = {key: vote.verdict for key, vote in history.votes.items()}
        for key, verdict in (dict.fromkeys(passed.get(name, ()), "tie") | said).items():
            asked = questions[key]
            if asked.gold is None and verdict is not None:
                row = OUTCOMES[verdict], asked.prompt.key, 1 / asked.probability
                found.setdefault((asked.model_a, asked.model_b), []).append(row)
    return [_rate(models, rows) for models, rows in sorted(found.items())]


def _rate(models: tuple[str, str], rows: Sequence[tuple[float, str, float]]) -> dict[str, Any]:
    outcomes, prompts, weights = zip(*rows, strict=True)
    rate = statistics.win_rate(outcomes, prompts, weights=weights)
    return {"model_a": models[0], "model_b": models[1]} | asdict(rate)
