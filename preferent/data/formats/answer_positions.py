"""The position of the chosen answer, where a format names that answer and does not record where it stood."""

from collections.abc import Sequence

from preferent import randomness
from preferent.data.types import Preference, Record, digest


def randomized(records: Sequence[Record]) -> list[Preference]:
    """Return the preferences with the chosen answer at position 0 or 1 pseudo-randomly, by a hash of the row.

    Formats that name the chosen answer do not record the positions. A fixed position would reveal the choice. The
    position depends on the row alone, so equal rows have equal positions in any file and order.
    """
    pairs = [record for record in records if isinstance(record, Preference)]
    items = [int(digest(pair.prompt.key, pair.candidate_0, pair.candidate_1), 16) for pair in pairs]
    coins = randomness.uniforms(0, "position", items, 0)
    return [pair.swap() if coin < 0.5 else pair for pair, coin in zip(pairs, coins, strict=True)]
