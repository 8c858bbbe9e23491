"""The quickstart on consecutive seeds, by the true preference: sampled as it says itself, and again greedily.

python bench/lesson.py [--seeds 0 1 2] [--out FOLDER]

Prints a table and ends with exit code 1 where a figure is not what the quickstart promises. A seed that is on disk is
not run again; its minutes are then not known.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from preferent import files
from preferent.quickstart import true_preference

HEADER = (
    "| seed | minutes | KL | wins | 95 % interval | both ended | faithful | ended | judge | greedy: wins | faithful |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def preferent(*words: object) -> None:
    """Run a command of ours, quietly; its errors are shown."""
    command = [sys.executable, "-m", "preferent", *map(str, words)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def greedy(root: Path) -> dict[str, Any]:
    """The verdict of the true preference on the likeliest answers of base and tuned model."""
    recipe, prompts = root / "recipe.yaml", root / "data/prompt/test.jsonl"
    answers = []
    for name, model in {"base": "sft", "tuned": "policy"}.items():
        out = root / "greedy" / name
        preferent(
            *("infer", "--recipe", recipe, "--set", "infer.sampling_strategy=greedy"),
            *("--in", f"model={root / model / 'model'}", "--in", f"prompts={prompts}", "--out", out),
        )
        answers.append(files.read_jsonl(out / "text.jsonl"))
    return true_preference.verdict(*answers)


def measured(root: Path, seed: int) -> tuple[str, dict[str, bool]]:
    """The row of one seed, and for each promise whether it is kept."""
    began = time.monotonic()
    fresh = not (root / "report.html").exists()
    if fresh:
        preferent("quickstart", root, "--seed", seed)
    minutes = (time.monotonic() - began) / 60 if fresh else float("nan")
    gold, likeliest = files.read_json(root / "comparison/gold.json"), greedy(root)
    found = files.read_json(root / "comparison/metrics.json")
    judged = found["judges"][found["headline"]]["win_rate"]
    low, high = gold["interval"]
    cells = [
        f"{seed}", f"{minutes:.1f}", f"{gold['kl_tuned']:.2f}",
        f"{gold['win_rate']:.1%}", f"{low:.1%} to {high:.1%}",
        f"{gold['win_rate_both_ended']:.1%} of {gold['n_both_ended']}",
        f"{gold['faithful_base']:.0%} → {gold['faithful_tuned']:.0%}",
        f"{gold['ended_base']:.0%} → {gold['ended_tuned']:.0%}",
        f"{judged:.1%}", f"{likeliest['win_rate']:.1%}",
        f"{likeliest['faithful_base']:.0%} → {likeliest['faithful_tuned']:.0%}",
    ]  # fmt: skip
    kept = {
        "at most 4 minutes": not minutes > 4,
        "300 posts": gold["n"] >= 300,
        "base ended 80 %": gold["ended_base"] >= 0.8,
        "base faithful 20 to 60 %": 0.2 <= gold["faithful_base"] <= 0.6,
        "wins 75 %": gold["win_rate"] >= 0.75,
        "faithful + 15 points": gold["faithful_tuned"] >= gold["faithful_base"] + 0.15,
        "65 % where both ended": gold["win_rate_both_ended"] >= 0.65,
        "greedy wins": likeliest["win_rate"] > 0.5,
        "greedy more faithful": likeliest["faithful_tuned"] > likeliest["faithful_base"],
    }
    return f"| {' | '.join(cells)} |", kept


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--out", type=Path, default=None, help="keep the runs here (default: thrown away)")
    given = options.parse_args()
    broken = []
    with tempfile.TemporaryDirectory() as aside:
        print(HEADER, flush=True)
        for seed in given.seeds:
            row, kept = measured((given.out or Path(aside)) / f"seed-{seed}", seed)
            print(row, flush=True)
            broken += [f"seed {seed}: {promise}" for promise, held in kept.items() if not held]
    if broken:
        sys.exit("not kept: " + "; ".join(broken))


if __name__ == "__main__":
    main()
