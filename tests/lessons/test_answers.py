"""The checks of the exercises: a right answer is right, a wrong one is told what is wrong with it."""

from importlib import import_module

import pytest

pytest.importorskip("matplotlib", reason="the lessons need pip install 'preferent[lessons]'")

ANSWERS = [
    (
        "two_datasets",
        "two_faults",
        {"tired", "repeated"},
        [
            ({"tired", "padded"}, "one of the two"),
            ({"tired"}, "two names"),
            ({"padded", "unusable"}, "neither"),
            ({"tired", "drunk"}, "drunk"),
        ],
    ),
    ("two_datasets", "prompts_for_the_test", 8000, [(400, "20 prompts"), (80000, "more than")]),
    ("two_datasets", "four_annotators", 0.68, [(0.32, "agree"), (0.684, "other candidate"), (0.25, "unless all four")]),
    ("two_datasets", "invisible", (0, 1), [((1, 2), "no candidate"), ((1, 0), "10 to 15"), (1, "a pair")]),
    ("tuning", "reward_steps", 158, [(10000, "rows seen"), (79, "one epoch"), (157, "rounded up")]),
    (
        "tuning",
        "flat_curves",
        "too few steps",
        [("too many steps", "further"), ("no reference", "no KL"), ("?", "three")],
    ),
    (
        "tuning",
        "recipe_text",
        "ppo: {batch_size: 128}\nreward: {lora_dim: 8}",
        [
            ("ppo: {batch: 128}", "refuse"),
            ("ppo: {batch_size: 128}", "rank would be"),
            ("reward: {lora_dim: 8}", "batches of 64"),
            (3, "a text"),
        ],
    ),
    ("you_are_the_human", "votes_for", 50, [(40, "the probability is"), (90, "fewer do"), (0.5, "whole number")]),
    ("you_are_the_human", "verdict", "inconclusive", [("better", "the interval goes from"), ("yes", "answer")]),
    ("you_are_the_human", "fair", "b", [("a", "the same way"), ("c", "what the model saw"), ("x", "letters")]),
    (
        "break_it",
        "at_the_first_step",
        {"B", "D", "L"},
        [({"B"}, "1 of 3"), ({"A", "B"}, "A are as"), ({"X"}, "letters")],
    ),
    ("break_it", "equal_curves", {"F", "I"}, [({"A", "I"}, "not the same"), ({"F"}, "two letters")]),
    (
        "break_it",
        "what_helps",
        "votes",
        [("accuracy", "as high"), ("loss", "predicted"), ("judge", "same file"), ("?", "none")],
    ),
]


@pytest.mark.parametrize(("lesson", "name", "right", "wrong"), ANSWERS, ids=[f"{a[0]}-{a[1]}" for a in ANSWERS])
def test_the_check_knows_right_from_wrong(lesson, name, right, wrong, capsys):
    check = getattr(import_module(f"exercises.{lesson}"), name)
    check(None)
    check(right)
    assert capsys.readouterr().out == "No answer yet.\nRight.\n"
    for answer, says in wrong:
        check(answer)
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and says in said, said


def test_diagnoses_are_graded_one_by_one(capsys):
    cases = import_module("exercises.break_it")
    right = dict(cases.LETTERS)
    assert sorted(right.values()) == sorted(cases.NAMES) == sorted(cases.LOOK), "every diagnosis has a case"
    cases.diagnose(right)
    assert capsys.readouterr().out == "Right.\n"
    for answer, says in (
        (right | {"A": "healthy"}, "12 of 13 are right. Look again:\n  A: how far does one update go?"),
        ({"A": right["A"]}, "all 1 are right; 12 cases are left."),
        ({"A": "tired"}, "no diagnosis is called tired"),
        ({"Z": "healthy"}, "there is no case Z"),
    ):
        cases.diagnose(answer)
        assert says in capsys.readouterr().out


def test_each_case_breaks_one_thing():
    """Every case but the healthy one changes the recipe, the reward model or a function, and puts the function back."""
    cases = import_module("exercises.break_it")
    functions = [(cases.losses, "shaped_rewards"), (cases.ppo, "rollout_params"), (cases.local_sampler, "choose")]
    functions += [(cases.losses, "policy_loss")]
    before = [getattr(*place) for place in functions]
    for letter, name in cases.LETTERS.items():
        case = cases.case(letter)
        with case.broken:
            broken = sum(getattr(*place) is not one for place, one in zip(functions, before, strict=True))
        assert bool(case.sections) + (case.reward != "reward") + broken == (name != "healthy"), name
        assert [getattr(*place) for place in functions] == before


def test_the_rule_of_a_vote_is_the_interval_of_the_reports():
    human = import_module("exercises.you_are_the_human")
    for votes in (1, 7, 40):
        for won in range(votes + 1):
            low, high = human.statistics.wilson(won, votes)
            assert human.sees(won, votes) == (not low <= 0.5 <= high)
    assert human.power(0.5, 40) < 0.06 < 0.2 < human.power(0.6, 40) < 0.23
    assert human.prefer("Anna fed a dog.", "Anna fed a dog at the zoo.") == "right"
    assert human.prefer("Anna fed a dog.", "Anna fed a dog today.") == "left"
    assert human.prefer("Anna fed a dog.", "Anna met a friend.") == "tie"
