"""Asking until the votes are enough: the order, what the page is told, and what is exported."""

import numpy as np
import pytest

from preferent.data.types import Judgment, Prompt
from preferent.errors import UsageError
from preferent.labeling import assignment, label_exports, selection
from preferent.labeling.database import Store
from preferent.labeling.questions import Question
from preferent.labeling.service import LabelingService

SETTINGS = {"seed": 5, "annotators": ["me"], "overlap": 1, "strengths": 0, "gold_share": 0.1, "select": "random"}


def questions(count: int) -> list[Question]:
    return [
        Question(f"r{i}", Prompt(input_text=f"prompt {i}"), f"a{i}", f"b{i}", "tuned", "base") for i in range(count)
    ]


def judgments(asked: list[Question]) -> list[Judgment]:
    """Every fourth pair is one that the judge is unsure of; the rows of half the pairs have b first."""
    rows = []
    for place, question in enumerate(asked):
        sure = 0.5 if place % 4 == 0 else 0.99
        first, second = (question.a, question.b) if place % 2 else (question.b, question.a)
        choice = "A" if place % 2 else "B"
        rows.append(Judgment(question.id, "", "", first, second, choice, sure, "judge"))  # type: ignore[arg-type]
    return rows


def service(tmp_path, asked, **settings):
    store = Store(tmp_path)
    store.create(SETTINGS | {"expected": selection.expected(asked, judgments(asked))} | settings, asked)
    return LabelingService(store)


def vote(sat, prefers_a=lambda question: True):
    queue = sat.queue("me")
    key = sat._keys[queue["item"]["item"]]
    wanted = "a" if prefers_a(sat.questions[key]) else "b"
    side = "left" if assignment.first(sat.settings["secret"], key, "me") == wanted else "right"
    return sat.vote("me", {"key": str(queue["done"]), "item": queue["item"]["item"], "choice": side})


def test_it_asks_until_one_half_is_excluded_and_then_no_more(tmp_path):
    sat = service(tmp_path, questions(200), until={"width": None})
    queue = sat.queue("me")
    assert (queue["done"], queue["about"], queue["enough"]) == (0, True, False)
    lefts = [queue["total"]]
    while queue["item"]:
        queue = vote(sat)
        lefts.append(queue["total"] - queue["done"])
    assert 5 < queue["done"] < 40 and queue["enough"] and not queue["about"]
    assert queue["total"] == queue["done"] and lefts[-2] >= 1 and lefts[-1] == 0
    overview = sat.overview()
    assert overview["left"] == 0 and "until" not in overview, "the rate stays hidden until the owner asks"
    assert sat.overview(reveal=True)["until"].startswith(f"{queue['done']} votes, enough: tuned wins ")
    back = sat.undo("me", {"key": "undo"})
    assert back["item"] and not back["enough"], "an undone vote is asked for again"


def test_a_width_takes_more_votes_than_a_decision_and_the_rest_stays_unasked(tmp_path):
    sat = service(tmp_path, questions(150), until={"width": 0.3})
    queue = sat.queue("me")
    while queue["item"]:
        queue = vote(sat, lambda question: int(question.id[1:]) % 3 > 0)
    assert 30 < queue["done"] < 120
    told = sat.until_enough()
    assert told.enough and told.interval[1] - told.interval[0] <= 0.3
    assert told.interval[0] <= 2 / 3 <= told.interval[1]
    assert {row["probability"] for row in sat.exports().rows["judgments"]} == {1.0}


def test_pairs_that_the_judge_is_unsure_of_come_sooner_and_weigh_less(tmp_path):
    asked = questions(400)
    expected = selection.expected(asked, judgments(asked))
    assert set(np.round(list(expected.values()), 6)) == {0.5, 0.99}, "a's probability, whichever stands first"
    settings = SETTINGS | {"until": {"width": 0.3}, "select": "informative", "expected": expected}
    order = assignment.queues(settings, asked, {})["me"]
    unsure = np.array([expected[key] == 0.5 for key in order])
    assert 0.32 < unsure[:100].mean() < 0.5, "a quarter of all, with twice the weight: two fifths"
    weighed = selection.with_probabilities(settings, asked, 100)
    chance = {key: question.probability for key, question in zip([q.key for q in asked], weighed, strict=True)}
    assert sum(chance.values()) == pytest.approx(100)
    high, low = (next(chance[key] for key in order if expected[key] == p) for p in (0.5, 0.99))
    assert 1 - high == pytest.approx((1 - low) ** 2)
    assert selection.with_probabilities(settings | {"select": "random"}, asked, 100) == asked


def test_exported_votes_have_the_probability_of_having_been_asked(tmp_path):
    sat = service(tmp_path, questions(100), until={"width": 0.1}, select="informative")
    for _ in range(20):
        vote(sat)
    rows = label_exports.collect(sat._store).rows["judgments"]
    assert len(rows) == 20 and len({row["probability"] for row in rows}) == 2
    assert sum(1 / row["probability"] for row in rows) == pytest.approx(100, rel=0.35)


def test_what_cannot_be_is_named():
    with pytest.raises(UsageError, match="choose one of them"):
        selection.rule(0.2, True)
    with pytest.raises(UsageError, match="--until-width 2"):
        selection.rule(2.0, False)
    assert selection.rule(None, False) is None
    assert (selection.rule(0.2, False), selection.rule(None, True)) == ({"width": 0.2}, {"width": None})
