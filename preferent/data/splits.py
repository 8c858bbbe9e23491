"""Groups of rows that belong together, and the part of each group."""

from collections import Counter
from collections.abc import Sequence

from preferent import randomness
from preferent.data.types import Preference, Prompt, Thumb, digest


def labels(record: Preference | Prompt | Thumb) -> list[str]:
    """Return the labels that tie a row to others: its prompt (without one, its candidates) and the group it names."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    named = [digest("group", prompt.group)] if prompt.group else []
    if isinstance(record, Preference) and prompt.is_empty:
        return [digest("text", record.candidate_0), digest("text", record.candidate_1), *named]
    return [digest("prompt", prompt.key), *named]


def components(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the group of every row: rows that share a label, directly or through others, are one group (union-find).

    A group's name is the smallest of its labels, so it depends on the rows of the group, not on their order.
    """
    parent: dict[str, str] = {}

    def root(label: str) -> str:
        parent.setdefault(label, label)
        while parent[label] != label:
            parent[label] = label = parent[parent[label]]
        return label

    for row in rows:
        for label in row[1:]:
            low, high = sorted((root(row[0]), root(label)))
            parent[high] = low
    return [root(row[0]) for row in rows]


def deal(seed: int, purpose: str, rows: Sequence[str], shares: Sequence[float]) -> dict[str, int]:
    """Assign a part to every group that `rows` name: `shares[i]` of the groups to part i, the rest to the last part.

    A group with more rows than the largest share stays in the last part as long as enough smaller groups are left. Such
    a group, for example one topic of a few, would fill a part alone.
    """
    sizes = Counter(rows)
    limit = max(1.0, max(shares, default=0.0) * len(rows))
    small = sorted(group for group, size in sizes.items() if size <= limit)
    dealt = small if len(small) > len(shares) else sorted(sizes)
    parts = randomness.split(seed, purpose, dealt, shares)
    last = dict.fromkeys(sizes, len(shares))
    return last | {group: int(part) for group, part in zip(dealt, parts, strict=True)}
