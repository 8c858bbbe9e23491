"""An annotator who knows all texts, the recipe and the seed, and what the page gets: guesses of sides are at chance."""

import gc
import hashlib
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from preferent import randomness
from preferent.data.types import Prompt, digest
from preferent.labeling import access, assignment, selection
from preferent.labeling.database import Store
from preferent.labeling.questions import Question
from preferent.labeling.service import LabelingService

SECRET = hashlib.sha256(b"a secret of this test").hexdigest()
SEED, COUNT, SEEDS = 7, 10_000, 1 << 20
U64 = np.uint64


@dataclass
class Seen:
    """What an annotator knows: the questions in the order of asking, by their texts alone; names; the cookie."""

    asked: list[tuple[Question, str]]
    """Each question as the owner's files would have it, side a first, and its name in the page. Which of the two texts
    of the files stands left is what is to be guessed."""
    cookie: str
    costs: list[int]
    """How many calls the server made to show each question."""


def questions() -> list[Question]:
    place = random.Random(1)
    texts = [" ".join(place.choice(("yes", "no", "maybe")) for _ in range(place.randrange(1, 9))) for _ in range(COUNT)]
    return [Question(str(i), Prompt(f"question {i}"), texts[i], f"{texts[-i]} {i}") for i in range(COUNT)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Seen, list[str]]:
    """What one annotator saw of the service, and the truth: the side that stood left."""
    store = Store(tmp_path_factory.mktemp("labels"))
    settings = {"seed": SEED, "annotators": ["ann"], "overlap": 1, "gold_share": 0.0, "strengths": 0}
    asked = questions()
    store.create(settings | {"secret": SECRET}, asked)
    service = LabelingService(store)
    seen, truth = Seen([], access.cookie(service.settings["secret"]), []), []
    service._item("ann", service._queues["ann"][0], 1)  # what is imported at the first call counts no more
    gc.disable()  # what it calls is not the server's
    for key in service._queues["ann"]:
        question = service.questions[key]
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        item = service._item("ann", key, 1)
        sys.setprofile(None)
        seen.asked.append((question, item["item"]))
        seen.costs.append(calls)
        truth.append("a" if item["left"] == question.a else "b")
    gc.enable()
    return seen, truth


def swapped(question: Question) -> Question:
    return Question(question.id, question.prompt, question.b, question.a)


def side_of(seed: int, question: Question, annotator: str = "ann") -> str:
    """Side by a uniform number of the seed, as 0.1.0 drew it."""
    key = np.array([int(question.key, 16)], dtype=U64)
    drawn = randomness.uniforms(seed, "label side", key, np.array(int(digest(annotator), 16), dtype=U64))
    return "a" if float(drawn[0]) < 0.5 else "b"


def cookies(seed: int) -> list[str]:
    """Names that a cookie could have if it came from the seed."""
    names = [f"preferent_{digest('cookie', str(seed))[:8]}"]
    for secret in (f"{seed:064x}", hashlib.sha256(str(seed).encode()).hexdigest()):
        names.append(access.cookie(secret))
    return names


def by_seeds(seen: Seen) -> list[str]:
    """Look for a seed that gives the cookie, or the name of the first question in either order; then draw the sides."""
    first, name = seen.asked[0]
    for seed in range(SEEDS):
        items = [digest("item", str(seed), question.key) for question in (first, swapped(first))] if seed < 4096 else []
        if seen.cookie in cookies(seed) if seed < 4096 else seen.cookie.endswith(digest("cookie", str(seed))[:8]):
            return [side_of(seed, question) for question, _ in seen.asked]
        if name in items:
            return [side_of(seed, question) for question, _ in seen.asked]
    return by_the_known_seed(seen)


def by_the_known_seed(seen: Seen) -> list[str]:
    return [side_of(SEED, question) for question, _ in seen.asked]


def by_the_other_order(seen: Seen) -> list[str]:
    return [side_of(SEED, swapped(question)) for question, _ in seen.asked]


def by_the_order_of_asking(seen: Seen) -> list[str]:
    """Which of the two orders of the texts would have stood nearer to the place where the question stands?"""
    annotator = np.array(int(digest("ann"), 16), dtype=U64)
    places = (np.arange(COUNT) + 0.5) / COUNT
    gaps = []
    for turn in (lambda question: question, swapped):
        keys = np.array([int(turn(question).key, 16) for question, _ in seen.asked], dtype=U64)
        gaps.append(np.abs(randomness.uniforms(SEED, "label order", keys, annotator) - places))
    return ["a" if near else "b" for near in gaps[0] < gaps[1]]


def by_the_name(seen: Seen) -> list[str]:
    return ["a" if int(name, 16) % 2 == 0 else "b" for _, name in seen.asked]


def by_the_length(seen: Seen) -> list[str]:
    return ["a" if len(question.a) > len(question.b) else "b" for question, _ in seen.asked]


def by_the_cost(seen: Seen) -> list[str]:
    usual = sorted(seen.costs)[COUNT // 2]
    return ["a" if cost <= usual else "b" for cost in seen.costs]


ATTACKS = (
    *(by_seeds, by_the_known_seed, by_the_other_order, by_the_order_of_asking),
    *(by_the_name, by_the_length, by_the_cost),
)


@pytest.mark.acceptance
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_right_as_often_as_a_coin(
    shown: tuple[Seen, list[str]], attack: Callable[[Seen], Sequence[str]]
) -> None:
    seen, truth = shown
    right = sum(guess == side for guess, side in zip(attack(seen), truth, strict=True))
    assert 4850 <= right <= 5150


@pytest.mark.acceptance
def test_the_attack_by_seeds_tells_the_sides_that_come_from_a_seed(shown: tuple[Seen, list[str]]) -> None:
    seen, _ = shown
    old = Seen(seen.asked, f"preferent_{digest('cookie', '4711')[:8]}", seen.costs)
    assert by_seeds(old) == [side_of(4711, question) for question, _ in seen.asked]


def test_the_seed_chooses_and_orders_the_same_whichever_answer_is_a() -> None:
    asked = questions()[:200]
    turned = [swapped(question) if i % 3 else question for i, question in enumerate(asked)]
    settings = {"seed": SEED, "annotators": ["ann", "bob"], "overlap": 1, "gold_share": 0.0}
    for name in ("ann", "bob"):
        orders = []
        for rows in (asked, turned):
            ids = {question.key: question.id for question in rows}
            orders.append([ids[key] for key in assignment.queues(settings, rows, {})[name]])
        assert orders[0] == orders[1] and len(orders[0]) > 50
    chosen = [[q.id for q in selection.choose(rows, 50, "random", [], SEED)] for rows in (asked, turned)]
    assert chosen[0] == chosen[1]


def test_another_secret_gives_other_names_and_sides() -> None:
    other = hashlib.sha256(b"another").hexdigest()
    keys = [question.key for question in questions()[:400]]
    assert not {assignment.opaque(SECRET, key) for key in keys} & {assignment.opaque(other, key) for key in keys}
    same = sum(assignment.first(SECRET, key, "ann") == assignment.first(other, key, "ann") for key in keys)
    assert 150 < same < 250
    assert access.cookie(SECRET) != access.cookie(other)
