"""Over-optimisation, measured where the true preference is a formula: `python run.py OUT`.

Makes a world of soups, a small model from nothing that writes them as cooks do, reward models from more and more pairs,
and tunes the model by PPO against each with nearly no leash; beside it best-of-n. OUT gets `figure.svg`, `table.md` and
`points.json`. The same command goes on where it was stopped.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import figure
import numpy as np
import soup
from curve import Fit, best_of_n

from preferent import files
from preferent.config import defaults, recipe
from preferent.evaluation.statistics import best_of
from preferent.models.world import World
from preferent.rewards.scoring import RewardModel
from preferent.runs import metrics

HERE = Path(__file__).resolve().parent
SIZES = (150, 600, 2400, 9600)
MEMBERS = 4
ENSEMBLES = ("mean", "worst", "variance")
"""What the members' scores become: `reward.combine`."""
LEASH, BUDGET = 0.2, 4.0
"""kl_coeff of the leashed run, and nats of the run with a budget."""
LAMBDA = 1.0
"""Weight of the variance in mean - lambda * variance (population variance, as Coste et al. 2024 in best-of-n)."""
PAIRS = {"validation": 256, "test": 1024}
DEMONSTRATIONS, PROMPTS, HELD_OUT, ASKED = 12000, 4000, 128, 32
STEPS_A_POINT = 2


@dataclass(frozen=True)
class Job:
    """One command of preferent, whose folder in OUT is `name`."""

    name: str
    stage: str
    inputs: dict[str, Path] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Where everything is, and what was asked."""

    out: Path
    sizes: Sequence[int]
    samples: int
    settings: Sequence[str]

    @property
    def small(self) -> int:
        """The size that the ways out are tried on."""
        return self.sizes[0]

    def world(self, name: str) -> Path:
        return self.out / "world" / f"{name}.jsonl"

    def asked(self) -> list[str]:
        """Settings of every stage."""
        model = f"large_model_reference={self.out / 'scratch'}"
        return [model, f"sft.dataset={self.world('demonstrations')}", *self.settings]

    def members(self) -> list[str]:
        """The ensemble: reward models of the smallest size, alike but for the seed."""
        return [f"reward-{self.small}", *(f"reward-{self.small}-{number}" for number in range(2, MEMBERS + 1))]


def prepare(study: Study) -> None:
    """Write the world's texts, pairs and prompts."""
    soup.demonstrations(0, DEMONSTRATIONS, study.world("demonstrations"))
    for size in study.sizes:
        soup.preferences(0, "train", size, study.world(f"train-{size}"))
    for part, count in PAIRS.items():
        soup.preferences(0, part, count, study.world(part))
    soup.prompts(0, "prompt", PROMPTS, 1, study.world("prompts"))
    soup.prompts(0, "held-out", HELD_OUT, 1, study.world("held_out"))
    soup.prompts(0, "asked", ASKED, study.samples, study.world("asked"))


def rewards(study: Study) -> list[Job]:
    """A reward model of each size, and the other members of the ensemble; the long ones first."""
    base = {"model": study.out / "sft" / "model"} | {part: study.world(part) for part in PAIRS}

    def job(name: str, size: int, seed: int) -> Job:
        return Job(name, "reward", base | {"train": study.world(f"train-{size}")}, (f"seed={seed}",))

    alone = [job(f"reward-{size}", size, 0) for size in sorted(study.sizes, reverse=True)]
    others = [job(name, study.small, number) for number, name in enumerate(study.members()[1:], start=2)]
    return alone + others


def policies(study: Study) -> list[Job]:
    """PPO against each reward model, and on the smallest size the ways out: ensemble, leash, budget."""
    out = study.out
    base = {"model": out / "sft" / "model", "train": study.world("prompts"), "validation": study.world("held_out")}
    reward = {size: base | {"reward": out / f"reward-{size}" / "model"} for size in study.sizes}
    small, names = reward[study.small], study.members()
    several = {"reward" if i == 1 else f"reward-{i}": out / name / "model" for i, name in enumerate(names, start=1)}
    variance = f"reward.variance_coeff={LAMBDA}"
    return [
        *(
            Job(f"policy-{study.small}-{how}", "ppo", base | several, (f"reward.combine={how}", variance))
            for how in ENSEMBLES
        ),
        *(Job(f"policy-{size}", "ppo", inputs) for size, inputs in reward.items()),
        Job(f"policy-{study.small}-leash", "ppo", small, (f"kl_coeff={LEASH}",)),
        Job(f"policy-{study.small}-budget", "ppo", small, (f"ppo.kl_budget={BUDGET}", "ppo.validation_every=2")),
    ]


