"""Assignment, order and sides of questions: keyed, balanced, and independent of anything that is shown."""

import numpy as np

from preferent.data.types import Prompt
from preferent.labeling import assignment
from preferent.labeling.questions import Question

SECRET, OTHER = "5" * 64, "6" * 64
PEOPLE = ["ann", "bob", "cyd", "dan"]


def questions(count, gold=None, same=False):
    kind = f"{gold}" if gold else "q"
    return [
        Question(f"{kind}{i}", Prompt(input_text=f"{kind} {i}"), "x", "x" if same else "y", gold=gold)
        for i in range(count)
    ]


def settings(**values):
    return {"seed": 5, "annotators": PEOPLE, "overlap": 1, "gold_share": 0.1} | values


def test_over_ten_thousand_questions_either_side_stands_left_half_of_the_time():
    keys = [question.key for question in questions(10_000)]
    for name in PEOPLE:
        left = np.mean([assignment.first(SECRET, key, name) == "a" for key in keys])
        assert 0.485 <= left <= 0.515


def test_sides_are_drawn_for_each_annotator_and_again_the_same():
    keys = [question.key for question in questions(2000)]
    ann, bob = ([assignment.first(SECRET, key, name) for key in keys] for name in ("ann", "bob"))
    assert ann == [assignment.first(SECRET, key, "ann") for key in keys]
    assert 0.45 < np.mean([one == other for one, other in zip(ann, bob, strict=True)]) < 0.55
    assert ann != [assignment.first(OTHER, key, "ann") for key in keys]


def test_a_side_has_nothing_to_do_with_the_place_in_the_queue():
    asked = questions(4000)
    order = assignment.queues(settings(annotators=["ann"]), asked, {})["ann"]
    left = np.array([assignment.first(SECRET, key, "ann") == "a" for key in order])
    assert abs(left[:2000].mean() - left[2000:].mean()) < 0.06


def test_an_opaque_name_is_stable_and_needs_the_secret():
    first, second = (question.key for question in questions(2))
    assert assignment.opaque(SECRET, first) == assignment.opaque(SECRET, first)
    assert (
        len(
            {
                assignment.opaque(SECRET, first),
                assignment.opaque(OTHER, first),
                assignment.opaque(SECRET, second),
                first,
            }
        )
        == 4
    )


def test_the_name_of_a_question_says_nothing_of_its_side():
    keys = [question.key for question in questions(2000)]
    ones = [int(assignment.opaque(SECRET, key)[-1], 16) % 4 for key in keys]
    left = [assignment.first(SECRET, key, "ann") == "a" for key in keys]
    shares = [np.mean([side for side, one in zip(left, ones, strict=True) if one == end]) for end in range(4)]
    assert all(0.4 < share < 0.6 for share in shares)


def test_every_question_goes_to_as_many_as_overlap_says():
    asked = questions(400)
    for overlap in (1, 2, 4, 9):
        order = assignment.queues(settings(overlap=overlap), asked, {})
        count = [sum(question.key in keys for keys in order.values()) for question in asked]
        assert set(count) == {min(overlap, 4)}
        assert all(abs(len(keys) - 100 * min(overlap, 4)) < 60 for keys in order.values())


def test_somebody_who_joins_moves_only_what_is_theirs():
    asked = questions(400)
    before = assignment.queues(settings(), asked, {})
    after = assignment.queues(settings(annotators=[*PEOPLE, "eve"]), asked, {})
    moved = {key for name in PEOPLE for key in before[name] if key not in after[name]}
    assert moved == set(after["eve"])
    assert 40 < len(moved) < 130


def test_somebody_who_leaves_hands_on_only_what_they_left_open():
    asked = questions(400)
    before = assignment.queues(settings(), asked, {})
    answered = {key: {"dan"} for key in before["dan"][:60]}
    after = assignment.queues(settings(annotators=PEOPLE[:3]), asked, answered)
    handed = [key for name in PEOPLE[:3] for key in after[name] if key not in before[name]]
    assert sorted(handed) == sorted(before["dan"][60:])
    assert all(set(before[name]) <= set(after[name]) for name in PEOPLE[:3])


def test_what_somebody_answered_stays_theirs():
    asked = questions(50)
    answered = {question.key: {"ann"} for question in asked}
    order = assignment.queues(settings(), asked, answered)
    assert {name: len(keys) for name, keys in order.items()} == {"ann": 50, "bob": 0, "cyd": 0, "dan": 0}
    both = assignment.queues(settings(overlap=2), asked, answered)
    assert len(both["ann"]) == 50 and sum(map(len, both.values())) == 100


def test_everybody_has_an_order_of_their_own():
    asked = questions(200)
    order = assignment.queues(settings(overlap=4), asked, {})
    assert len({tuple(keys) for keys in order.values()}) == 4
    assert len({frozenset(keys) for keys in order.values()}) == 1
    place = np.argsort([order["ann"].index(question.key) for question in asked])
    assert abs(np.corrcoef(place, np.arange(200))[0, 1]) < 0.25


def test_control_questions_are_a_share_of_every_queue_at_keyed_places():
    asked, gold = questions(360), questions(60, gold="A")
    keys = {question.key for question in gold}
    order = assignment.queues(settings(), [*asked, *gold], {})
    for queue in order.values():
        count = sum(key in keys for key in queue)
        assert count == round((len(queue) - count) / 9)
        places = [place / len(queue) for place, key in enumerate(queue) if key in keys]
        assert 0.2 < np.mean(places) < 0.8
    chosen = [keys & set(queue) for queue in order.values()]
    assert chosen[0] != chosen[1]


def test_there_are_no_more_control_questions_than_there_are():
    assert assignment.gold_count(90, 0.1, 50) == 10
    assert assignment.gold_count(90, 0.1, 4) == 4
    assert assignment.gold_count(90, 0.0, 50) == 0
    assert assignment.gold_count(50, 0.5, 50) == 50


def test_a_control_question_has_another_key_than_the_same_pair_as_a_question():
    asked = Question("x", Prompt(input_text="p"), "y", "z")
    assert asked.key != Question("x", Prompt(input_text="p"), "y", "z", gold="A").key
