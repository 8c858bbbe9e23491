"""Keyed randomness: uniforms, orders and splits as functions of (seed, purpose, item, position).

Nothing here has a state. The generator is Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"): a bijection of a 128-bit counter under a 64-bit key. The key is a digest of (seed, purpose), the counter is
(item, position), so a number does not depend on what else was drawn, in what batch, or on which machine.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox-4x32-10 of `counter` [..., 4] (32-bit words held in uint64) under a key of two 32-bit words."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def _key(seed: int, purpose: str) -> tuple[int, int]:
    raw = hashlib.sha256(f"{seed}\0{purpose}".encode()).digest()
    return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:8], "little")


def uniforms(
    seed: int, purpose: str, items: np.ndarray | Sequence[int] | int, positions: np.ndarray | int
) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 with 53 random bits, of the broadcast shape of `items` and `positions`."""
    items, positions = np.broadcast_arrays(np.asarray(items, dtype=np.uint64), np.asarray(positions, dtype=np.uint64))
    words = [items & _LOW, items >> _HALF, positions & _LOW, positions >> _HALF]
    bits = philox(np.stack(words, axis=-1), _key(seed, purpose))
    return ((bits[..., 0] << np.uint64(21)) ^ (bits[..., 1] >> np.uint64(11))).astype(np.float64) * 2.0**-53


def permutation(seed: int, purpose: str, item: int, size: int) -> np.ndarray:
    """Return an order of `range(size)`, int64; `item` numbers the permutations of one purpose (an epoch, a step)."""
    return np.argsort(uniforms(seed, purpose, item, np.arange(size)), kind="stable")


def rows(seed: int, purpose: str, step: int, batch_size: int, size: int) -> np.ndarray:
    """Return the rows of `size` in the batch of `step`, int64 [batch_size]: a new order per epoch, none left out."""
    items = step * batch_size + np.arange(batch_size)
    epochs = items // size
    orders = {epoch: permutation(seed, purpose, int(epoch), size) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][item % size] for epoch, item in zip(epochs, items, strict=True)], dtype=np.int64)


def split(seed: int, purpose: str, groups: Sequence[str], shares: Sequence[float]) -> np.ndarray:
    """Deal whole groups to parts: part i gets `shares[i]` of the distinct groups, the last part the rest.

    Returns the part of every row, int64 [len(groups)], in 0..len(shares). A share above zero gets at least one group
    while there are more groups than parts. Which groups go where depends on their names, not on the rows' order.
    """
    names = sorted(set(groups))
    keys = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") for name in names]
    order = np.argsort(uniforms(seed, purpose, np.array(keys, dtype=np.uint64), 0), kind="stable")
    part, start = {}, 0
    for index, share in enumerate(shares):
        count = round(share * len(names))
        if share > 0 and len(names) > len(shares):
            count = max(count, 1)
        part.update({names[i]: index for i in order[start : start + count]})
        start += count
    return np.array([part.get(group, len(shares)) for group in groups], dtype=np.int64)
