"""Records: what follows from their fields."""

import dataclasses

import pytest

from preferent.data.types import Message, Preference, Prompt, digest

PAIR = Preference(Prompt("Q:"), " yes", " no", 0, id="a", strength=2.0, annotator="ann", extra={"k": 1}, source="f:1")


@pytest.mark.parametrize(("choice", "chosen", "rejected"), [(0, " yes", " no"), (1, " no", " yes")])
def test_chosen_and_rejected_are_the_two_candidates(choice, chosen, rejected):
    pair = dataclasses.replace(PAIR, choice=choice)
    assert (pair.chosen, pair.rejected) == (chosen, rejected)


def test_swap_moves_the_candidates_and_keeps_the_judgment():
    swapped = PAIR.swap()
    assert (swapped.candidate_0, swapped.candidate_1, swapped.choice) == (" no", " yes", 1)
    assert swapped.chosen == PAIR.chosen
    assert swapped.swap() == PAIR
    tie = dataclasses.replace(PAIR, choice="tie")
    assert tie.swap().choice == "tie"


def test_a_tie_has_neither_chosen_nor_rejected():
    tie = dataclasses.replace(PAIR, choice="tie")
    with pytest.raises(AssertionError):
        _ = tie.chosen
    with pytest.raises(AssertionError):
        _ = tie.rejected


def test_a_key_is_what_is_asked_and_nothing_else():
    prompt = Prompt("Q:")
    assert prompt.key == Prompt("Q:", id="x", group="g", reference="r", source="f:1", extra={"a": 1}).key
    conversation = Prompt(messages=(Message("user", "Q:"),))
    others = [Prompt("Q"), conversation, dataclasses.replace(conversation, context="c"), Prompt(messages=())]
    others.append(Prompt(messages=(Message("user", "Q"), Message("user", ":"))))
    assert len({prompt.key, *(other.key for other in others)}) == 6


def test_a_digest_tells_how_its_parts_were_cut():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest("a")
    assert len(digest()) == 16


def test_only_a_prompt_with_nothing_to_answer_is_empty():
    assert Prompt().is_empty
    assert Prompt(" \n").is_empty
    assert not Prompt("a").is_empty
    assert not Prompt(messages=(Message("user", "a"),)).is_empty


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAIR.choice = 1
