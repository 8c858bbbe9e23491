"""ROUGE: the overlap of an answer with a reference, as F1 (Lin 2004, "ROUGE: a package for automatic evaluation").

Tokens are runs of ASCII letters and digits in lower case, not stemmed, as in the common implementations. Text in other
scripts has no tokens and scores 0.
"""

import re
from collections import Counter
from collections.abc import Sequence


def tokens(text: str) -> list[str]:
    """Return the tokens of a text."""
    return re.findall("[a-z0-9]+", text.lower())


def scores(reference: str, answer: str) -> dict[str, float]:
    """Return `rouge1`, `rouge2` and `rougeL` of an answer, F1 scores in [0, 1]; 0 if either side has no n-grams."""
    expected, produced = tokens(reference), tokens(answer)
    return {
        "rouge1": _overlap(expected, produced, 1),
        "rouge2": _overlap(expected, produced, 2),
        "rougeL": _f1(common_subsequence(expected, produced), len(expected), len(produced)),
    }


def _overlap(expected: Sequence[str], produced: Sequence[str], n: int) -> float:
    """Return the F1 over n-grams, each counted as often as it occurs in both."""
    wanted, counted = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (expected, produced))
    return _f1((wanted & counted).total(), wanted.total(), counted.total())


def _f1(matches: int, expected: int, produced: int) -> float:
    return 2 * matches / (expected + produced) if matches else 0.0


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, with each column of the table in the bits of one integer.

    Hyyrö 2004, "Bit-parallel LCS-length computation revisited": a zero bit is a place where the length grows.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    everywhere = (1 << len(a)) - 1
    column = everywhere
    for word in b:
        matched = column & places.get(word, 0)
        column = (column + matched | column - matched) & everywhere
    return len(a) - column.bit_count()
