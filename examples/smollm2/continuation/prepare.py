"""Prepare the continuation example: `python prepare.py DATA BOOKS OUT`.

DATA holds `prefix.train.jsonl.gz` and `prefix.validation.jsonl.gz`: two endings of one opening, and the more pleasant
one (README.md says where they come from). BOOKS is a file of plain text, rows with `text`. OUT gets:

- `endings.jsonl`: both endings of every pair as demonstrations, without the choice;
- `preferences.jsonl`: the pairs that preferent learns from, and `prompts.jsonl`: their openings;
- `books.jsonl`: passages of the books, which the model should not forget;
- `outside.jsonl`: the pairs of the outside judge, which has no opening in common with them;
- `held_out.jsonl`: the validation pairs, and `openings.jsonl`: their openings. Nothing is chosen by them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preferent import randomness
from preferent.data import datasets
from preferent.data.types import Demonstration, Preference

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ethics"))
from prepare import OUTSIDE_SHARE, read, row, scenarios, write

PASSAGES, CHARACTERS = 2000, 400


def openings(pairs: Sequence[Preference]) -> list[dict[str, Any]]:
    """Each opening once, in the order of the pairs."""
    return [{"input_text": text} for text in dict.fromkeys(pair.prompt.input_text for pair in pairs)]


def passages(path: Path) -> list[dict[str, Any]]:
    """The beginnings of the first pieces of text."""
    texts: list[Demonstration] = datasets.read([str(path)], "text").records
    return [{"text": text.output_text[:CHARACTERS]} for text in texts[:PASSAGES]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("books", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    train, held_out = read(asked.data, "prefix.train.jsonl.gz"), read(asked.data, "prefix.validation.jsonl.gz")
    parts = randomness.split(0, "outside", [p.prompt.input_text for p in train], [OUTSIDE_SHARE])
    outside = [pair for pair, part in zip(train, parts, strict=True) if part == 0]
    taken = scenarios(outside)
    inside = [p for p, part in zip(train, parts, strict=True) if part == 1 and not scenarios([p]) & taken]
    unseen = {pair.prompt.input_text for pair in held_out}
    assert not unseen & {pair.prompt.input_text for pair in train}, "a held-out opening is trained on"
    assert not scenarios(held_out) & scenarios(train), "a held-out scenario is trained on"
    assert not scenarios(inside) & taken, "a scenario is on both sides"
    endings = [
        {"input_text": pair.prompt.input_text, "output_text": answer}
        for pair in inside
        for answer in (pair.candidate_0, pair.candidate_1)
    ]
    write(asked.out, "endings.jsonl", endings)
    write(asked.out, "preferences.jsonl", [row(pair) for pair in inside])
    write(asked.out, "prompts.jsonl", openings(inside))
    write(asked.out, "books.jsonl", passages(asked.books))
    write(asked.out, "outside.jsonl", [row(pair) for pair in outside])
    write(asked.out, "held_out.jsonl", [row(pair) for pair in held_out])
    write(asked.out, "openings.jsonl", openings(held_out))


if __name__ == "__main__":
    main()