def do(study: Study, jobs: Sequence[Job]) -> None:
    """Two commands side by side, one thread each; what they say goes to OUT/log."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: command(study, job), jobs))


def command(study: Study, job: Job) -> None:
    words = [job.stage, "--recipe", f"{HERE / 'recipe.yaml'}", "--out", f"{study.out / job.name}"]
    for setting in (*study.asked(), *job.settings):
        words += ["--set", setting]
    for name, path in job.inputs.items():
        words += ["--in", f"{name}={path}"]
    call(study, job.name, words)


def call(study: Study, name: str, words: Sequence[str]) -> None:
    """Run `preferent WORDS`; a failure shows what it said."""
    log = study.out / "log" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, "-m", "preferent", *words], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{name} stopped with exit code {done.returncode}:\n{log.read_text()[-2000:]}")
    print(f"{name:24} {time.perf_counter() - started:5.0f} s", flush=True)


def train(study: Study) -> None:
    """Everything that learns or samples, in waves: what a wave reads, the wave before wrote."""
    sizes = ("--vocab-size", "512", "--hidden-size", "64", "--layers", "2", "--heads", "4", "--positions", "64")
    call(
        study,
        "scratch",
        ["scratch", "--text", f"{study.world('demonstrations')}", "--out", f"{study.out / 'scratch'}", *sizes],
    )
    do(study, [Job("sft", "sft", {"model": study.out / "scratch"})])
    base = study.out / "sft" / "model"
    do(study, [*rewards(study), Job("base", "infer", {"model": base, "prompts": study.world("asked")})])
    do(study, policies(study))


def tuned(study: Study, name: str, zero: float) -> dict[str, list[float]]:
    """The path of a policy: d, the proxy that PPO saw, and gold above the base, means of a few steps each."""
    folder = study.out / name
    samples = files.read_jsonl(folder / "rollouts" / "samples.jsonl")
    gold = soup.taste([row["input"] for row in samples], [row["answer"] for row in samples]) - zero
    points = np.array([row["step"] // STEPS_A_POINT for row in samples])
    seen = [row for row in metrics.read(folder / "metrics.jsonl") if row.get("reward") is not None]
    of_step = np.array([(row["step"] - 1) // STEPS_A_POINT for row in seen])
    each = np.unique(points)
    kl, proxy = (np.array([row[key] for row in seen]) for key in ("kl_loss", "reward"))
    return {
        "d": [float(np.sqrt(max(kl[of_step == point].mean(), 0.0))) for point in each],
        "proxy": [float(proxy[of_step == point].mean()) for point in each],
        "gold": [float(gold[points == point].mean()) for point in each],
    }


def best(proxy: np.ndarray, gold: np.ndarray) -> dict[str, list[float]]:
    """Best-of-n for n = 1, 2, 4, … N by a proxy [P, N]."""
    counts = [2**power for power in range(int(np.log2(proxy.shape[1])) + 1)]
    return {
        "d": [best_of.kl_bound(n) ** 0.5 for n in counts],
        "proxy": [best_of_n(proxy, proxy - proxy.mean(), n) for n in counts],
        "gold": [best_of_n(proxy, gold, n) for n in counts],
    }


def measure(study: Study) -> dict[str, Any]:
    """Every curve: best-of-n by each reward and by the ensemble's combinations, and PPO against each."""
    rows = files.read_jsonl(study.out / "base" / "text.jsonl")
    asked, answers = [row["inputs"]["inputs_pretokenized"] for row in rows], [row["prediction"] for row in rows]
    settings, _ = defaults.filled(recipe.load(HERE / "recipe.yaml", study.asked())[0], defaults.AT_ONCE)
    gold = soup.taste(asked, answers)
    zero = float(gold.mean())
    gold = gold.reshape(-1, study.samples) - zero

    def scores(name: str) -> np.ndarray:
        reward = RewardModel.load(study.out / name / "model", settings, World.of(settings))
        return reward.score_texts(asked, answers).astype(np.float64).reshape(gold.shape)

    chosen = {str(size): best(scores(f"reward-{size}"), gold) for size in study.sizes}
    members = np.stack([scores(name) for name in study.members()])
    members -= members.mean((1, 2), keepdims=True)  # Bradley-Terry leaves each member's zero free
    combined = {
        "mean": members.mean(0),
        "worst": members.min(0),
        "mean − variance": members.mean(0) - LAMBDA * members.var(0),
    }
    alone = [best(member, gold) for member in members]
    ways = {"one model": {key: np.mean([one[key] for one in alone], axis=0).tolist() for key in ("d", "proxy", "gold")}}
    return {
        "best_of_n": chosen,
        "best_of_n_ways": ways | {name: best(proxy, gold) for name, proxy in combined.items()},
        "ppo": {str(size): tuned(study, f"policy-{size}", zero) for size in study.sizes},
        "ppo_ways": {way: tuned(study, f"policy-{study.small}-{way}", zero) for way in (*ENSEMBLES, "leash", "budget")},
        "accuracy": {
            size: json.loads((study.out / f"reward-{size}" / "quality.json").read_text())["test"]["accuracy"]
            for size in map(str, study.sizes)
        },
        "base": {"gold": zero, "deviation": float(gold.std()), "samples": gold.size},
    }


