"""Assign questions to annotators and order them, by the seed; name them and choose the left answer, by the secret.

The seed may be known to everybody, and so may all texts and the recipe. What a page is told of a question therefore
depends on a secret of the server's, and the order of asking does not tell the answers apart.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from preferent import randomness
from preferent.data.types import digest
from preferent.labeling import selection
from preferent.labeling.questions import Question, Side

U64 = np.uint64


def number(*names: str) -> int:
    """Return names as a 64-bit number, the key of their random numbers."""
    return int(digest(*names), 16)


def _uniforms(seed: int, purpose: str, keys: Sequence[str], annotator: str) -> np.ndarray:
    """Return a uniform number per question, [questions]. A key is sixteen hexadecimal digits: see `pair_key`."""
    items = np.array([int(key, 16) for key in keys], dtype=U64)
    return randomness.uniforms(seed, purpose, items, np.array(number(annotator), dtype=U64))


def keyed(secret: str, *names: str) -> str:
    """Return the HMAC-SHA256 of names as hexadecimal digits. `secret` is 64 of them: 256 bits."""
    message = b"".join(len(name.encode()).to_bytes(8, "big") + name.encode() for name in names)
    return hmac.new(bytes.fromhex(secret), message, hashlib.sha256).hexdigest()


def first(secret: str, key: str, annotator: str) -> Side:
    """Return the side that is shown left to an annotator: either, with equal probability."""
    return "a" if int(keyed(secret, "side", key, annotator), 16) % 2 == 0 else "b"


def opaque(secret: str, key: str) -> str:
    """Return the name of a question in the page. Without the secret it reveals nothing about the question."""
    return keyed(secret, "item", key)[:32]


def assigned(
    seed: int, keys: Mapping[str, str], annotators: Sequence[str], overlap: int, answered: Mapping[str, Set[str]]
) -> dict[str, list[str]]:
    """Return the keys of the questions for each annotator. Each question goes to `overlap` of them, or to all if fewer.

    `keys` has the `pair_key` of each question by its key. Those who have answered it already count first. The other
    places go to the annotators with the smallest keyed numbers (rendezvous hashing), so that an annotator who joins or
    leaves moves as few questions as possible.
    """
    ranks = {name: _uniforms(seed, "label assignment", list(keys.values()), name) for name in annotators}
    shares: dict[str, list[str]] = {name: [] for name in annotators}
    for index, key in enumerate(keys):
        before = answered.get(key, frozenset())
        waiting = sorted((name for name in annotators if name not in before), key=lambda name: ranks[name][index])
        here = [name for name in annotators if name in before]
        for name in here + waiting[: max(overlap - len(before), 0)]:
            shares[name].append(key)
    return shares


def gold_count(questions: int, share: float, available: int) -> int:
    """Return how many control questions are the share `share` of a queue with `questions` others, at most
    `available`."""
    return min(available, round(questions * share / (1 - share)))


def queues(
    settings: Mapping[str, Any], questions: Sequence[Question], answered: Mapping[str, Set[str]]
) -> dict[str, list[str]]:
    """Return the keys of each annotator's questions in the order of asking, control questions among them.

    The order differs between annotators. Wherever they stop, the answered questions are a fair sample. Where a rule
    says when to stop, a question may weigh more than others and comes sooner: each next one is drawn in proportion to
    the weights of those left.
    """
    seed, annotators = settings["seed"], settings["annotators"]
    pair_keys = {question.key: question.pair_key for question in questions}
    open_keys = {question.key: question.pair_key for question in questions if question.gold is None}
    gold = [question.key for question in questions if question.gold is not None]

    weights = selection.weights(settings)

    def shuffled(keys: Sequence[str], purpose: str, name: str) -> list[str]:
        times = _uniforms(seed, purpose, [pair_keys[key] for key in keys], name)
        if weights:
            times = -np.log1p(-times) / np.array([weights.get(key, 1.0) for key in keys])
        return [keys[index] for index in np.argsort(times, kind="stable")]

    orders = assigned(seed, open_keys, annotators, settings["overlap"], answered)
    for name, keys in orders.items():
        controls = shuffled(gold, "label gold", name)
        keys += controls[: gold_count(len(keys), settings["gold_share"], len(gold))]
        known = set(keys)
        keys += [key for key in gold if name in answered.get(key, frozenset()) and key not in known]
        orders[name] = shuffled(sorted(keys, key=pair_keys.__getitem__), "label order", name)
    return orders
