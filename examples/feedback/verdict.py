"""The verdict of the users on a run of this example: a few votes with their interval, and what the truth is.

python examples/feedback/verdict.py RUN [--votes 50] [--careless 0.1] [--seed N]

A vote is between the base's and the tuned model's answer to a held-out prompt, by a user with the taste and the
carelessness of prepare.py. The truth, which nobody would know, is the true preference on all held-out prompts.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from prepare import agrees, chances

from preferent import files
from preferent.evaluation import statistics
from preferent.quickstart.synthetic_posts import ASK, facts_of
from preferent.quickstart.true_preference import SHARPNESS, utility
from preferent.runs.directory import RunDirectory


def asked(row: dict[str, Any]) -> str:
    """Return the post in a row of answers, whatever the template has put around it."""
    return str(row["inputs"]["inputs_pretokenized"]).partition(ASK)[0]


def worth(row: dict[str, Any]) -> float:
    return utility(facts_of(asked(row)), row["prediction"], row["ended"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--votes", type=int, default=50)
    parser.add_argument("--careless", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    base, tuned = (files.read_jsonl(RunDirectory(given.run).predictions(side)) for side in ("base", "tuned"))
    gains = np.array([worth(b) - worth(a) for a, b in zip(base, tuned, strict=True)])
    same = np.array([a["prediction"] == b["prediction"] for a, b in zip(base, tuned, strict=True)])
    prompts = [asked(row) for row in base]
    order = np.argsort(chances(given.seed, "which pairs", len(base)), kind="stable")[: given.votes]
    luck = chances(given.seed, "votes", len(base))
    votes = [0.5 if same[i] else float(agrees(SHARPNESS * gains[i], luck[i], given.careless)) for i in order]
    people = statistics.win_rate(np.array(votes), [prompts[i] for i in order])
    truth = statistics.win_rate((np.sign(np.round(gains, 9)) + 1) / 2, prompts)
    print(f"{len(votes)} votes: tuned preferred {people.win_rate:.0%}, 95 % {_interval(people.interval)}")
    print(f"the truth, {len(base)} prompts: tuned wins {truth.win_rate:.0%}, 95 % {_interval(truth.interval)}")


def _interval(interval: Any) -> str:
    low, high = interval
    return f"{low:.0%} to {high:.0%}"


if __name__ == "__main__":
    main()
