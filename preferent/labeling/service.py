"""The desk where annotators are asked: the queue of each, and what a vote, an undo or a flag does to it.

What stands in memory is what the events in the store add up to; an event is on the disk before it counts here.
"""

import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preferent.labeling import assignment, events, label_exports, overview, questions
from preferent.labeling.database import Store
from preferent.labeling.events import AnnotatorHistory, Choice, Event, HumanVote, Kind, histories
from preferent.labeling.label_exports import LabelExports
from preferent.labeling.questions import Question

LONGEST_KEY = 100
LONGEST_NOTE = 4000
LONGEST_TIME = 1e7


class Refused(Exception):
    """What an annotator sent cannot be done; `status` is HTTP's, `queue` what is to be done instead."""

    def __init__(self, status: int, message: str, queue: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.queue = queue


class LabelingService:
    """Everybody's queue over one store. Every method may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._lock = threading.RLock()
        self._saving = threading.Lock()
        self._store = store
        self.settings = store.settings()
        self.questions: dict[str, Question] = {each.key: each for each in store.questions()}
        events = store.events()
        self.histories = histories(events)
        self._sent: dict[tuple[str, str], tuple[Kind, str]] = {(e.annotator, e.key): (e.kind, e.item) for e in events}
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
        self._keys = {assignment.opaque(self.settings["seed"], key): key for key in self.questions}

    def queue(self, annotator: str) -> dict[str, Any]:
        """What the page shows: progress, the question that is next, and the vote that an undo brought back."""
        with self._lock:
            history, keys = self.histories[annotator], self._queues[annotator]
            done = len(history.votes)
            back = next(reversed(history.undone), None)
            key = back or next((key for key in keys if key not in history.votes), None)
            return {
                "done": done,
                "total": len({*keys, *history.votes}),
                "undoable": done,
                "item": None if key is None else self._item(annotator, key, done + 1),
                "previous": None if back is None else self._previous(history.undone[back]),
            }

    def plan(self) -> str:
        """What there is to ask, in a sentence."""
        asked = [each for each in self.questions.values() if each.gold is None]
        same = sum(each.identical for each in asked)
        gold = len(self.questions) - len(asked)
        people = ", ".join(f"{name} {len(keys)}" for name, keys in self._queues.items())
        others = f", {same} more with identical answers are ties without asking" if same else ""
        return f"{len(asked) - same} questions{others}{f', {gold} control questions' if gold else ''}; for {people}"

    def overview(self, reveal: bool = False) -> dict[str, Any]:
        """What the owner's page shows; which model is ahead only where that is asked for."""
        with self._lock:
            histories = {name: history.copy() for name, history in self.histories.items()}
        found = overview.figures(self.questions, self._queues, histories)  # slow, and nobody waits for it
        if not reveal:
            return found
        passed = label_exports.passed(self.settings, list(self.questions.values()), histories)
        return found | {"win_rate": overview.rates(self.questions, histories, passed)}

    def harvest(self) -> LabelExports:
        """What there is for the owner's files, as of now."""
        return label_exports.collect(self._store)

    def save(self, folder: Path) -> LabelExports:
        """Write the owner's files, one writer at a time."""
        with self._saving:
            found = self.harvest()
            label_exports.write(found, folder)
            return found

    def _item(self, annotator: str, key: str, number: int) -> dict[str, Any]:
        asked = self.questions[key]
        first = assignment.first(self.settings["seed"], key, annotator)
        return {
            "item": assignment.opaque(self.settings["seed"], key),
            "number": number,
            "prompt": questions.shown(asked),
            "left": asked.answer(first),
            "right": asked.answer(questions.other(first)),
            "flagged": key in self.histories[annotator].flags,
        }

    def _previous(self, vote: HumanVote) -> dict[str, Any]:
        name = assignment.opaque(self.settings["seed"], vote.item)
        said = {"choice": vote.choice, "strength": vote.strength, "note": vote.note, "seconds": vote.seconds}
        return {"item": name} | said

    def vote(self, annotator: str, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Take a vote, once; the queue after it."""
        key, item = _text(sent, "key", LONGEST_KEY), self._key(annotator, sent)
        choice = sent.get("choice")
        if choice not in events.CHOICES:
            raise Refused(400, f"choice is one of {', '.join(events.CHOICES)}")
        body = {
            "choice": choice,
            "first": assignment.first(self.settings["seed"], item, annotator),
            "strength": self._strength(choice, sent.get("strength")),
            "note": _text(sent, "note", LONGEST_NOTE, needed=False),
            "seconds": _seconds(sent.get("seconds")),
        }
        with self._lock:
            if not self._happened(annotator, key, "vote", item):
                if item in self.histories[annotator].votes:
                    raise Refused(409, "this question has its answer already", self.queue(annotator))
                self._add(Event(annotator, key, "vote", item, body, time.time()))
            return self.queue(annotator)

    def undo(self, annotator: str, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Take the last vote back, once; the queue with its question."""
        key = _text(sent, "key", LONGEST_KEY)
        with self._lock:
            if not self._happened(annotator, key, "undo", None):
                votes = self.histories[annotator].votes
                if not votes:
                    raise Refused(409, "there is nothing to undo", self.queue(annotator))
                self._add(Event(annotator, key, "undo", next(reversed(votes)), {}, time.time()))
            return self.queue(annotator)

    def flag(self, annotator: str, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Mark a question as one that somebody should look at; the last note counts."""
        key, item = _text(sent, "key", LONGEST_KEY), self._key(annotator, sent)
        note = _text(sent, "note", LONGEST_NOTE, needed=False)
        with self._lock:
            if not self._happened(annotator, key, "flag", item):
                self._add(Event(annotator, key, "flag", item, {"note": note}, time.time()))
        return {"flagged": True}

    def _add(self, happened: Event) -> None:
        self._store.append(happened)
        self.histories[happened.annotator].add(happened)
        self._sent[happened.annotator, happened.key] = happened.kind, happened.item

    def _happened(self, annotator: str, key: str, kind: Kind, item: str | None) -> bool:
        """Whether the annotator's event of this key is here already; refuses a key that was another event's."""
        before = self._sent.get((annotator, key))
        if before is not None and (before[0] != kind or item not in (None, before[1])):
            raise Refused(409, "this key was another event's; send a new one", self.queue(annotator))
        return before is not None

    def _key(self, annotator: str, sent: Mapping[str, Any]) -> str:
        """The question that is meant, if it is one for this annotator."""
        key = self._keys.get(_text(sent, "item", LONGEST_KEY))
        if key is None or (key not in self._queues[annotator] and key not in self.histories[annotator].votes):
            raise Refused(404, "no such question for you; load the page again", self.queue(annotator))
        return key

    def _strength(self, choice: Choice, strength: object) -> int | None:
        levels = range(1, self.settings["strengths"] + 1)
        if strength is None:
            return None
        if isinstance(strength, bool) or not isinstance(strength, int) or strength not in levels:
            raise Refused(400, "strength is null or one of the strengths")
        if choice not in ("left", "right"):
            raise Refused(400, "strength is for a choice of left or right")
        return strength


def _text(sent: Mapping[str, Any], name: str, longest: int, needed: bool = True) -> str:
    value = sent.get(name, None if needed else "")
    if not isinstance(value, str) or len(value) > longest or (needed and not value):
        raise Refused(400, f"{name} is a text of at most {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(400, f"{name} is not Unicode: it holds half of a surrogate pair") from None
    return value


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_TIME:
        raise Refused(400, "seconds is how long the question was looked at: a number from 0 on")
    return float(value) if math.isfinite(value) else None
