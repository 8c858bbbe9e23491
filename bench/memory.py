"""The peak of every stage's resident memory against what `preferent plan` says: `python bench/memory.py`.

Each configuration is a model from nothing and a run of a few steps on generated preferences, so that every phase of a
stage occurs: learning, sampling, validation, checkpoints and the finished model. Memory is what the system accounts to
the stage's process at its end. Exit code 1 where plan and measurement differ by more than 15 %.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preferent import files
from preferent.commands import plan
from preferent.config import defaults, memory_estimate, recipe, stage_graph
from preferent.pipelines.launchers import child_process

LIMIT = 0.15
ROWS = 80
PROMPT, ANSWER = (24, 96), (16, 64)


@dataclass(frozen=True)
class Configuration:
    """A model's sizes as `preferent scratch` takes them, and what the recipe says besides the common part."""

    title: str
    sizes: dict[str, int]
    values: dict[str, Any]
    packs: bool = False


SMALL = {"vocab-size": 8192, "hidden-size": 192, "layers": 4, "heads": 6}
MIDDLE = {"vocab-size": 8192, "hidden-size": 512, "layers": 6, "heads": 8}
LARGE = {"vocab-size": 32000, "hidden-size": 512, "layers": 8, "heads": 8}
FULL = {"reward": {"lora_dim": 0}, "ppo": {"lora_dim": 0}, "sft": {"lora_dim": 0}}
LORA = {"reward": {"lora_dim": 4}, "ppo": {"lora_dim": 4}, "sft": {"lora_dim": 4}}
CONFIGURATIONS = {
    "small": Configuration("full, fp32", SMALL, {"precision": "fp32"} | FULL, packs=True),
    "lora": Configuration("LoRA on one backbone, fp32", MIDDLE, {"precision": "fp32"} | LORA),
    "checkpointed": Configuration(
        "LoRA on one backbone, fp32, gradient checkpointing",
        MIDDLE,
        {"precision": "fp32", "gradient_checkpointing": True} | LORA,
    ),
    "nf4": Configuration(
        "LoRA on one backbone in 4 bits (nf4), fp32",
        LARGE | {"intermediate-size": 1408},
        {"precision": "fp32", "quantize": "nf4"} | LORA,
    ),
    "bf16": Configuration("full, bf16", MIDDLE, {"precision": "bf16"} | FULL, packs=True),
    "wide": Configuration(
        "full, fp32, gradient checkpointing, sequences of at most 96 tokens",
        LARGE,
        {
            "precision": "fp32",
            "gradient_checkpointing": True,
            "prompt_sequence_length": 64,
            "target_sequence_length": 32,
        }
        | FULL,
    ),
}
COMMON: dict[str, Any] = {
    "prompt_sequence_length": 104,
    "target_sequence_length": 64,
    "threads": 1,
    "device": "cpu",
    "checkpoint_every": 2,
    "reward_model_train_steps": 2,
    "reinforcement_learning_train_steps": 2,
    "data": {"validation_share": 0.1, "test_share": 0.1},
    "sft": {"train_steps": 2, "batch_size": 12, "validation_every": 2},
    "reward": {"batch_size": 8, "validation_every": 2, "normalize_prompts": 24},
    "ppo": {"batch_size": 12, "minibatches": 2, "epochs": 1, "validation_every": 1},
    "compare": {"judge": "reward"},
}
MICRO_BATCH_TOKENS = 1536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), help="which to run")
    parser.add_argument("--keep", type=Path, help="leave models and runs in this folder")
    asked = parser.parse_args()
    print("| model | stage | measured MiB | planned MiB | planned / measured | largest phase |")
    print("|---|---|---|---|---|---|", flush=True)
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in asked.only:
            for stage, ratio in compare(name, CONFIGURATIONS[name], asked.keep or Path(temporary)):
                if abs(ratio - 1) > LIMIT:
                    wrong.append(f"{name} {stage} {ratio:.2f}")
    if wrong:
        sys.exit(f"planned / measured off by more than {LIMIT:.0%}: {', '.join(wrong)}")


