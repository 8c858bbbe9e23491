"""Events of annotators, which are only ever added, and the state that they lead to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from preferent.labeling.questions import Asks, Question, Side, Verdict, other

Kind = Literal["vote", "undo", "flag"]
Choice = Literal["left", "right", "tie", "both_bad", "up", "down", "skip"]
CHOICES: Mapping[Asks, tuple[Choice, ...]] = {
    "pairs": ("left", "right", "tie", "both_bad", "skip"),
    "thumbs": ("up", "down", "skip"),
}


@dataclass(frozen=True, slots=True)
class Event:
    """One action of an annotator. Its `key` makes it count once, however often it is sent. `body` is JSON."""

    annotator: str
    key: str
    kind: Kind
    item: str
    body: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class HumanVote:
    """An annotator's answer to a question. `first` is the side that was shown left, of a pair; `at` is in seconds since
    1970."""

    item: str
    choice: Choice
    first: Side
    strength: int | None
    note: str
    seconds: float | None
    at: float
    origin: str = ""

    @property
    def side(self) -> Side | None:
        """The preferred side, or None."""
        return {"left": self.first, "right": other(self.first)}.get(self.choice)

    @property
    def verdict(self) -> Verdict | None:
        """A, B or tie of a pair, up or down of one answer; None for a skip. "Both bad" is a tie."""
        if self.choice == "skip":
            return None
        if self.choice == "up" or self.choice == "down":
            return self.choice
        return "tie" if self.side is None else "A" if self.side == "a" else "B"

    def right(self, question: Question) -> bool | None:
        """Return whether the vote is the known verdict of a control question; None for other questions and skips."""
        return None if question.gold is None or self.verdict is None else self.verdict == question.gold


@dataclass(slots=True)
class AnnotatorHistory:
    """One annotator's current votes, oldest first; the votes undone and not repeated; and the notes of the flags."""

    votes: dict[str, HumanVote] = field(default_factory=dict)
    undone: dict[str, HumanVote] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)

    def copy(self) -> "AnnotatorHistory":
        """Return a copy, which later events do not change."""
        return AnnotatorHistory(dict(self.votes), dict(self.undone), dict(self.flags))

    def add(self, event: Event) -> None:
        """Apply an event."""
        if event.kind == "vote":
            self.undone.pop(event.item, None)
            self.votes[event.item] = HumanVote(item=event.item, at=event.at, **event.body)
        elif event.kind == "undo":
            self.undone[event.item] = self.votes.pop(event.item)
        else:
            self.flags[event.item] = event.body["note"]


def histories(events: Iterable[Event]) -> dict[str, AnnotatorHistory]:
    """Replay events into the history of each annotator."""
    replayed: dict[str, AnnotatorHistory] = {}
    for event in events:
        replayed.setdefault(event.annotator, AnnotatorHistory()).add(event)
    return replayed
