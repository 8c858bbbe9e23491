"""Generate the quickstart's data from a grammar: posts about who did what where, and summaries with faults.

A post tells one event in two to four sentences, among unrelated remarks and people. A good summary says who, what and
where in one short sentence, and ends. A draft has faults, each with its own probability: a wrong name, event or place,
no place at all, unrelated remarks, or no end. Some combinations of person, event and place never occur in training, so
that the test posts are new.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from preferent import randomness
from preferent.errors import DataError

PEOPLE = {
    "Anna": "She", "Ben": "He", "Carla": "She", "David": "He", "Emma": "She", "Felix": "He",
    "Greta": "She", "Hugo": "He", "Ida": "She", "Jonas": "He", "Klara": "She", "Leo": "He",
    "Mira": "She", "Nils": "He", "Olga": "She", "Paul": "He",
}  # fmt: skip
PLACES = (
    "market", "station", "beach", "library", "school", "harbour", "park", "museum",
    "bakery", "church", "zoo", "castle",
)  # fmt: skip
EVENTS = {
    "lost the keys": "could not find the keys anywhere",
    "met a friend": "ran into an old friend",
    "saw a fire": "noticed smoke and called for help",
    "forgot the purse": "left the purse on a bench",
    "won the race": "came first in the race",
    "made music": "played songs until midnight",
    "painted a picture": "put the sky on paper",
    "broke the cups": "dropped a tray full of cups",
    "found a wallet": "picked up a wallet from the floor",
    "fed a dog": "gave bread to a hungry dog",
    "missed the bus": "got there after the bus was gone",
    "sold the cake": "got good money for the cake",
    "bought a coat": "paid for a warm coat",
    "fell asleep": "closed both eyes and slept",
    "told a joke": "made everybody laugh",
    "helped a child": "took a lost child home",
}
"""The events: the words of a summary, and the words of a post."""
OPENINGS = (
    "{when} {who} was at the {where}.",
    "{when} {who} went to the {where}.",
    "{when} we saw {who} at the {where}.",
)
TIMES = ("Yesterday", "Today", "On Monday", "On Sunday", "This morning", "Last week")
DEEDS = ("{pronoun} {deed}.", "There {subject} {deed}.", "Then {subject} {deed}.")
ASIDES = ("{other} was not there.", "{other} stayed at the {elsewhere}.", "{other} heard about it at the {elsewhere}.")
REMARKS = (
    "It was raining.", "It was very cold.", "Nobody was hurt.", "We all talked about it.",
    "What a day!", "I still think about it.", "The sun was out.", "It took a long time.",
)  # fmt: skip
ASK = "\nTL;DR:"

ANSWER_TOKENS = 24
"""The most tokens of a summary, with its end. A longer one is cut and has not ended."""
Part = Literal["demonstration", "preference", "prompt", "test"]


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities of a draft's faults. `repeats` is that of a draft that does not ramble."""

    wrong_who: float
    wrong_what: float
    wrong_where: float
    no_where: float
    rambles: float
    repeats: float


HURRIED = Faults(0.04, 0.04, 0.03, 0.62, 0.3, 0.05)
"""The faults of demonstrations. Most leave out the place, so that even a perfect imitation can be improved."""
CARELESS = Faults(0.25, 0.25, 0.2, 0.3, 0.2, 0.05)
"""The faults of candidates. A reward model learns to check a fact only from pairs in which it is often wrong."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Who did what where: one of `PEOPLE`, `EVENTS` and `PLACES` each. `where` is None if it is left out."""

    who: str
    what: str
    where: str | None


@dataclass(frozen=True, slots=True)
class Post:
    """A post and the facts it tells."""

    text: str
    facts: Facts


def _pick(options: Sequence[str], uniform: float) -> str:
    """Return the option that a uniform number selects."""
    return options[int(uniform * len(options))]


