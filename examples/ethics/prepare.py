"""Prepare the ethics example: `python prepare.py DATA OUT`.

DATA holds the pairs as preference rows (`prefix.*` with a shared opening, `full.*` whole scenarios; README.md says
where they come from). OUT gets:

- `text.jsonl`: scenarios for the base model, none of the validation ones;
- `reward.jsonl`: the pairs that preferent may learn from;
- `outside.jsonl`: the pairs of the outside judge; it shares no text with `reward.jsonl`;
- `prompts.jsonl`: openings to train on, and `held_out.jsonl`: the validation pairs, whose openings nobody trains on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preferent import randomness
from preferent.data import datasets
from preferent.data.formats import row_reader
from preferent.data.types import Preference

OUTSIDE_SHARE = 0.25


def scenarios(pairs: Sequence[Preference]) -> set[str]:
    """Both whole scenarios of every pair."""
    return {(p.prompt.input_text + answer).strip() for p in pairs for answer in (p.candidate_0, p.candidate_1)}


def read(data: Path, name: str) -> list[Preference]:
    return row_reader.kept(datasets.read([str(data / name)], "preference"))


def write(out: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{out / name}: {len(rows)} rows")


def row(pair: Preference) -> dict[str, Any]:
    return {
        "input_text": pair.prompt.input_text,
        "candidate_0": pair.candidate_0,
        "candidate_1": pair.candidate_1,
        "choice": pair.choice,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    prefix, full = read(asked.data, "prefix.train.jsonl.gz"), read(asked.data, "full.train.jsonl.gz")
    held_out = read(asked.data, "prefix.validation.jsonl.gz")
    unseen = scenarios(held_out) | scenarios(read(asked.data, "full.validation.jsonl.gz"))

    parts = randomness.split(0, "outside", [p.prompt.input_text for p in prefix], [OUTSIDE_SHARE])
    outside = [p for p, part in zip(prefix, parts, strict=True) if part == 0]
    inside = [p for p, part in zip(prefix, parts, strict=True) if part == 1]
    # Every pair of `prefix` stands in `full` again, in one piece; only what is new there is added.
    taken = scenarios(prefix) | unseen
    inside += [p for p in full if not scenarios([p]) & taken]
    shared = scenarios(outside)
    inside = [p for p in inside if not scenarios([p]) & shared]
    assert not scenarios(inside) & scenarios(outside), "a scenario is on both sides"
    assert not (scenarios(inside) | scenarios(outside)) & unseen, "a validation scenario is trained on"
    openings = {p.prompt.input_text for p in held_out}
    assert not openings & {p.prompt.input_text for p in inside + outside}, "a validation opening is trained on"

    texts = sorted((scenarios(prefix) | scenarios(full)) - unseen)
    write(asked.out, "text.jsonl", [{"text": text} for text in texts])
    write(asked.out, "reward.jsonl", [row(p) for p in inside])
    write(asked.out, "outside.jsonl", [row(p) for p in outside])
    prompts = dict.fromkeys(p.prompt.input_text for p in inside if p.prompt.input_text)
    write(asked.out, "prompts.jsonl", [{"input_text": text} for text in prompts])
    write(asked.out, "held_out.jsonl", [row(p) for p in held_out])


if __name__ == "__main__":
    main()
