"""How near each algorithm comes to the optimum where it is known: the table of docs/algorithms/index.md.

python bench/optimum.py                    every algorithm, two problems, three seeds: about 40 minutes on one core
python bench/optimum.py rloo dr_grpo       these alone
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import enumerable
from training import test_optimum as problem

SEEDS = (0, 1, 2)
LONG = {"epochs": 1, "batch_size": 1024, "steps": 400}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "rloo": {"epochs": 4},
    "dr_grpo": {"epochs": 4},
    "reinforce_plus_plus": LONG,
    "remax": LONG,
    "grpo": {"epochs": 4},
}
"""What differs from `tests/training/test_optimum.py`: without other answers or a critic noise and batch are larger."""
UNBIASED = set(SETTINGS) - {"grpo"}


def outcome(name: str, kind: str, seed: int, folder: Path) -> enumerable.Outcome:
    """Train one algorithm on one problem."""
    settings = dict(SETTINGS[name])
    if kind == "bandit":
        found, beta, steps = problem.bandit(folder / "reference"), 0.5, 60
    else:
        found, beta, steps = problem.mdp(folder / "reference", seed), problem.BETA, 140
    steps = min(settings.pop("steps", steps), 100 if kind == "bandit" else 1000)
    policy = problem.tune(found, folder / "out", beta, seed, steps, algorithm=name, **settings)
    return enumerable.outcome(found, policy, beta)


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    print("| algorithm | problem | gap, per cent (seeds 0, 1, 2) | spread | E r | KL |")
    print("|---|---|---|---|---|---|")
    far = []
    for name in names:
        for kind in ("bandit", "MDP"):
            with tempfile.TemporaryDirectory() as folder:
                found = [outcome(name, kind, seed, Path(folder) / str(seed)) for seed in SEEDS]
            columns = [
                ", ".join(f"{100 * o.gap:.2f}" for o in found),
                *(", ".join(f"{getattr(o, key):.3f}" for o in found) for key in ("spread", "reward", "kl")),
            ]
            print(f"| `{name}` | {kind} | " + " | ".join(columns) + " |", flush=True)
            if name in UNBIASED and max(o.gap for o in found) >= 0.01:
                far.append(f"{name} on the {kind}")
    if far:
        sys.exit(f"further than 1 % from the optimum: {', '.join(far)}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(SETTINGS))