def combinations(part: Part) -> list[Facts]:
    """Return the facts of a part's posts. An eighth is kept for the test; every two facts still occur in training."""
    people, events = list(PEOPLE), list(EVENTS)
    every = itertools.product(range(len(people)), range(len(events)), range(len(PLACES)))
    kept = [(i, j, k) for i, j, k in every if ((i + j + k) % 8 == 0) == (part == "test")]
    return [Facts(people[i], events[j], PLACES[k]) for i, j, k in kept]


def posts(seed: int, count: int, part: Part) -> list[Post]:
    """Return `count` posts of a part. Every combination occurs once before any occurs again."""
    facts = combinations(part)
    order = randomness.rows(seed, f"lesson/{part}/facts", 0, count, len(facts))
    uniforms = randomness.uniforms(seed, f"lesson/{part}/post", np.arange(count)[:, None], np.arange(11))
    return [_post(facts[index], row) for index, row in zip(order, uniforms, strict=True)]


def _post(facts: Facts, uniforms: np.ndarray) -> Post:
    """Return the post that `uniforms` [11] select for the facts."""
    u = iter(uniforms)
    other = _pick([name for name in PEOPLE if name != facts.who], next(u))
    elsewhere = _pick([place for place in PLACES if place != facts.where], next(u))
    words = {
        "who": facts.who, "where": facts.where, "other": other, "elsewhere": elsewhere, "when": _pick(TIMES, next(u)),
        "deed": EVENTS[facts.what], "pronoun": PEOPLE[facts.who], "subject": PEOPLE[facts.who].lower(),
    }  # fmt: skip
    story = [_pick(OPENINGS, next(u)), _pick(DEEDS, next(u))]
    for extra in (_pick(ASIDES, next(u)), _pick(REMARKS, next(u))):
        if next(u) < 0.5:
            story = [extra, *story] if next(u) < 0.5 else [*story, extra]
    return Post(" ".join(story).format(**words), facts)


_OPENING_PATTERNS = [
    re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(opening.removeprefix("{when} "))))
    for opening in OPENINGS
]  # fmt: skip


def facts_of(text: str) -> Facts:
    """Return the facts of a post, parsed with the grammar that generated it."""
    opening = next((match for pattern in _OPENING_PATTERNS if (match := pattern.search(text))), None)
    what = next((short for short, long in EVENTS.items() if long in text), None)
    if opening is None or what is None:
        raise DataError(f"{text[:80]!r}: is not a post of the quickstart, so its true preference is unknown")
    return Facts(opening["who"], what, opening["where"])


def summary(facts: Facts) -> str:
    """Return the sentence that states the facts, after the space that separates it from the prompt."""
    return f" {facts.who} {facts.what}" + (f" at the {facts.where}." if facts.where else ".")


def draft(post: Post, uniforms: np.ndarray, faults: Faults) -> str:
    """Return a summary with faults. `uniforms` [10] decide which it has."""
    u = iter(uniforms)
    facts = post.facts
    if next(u) < faults.wrong_who:
        facts = replace(facts, who=_pick([name for name in PEOPLE if name != facts.who], next(u)))
    if next(u) < faults.wrong_what:
        facts = replace(facts, what=_pick([event for event in EVENTS if event != facts.what], next(u)))
    if (place := next(u)) < faults.no_where + faults.wrong_where:
        elsewhere = _pick([name for name in PLACES if name != facts.where], next(u))
        facts = replace(facts, where=None if place < faults.no_where else elsewhere)
    text = summary(facts)
    if next(u) < faults.rambles:
        talk = [_pick(REMARKS, next(u)), _pick(REMARKS, next(u))]
        text = " ".join([text, *talk[: 1 + int(2 * next(u))]])
    elif next(u) < faults.repeats:
        text = text.removesuffix(".")
        phrase = text.removeprefix(f" {facts.who}")
        while ends(text):
            text += phrase
    return text


def ends(text: str) -> bool:
    """Return whether a summary fits into `ANSWER_TOKENS` with its end. Each word or punctuation mark is a token."""
    return len(re.findall(r"\w+|[^\w\s]", text)) < ANSWER_TOKENS
