"""Every algorithm from the same reward model, on real preferences, by changing one field of the ethics recipe.

python bench/algorithms.py ../shared/data/preference/ethics_util [--out FOLDER] [--only NAME …]

Prints a table: KL to the base; the reward that was optimised, which is asked about the methods without one too; and
tuned against base by a judge that shares nothing with preferent (examples/ethics/outside.py). What is on disk is not
run again.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "ethics"))

import outside

from preferent import files

ROOT = Path(__file__).parent.parent
SHORT = ("sft.train_steps=300", "reward.members=1", "reinforcement_learning_train_steps=60", "dpo.train_steps=120")
"""What is smaller than in the example, so that nine runs take an hour and not three."""
RECIPE = ROOT / "examples" / "ethics" / "recipe.yaml"
VARIANTS = {
    "ppo": "ppo.algorithm=ppo",
    "rloo": "ppo.algorithm=rloo",
    "grpo": "ppo.algorithm=grpo",
    "dr_grpo": "ppo.algorithm=dr_grpo",
    "reinforce_plus_plus": "ppo.algorithm=reinforce_plus_plus",
    "remax": "ppo.algorithm=remax",
    "dpo": "method=dpo",
    "kto": "method=kto",
    "rejection_sampling": "method=rejection_sampling",
}


def preferent(*words: object) -> None:
    """Run a command of ours; its progress is shown on standard error."""
    subprocess.run([sys.executable, "-m", "preferent", *map(str, words)], stdout=sys.stderr, check=True, cwd=ROOT)


def prepare(data: Path, out: Path) -> None:
    """The rows, the model from nothing, and the run with PPO whose reward model all others take over."""
    if not (out / "data" / "outside.jsonl").exists():
        script = ROOT / "examples" / "ethics" / "prepare.py"
        subprocess.run([sys.executable, str(script), str(data), str(out / "data")], check=True, stdout=sys.stderr)
    if not (out / "model").exists():
        sizes = ["--vocab-size=6000", "--hidden-size=128", "--layers=2", "--heads=4", "--positions=128"]
        preferent("scratch", "--text", out / "data" / "text.jsonl", "--out", out / "model", *sizes)


def settings(out: Path) -> list[str]:
    """The example's recipe on this bench's files, shortened."""
    data = out / "data"
    files = {
        "large_model_reference": out / "model",
        "preference_dataset": data / "reward.jsonl",
        "prompt_dataset": data / "prompts.jsonl",
        "eval_dataset": data / "held_out.jsonl",
        "sft.dataset": data / "text.jsonl",
    }
    given = [f"{key}={path}" for key, path in files.items()]
    return [word for setting in (*given, *SHORT) for word in ("--set", setting)]


def mean_reward(reward: outside.Reward, folder: Path, model: str) -> float:
    """The mean normalised score of a model's answers to the test prompts."""
    rows = files.read_jsonl(folder / "predictions" / model / "text.jsonl")
    texts, answers = [r["inputs"]["inputs_pretokenized"] for r in rows], [r["prediction"] for r in rows]
    return float(np.mean(reward.score_texts(texts, answers)))


def row(name: str, folder: Path, judge: outside.Outside, reward: outside.Reward, minutes: str) -> str:
    found = files.read_json(folder / "comparison" / "metrics.json")
    ours = found["judges"]["judge"]
    theirs = outside.verdict(judge, folder)
    cells = [
        f"`{VARIANTS[name]}`",
        f"{found['kl']['mean']:.2f}",
        f"{mean_reward(reward, folder, 'base'):.2f} → {mean_reward(reward, folder, 'tuned'):.2f}",
        f"{theirs.win_rate:.1%} ({theirs.interval[0]:.1%}–{theirs.interval[1]:.1%})".replace("%", " %"),
        f"{ours['win_rate']:.1%} ({ours['interval'][0]:.1%}–{ours['interval'][1]:.1%})".replace("%", " %"),
        minutes,
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=ROOT.parent / "shared/data/preference/ethics_util")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "algorithms")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    asked = parser.parse_args()
    if not asked.data.exists():
        sys.exit(f"{asked.data}: the ethics data is not here; its README says where it is from")
    out = asked.out.resolve()
    prepare(asked.data.resolve(), out)
    base = out / "ppo"
    judge, reward = outside.Outside(outside.pairs(out / "data" / "outside.jsonl")), None
    print("| one field | KL | reward, base → tuned | outside judge prefers tuned | own judge prefers tuned | minutes |")
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(("ppo", *asked.only)):
        began, folder = time.monotonic(), out / name
        fresh = not (folder / "report.html").exists()
        stage = {"dpo": "dpo", "kto": "dpo", "rejection_sampling": "rejection"}.get(name, "ppo")
        adopted = [] if name == "ppo" else ["--from", stage, "--of", base]
        if fresh:
            preferent("run", RECIPE, "--out", folder, *settings(out), "--set", VARIANTS[name], *adopted)
        minutes = f"{(time.monotonic() - began) / 60:.1f}" if fresh else ""
        reward = reward or outside.optimised(base)
        print(row(name, folder, judge, reward, minutes), flush=True)


if __name__ == "__main__":
    main()
