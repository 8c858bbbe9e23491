"""Micro-batches, padding and packing. They depend on lengths and settings only."""

from collections.abc import Sequence

import numpy as np

from preferent import randomness


def plan(lengths: Sequence[int] | np.ndarray, max_tokens: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
    """Cut rows into micro-batches of similar length, each at most `max_tokens` padded tokens (one row may exceed it).

    Return int64 arrays of indices into `lengths`, longest rows first. `rows` restricts the plan to these rows.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    rows = np.arange(len(lengths)) if rows is None else np.asarray(rows, dtype=np.int64)
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    parts, start = [], 0
    while start < len(order):
        count = max(1, max_tokens // max(1, int(lengths[order[start]])))
        parts.append(order[start : start + count])
        start += count
    return parts


def minibatches(lengths: Sequence[int], count: int, max_tokens: int, seed: int, step: int) -> list[list[np.ndarray]]:
    """Assign rows to `count` minibatches by a keyed permutation, and cut each into micro-batches."""
    order = randomness.permutation(seed, "minibatch", step, len(lengths))
    return [plan(lengths, max_tokens, np.sort(part)) for part in np.array_split(order, count)]


def pad(rows: Sequence[np.ndarray], fill: float, left: bool = False) -> np.ndarray:
    """Return rows of unequal length as one array [B, T], padded with `fill` on the right (or left)."""
    width = max(len(row) for row in rows)
    padded = np.full((len(rows), width), fill, dtype=np.asarray(rows[0]).dtype)
    for target, row in zip(padded, rows, strict=True):
        if len(row):
            target[slice(width - len(row), width) if left else slice(0, len(row))] = row
    return padded


def pack(texts: Sequence[Sequence[int]], eos_id: int, length: int) -> np.ndarray:
    """Join token lists, each followed by EOS, and cut them into sequences, int64 [S, length]; drop the remainder."""
    flat = np.concatenate([np.append(np.asarray(text, dtype=np.int64), eos_id) for text in texts])
    count = len(flat) // length
    return flat[: count * length].reshape(count, length)
