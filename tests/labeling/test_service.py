"""The labeling service: queues, votes, undos and flags, each applied once."""

import random

import pytest

from preferent.data.types import Message, Prompt
from preferent.labeling import service
from preferent.labeling.database import Store
from preferent.labeling.questions import Question
from preferent.labeling.service import LabelingService, Refused

SETTINGS = {"seed": 3, "annotators": ["ann", "bob"], "overlap": 2, "strengths": 3, "gold_share": 0.1}


def questions(count):
    return [
        Question(f"r{i}", Prompt(input_text=f"prompt {i}"), f"a{i}", f"b{i}", "MODEL-ONE", "MODEL-TWO")
        for i in range(count)
    ]


@pytest.fixture
def place(tmp_path):
    """Return a function that restarts the service over one database."""
    opened = []

    def sit(asked=None, **settings):
        while opened:
            opened.pop().close()
        found = Store(tmp_path)
        opened.append(found)
        if found.is_new:
            found.create(SETTINGS | settings, asked if asked is not None else questions(30))
        elif settings:
            found.set(settings)
        return LabelingService(found)

    yield sit
    for found in opened:
        found.close()


def say(sat, queue, choice="left", name="ann", key=None, **more):
    key = key or f"{name} {queue['item']['item']} {random.random()}"
    return sat.vote(name, {"key": key, "item": queue["item"]["item"], "choice": choice, **more})


def test_a_vote_moves_the_queue_on(place):
    sat = place()
    queue = sat.queue("ann")
    assert (queue["done"], queue["total"], queue["undoable"], queue["previous"]) == (0, 30, 0, None)
    assert queue["item"]["number"] == 1 and queue["item"]["prompt"][0]["role"] == "user"
    after = say(sat, queue, "right", strength=2, note="clear", seconds=4.5)
    assert (after["done"], after["undoable"]) == (1, 1) and after["item"]["item"] != queue["item"]["item"]
    assert sat.queue("ann") == after and sat.queue("bob")["done"] == 0
    vote = next(iter(sat.histories["ann"].votes.values()))
    assert (vote.choice, vote.strength, vote.note, vote.seconds) == ("right", 2, "clear", 4.5)


def test_the_side_that_was_shown_is_the_side_that_is_kept(place):
    sat = place()
    queue = sat.queue("ann")
    for choice in ("left", "right") * 15:
        shown = queue["item"]["left" if choice == "left" else "right"]
        queue = say(sat, queue, choice)
        vote = list(sat.histories["ann"].votes.values())[-1]
        assert sat.questions[vote.item].answer(vote.side) == shown
    assert queue["item"] is None and queue["done"] == 30


def test_a_key_makes_a_thing_happen_once(place):
    sat = place()
    first = sat.queue("ann")
    after = say(sat, first, key="k")
    for _ in range(3):
        assert say(sat, first, key="k") == after
    back = sat.undo("ann", {"key": "u"})
    assert back["done"] == 0
    assert sat.undo("ann", {"key": "u"}) == back
    flag = {"key": "f", "item": first["item"]["item"], "note": "odd"}
    assert sat.flag("ann", flag) == sat.flag("ann", flag) == {"flagged": True}
    sat = place()  # also after a restart
    assert say(sat, first, key="k") == sat.queue("ann") and sat.queue("ann")["done"] == 0
    assert [event.kind for event in sat._store.events()] == ["vote", "undo", "flag"]


def test_a_key_cannot_be_used_for_something_else(place):
    sat = place()
    after = say(sat, sat.queue("ann"), key="k")
    for attempt in (
        lambda: sat.undo("ann", {"key": "k"}),
        lambda: say(sat, after, key="k"),
        lambda: sat.flag("ann", {"key": "k", "item": after["item"]["item"]}),
    ):
        with pytest.raises(Refused, match="another event; send a new key") as refused:
            attempt()
        assert refused.value.status == 409 and refused.value.queue == sat.queue("ann")
    assert say(sat, sat.queue("bob"), name="bob", key="k")["done"] == 1  # another's key is another key


def test_two_tabs_cannot_vote_twice(place):
    sat = place()
    queue = sat.queue("ann")
    after = say(sat, queue, "left", key="tab 1")
    with pytest.raises(Refused) as refused:
        say(sat, queue, "right", key="tab 2")
    assert refused.value.status == 409 and refused.value.queue == after
    assert [vote.choice for vote in sat.histories["ann"].votes.values()] == ["left"]


def test_undo_goes_back_as_far_as_one_likes_and_forward_again(place):
    sat = place()
    queue, items, choices = sat.queue("ann"), [], []
    for index in range(25):
        items.append(queue["item"]["item"])
        choices.append(("left", "right", "tie", "both_bad", "skip")[index % 5])
        queue = say(sat, queue, choices[-1], note=f"note {index}")
    ahead = queue
    for index in reversed(range(25)):
        queue = sat.undo("ann", {"key": f"undo {index}"})
        assert (queue["done"], queue["item"]["item"]) == (index, items[index])
        assert (queue["previous"]["choice"], queue["previous"]["note"]) == (choices[index], f"note {index}")
        if index == 12:
            sat = place()  # a restart in the middle changes nothing
            assert sat.queue("ann") == queue
    with pytest.raises(Refused, match="nothing to undo"):
        sat.undo("ann", {"key": "too far"})
    for index in range(25):
        assert queue["item"]["item"] == items[index] and queue["item"]["number"] == index + 1
        queue = say(sat, queue, "tie", key=f"again {index}")
    assert queue == ahead
    assert {vote.choice for vote in sat.histories["ann"].votes.values()} == {"tie"}


