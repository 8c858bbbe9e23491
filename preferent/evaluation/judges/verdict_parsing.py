"""Verdicts in replies: read strictly, and their probabilities where an endpoint gives those of its tokens."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABELS = ("1", "2", "tie")
_AROUND = r"[ \t\r*_`\"'()\[\]]*"
LINE = re.compile(rf"^[ \t>#*_`-]*verdict{_AROUND}:{_AROUND}(1|2|tie)[ \t\r*_`\"'()\[\].]*$", re.I | re.M)
"""A line that is a verdict, plain or in Markdown's dress."""
END_OF_THOUGHT = "</think>"
"""What closes the reasoning that some models put in front of their reply."""

Token = tuple[str, Mapping[str, float]]
"""A token's text, and the log-probabilities of what could have stood in its place, itself among them."""


@dataclass(frozen=True, slots=True)
class ParsedVerdict:
    """A label, None where the reply does not give exactly one, and what was said before it."""

    label: str | None
    explanation: str


def parse(reply: str) -> ParsedVerdict:
    """The verdict of a reply: its last line must be one, and no other line may be a different one."""
    answer = reply.rpartition(END_OF_THOUGHT)[2]
    verdicts = list(LINE.finditer(answer))
    contradictory = len({verdict[1].lower() for verdict in verdicts}) > 1
    if not verdicts or contradictory or answer[verdicts[-1].end() :].strip("` \t\r\n"):
        return ParsedVerdict(None, answer.strip())
    return ParsedVerdict(verdicts[-1][1].lower(), answer[: verdicts[-1].start()].strip("` \t\r\n"))


def before(reply: str) -> str:
    """What a reply says before the first line that is a verdict."""
    verdict = LINE.search(reply)
    return (reply[: verdict.start()] if verdict else reply).strip()


def probabilities(tokens: Sequence[Token]) -> dict[str, float] | None:
    """The probabilities of the three labels at the token where the verdict's label begins; they sum to 1.

    Of the alternatives at that place those count that spell a label or its beginning. None where the tokens hold no
    verdict.
    """
    text = "".join(token for token, _ in tokens)
    verdicts = list(LINE.finditer(text))
    if not verdicts:
        return None
    alternatives = _at(tokens, verdicts[-1].start(1))
    mass = {label: sum(math.exp(min(value, 0.0)) for name, value in alternatives.items() if _begins(name, label))
            for label in LABELS}  # fmt: skip
    total = sum(mass.values())
    return {label: share / total for label, share in mass.items()} if total > 0 else None


def _at(tokens: Sequence[Token], place: int) -> Mapping[str, float]:
    """The alternatives of the token that holds the character at a place of the text."""
    end = 0
    for token, alternatives in tokens:
        end += len(token)
        if end > place:
            return alternatives
    return {}


def _begins(token: str, label: str) -> bool:
    """Whether a token is a label or its beginning, with the dress that may stand around it."""
    spelled = token.strip(" \t\r\n*_`\"'()[]:.").lower()
    return bool(spelled) and label.startswith(spelled)


def tokens_of(choice: Mapping[str, Any]) -> list[Token]:
    """The tokens of an OpenAI-compatible reply's choice; empty where it gives none, or not in this form."""
    try:
        return list(_tokens(choice["logprobs"]["content"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _tokens(content: Sequence[Mapping[str, Any]]) -> Iterator[Token]:
    for token in content:
        candidates = [token, *(token.get("top_logprobs") or ())]
        alternatives = {str(each["token"]): float(each["logprob"]) for each in candidates}
        yield str(token["token"]), {name: value for name, value in alternatives.items() if not math.isnan(value)}
