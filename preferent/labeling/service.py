"""The labeling service: the queue of each annotator, and the effect of votes, undos and flags on it.

The state in memory is the replay of the stored events (event sourcing). An event is on the disk before it takes effect.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preferent.labeling import assignment, events, label_exports, overview, questions, selection
from preferent.labeling.database import Store
from preferent.labeling.events import AnnotatorHistory, Choice, Event, HumanVote, Kind, histories
from preferent.labeling.label_exports import Exports
from preferent.labeling.questions import Asks, Question

LONGEST_KEY = 100
LONGEST_NOTE = 4000
LONGEST_TIME = 1e7
EVENTS, EVENTS_PER_QUESTION = 1000, 20
"""The most events of an annotator: votes, undos and flags."""


class Refused(Exception):
    """A request that cannot be carried out. `status` is the HTTP status; `queue` is the annotator's current queue."""

    def __init__(self, status: int, message: str, queue: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.queue = queue


class LabelingService:
    """The queues of all annotators over one store. Every method may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._lock = threading.RLock()
        self._saving = threading.Lock()
        self._store = store
        self.settings = store.settings()
        self.asks: Asks = self.settings.get("asks", "pairs")
        self.questions: dict[str, Question] = {question.key: question for question in store.questions()}
        past = store.events()
        self.histories = histories(past)
        self._applied: dict[tuple[str, str], tuple[Kind, str]] = {(e.annotator, e.key): (e.kind, e.item) for e in past}
        self._counts = Counter(event.annotator for event in past)
        answered: dict[str, set[str]] = {}
        for name, history in self.histories.items():
            for key in history.votes:
                answered.setdefault(key, set()).add(name)
        order = assignment.queues(self.settings, list(self.questions.values()), answered)
        self._queues = {
            name: [key for key in keys if not self.questions[key].identical] for name, keys in order.items()
        }
        for name in order:
            self.histories.setdefault(name, AnnotatorHistory())
        self._keys = {assignment.opaque(self.settings["secret"], key): key for key in self.questions}

    def queue(self, annotator: str) -> dict[str, Any]:
        """Return the content of the page: progress, the next question, and the vote that an undo brought back."""
        with self._lock:
            history, keys = self.histories[annotator], self._queues[annotator]
            done = len(history.votes)
            back = next(reversed(history.undone), None)
            until = self.until_enough()
            key = back or next((key for key in keys if key not in history.votes), None)
            if until is not None and until.enough and back is None:
                key = None
            total = len({*keys, *history.votes})
            return {
                "done": done,
                "total": total if until is None else min(done + until.left, total),
                "about": until is not None and not until.enough,
                "enough": until is not None and until.enough,
                "undoable": done,
                "item": None if key is None else self._item(annotator, key, done + 1),
                "previous": None if back is None else self._previous(history.undone[back]),
            }

    def until_enough(self) -> selection.StoppingProgress | None:
        """Return how far the votes are until they are enough; None without a rule. With one, one person votes."""
        if not self.settings.get("until"):
            return None
        name = self.settings["annotators"][0]
        return selection.progress(self.settings, self._queues[name], self.questions, self.histories[name].votes)

    def until_now(self) -> str:
        """Return a line about how far the votes are until they are enough; empty without a rule."""
        until = self.until_enough()
        return "" if until is None else f"\n{until}"

    def plan(self) -> str:
        """Return a sentence about the questions."""
        real = [question for question in self.questions.values() if question.gold is None]
        same = sum(question.identical for question in real)
        gold = len(self.questions) - len(real)
        people = ", ".join(f"{name} {len(keys)}" for name, keys in self._queues.items())
        others = f", {same} more with identical answers count as ties and are not asked" if same else ""
        return f"{len(real) - same} questions{others}{f', {gold} control questions' if gold else ''}; for {people}"

    def overview(self, reveal: bool = False) -> dict[str, Any]:
        """Return the content of the owner's page; the win rate only if it is to be revealed."""
        with self._lock:
            histories = {name: history.copy() for name, history in self.histories.items()}
            until = self.until_enough()
        figures = overview.figures(self.questions, self._queues, histories, self.asks)  # slow, so outside the lock
        figures["left"] = None if until is None else until.left
        if not reveal:
            return figures
        if self.asks == "thumbs":
            return figures | {"thumb_rates": overview.thumb_rates(self.questions, histories)}
        passed = label_exports.passed_identical_pairs(self.settings, list(self.questions.values()), histories)
        told = {"until": None if until is None else str(until)}
        return figures | told | {"win_rate": overview.rates(self.questions, histories, passed)}

    def exports(self) -> Exports:
        """Return the rows of the owner's files for the current votes."""
        return label_exports.collect(self._store)

    def save(self, folder: Path) -> Exports:
        """Write the owner's files, one writer at a time."""
        with self._saving:
            exports = self.exports()
            label_exports.write(exports, folder)
            return exports

    def _item(self, annotator: str, key: str, number: int) -> dict[str, Any]:
        """Return a question as the page shows it to an annotator."""
        question = self.questions[key]
        if question.b is None:
            shown = {"answer": question.a}
        else:
            first = assignment.first(self.settings["secret"], key, annotator)
            shown = {"left": question.answer(first), "right": question.answer(questions.other(first))}
        return {
            "item": assignment.opaque(self.settings["secret"], key),
            "number": number,
            "prompt": questions.shown(question),
            **shown,
            "flagged": key in self.histories[annotator].flags,
        }

    def _previous(self, vote: HumanVote) -> dict[str, Any]:
        """Return an undone vote as the page shows it."""
        name = assignment.opaque(self.settings["secret"], vote.item)
        body = {"choice": vote.choice, "strength": vote.strength, "note": vote.note, "seconds": vote.seconds}
        return {"item": name} | body

    def vote(self, annotator: str, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a vote, once, and return the queue after it."""
        key, item = _text(sent, "key", LONGEST_KEY), self._key(annotator, sent)
        choice = sent.get("choice")
        if choice not in events.CHOICES[self.asks]:
            raise Refused(400, f"choice must be one of {', '.join(events.CHOICES[self.asks])}")
        body = {
            "choice": choice,
            "first": assignment.first(self.settings["secret"], item, annotator),
            "strength": self._strength(choice, sent.get("strength")),
            "note": _text(sent, "note", LONGEST_NOTE, required=False),
            "seconds": _seconds(sent.get("seconds")),
        }
        with self._lock:
            if not self._is_applied(annotator, key, "vote", item):
                if item in self.histories[annotator].votes:
                    raise Refused(409, "this question is already answered", self.queue(annotator))
                self._apply(Event(annotator, key, "vote", item, body, time.time()))
            return self.queue(annotator)

    def undo(self, annotator: str, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Undo the last vote, once, and return the queue with its question."""
        key = _text(sent, "key", LONGEST_KEY)
        with self._lock:
            if not self._is_applied(annotator, key, "undo", None):
                votes = self.histories[annotator].votes
                if not votes:
                    raise Refused(409, "there is nothing to undo", self.queue(annotator))
                self._apply(Event(annotator, key, "undo", next(reversed(votes)), {}, time.time()))
            return self.queue(annotator)

    def flag(self, annotator: str, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Flag a question for the owner's attention. The last note counts."""
        key, item = _text(sent, "key", LONGEST_KEY), self._key(annotator, sent)
        note = _text(sent, "note", LONGEST_NOTE, required=False)
        with self._lock:
            if not self._is_applied(annotator, key, "flag", item):
                self._apply(Event(annotator, key, "flag", item, {"note": note}, time.time()))
        return {"flagged": True}

    def _apply(self, event: Event) -> None:
        """Store an event and apply it; refuse an annotator's endless ones."""
        most = EVENTS + EVENTS_PER_QUESTION * len(self._queues[event.annotator])
        if self._counts[event.annotator] >= most:
            raise Refused(429, f"{most} events of yours are stored, which is the limit; ask the owner")
        self._store.append(event)
        self._counts[event.annotator] += 1
        self.histories[event.annotator].add(event)
        self._applied[event.annotator, event.key] = event.kind, event.item

    def _is_applied(self, annotator: str, key: str, kind: Kind, item: str | None) -> bool:
        """Return whether the annotator's event with this key is applied already; refuse the key of another event."""
        before = self._applied.get((annotator, key))
        if before is not None and (before[0] != kind or item not in (None, before[1])):
            raise Refused(409, "this key belongs to another event; send a new key", self.queue(annotator))
        return before is not None

    def _key(self, annotator: str, sent: Mapping[str, Any]) -> str:
        """Return the key of the question that was sent; refuse one that is not assigned to the annotator."""
        key = self._keys.get(_text(sent, "item", LONGEST_KEY))
        if key is None or (key not in self._queues[annotator] and key not in self.histories[annotator].votes):
            raise Refused(404, "this question is not assigned to you; reload the page", self.queue(annotator))
        return key

    def _strength(self, choice: Choice, strength: object) -> int | None:
        """Return a valid strength, or None if none was sent."""
        levels = range(1, self.settings["strengths"] + 1)
        if strength is None:
            return None
        if isinstance(strength, bool) or not isinstance(strength, int) or strength not in levels:
            raise Refused(400, "strength must be null or one of the levels")
        if choice not in ("left", "right"):
            raise Refused(400, "strength requires the choice left or right")
        return strength


def _text(sent: Mapping[str, Any], name: str, longest: int, required: bool = True) -> str:
    """Return a valid text from a request."""
    text = sent.get(name, None if required else "")
    if not isinstance(text, str) or len(text) > longest or (required and not text):
        raise Refused(400, f"{name} must be a text of at most {longest} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{name} is not valid Unicode: it contains half of a surrogate pair") from None
    return text


def _seconds(seconds: object) -> float | None:
    """Return a valid duration, or None if none was sent."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_TIME:
        raise Refused(400, "seconds must be the time for which the question was visible: a number, 0 or more")
    return float(seconds) if math.isfinite(seconds) else None