def fits(found: dict[str, Any]) -> dict[str, dict[str, Fit]]:
    """Both forms fitted to gold, by kind and size."""
    return {
        kind: {
            size: Fit.of(np.array(path["d"]), np.array(path["gold"]), kind == "ppo")
            for size, path in found[kind].items()
        }
        for kind in ("best_of_n", "ppo")
    }


def table(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [
        "| pairs | accuracy | PPO: peak of gold | at KL | gold, proxy at the end | alpha | beta | R² "
        "| best-of-n: gold, proxy at the end | alpha | beta | R² |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    fitted = fits(found)
    for size, path in found["ppo"].items():
        peak, last = int(np.argmax(path["gold"])), found["best_of_n"][size]
        rl, bon = fitted["ppo"][size], fitted["best_of_n"][size]
        lines.append(
            f"| {int(size):,} | {found['accuracy'][size]:.3f} | {path['gold'][peak]:.2f} | {path['d'][peak] ** 2:.1f} "
            f"| {path['gold'][-1]:.2f}, {path['proxy'][-1]:.2f} | {rl.alpha:.2f} | {rl.beta:.2f} | {rl.r2:.2f} "
            f"| {last['gold'][-1]:.2f}, {last['proxy'][-1]:.2f} | {bon.alpha:.2f} | {bon.beta:.2f} | {bon.r2:.2f} |"
        )
    lines += ["", "| way | PPO: peak of gold | at KL | gold at the end | at KL |", "|---|---|---|---|---|"]
    ways = {"one model": found["ppo"][min(found["ppo"], key=int)]} | found["ppo_ways"]
    for way, path in ways.items():
        peak = int(np.argmax(path["gold"]))
        lines.append(
            f"| {way} | {path['gold'][peak]:.2f} | {path['d'][peak] ** 2:.1f} "
            f"| {path['gold'][-1]:.2f} | {path['d'][-1] ** 2:.1f} |"
        )
    lines += ["", "| best-of-n by | peak of gold | at n | gold at the end |", "|---|---|---|---|"]
    for way, path in found["best_of_n_ways"].items():
        peak = int(np.argmax(path["gold"]))
        lines.append(f"| {way} | {path['gold'][peak]:.2f} | {2**peak} | {path['gold'][-1]:.2f} |")
    return re.sub(r"-(?=\d)", "−", "\n".join(lines)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pairs that reward models learn from")
    parser.add_argument("--samples", type=int, default=512, help="answers of the base to each prompt, for best-of-n")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a field of the recipe")
    asked = parser.parse_args()
    study = Study(asked.out, sorted(asked.sizes), asked.samples, asked.set)
    started = time.perf_counter()
    prepare(study)
    train(study)
    found = measure(study)
    files.write_json(study.out / "points.json", found)
    files.write_atomic(study.out / "figure.svg", figure.draw(found, fits(found)))
    files.write_atomic(study.out / "table.md", table(found))
    minutes, busy = (time.perf_counter() - started) / 60, sum(os.times()[:4]) / 60
    print(f"\n{table(found)}\n{study.out / 'figure.svg'}, in {minutes:.1f} minutes, {busy:.1f} of processor time")


if __name__ == "__main__":
    main()
