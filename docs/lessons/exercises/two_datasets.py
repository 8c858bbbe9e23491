"""The exercises of lesson 2."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lesson import Wrong, exercise

FAULTS = {"unusable", "repeated", "reversed_source", "padded", "tired", "impressed"}
MYSTERY = ("tired", "repeated")
Row = dict[str, Any]


def mystery(rows: list[Row], spoiled: Mapping[str, Callable[[list[Row]], list[Row]]]) -> list[Row]:
    """Return rows with two of the faults of the lesson."""
    for name in MYSTERY:
        rows = spoiled[name](rows)
    return rows


@exercise
def two_faults(answer: set[str]) -> None:
    """Check the two faults of the mystery."""
    if not isinstance(answer, set) or len(answer) != 2:
        raise Wrong("answer with a set of two names.")
    if unknown := answer - FAULTS:
        raise Wrong(f"there is no fault called {', '.join(sorted(unknown))}; they are {', '.join(sorted(FAULTS))}.")
    wrong = answer - set(MYSTERY)
    if len(wrong) == 2:
        raise Wrong("neither of the two is in the file. Begin with `check.check_files`, and count the choices.")
    if wrong:
        raise Wrong("one of the two is right. Which of the two have you seen with your own eyes?")


@exercise
def prompts_for_the_test(answer: float) -> None:
    """Check the number of prompts."""
    if 0.05 * answer < 400:
        raise Wrong(f"then the test has about {0.05 * answer:.0f} prompts, fewer than 400.")
    if answer > 400 / 0.05 * 1.01:
        raise Wrong("that is enough, and more than is needed.")


@exercise
def four_annotators(answer: float) -> None:
    """Check the probability of a contradiction."""
    p = 0.75
    if math.isclose(answer, p**4 + (1 - p) ** 4, abs_tol=0.002):
        raise Wrong("that is the probability that all four agree.")
    if math.isclose(answer, 1 - p**4, abs_tol=0.002):
        raise Wrong("all four may also agree on the other candidate.")
    if not math.isclose(answer, 1 - p**4 - (1 - p) ** 4, abs_tol=0.002):
        raise Wrong("there is a contradiction unless all four chose the same; what is the probability of that?")


@exercise
def invisible(answer: tuple[int, int]) -> None:
    """Check which change of a choice cannot be seen."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Wrong("answer with a pair of numbers, before and after.")
    if tuple(answer) == (1, 2):
        raise Wrong("`data check` listed those rows: 2 is no candidate.")
    if tuple(answer) != (0, 1):
        raise Wrong("look at the rows 10 to 15 of `unusable` again: which of them were accepted?")
