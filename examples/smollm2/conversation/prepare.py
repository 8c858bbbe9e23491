"""Prepare the conversation example: `python prepare.py DATA OUT`.

DATA holds `train.jsonl.gz`: two arguments for one side of a debate, and the one that five voters found more convincing
(README.md says where it comes from). OUT gets, as conversations of a user with the model:

- `preferences.jsonl`: pairs of arguments of at most 50 words, at most 400 of a debate, each debate a group;
- `arguments.jsonl`: both arguments of every such pair as demonstrations, without the votes;
- `prompts.jsonl`: two sides of each question in `topics.txt`, each question a group;
- `outside.jsonl`: the pairs with longer arguments, for a judge that shares no argument with them.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preferent import randomness
from preferent.data import datasets
from preferent.data.formats import row_reader
from preferent.data.types import Preference

WORDS, OF_A_DEBATE = 50, 400
TOPICS = Path(__file__).with_name("topics.txt")


def asked(question: str, side: str) -> list[dict[str, str]]:
    """What the user says."""
    return [{"role": "user", "content": f"Debate: {question}\nSide: {side}"}]


def parts(pair: Preference) -> tuple[str, str]:
    """The question and the side of a row."""
    question, side, _ = pair.prompt.input_text.split("\n")
    return question.removeprefix("Debate: "), side.removeprefix("Side: ")


def row(pair: Preference) -> dict[str, Any]:
    question, side = parts(pair)
    return {
        "messages": asked(question, side),
        "candidate_0": pair.candidate_0.strip(),
        "candidate_1": pair.candidate_1.strip(),
        "choice": pair.choice,
        "group": question,
    }


def demonstrations(pairs: Sequence[Preference]) -> list[dict[str, Any]]:
    """Every argument once."""
    said = {(parts(pair), answer.strip()) for pair in pairs for answer in (pair.candidate_0, pair.candidate_1)}
    return [{"messages": [*asked(*side), {"role": "assistant", "content": text}]} for side, text in sorted(said)]


def prompts() -> list[dict[str, Any]]:
    """Both sides of each question: `question` or `question | one side | the other`."""
    rows = []
    for line in TOPICS.read_text().splitlines():
        question, *sides = (part.strip() for part in line.split("|"))
        rows += [{"messages": asked(question, side), "group": question} for side in sides or ("Yes", "No")]
    return rows


def write(out: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{out / name}: {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = row_reader.kept(datasets.read([str(given.data / "train.jsonl.gz")], "preference"))
    debates: dict[str, list[Preference]] = defaultdict(list)
    longer = []
    for pair in pairs:
        short = max(len(text.split()) for text in (pair.candidate_0, pair.candidate_1)) <= WORDS
        (debates[parts(pair)[0]] if short else longer).append(pair)
    chosen = []
    for number, found in enumerate(debates.values()):
        order = randomness.permutation(0, "debate", number, len(found))[:OF_A_DEBATE]
        chosen += [found[i] for i in np.sort(order)]
    texts = {text for pair in chosen for text in (pair.candidate_0, pair.candidate_1)}
    outside = [pair for pair in longer if not {pair.candidate_0, pair.candidate_1} & texts]
    write(given.out, "preferences.jsonl", [row(pair) for pair in chosen])
    write(given.out, "arguments.jsonl", demonstrations(chosen))
    write(given.out, "prompts.jsonl", prompts())
    write(given.out, "outside.jsonl", [row(pair) for pair in outside])


if __name__ == "__main__":
    main()
