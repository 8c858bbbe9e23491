"""The seam to whatever gives a verdict in words: calls in, replies out, each as it comes.

An endpoint and a local model are jurors; `ScriptedJudge` answers from a script: for tests.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from preferent.data.types import Message

MUCH_UNPARSABLE = 0.02
"""Share of a language model's replies from which on it matters that they held no verdict."""


@dataclass(frozen=True, slots=True)
class Call:
    """A question to a judge; `vote` numbers the times that it is asked."""

    messages: tuple[Message, ...]
    vote: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said.

    `probabilities` are those of the labels "1", "2" and "tie" at the place of the verdict, where they are known;
    `tokens` are of question and reply together; `cut` is whether the reply was longer than it may be; `faults` are the
    kinds of the tries that failed before it came.
    """

    text: str
    probabilities: Mapping[str, float] | None = None
    tokens: int | None = None
    cut: bool = False
    seconds: float = 0.0
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that all its tries left without a reply: the kinds of their faults, and what the last one showed."""

    faults: tuple[str, ...]
    detail: str


class Judge(Protocol):
    """Who is asked."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that a reply depends on besides the call, as JSON; never a secret."""

    def ask(self, calls: Sequence[Call]) -> Generator[tuple[Call, Reply | Failure], None, None]:
        """Every call once with what came of it, in any order, each as soon as it is known."""


@dataclass(frozen=True)
class ScriptedJudge:
    """Replies that are a function of the call."""

    script: Callable[[Call], Reply | Failure]
    identity: Mapping[str, Any] = field(default_factory=lambda: {"model": "scripted"})

    def ask(self, calls: Sequence[Call]) -> Generator[tuple[Call, Reply | Failure], None, None]:
        for call in calls:
            yield call, self.script(call)
