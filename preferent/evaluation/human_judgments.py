"""People's votes, matched with the pairs of this comparison."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preferent.data import judgments
from preferent.data.judgment_outcomes import SWAPPED
from preferent.data.predictions import Answers
from preferent.data.types import Judgment
from preferent.evaluation import statistics
from preferent.evaluation.judge_results import A_B, JudgeResults, Sides, pairs_of

NAME = "people"
FIRST = {"a": "b", "b": "a"}


def read_votes(path: Path, answers: Answers, names: Mapping[str, str]) -> JudgeResults:
    """Return the votes in a file of judgments that are about answers of these sides; count the others.

    A vote counts where its id and both answers are those of two sides, in either order. Votes therefore survive the
    renaming of a side, but not a change of its answers.
    """
    places = {answer.id: place for place, answer in enumerate(answers["a"])}
    by_sides: dict[Sides, list[Judgment]] = {}
    elsewhere = 0
    for vote in judgments.read(path):
        sides = _sides(vote, places.get(vote.id), answers, names)
        if sides is None:
            elsewhere += 1
        else:
            ordered = vote if sides in pairs_of(answers) else swapped(vote)
            a, b = sides if ordered is vote else sides[::-1]
            named = {**ordered.extra, "model_a": names[a], "model_b": names[b]}
            by_sides.setdefault((a, b), []).append(replace(ordered, judge=NAME, extra=named))
    if elsewhere:
        print(
            f"{path}: {elsewhere} votes are about answers that are not compared here, and do not count", file=sys.stderr
        )
    return JudgeResults(NAME, "people", by_sides, facts=_facts(by_sides.get(A_B, ())) | {"elsewhere": elsewhere})


def _facts(votes: Sequence[Judgment]) -> dict[str, Any]:
    """Return who voted, how often both answers were bad, and how often people chose the answer that they saw first."""
    seen = [vote for vote in votes if vote.extra.get("first") in FIRST and not vote.extra.get("identical")]
    sided = [vote for vote in seen if vote.choice != "tie"]
    first = sum(vote.choice == str(vote.extra["first"]).upper() for vote in sided)
    order: dict[str, Any] = {"verdicts": len(votes), "unparsable": 0, "unparsable_share": 0.0, "consistent": None}
    order |= {"first_slot": first / len(sided) if sided else None, "calls": 0}
    order["first_slot_interval"] = statistics.wilson(first, len(sided)) if sided else None
    return {
        "order": order,
        "both_bad": sum(bool(vote.extra.get("both_bad")) for vote in votes),
        "annotators": len({str(vote.extra.get("annotator", "")) for vote in votes}),
        "flagged": sum(bool(vote.extra.get("flagged")) for vote in votes),
    }


def _sides(vote: Judgment, place: int | None, answers: Answers, names: Mapping[str, str]) -> Sides | None:
    """Return the sides whose answers a vote is about, preferably those that it names."""
    if place is None:
        return None
    fits = [
        sides
        for a, b in pairs_of(answers)
        for sides in ((a, b), (b, a))
        if (answers[sides[0]][place].text, answers[sides[1]][place].text) == (vote.response_a, vote.response_b)
    ]
    called = (vote.extra.get("model_a"), vote.extra.get("model_b"))
    return next((pair for pair in fits if (names[pair[0]], names[pair[1]]) == called), next(iter(fits), None))


def swapped(vote: Judgment) -> Judgment:
    """Return the same vote with the answers in the other order."""
    extra = dict(vote.extra)
    if extra.get("first") in FIRST:
        extra["first"] = FIRST[extra["first"]]
    return replace(
        vote, response_a=vote.response_b, response_b=vote.response_a, choice=SWAPPED[vote.choice], extra=extra
    )
