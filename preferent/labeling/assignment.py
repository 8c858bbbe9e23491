"""Who is asked what, in which order, and which answer stands left: functions of (seed, question, annotator) alone."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from preferent import randomness
from preferent.data.types import digest
from preferent.labeling.questions import Question, Side

U64 = np.uint64


def number(*names: str) -> int:
    """Names as a 64-bit number, to draw by."""
    return int(digest(*names), 16)


def _uniforms(seed: int, purpose: str, keys: Sequence[str], annotator: str) -> np.ndarray:
    """A uniform number a question, [questions]; a key is sixteen hexadecimal digits."""
    items = np.array([int(key, 16) for key in keys], dtype=U64)
    return randomness.uniforms(seed, purpose, items, np.array(number(annotator), dtype=U64))


def first(seed: int, key: str, annotator: str) -> Side:
    """The side that stands left when an annotator is asked a question: either, with the same probability."""
    return "a" if float(_uniforms(seed, "label side", [key], annotator)[0]) < 0.5 else "b"


def opaque(seed: int, key: str) -> str:
    """The name by which the page knows a question; without the seed it says nothing about it."""
    return digest("item", str(seed), key)


def assigned(
    seed: int, keys: Sequence[str], annotators: Sequence[str], overlap: int, answered: Mapping[str, Set[str]]
) -> dict[str, list[str]]:
    """The keys of the questions for each annotator: each question goes to `overlap` of them, or to all if fewer.

    Those who answered it already count first. The other places go to the annotators with the smallest keyed numbers
    (rendezvous hashing), so that an annotator who joins or leaves moves no more questions than must move.
    """
    ranks = {name: _uniforms(seed, "label assignment", keys, name) for name in annotators}
    found: dict[str, list[str]] = {name: [] for name in annotators}
    for index, key in enumerate(keys):
        before = answered.get(key, frozenset())
        waiting = sorted((name for name in annotators if name not in before), key=lambda name: ranks[name][index])
        here = [name for name in annotators if name in before]
        for name in here + waiting[: max(overlap - len(before), 0)]:
            found[name].append(key)
    return found


def gold_count(questions: int, share: float, there: int) -> int:
    """How many control questions make the share `share` of a queue with so many others; no more than there are."""
    return min(there, round(questions * share / (1 - share)))


def queues(
    settings: Mapping[str, Any], questions: Sequence[Question], answered: Mapping[str, Set[str]]
) -> dict[str, list[str]]:
    """The keys of everybody's questions in the order of asking, control questions among them.

    The order is another for each annotator, so that wherever people stop, what was answered is a fair draw.
    """
    seed, annotators = settings["seed"], settings["annotators"]
    asked = [question.key for question in questions if question.gold is None]
    gold = [question.key for question in questions if question.gold is not None]
    found = assigned(seed, asked, annotators, settings["overlap"], answered)
    for name, keys in found.items():
        controls = [gold[index] for index in np.argsort(_uniforms(seed, "label gold", gold, name), kind="stable")]
        keys += controls[: gold_count(len(keys), settings["gold_share"], len(gold))]
        known = set(keys)
        keys += [key for key in gold if name in answered.get(key, frozenset()) and key not in known]
        found[name] = [keys[index] for index in np.argsort(_uniforms(seed, "label order", keys, name), kind="stable")]
    return found
