"""Whether the working tree computes what another commit computes: equal to the last bit, by the command line alone.

python bench/golden.py COMMIT [--keep FOLDER] [--within BOUND] [--kinds full lora]        (make golden BASE=COMMIT)

Both sides, COMMIT in a temporary `git worktree` (BASE) and the working tree (HEAD), run the same commands on the same
small data, side by side, one thread each, in this interpreter's environment: a run of all stages with full tuning and
one with LoRA (sft, two reward models, the judge, PPO with adaptive KL, infer, compare), and after each of them GRPO,
DPO, KTO, rejection sampling, infer with the best of two, sft on plain text, and two more comparisons: of those answers,
and of answers that all ended. Each side is given the recipe in its own spelling of keys that moved.

Prints what was compared per stage folder, every exempt difference with both values, and every other difference; exits
with 1 where there is one. `differences.py` says what is exempt, and what a bound above 0 lets pass. A few minutes.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from differences import compared

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("full", "lora")

TRAINING = ("lora_dim", "learning_rate", "batch_size", "warmup_steps", "schedule", "max_grad_norm", "weight_decay")
TRAINING += ("label_smoothing", "margin", "ties", "centering", "validation_every", "early_stopping_patience")
MOVED: tuple[dict[str, str], ...] = (
    {
        "ppo.reward": "reward.sources",
        "ppo.reward_clip": "reward.clip",
        "ppo.missing_eos_score": "reward.missing_eos_score",
        "ppo.overlong_tokens": "reward.overlong_tokens",
        "ppo.overlong_penalty": "reward.overlong_penalty",
        "ppo.normalize_prompts": "reward.normalize_prompts",
    },
    {f"reward.{name}": f"reward.training.{name}" for name in TRAINING},
)
"""Recipe keys, old to new, in groups that moved together."""

COMMON: dict[str, Any] = {
    "large_model_reference": "model",
    "preference_dataset": "pairs.jsonl",
    "prompt_dataset": "prompts.jsonl",
    "instruction": "Go on.",
    "prompt_sequence_length": 24,
    "target_sequence_length": 10,
    "seed": 3,
    "precision": "fp32",
    "device": "cpu",
    "threads": 1,
    "checkpoint_every": 3,
    "reward_model_train_steps": 8,
    "reinforcement_learning_train_steps": 6,
    "data.validation_share": 0.15,
    "data.test_share": 0.2,
    "sft.dataset": "demonstrations.jsonl",
    "sft.train_steps": 12,
    "sft.batch_size": 8,
    "sft.learning_rate": 0.003,
    "sft.validation_every": 4,
    "reward.members": 2,
    "reward.batch_size": 8,
    "reward.learning_rate": 0.003,
    "reward.validation_every": 4,
    "ppo.batch_size": 16,
    "ppo.minibatches": 2,
    "ppo.epochs": 2,
    "ppo.learning_rate": 0.003,
    "ppo.critic_learning_rate": 0.003,
    "ppo.validation_every": 3,
    "ppo.normalize_prompts": 16,
    "ppo.kl_target": 0.5,
    "ppo.kl_horizon": 200,
    "infer.sampling_strategy": "temperature_sampling",
}
BY_KIND: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {
        "sft.learning_rate": 0.03,
        "reward.combine": "worst",
        "reward.normalize": "std",
        "reward.learning_rate": None,
        "reward_model_learning_rate_multiplier": 30.0,
        "ppo.learning_rate": None,
        "ppo.critic_learning_rate": None,
        "reinforcement_learning_rate_multiplier": 100.0,
        **{f"{section}.lora_dim": 2 for section in ("sft", "reward", "ppo", "dpo", "rejection")},
    },
}
"""What differs between full tuning and LoRA, which leaves most learning rates to the defaults."""
DIRECT = {"dpo.train_steps": 8, "dpo.batch_size": 8, "dpo.validation_every": 4, "dpo.learning_rate": 0.003}
GROUPED = {
    "ppo.algorithm": "grpo",
    "ppo.samples_per_prompt": 4,
    "ppo.kl_target": None,
    "ppo.reward": [{"source": "reward"}, {"source": "brevity:scores", "weight": 0.1}],
    "ppo.reward_clip": 2.0,
    "ppo.missing_eos_score": -0.5,
    "ppo.overlong_tokens": 4,
    "ppo.overlong_penalty": 0.5,
}
KEPT = {"rejection.rounds": 2, "rejection.prompts": 12, "rejection.samples": 3, "rejection.train_steps": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "run": {},
    "grpo": GROUPED,
    "dpo": {"method": "dpo", **DIRECT},
    "kto": {"method": "kto", **DIRECT, "dpo.learning_rate": None},
    "rejection": {"method": "rejection_sampling", **KEPT, "rejection.batch_size": 8, "rejection.learning_rate": 0.003},
    "best": {"infer.best_of": 2},
    "text": {"sft.dataset": "text.jsonl", "sft.learning_rate": None},
}
"""What the recipe of each stage after the run says besides."""
SIZES = ("--vocab-size=384", "--hidden-size=32", "--layers=2", "--heads=4", "--kv-heads=2", "--positions=64")
TEXT = """the old man walked along a quiet river and sat down by its bridge while Mary found two silver keys under that
stone near her house then one dog ran through our garden so children laughed until evening wind came cold from sea"""
WORDS = TEXT.split()
BREVITY = '''"""A reward function: short answers are better."""


def scores(prompts, answers):
    return [-len(answer) / 10 for answer in answers]
'''


@dataclass
class Side:
    """A tree of the code, where it works, and the keys that it spells otherwise than the recipes here."""

    name: str
    tree: Path
    folder: Path
    spelling: dict[str, str] = field(default_factory=dict)

    def preferent(self, *words: str) -> None:
        """Run a command of ours; leaves where it fails."""
        started = time.monotonic()
        finished = self.python("-m", "preferent", *words)
        if finished.returncode != 0:
            sys.exit(f"{self.name}: preferent {' '.join(words)}: exit code {finished.returncode}\n{finished.stdout}")
        print(f"{self.name} {time.monotonic() - started:5.1f} s  {' '.join(words)[:100]}", file=sys.stderr, flush=True)

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run this interpreter on the tree, whatever is installed."""
        environment = {name: text for name, text in os.environ.items() if not name.startswith("PREFERENT")}
        environment |= {"PYTHONPATH": str(self.tree), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        output = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.run([sys.executable, *words], cwd=self.folder, env=environment, **output)

    def plans(self, settings: Mapping[str, Any], spelling: Mapping[str, str]) -> bool:
        """Whether the tree accepts a recipe in this spelling."""
        write_recipe(self.folder / "spelling.yaml", settings, spelling)
        return self.python("-m", "preferent", "run", "spelling.yaml", "--dry-run").returncode == 0

    def learn_spelling(self) -> None:
        """Find out which keys moved in this tree: each group as a whole or not at all, or else key by key."""
        every = dict(COMMON)
        for settings in (*BY_KIND.values(), *VARIANTS.values()):
            every |= settings
        neutral = {name: setting for name, setting in COMMON.items() if not any(name in group for group in MOVED)}
        for group in MOVED:
            used = {old: new for old, new in group.items() if old in every}
            moving = {old: every[old] for old in used}
            if self.plans(neutral | moving, used):
                self.spelling |= used
            elif not self.plans(neutral | moving, {}):
                self.spelling |= {
                    old: new for old, new in used.items() if self.plans(neutral | {old: every[old]}, {old: new})
                }


def write_recipe(path: Path, settings: Mapping[str, Any], spelling: Mapping[str, str]) -> None:
    """Write dotted settings as a recipe; JSON is YAML."""
    recipe: dict[str, Any] = {}
    for name, setting in settings.items():
        *sections, last = spelling.get(name, name).split(".")
        section = recipe
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = setting
    path.write_text(json.dumps(recipe, indent=1) + "\n")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(folder: Path) -> None:
    """Write the data that both sides read: text, preferences, prompts, demonstrations, a reward function, and answers
    that all ended, with votes of two people on them."""
    folder.mkdir(parents=True)
    draw = random.Random(7)
    prompts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 6))) + f" {number}" for number in range(64)]
    pairs = []
    for number, prompt in enumerate(prompts):
        candidates = [" " + " ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(2)]
        choice = "tie" if number % 16 == 5 else int(len(candidates[1]) < len(candidates[0]))
        names = {"candidate_0": candidates[0], "candidate_1": candidates[1]}
        pairs.append({"input_text": prompt, **names, "choice": choice, "strength": 1 + number % 3})
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "prompts.jsonl", [{"input_text": prompt} for prompt in prompts])
    endings = [" " + " ".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in prompts]
    both = list(zip(prompts, endings, strict=True))
    write_rows(folder / "demonstrations.jsonl", [{"input_text": text, "output_text": ending} for text, ending in both])
    write_rows(folder / "text.jsonl", [{"text": text + ending} for text, ending in both])
    (folder / "text.txt").write_text("\n".join(prompts))
    (folder / "brevity.py").write_text(BREVITY)
    write_answers(folder, draw, prompts[:44])


