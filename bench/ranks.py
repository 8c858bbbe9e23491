"""Two ranks with a thread each beside one process with two threads: `python bench/ranks.py` (minutes, two cores).

Both do the same `preferent run` in fp32: data, a reward model, PPO, answers, a comparison, on a model from nothing and
generated posts. They take turns, in an order that changes; the ratio is the median over pairs of turns. A step is the
time from the end of one to the end of the next, without validations and checkpoints; a stage and the run are from the
start of the command, imports included. Exits with 1 where the two sides do not begin alike.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from preferent.commands.inference import from_scratch
from preferent.config import recipe
from preferent.config.recipe import Recipe
from preferent.config.stage_graph import Task
from preferent.pipelines import executor
from preferent.quickstart import guided_run
from preferent.runs import environment, metrics
from preferent.runs.directory import RunDirectory

SIDES = {
    "1 process, 2 threads": {"processes": 1, "threads": 2},
    "2 ranks, 1 thread each": {"processes": 2, "threads": 1},
}
COMPARED = 3
"""The step of PPO whose scores are compared: later, last bits may have changed a token, and all that follows."""
CLOSE = 1e-3

Seconds = dict[str, float]


def asked(folder: Path, options: argparse.Namespace) -> Recipe:
    """Write data and a model; return the recipe."""
    guided_run.preferences(0, options.rows, folder / "preferences.jsonl")
    guided_run.prompts(0, options.rows, folder / "prompts.jsonl")
    sizes = {"vocab_size": 1024, "hidden_size": options.width, "layers": options.layers, "heads": 4}
    count = from_scratch.make([folder / "preferences.jsonl"], folder / "model", **sizes)
    print(
        f"{count:,} parameters, fp32, {options.steps} steps of 64 pairs and of 64 rollouts; {options.pairs} turns each."
    )
    values = {
        "large_model_reference": str(folder / "model"),
        "preference_dataset": str(folder / "preferences.jsonl"),
        "prompt_dataset": str(folder / "prompts.jsonl"),
        "prompt_sequence_length": 64,
        "target_sequence_length": 32,
        "precision": "fp32",
        "device": "cpu",
        "reward_model_train_steps": options.steps,
        "reinforcement_learning_train_steps": options.steps,
        "checkpoint_every": options.steps,
        "reward": {"learning_rate": 1e-3, "micro_batch_tokens": 1024, "validation_every": options.steps}
        | {"normalize_prompts": 64},
        "ppo": {"learning_rate": 1e-4, "micro_batch_tokens": 1024, "validation_every": options.steps}
        | {"validation_prompts": 64},
        "infer": {"max_prompts": 64},
        "compare": {"judge": "reward"},
    }
    return recipe.parse(values)[0]


def turn(wanted: Recipe, out: Path) -> tuple[Seconds, float]:
    """Do a run; return the seconds of what is compared, and the mean raw score of one of PPO's first steps."""
    began: dict[str, float] = {}

    def announce(task: Task) -> None:
        began[task.name] = time.perf_counter()

    executor.execute(wanted, out, announce=announce)
    began["end"] = time.perf_counter()
    lasted = [after - before for before, after in pairwise(began.values())]
    stages = {f"stage `{name}`": seconds for name, seconds in zip(began, lasted, strict=False)}
    run = RunDirectory(out)
    steps = {}
    for name, folder in (("reward", "reward"), ("ppo", "policy")):
        times = [row["time"] for row in metrics.read(run.stage(folder).timings)]
        steps[f"step of `{name}`"] = statistics.median(after - before for before, after in pairwise(times))
    shown = {name: stages[name] for name in ("stage `reward`", "stage `ppo`", "stage `infer-tuned`")}
    score = metrics.read(run.policy.metrics)[:COMPARED][-1]["objective/scores_raw"]
    return steps | shown | {"whole run": sum(lasted)}, score


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--width", type=int, default=256, help="hidden size (default: 256)")
    options.add_argument("--layers", type=int, default=6, help="layers (default: 6)")
    options.add_argument("--steps", type=int, default=12, help="steps of each stage that learns (default: 12)")
    options.add_argument("--rows", type=int, default=3000, help="preferences, and prompts (default: 3000)")
    options.add_argument("--pairs", type=int, default=3, help="turns of each side (default: 3)")
    chosen = options.parse_args()
    facts = environment.describe()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "transformers"))
    print(f"{facts['processor']}, {facts['threads']} cores, {facts['memory_gib']} GiB, {versions}.")
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = asked(Path(folder), chosen)
        for number in range(chosen.pairs):
            for side in sorted(SIDES, reverse=number % 2 == 1):
                taken, score = turn(wanted.model_copy(update=SIDES[side]), Path(folder) / f"{number} {side}")
                scores.append(score)
                for name, amount in taken.items():
                    seconds[name][side].append(amount)
    print(f"\n| seconds | {' | '.join(SIDES)} | times as long |\n|---|---|---|---|")
    for name, sides in seconds.items():
        one, two = (sides[side] for side in SIDES)
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        cells = [f"{statistics.median(turns):.2f}" for turns in (one, two)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\nmean raw score of step {min(COMPARED, chosen.steps)} of PPO: {min(scores):.4f} to {max(scores):.4f}")
    sys.exit(max(scores) - min(scores) > CLOSE)


if __name__ == "__main__":
    main()
