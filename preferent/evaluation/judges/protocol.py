"""The interface of language models that judge: calls in, replies out, each as it arrives.

An endpoint and a local model implement `Judge`. `ScriptedJudge` answers from a script, for tests.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from preferent.data.types import Message

MUCH_UNPARSABLE = 0.02
"""Share of replies without a verdict above which a warning is printed."""


@dataclass(frozen=True, slots=True)
class Call:
    """A question to a judge; `vote` numbers its repetitions."""

    messages: tuple[Message, ...]
    vote: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's reply.

    `probabilities` are those of the labels "1", "2" and "tie" at the place of the verdict, if known. `tokens` counts
    question and reply together. `cut` is true if the reply reached its maximum length. `faults` are the kinds of the
    failed attempts before it.
    """

    text: str
    probabilities: Mapping[str, float] | None = None
    tokens: int | None = None
    cut: bool = False
    seconds: float = 0.0
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without a reply: the kinds of the faults of all attempts, and the details of the last one."""

    faults: tuple[str, ...]
    detail: str


class Judge(Protocol):
    """A language model that judges."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return everything that a reply depends on besides the call, as JSON; never a secret."""

    def ask(self, calls: Sequence[Call]) -> Generator[tuple[Call, Reply | Failure], None, None]:
        """Yield every call once with its reply or failure, in any order, each as soon as it is known."""


@dataclass(frozen=True)
class ScriptedJudge:
    """Replies that are a function of the call."""

    script: Callable[[Call], Reply | Failure]
    identity: Mapping[str, Any] = field(default_factory=lambda: {"model": "scripted"})

    def ask(self, calls: Sequence[Call]) -> Generator[tuple[Call, Reply | Failure], None, None]:
        for call in calls:
            yield call, self.script(call)