def write_answers(folder: Path, draw: random.Random, prompts: Sequence[str]) -> None:
    """Write `a.jsonl`, `b.jsonl` and `original.jsonl`, two answers to each prompt, and `votes.jsonl` on a and b."""
    texts = {}
    for side in ("a", "b", "original"):
        texts[side] = [" " + " ".join(draw.choices(WORDS, k=draw.randint(1, 5))) for _ in range(2 * len(prompts))]
        texts[side][3] = " by the bridge"  # in all three
        rows = [
            {
                "inputs": {"inputs_pretokenized": prompts[number // 2], "targets_pretokenized": " by the quiet river"},
                "prediction": text,
                "id": f"row-{number}",
                "tokens": len(text.split()) + 1,
                "ended": True,
                "kl": draw.random(),
                "kl_k1": draw.random(),
            }
            for number, text in enumerate(texts[side])
        ]
        write_rows(folder / f"{side}.jsonl", rows)
    votes = [
        {
            "id": f"row-{number}",
            "inference_instruction": "",
            "inference_context": prompts[number // 2],
            "response_a": texts["a"][number],
            "response_b": texts["b"][number],
            "choice": draw.choice(("A", "A", "B", "tie")),
            "confidence": 1.0,
            "explanation": "",
            "judge": "people",
            "annotator": annotator,
            "first": draw.choice("ab"),
        }
        for annotator in ("ann", "bob")
        for number in range(0, len(texts["a"]), 3)
    ]
    write_rows(folder / "votes.jsonl", votes)


def commands(kind: str) -> list[list[str]]:
    """The words of every command of a kind of tuning, in order."""

    def stage(verb: str, variant: str, out: str, **inputs: str) -> list[str]:
        words = [word for name, path in inputs.items() for word in ("--in", f"{name.replace('_', '-')}={path}")]
        return [verb, "--recipe", f"{kind}-{variant}.yaml", *words, "--out", f"{kind}-{out}"]

    run = f"{kind}-run"
    model = {"model": f"{run}/sft/model"}
    members = {"reward": f"{run}/reward/model", "reward_2": f"{run}/reward-2/model"}
    prompts = {name: f"{run}/data/prompt/{name}.jsonl" for name in ("train", "validation")}
    pairs = {name: f"{run}/data/preference/{name}.jsonl" for name in ("train", "validation", "test")}
    test = {"prompts": f"{run}/data/prompt/test.jsonl"}
    scoring = members | {"score": f"{run}/policy/score.json"}
    judges = {"judge": f"{run}/judge/model"} | scoring
    sides = {"a": f"{kind}-best/text.jsonl", "b": f"{run}/predictions/base/text.jsonl"}
    ended = {"a": "a.jsonl", "b": "b.jsonl", "original": "original.jsonl", "people": "votes.jsonl"}
    policy = {"model": f"{run}/policy/model", "reference": model["model"]}
    return [
        ["run", f"{kind}-run.yaml", "--out", run],
        stage("ppo", "grpo", "grpo", **model, **members, **prompts),
        stage("dpo", "dpo", "dpo", **model, **pairs),
        stage("dpo", "kto", "kto", **model, **pairs),
        stage("rejection", "rejection", "rejection", **model, **members, **prompts),
        stage("infer", "best", "best", **policy, **test, **scoring),
        stage("compare", "best", "best-compared", **sides, **test, **judges),
        stage("sft", "text", "text", model="model"),
        stage("compare", "run", "ended-compared", **ended, **judges),
    ]


def work(side: Side, kinds: Sequence[str]) -> None:
    """Do everything that is compared, in the side's folder."""
    prepare(side.folder)
    where = side.python("-c", "import preferent; print(preferent.__path__[0])").stdout.strip()
    if Path(where).resolve().parent != side.tree.resolve():
        sys.exit(f"{side.name}: python imports {where}, not the code in {side.tree}")
    side.preferent("scratch", "--text", "text.txt", "--out", "model", *SIZES)
    side.learn_spelling()
    print(
        f"{side.name} spells otherwise: {', '.join(side.spelling.values()) or 'nothing'}", file=sys.stderr, flush=True
    )
    for kind in kinds:
        for variant, settings in VARIANTS.items():
            path = side.folder / f"{kind}-{variant}.yaml"
            write_recipe(path, COMMON | BY_KIND[kind] | settings, side.spelling)
        for words in commands(kind):
            side.preferent(*words)


@contextlib.contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The files of a commit, for as long as the block lasts."""
    git = ["git", "-C", str(ROOT)]
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(folder), f"{commit}^{{commit}}"], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the commit to compare the working tree with")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder in which the runs of both sides stay")
    parser.add_argument("--within", type=float, default=0.0, metavar="BOUND", help="how far floats may be apart")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="the kinds of tuning to compare")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary, "runs")
        with worktree(arguments.commit, Path(temporary, "tree")) as tree:
            sides = [Side("BASE", tree, folder / "base"), Side("HEAD", ROOT, folder / "head")]
            with ThreadPoolExecutor(len(sides)) as pool:
                list(pool.map(work, sides, [arguments.kinds] * len(sides)))
        differ = compared(sides[0].folder, sides[1].folder, arguments.within)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
