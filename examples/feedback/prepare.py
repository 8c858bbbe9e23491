"""What a small company has: a model that writes hurried summaries, and the feedback of its users on Open WebUI.

python examples/feedback/prepare.py FOLDER [--seed N] [--thumbs 300] [--arena 60] [--careless 0.1]

The world is the quickstart's. A user's taste is its true preference: a summary is worth the facts that it gets right,
less those that it gets wrong, idle words and a missing end. A thumb goes up with probability sigmoid(2 (worth - 1.5)),
a vote between two hidden models to the first with sigmoid(2 (difference)); a careless user tosses a coin.
Written to FOLDER: demonstrations.jsonl, prompts.jsonl, held_out.jsonl and feedback-history-export.json.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files, randomness
from preferent.quickstart.synthetic_posts import ASK, CARELESS, HURRIED, Faults, Part, Post, draft, ends, posts
from preferent.quickstart.true_preference import SHARPNESS, utility

ACCEPTABLE = 1.5
"""The worth of a summary that has as many thumbs up as down."""
MODELS = {"hurried": HURRIED, "careless": CARELESS}


def drafts(seed: int, part: str, written: list[Post], faults: Faults) -> list[str]:
    """Return a summary of each post."""
    uniforms = randomness.uniforms(seed, f"feedback/{part}", np.arange(len(written))[:, None], np.arange(10))
    return [draft(post, row, faults) for post, row in zip(written, uniforms, strict=True)]


def asked(post: Post) -> list[dict[str, str]]:
    return [{"role": "user", "content": post.text + ASK}]


def chances(seed: int, purpose: str, count: int) -> np.ndarray:
    return randomness.uniforms(seed, f"feedback/{purpose}", np.arange(count), 0)


def agrees(log_odds: float, chance: float, careless: float) -> bool:
    """Return whether a user says yes: a careless one tosses a coin."""
    if chance < careless:
        return chance < careless / 2
    return (chance - careless) / (1 - careless) < 1 / (1 + math.exp(-log_odds))


def worth(post: Post, text: str) -> float:
    return utility(post.facts, text, ends(text))


def record(number: int, post: Post, answers: dict[str, str], is_good: bool) -> dict[str, Any]:
    """A record of the export: a thumb on the first of the answers, given by name of the model."""
    rated, *others = answers
    messages = {"q": {"id": "q", "parentId": None, "role": "user", "content": post.text + ASK}}
    for name, text in answers.items():
        messages[name] = {
            "id": name,
            "parentId": "q",
            "role": "assistant",
            "content": text,
            "model": name,
            "done": True,
        }
    chat = {"id": f"chat-{number}", "chat": {"history": {"messages": messages, "currentId": rated}}}
    about = {"rating": 1 if is_good else -1, "model_id": rated, "sibling_model_ids": others or None}
    return {
        "id": f"feedback-{number}",
        "user_id": f"user-{number % 25}",
        "version": 0,
        "type": "rating",
        "data": about,
        "meta": {"arena": bool(others), "message_id": rated, "chat_id": chat["id"]},
        "snapshot": {"chat": chat},
        "created_at": 1764000000 + number,
        "updated_at": 1764000000 + number,
    }


def export(seed: int, thumbs: int, arena: int, careless: float) -> list[dict[str, Any]]:
    """Return the records of the users' feedback: thumbs on the one model, votes between the two."""
    written = posts(seed, thumbs + 2 * arena, "preference")
    texts = {name: drafts(seed, f"answers/{name}", written, faults) for name, faults in MODELS.items()}
    records = []
    for number, (post, chance) in enumerate(zip(written, chances(seed, "user", len(written)), strict=True)):
        mine, other = texts["hurried"][number], texts["careless"][number]
        if number < thumbs:
            is_good = agrees(SHARPNESS * (worth(post, mine) - ACCEPTABLE), float(chance), careless)
            records.append(record(number, post, {"hurried": mine}, is_good))
        elif mine != other and len(records) < thumbs + arena:
            is_good = agrees(SHARPNESS * (worth(post, mine) - worth(post, other)), float(chance), careless)
            records.append(record(number, post, {"hurried": mine, "careless": other}, is_good))
    return records


def rows(seed: int, count: int, part: Part) -> list[dict[str, Any]]:
    written = posts(seed, count, part)
    if part != "demonstration":
        return [{"messages": asked(post)} for post in written]
    answers = drafts(seed, part, written, HURRIED)
    return [{"messages": asked(post), "output_text": text} for post, text in zip(written, answers, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thumbs", type=int, default=300)
    parser.add_argument("--arena", type=int, default=60)
    parser.add_argument("--careless", type=float, default=0.1)
    given = parser.parse_args()
    parts: dict[str, tuple[Part, int]] = {
        "demonstrations": ("demonstration", 12000),
        "prompts": ("prompt", 6000),
        "held_out": ("test", 512),
    }
    for name, (part, count) in parts.items():
        files.write_jsonl(given.folder / f"{name}.jsonl", rows(given.seed, count, part))
    made = export(given.seed, given.thumbs, given.arena, given.careless)
    files.write_atomic(given.folder / "feedback-history-export.json", json.dumps(made))
    up = sum(each["data"]["rating"] == 1 for each in made)
    print(f"{given.folder}: {len(made)} records of feedback, {up} thumbs up")


if __name__ == "__main__":
    main()