def test_after_a_restart_everything_is_as_it_was(place):
    sat = place()
    for name, count in (("ann", 7), ("bob", 3)):
        for _ in range(count):
            queue = say(sat, sat.queue(name), name=name)
    sat.undo("bob", {"key": "back"})
    before = [sat.queue(name) for name in ("ann", "bob")]
    sat = place()
    assert [sat.queue(name) for name in ("ann", "bob")] == before
    assert before[1]["previous"]["choice"] == "left" and queue["done"] == 3


def test_an_annotator_is_asked_only_what_is_theirs(place):
    sat = place(overlap=1)
    theirs = sat.queue("bob")["item"]["item"]
    for item in (theirs, "0" * 16, sat._queues["ann"][0]):
        with pytest.raises(Refused, match="not assigned to you") as refused:
            sat.vote("ann", {"key": "k", "item": item, "choice": "left"})
        assert refused.value.status == 404


def test_another_team_goes_on_with_the_same_votes(place):
    sat = place(overlap=1)
    total = sat.queue("ann")["total"]
    for _ in range(5):
        say(sat, sat.queue("ann"))
    sat = place(annotators=["bob", "cyd"], overlap=1)
    assert sat.queue("bob")["total"] + sat.queue("cyd")["total"] == 30 - 5
    sat = place(annotators=["ann", "bob"], overlap=1)
    assert (sat.queue("ann")["done"], sat.queue("ann")["total"]) == (5, total)


def test_identical_answers_are_not_asked(place):
    asked = questions(6)
    same = [Question(f"s{i}", Prompt(input_text=f"s {i}"), "same", "same") for i in range(4)]
    sat = place([*asked, *same])
    queue = sat.queue("ann")
    assert queue["total"] == 6 and sat.plan().startswith("6 questions, 4 more with identical answers")
    while queue["item"]:
        assert queue["item"]["left"] != queue["item"]["right"]
        queue = say(sat, queue)
    assert queue["done"] == 6


def test_a_control_question_looks_like_any_other(place):
    gold = [Question(f"g{i}", Prompt(input_text=f"g {i}"), "good", "bad", gold="A") for i in range(9)]
    sat = place([*questions(9), *gold], gold_share=0.5)
    queue, keys = sat.queue("ann"), set()
    assert queue["total"] == 18
    while queue["item"]:
        keys.add(frozenset(queue["item"]))
        queue = say(sat, queue)
    assert len(keys) == 1
    found = sat.overview()["annotators"][0]
    assert found["gold_total"] == 9 and 0 <= found["gold_right"] <= 9


def test_a_conversation_is_shown_in_turns(place):
    prompt = Prompt(
        messages=(Message("user", "hi"), Message("assistant", "ho"), Message("user", "?")), context="be kind"
    )
    sat = place([Question("x", prompt, "yes", "no", instruction="Answer.")])
    shown = sat.queue("ann")["item"]["prompt"]
    assert [turn["role"] for turn in shown] == ["instruction", "system", "user", "assistant", "user"]
    assert [turn["text"] for turn in shown] == ["Answer.", "be kind", "hi", "ho", "?"]


def test_nothing_that_is_shown_names_a_model(place):
    sat = place()
    queue = sat.queue("ann")
    while queue["item"]:
        assert "MODEL" not in str(queue)
        queue = say(sat, queue)
    assert "MODEL" not in str(queue) and "MODEL" not in str(sat.overview())


BAD = [
    {"choice": "best"},
    {"choice": None},
    {"strength": 4},
    {"strength": 0},
    {"strength": True},
    {"strength": "2"},
    {"strength": 1.0},
    {"choice": "tie", "strength": 1},
    {"note": 5},
    {"note": "n" * (service.LONGEST_NOTE + 1)},
    {"note": "half a pair \ud800"},
    {"seconds": -1},
    {"seconds": "3"},
    {"seconds": float("nan")},
    {"seconds": float("inf")},
    {"key": ""},
    {"key": 7},
    {"key": "k" * 101},
    {"item": 7},
]


@pytest.mark.parametrize("wrong", BAD, ids=str)
def test_what_is_no_vote_is_refused_and_leaves_no_trace(place, wrong):
    sat = place()
    queue = sat.queue("ann")
    sent = {"key": "k", "item": queue["item"]["item"], "choice": "left", "strength": None, "note": "", "seconds": 1}
    with pytest.raises(Refused) as refused:
        sat.vote("ann", sent | wrong)
    assert refused.value.status == 400
    assert sat.queue("ann") == queue and sat._store.events() == []


def test_strength_is_asked_only_where_there_is_a_scale(place):
    sat = place(strengths=0)
    with pytest.raises(Refused):
        say(sat, sat.queue("ann"), strength=1)
    assert say(sat, sat.queue("ann"), strength=None)["done"] == 1
