"""examples/feedback from the export to the verdict of 50 votes, by PPO and by KTO, for several seeds: one table.

python bench/feedback.py [--seeds 1 2 3] [--out runs/feedback-seeds] [--set KEY=VALUE ...]

A seed draws the users, the model, and what the runs draw. A row's minutes are those of run and verdict, and for PPO,
whose SFT makes the model that KTO begins with, of data and model too. A row that is done is read from its folder and
not made again, so the seeds may be run one at a time; a run that was stopped goes on, and its minutes are those of
the last part alone. Settings of `sft` are for PPO.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = "runs/feedback-data"
SIZES = ("--vocab-size", "1024", "--hidden-size", "64", "--layers", "3", "--heads", "4", "--positions", "1024")
METHODS = ("ppo", "kto")
HEAD = "| seed | method | tuned wins, by the true preference | in 50 votes | minutes |\n|---|---|---|---|---|"


def do(folder: Path, *words: str) -> str:
    """Run Python in a folder; return what it printed, and end if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}")
    return done.stdout


def prepared(folder: Path, seed: int) -> None:
    """Make the data and the model of a seed in a folder that has the example in it."""
    model = f"{DATA}/model"
    shutil.copytree(ROOT / "examples/feedback", folder / "examples/feedback", dirs_exist_ok=True)
    do(folder, "examples/feedback/prepare.py", DATA, "--seed", str(seed))
    if not (folder / model).exists():
        text = f"{DATA}/demonstrations.jsonl"
        do(folder, "-m", "preferent", "scratch", "--text", text, "--out", model, "--seed", str(seed), *SIZES)


def row(folder: Path, seed: int, method: str, settings: list[str]) -> dict[str, Any]:
    """Return the figures of one run, made now or before."""
    kept = folder / f"{method}.json"
    if not kept.exists():
        began = time.monotonic()
        prepared(folder, seed)
        own = [setting for setting in settings if method == "ppo" or not setting.startswith("sft.")]
        changed = [word for setting in (f"seed={seed}", *own) for word in ("--set", setting)]
        run = f"runs/feedback-{method}"
        do(folder, "-m", "preferent", "run", f"examples/feedback/{method}.yaml", "--out", run, *changed)
        figures = json.loads(do(folder, "examples/feedback/verdict.py", run, "--seed", str(seed), "--json"))
        kept.write_text(json.dumps(figures | {"minutes": (time.monotonic() - began) / 60}))
    figures = json.loads(kept.read_text())
    assert isinstance(figures, dict)
    return figures


def shown(rate: dict[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{rate['win_rate']:.0%} ({low:.0%} to {high:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/feedback-seeds"))
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    print(HEAD, flush=True)
    for seed in given.seeds:
        for method in METHODS:
            figures = row(given.out.resolve() / f"seed-{seed}", seed, method, given.settings)
            cells = shown(figures["truth"]), shown(figures["people"]), f"{figures['minutes']:.1f}"
            print(f"| {seed} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
