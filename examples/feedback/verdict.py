"""The verdict of the users on a run of this example: a few votes with their interval, and what the truth is.

python examples/feedback/verdict.py RUN [--votes 50] [--careless 0.1] [--seed N] [--json]

A vote is between the base's and the tuned model's answer to a held-out prompt, by a user with the taste and the
carelessness of prepare.py. The truth, which nobody would know, is the true preference on all held-out prompts.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from prepare import agrees, chances

from preferent import files
from preferent.evaluation import statistics
from preferent.evaluation.statistics import WinRate
from preferent.quickstart.synthetic_posts import ASK, facts_of
from preferent.quickstart.true_preference import SHARPNESS, utility
from preferent.runs.directory import RunDirectory


def asked(row: dict[str, Any]) -> str:
    """Return the post in a row of answers, whatever the template has put around it."""
    return str(row["inputs"]["inputs_pretokenized"]).partition(ASK)[0]


def worth(row: dict[str, Any]) -> float:
    return utility(facts_of(asked(row)), row["prediction"], row["ended"])


def measured(run: Path, votes: int, careless: float, seed: int) -> tuple[WinRate, WinRate]:
    """Return the win rate of the tuned model in the users' votes, and the true one on all held-out prompts."""
    base, tuned = (files.read_jsonl(RunDirectory(run).predictions(side)) for side in ("base", "tuned"))
    gains = np.array([worth(b) - worth(a) for a, b in zip(base, tuned, strict=True)])
    same = np.array([a["prediction"] == b["prediction"] for a, b in zip(base, tuned, strict=True)])
    prompts = [asked(row) for row in base]
    order = np.argsort(chances(seed, "which pairs", len(base)), kind="stable")[:votes]
    luck = chances(seed, "votes", len(base))
    choices = [0.5 if same[i] else float(agrees(SHARPNESS * gains[i], luck[i], careless)) for i in order]
    people = statistics.win_rate(np.array(choices), [prompts[i] for i in order])
    return people, statistics.win_rate((np.sign(np.round(gains, 9)) + 1) / 2, prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--votes", type=int, default=50)
    parser.add_argument("--careless", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    people, truth = measured(given.run, given.votes, given.careless, given.seed)
    if given.json:
        print(json.dumps({"people": asdict(people), "truth": asdict(truth)}))
        return
    print(f"{people.n} votes: tuned preferred {shown(people)}")
    print(f"the truth, {truth.n} prompts: tuned wins {shown(truth)}")


def shown(rate: WinRate) -> str:
    low, high = rate.interval
    return f"{rate.win_rate:.0%}, 95 % {low:.0%} to {high:.0%}"


if __name__ == "__main__":
    main()
