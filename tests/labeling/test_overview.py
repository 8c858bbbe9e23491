"""The owner's figures: they add up, agreement is the package's own, and rates are weighted."""

import pytest

from preferent.data.types import Prompt
from preferent.evaluation.statistics import agreement
from preferent.labeling import overview
from preferent.labeling.events import Event, histories
from preferent.labeling.questions import Question


def world(count=6, **more):
    asked = [Question(f"r{i}", Prompt(input_text=f"p{i}"), "a", "b", "tuned", "base", **more) for i in range(count)]
    return {each.key: each for each in asked}


def votes(questions, **said):
    """Everybody's votes as letters by question: A, B, t(ie), x (both bad), s(kip), - (not asked); a stands left."""
    choice = {"A": "left", "B": "right", "t": "tie", "x": "both_bad", "s": "skip"}
    events = []
    for name, letters in said.items():
        for place, (key, letter) in enumerate(zip(questions, letters, strict=True)):
            if letter != "-":
                body = {"choice": choice[letter], "first": "a", "strength": None, "note": "", "seconds": float(place)}
                events.append(Event(name, f"k{place}", "vote", key, body, 100.0 + place))
    return histories(events)


def test_a_row_for_everybody():
    asked = world()
    found = overview.figures(
        asked, {"ann": list(asked), "bob": list(asked)[:3]}, votes(asked, ann="AABtxs", bob="A-----")
    )
    ann, bob = found["annotators"]
    assert (ann["done"], ann["total"], ann["skips"], ann["median_seconds"], ann["last"]) == (6, 6, 1, 2.5, 105.0)
    assert ann["left_share"] == pytest.approx(2 / 3) and ann["tie_share"] == pytest.approx(2 / 5)
    assert (bob["done"], bob["total"], bob["left_share"], bob["tie_share"]) == (1, 3, 1.0, 0.0)
    assert found["choices"] == {"left": 3, "right": 1, "tie": 1, "both_bad": 1, "skip": 1}
    assert found["votes"] == sum(found["choices"].values()) == 7 and found["items"] == 6


def test_somebody_who_did_nothing_has_dashes():
    asked = world()
    only = overview.figures(
        asked, {"ann": list(asked)}, histories([]) | {"ann": votes(asked, ann="A-----")["ann"].copy()}
    )
    assert only["agreement"] is None
    silent = overview.figures(asked, {}, votes(asked, ann="s-----"))["annotators"][0]
    assert (silent["left_share"], silent["tie_share"], silent["gold_total"]) == (None, None, 0)


def test_agreement_is_over_pairs_of_votes_on_one_question():
    asked = world()
    found = overview.agreement_of_people(asked, votes(asked, ann="AABtBs", bob="ABBx--", cyd="----BA"))
    assert found["pairs"] == 5 and found["percent"] == pytest.approx(4 / 5)
    assert set(found["cohen"]) == {"ann|bob", "ann|cyd"}
    assert found["cohen"]["ann|bob"] == pytest.approx(agreement.cohen(list("AABt"), list("ABBt")))
    ratings = [[1, 1, 0, 0.5, 0, None], [1, 0, 0, 0.5, None, None], [None, None, None, None, 0, 1]]
    assert found["krippendorff"] == agreement.alpha(ratings, list("abcdef")).alpha


def test_nobody_agrees_about_control_questions_or_skips():
    gold = world(gold="A")
    assert overview.agreement_of_people(gold, votes(gold, ann="AAAAAA", bob="AAAAAA")) is None
    asked = world()
    assert overview.agreement_of_people(asked, votes(asked, ann="AAAAAA", bob="ssssss")) is None


def test_control_questions_are_counted_right_and_wrong():
    asked = world(gold="A")
    row = overview.figures(asked, {}, votes(asked, ann="AABtxs"))["annotators"][0]
    assert (row["gold_right"], row["gold_total"]) == (2, 5)


def test_rates_weigh_a_vote_by_one_over_its_probability():
    often = [
        Question(f"s{i}", Prompt(input_text=f"s{i}"), "a", "b", "tuned", "base", probability=0.25) for i in range(2)
    ]
    asked = world(2) | {each.key: each for each in often}
    (rate,) = overview.rates(asked, votes(asked, ann="AABB"), {})
    assert (rate["model_a"], rate["model_b"], rate["n"]) == ("tuned", "base", 4)
    assert rate["win_rate"] == pytest.approx(2 / (2 + 2 * 4))


def test_rates_are_told_apart_by_models():
    asked = world(2) | {each.key: each for each in [Question("x", Prompt(input_text="x"), "a", "b", "one", "two")]}
    found = overview.rates(asked, votes(asked, ann="AtB"), {})
    assert [(each["model_a"], each["win_rate"]) for each in found] == [("one", 0.0), ("tuned", 0.75)]


def test_an_identical_pair_is_a_tie_of_whoever_got_past_it():
    same = Question("s", Prompt(input_text="s"), "a", "a", "tuned", "base")
    asked = world(2)
    said = votes(asked, ann="AA", bob="AA")
    (rate,) = overview.rates(asked | {same.key: same}, said, {"ann": {same.key}})
    assert (rate["n"], rate["win_rate"]) == (5, pytest.approx(4.5 / 5))
