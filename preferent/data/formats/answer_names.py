"""The names of fields in labelling tools: which hold the prompt and two answers, and which answer a label names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from preferent.data.formats import ambiguous_keys
from preferent.errors import DataError

Columns = tuple[str, str, str]
NamedChoice = Literal["left", "right", "tie", "both_bad", "skip"]
PROMPTS = ("prompt", "instruction", "question", "input", "context", "query", "chat", "messages")
NUMBERED = re.compile(r"(.*?)[-_ ]?(1|2|a|b|0|left|right)", re.IGNORECASE)
ENDINGS = ("1", "2"), ("a", "b"), ("0", "1"), ("left", "right")
WORDS = ("", "response", "answer", "model", "option", "output", "text", "reply", "candidate")
TIES = ("tie", "draw", "same", "equal", "similar", "both", "bothgood", "bothareequal", "nopreference")
BAD = ("bothbad", "bothbadtie", "neither", "none")
SKIPS = ("skip", "unsure", "cantsay", "cannotsay", "notsure")


def columns_of(fields: Mapping[str, Any], path: object) -> Columns:
    """Return the names of prompt and answers. The answers' names differ only in their ending: 1 and 2, or a and b."""
    names = {name: match.groups() for name in fields if (match := NUMBERED.fullmatch(name))}
    pairs = [
        (a, b)
        for a, (stem_a, end_a) in names.items()
        for b, (stem_b, end_b) in names.items()
        if stem_a == stem_b and (end_a.lower(), end_b.lower()) in ENDINGS
    ]
    prompts = [name for name in PROMPTS if name in fields]
    if len(pairs) == 1 and not prompts:
        prompts = [name for name, value in fields.items() if name not in pairs[0] and isinstance(value, str)]
    if len(pairs) != 1 or not prompts:
        raise DataError(
            f"{path}: cannot tell which fields are the prompt and the two answers: there are {', '.join(fields)}; "
            "name them with --columns PROMPT,A,B"
        )
    return prompts[0], *pairs[0]


def readable_votes(name: str, values: Sequence[object], columns: Columns) -> int:
    """Return how many values of a question are votes: none if they are numbers on a scale.

    Numbers are names of answers only if all are, and if the question's name is not that of a scale.
    """
    numbers = {value for value in values if isinstance(value, str) and re.fullmatch(r"\s*[-+]?[\d.]+\s*", value)}
    is_scale = bool(ambiguous_keys.words_of(name) & ambiguous_keys.SCALES)
    if numbers and (is_scale or any(choice_of(number, columns) is None for number in numbers)):
        return 0
    return sum(choice_of(value, columns) is not None for value in values)


def choice_of(value: object, columns: Columns) -> NamedChoice | None:
    """Return the vote that a label or a ranking expresses, or None. The first answer counts as the left one."""
    if isinstance(value, list):
        ranks = {str(entry.get("value")): entry.get("rank") for entry in value if isinstance(entry, dict)}
        left, right = ranks.get(columns[1]), ranks.get(columns[2])
        if not isinstance(left, int) or not isinstance(right, int):
            return None
        return "tie" if left == right else "left" if left < right else "right"
    if not isinstance(value, str):
        return None
    label = _normalized(value)
    fixed: Sequence[tuple[NamedChoice, Sequence[str]]] = (("tie", TIES), ("both_bad", BAD), ("skip", SKIPS))
    for choice, words in fixed:
        if label in words:
            return choice
    sides = [{_normalized(column), *_aliases(column, place)} for place, column in enumerate(columns[1:])]
    is_left, is_right = (label in side or re.sub("(is)?better$", "", label) in side for side in sides)
    return None if is_left == is_right else "left" if is_left else "right"


def _aliases(column: str, place: int) -> set[str]:
    """Return other names of the first or second answer: its position, letter or number, alone or after a word."""
    match = NUMBERED.fullmatch(column)
    end = match.group(2).lower() if match else ""
    numbers = {end} if end.isdigit() else {("1", "2")[place]}
    ends = numbers | {("a", "b")[place], ("left", "right")[place], ("first", "second")[place]}
    return {word + end for word in WORDS for end in ends}


def _normalized(text: str) -> str:
    """Return the letters and digits of a text in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())