def compare(name: str, configuration: Configuration, folder: Path) -> Iterator[tuple[str, float]]:
    """Run the stages of a configuration; print a line and give planned / measured for each that holds models."""
    found, given = prepare(name, configuration, folder)
    tasks = stage_graph.build(found)
    chosen, _ = defaults.filled(given.recipe, defaults.AT_ONCE)
    given = replace(given, recipe=chosen)
    for task in tasks:
        if task.name not in ("sft", "reward", "ppo", "infer-tuned"):
            continue
        peak = perform(task.command(str(folder / name)), folder / f"{name}-{task.name}.log")
        need = memory_estimate.need(given, task.stage)
        title = f"{given.shape.policy / 1e6:.1f}M, {configuration.title}"
        ratio = need.peak / peak
        print(f"| {title} | {task.name} | {peak >> 20} | {need.peak >> 20} | {ratio:.2f} | {need.phase} |", flush=True)
        yield task.name, ratio


def prepare(name: str, configuration: Configuration, folder: Path) -> tuple[recipe.Recipe, memory_estimate.ModelFacts]:
    """Make texts, model, recipe and data of a configuration; the recipe and what its plan depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, model, out = configuration.sizes["vocab-size"], folder / f"{name}-model", folder / name
    write(folder / f"{name}.jsonl", vocabulary, configuration.packs)
    sizes = [word for key, value in configuration.sizes.items() for word in (f"--{key}", str(value))]
    perform(["scratch", "--text", str(folder / f"{name}.jsonl"), *sizes, "--out", str(model)], folder / "scratch.log")
    sections = {key: COMMON.get(key, {}) | configuration.values.get(key, {}) for key in ("sft", "reward", "ppo")}
    for section in sections.values():
        section["micro_batch_tokens"] = MICRO_BATCH_TOKENS
    sections["sft"]["dataset"] = str(folder / f"{name}-sft.jsonl")
    values = COMMON | configuration.values | sections
    references = {"large_model_reference": str(model), "preference_dataset": str(folder / f"{name}.jsonl")}
    found, _ = recipe.parse(values | references)
    out.mkdir(exist_ok=True)
    files.write_atomic(out / "recipe.yaml", recipe.dump(found))
    perform(stage_graph.build(found)[0].command(str(out)), folder / f"{name}-data.log")
    given = plan.model_facts(found, out / "data", plan.longest_prompt(found, out / "data"))
    assert given is not None
    return found, given


def perform(words: Sequence[str], log: Path) -> int:
    """Do a `preferent` command in a process of its own; its peak resident memory in bytes."""
    with log.open("wb") as written:
        actions = [(os.POSIX_SPAWN_DUP2, written.fileno(), 1), (os.POSIX_SPAWN_DUP2, written.fileno(), 2)]
        argv = [sys.executable, "-m", "preferent", *words]
        child = os.posix_spawn(sys.executable, argv, child_process.ALLOCATOR | os.environ, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed; it said:\n{log.read_text()}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write(path: Path, vocabulary: int, packs: bool) -> None:
    """Preferences in words that make a vocabulary of about this size, and beside them texts or answers to imitate."""
    draw = random.Random(0)
    words = [word(draw) for _ in range(vocabulary)]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(low, high)))

    rows = [
        {"input_text": text(*PROMPT), "candidate_0": text(*ANSWER), "candidate_1": text(*ANSWER), "choice": i % 2}
        for i in range(ROWS)
    ]
    rows[0]["rest"] = " ".join(3 * words)
    write_rows(path, rows)
    sft = [
        {"text": text(*PROMPT)} if packs else {"input_text": text(*PROMPT), "output_text": text(*ANSWER)} for _ in rows
    ]
    write_rows(path.with_name(f"{path.stem}-sft.jsonl"), sft)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def word(draw: random.Random) -> str:
    """Two or three syllables."""
    return "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.choice((2, 3, 3))))


if __name__ == "__main__":
    main()
