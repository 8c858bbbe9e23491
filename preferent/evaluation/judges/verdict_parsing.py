"""The strict parser of verdicts in replies, and their probabilities where an endpoint returns those of its tokens."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABELS = ("1", "2", "tie")
_AROUND = r"[ \t\r*_`\"'()\[\]]*"
LINE = re.compile(rf"^[ \t>#*_`-]*verdict{_AROUND}:{_AROUND}(1|2|tie)[ \t\r*_`\"'()\[\].]*$", re.I | re.M)
"""A line that is a verdict, plain or with Markdown around it."""
END_OF_THOUGHT = "</think>"
"""The end of the reasoning that some models put in front of their reply."""

Token = tuple[str, Mapping[str, float]]
"""A token's text, and the log-probabilities of the alternatives at its place, including itself."""


@dataclass(frozen=True, slots=True)
class ParsedVerdict:
    """A label, or None if the reply does not have exactly one, and the text before it."""

    label: str | None
    explanation: str


def parse(reply: str) -> ParsedVerdict:
    """Return the verdict of a reply: its last line must be a verdict, and no other line a different one."""
    answer = reply.rpartition(END_OF_THOUGHT)[2]
    verdicts = list(LINE.finditer(answer))
    contradictory = len({verdict[1].lower() for verdict in verdicts}) > 1
    if not verdicts or contradictory or answer[verdicts[-1].end() :].strip("` \t\r\n"):
        return ParsedVerdict(None, answer.strip())
    return ParsedVerdict(verdicts[-1][1].lower(), answer[: verdicts[-1].start()].strip("` \t\r\n"))


def before(reply: str) -> str:
    """Return the text of a reply before the first line that is a verdict."""
    verdict = LINE.search(reply)
    return (reply[: verdict.start()] if verdict else reply).strip()


def probabilities(tokens: Sequence[Token]) -> dict[str, float] | None:
    """Return the probabilities of the three labels at the token where the verdict's label begins; they sum to 1.

    The alternatives that spell a label or its beginning count. Returns None if the tokens contain no verdict.
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
    """Return the alternatives of the token that contains the character at a place of the text."""
    end = 0
    for token, alternatives in tokens:
        end += len(token)
        if end > place:
            return alternatives
    return {}


def _begins(token: str, label: str) -> bool:
    """Return whether a token is a label or its beginning, apart from spaces, quotes and Markdown around it."""
    spelled = token.strip(" \t\r\n*_`\"'()[]:.").lower()
    return bool(spelled) and label.startswith(spelled)


def tokens_of(choice: Mapping[str, Any]) -> list[Token]:
    """Return the tokens of an OpenAI-compatible reply's choice; an empty list if it has none in this form."""
    try:
        return list(_tokens(choice["logprobs"]["content"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _tokens(content: Sequence[Mapping[str, Any]]) -> Iterator[Token]:
    for token in content:
        candidates = [token, *(token.get("top_logprobs") or ())]
        alternatives = {str(each["token"]): float(each["logprob"]) for each in candidates}
        yield str(token["token"]), {name: value for name, value in alternatives.items() if not math.isnan(value)}
