"""A world whose true preference is a formula: soups, the cooks who write them down, and what they taste like.

A soup is a list of ingredients, the first two given. Some ingredients are better than others, some pairs go together or
clash, and more of the same spoils it: with n_k portions of ingredient k and p_k = [n_k > 0],
taste = v·p + Σ_{k<l} C_kl p_k p_l − w Σ_k (n_k − p_k). Cooks seldom add twice what is in already, so that few pairs
of soups show what much of the same does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files, randomness

INGREDIENTS = (
    "leek", "carrot", "onion", "garlic", "celery", "potato", "tomato", "pumpkin", "spinach", "cabbage", "lentil",
    "bean", "barley", "rice", "noodle", "cream", "butter", "lemon", "ginger", "thyme", "basil", "pepper",
    "salt", "chili",
)  # fmt: skip
SHORTEST, LONGEST = 3, 8
"""Ingredients that a cook adds to the first two."""
AGAIN = 0.12
"""How likely a cook adds once more what was added last, instead of something new."""
QUALITY, AFFINITY, SHARE_OF_PAIRS, SPOILS = 0.5, 0.5, 0.2, 0.5
WORLD = 0
"""The seed of the tastes; what is drawn from the world has seeds of its own."""


def _normal(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    u = randomness.uniforms(WORLD, f"soup/{purpose}", np.arange(int(np.prod(shape)))[:, None], np.arange(2))
    return (np.sqrt(-2 * np.log1p(-u[:, 0])) * np.cos(2 * np.pi * u[:, 1])).reshape(shape)


def _tastes() -> tuple[np.ndarray, np.ndarray]:
    """v [K], of mean 0, and C [K, K], above its diagonal."""
    size = len(INGREDIENTS)
    v = QUALITY * _normal("quality", (size,))
    upper = np.triu(AFFINITY * _normal("affinity", (size, size)), 1)
    upper *= randomness.uniforms(WORLD, "soup/pairs", np.arange(size)[:, None], np.arange(size)) < SHARE_OF_PAIRS
    return v - v.mean(), upper


V, C = _tastes()


def taste(prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """The gold reward, float64 [n], in the annotator's log-odds: by how much what was added made the opening better."""
    return _taste([f"{p} {a}" for p, a in zip(prompts, answers, strict=True)]) - _taste(prompts)


def _taste(texts: Sequence[str]) -> np.ndarray:
    """The taste of soups; words that are no ingredient count for nothing."""
    counts = np.zeros((len(texts), len(INGREDIENTS)))
    places = {name: index for index, name in enumerate(INGREDIENTS)}
    for row, text in zip(counts, texts, strict=True):
        for word in text.replace(":", " ").split():
            if word in places:
                row[places[word]] += 1
    present = np.minimum(counts, 1)
    pairs = np.einsum("nk,kl,nl->n", present, C, present)
    return present @ V + pairs - SPOILS * (counts - present).sum(-1)


def openings(seed: int, part: str, count: int) -> list[str]:
    """Prompts: two different ingredients."""
    u = randomness.uniforms(seed, f"soup/{part}/opening", np.arange(count)[:, None], np.arange(2))
    first = (u[:, 0] * len(INGREDIENTS)).astype(int)
    second = (first + 1 + (u[:, 1] * (len(INGREDIENTS) - 1)).astype(int)) % len(INGREDIENTS)
    return [f"{INGREDIENTS[a]} {INGREDIENTS[b]}:" for a, b in zip(first, second, strict=True)]


def cooked(seed: int, part: str, prompts: Sequence[str]) -> list[str]:
    """What a cook adds to each opening."""
    u = randomness.uniforms(seed, f"soup/{part}/answer", np.arange(len(prompts))[:, None], np.arange(1 + 2 * LONGEST))
    return [_answer(prompt.removesuffix(":").split(), row) for prompt, row in zip(prompts, u, strict=True)]


def _answer(opening: list[str], u: np.ndarray) -> str:
    length = SHORTEST + int(u[0] * (LONGEST - SHORTEST + 1))
    words = list(opening)
    for again, which in u[1 : 1 + 2 * length].reshape(-1, 2):
        new = [name for name in INGREDIENTS if name not in words]
        words.append(words[-1] if again < AGAIN else new[int(which * len(new))])
    return "".join(f" {word}" for word in words[len(opening) :])


def demonstrations(seed: int, count: int, path: Path) -> None:
    """Openings and what a cook adds, to imitate."""
    asked = openings(seed, "text", count)
    rows = zip(asked, cooked(seed, "text", asked), strict=True)
    files.write_jsonl(path, [{"input_text": prompt, "output_text": answer} for prompt, answer in rows])


def preferences(seed: int, part: str, count: int, path: Path) -> None:
    """Two soups from one opening, and which an annotator preferred: P(second) = sigma(taste(second) - taste(first))."""
    asked = openings(seed, part, count)
    first, second = cooked(seed, f"{part}/0", asked), cooked(seed, f"{part}/1", asked)
    likes = 1 / (1 + np.exp(taste(asked, first) - taste(asked, second)))
    choice = (randomness.uniforms(seed, f"soup/{part}/choice", np.arange(count), 0) < likes).astype(int)
    rows: list[dict[str, Any]] = [
        {"input_text": prompt, "candidate_0": one, "candidate_1": other, "choice": int(which)}
        for prompt, one, other, which in zip(asked, first, second, choice, strict=True)
    ]
    files.write_jsonl(path, rows)


def prompts(seed: int, part: str, count: int, copies: int, path: Path) -> None:
    """Openings alone, each `copies` times."""
    files.write_jsonl(path, [{"input_text": p} for p in openings(seed, part, count) for _ in range(copies)])
