"""One PPO iteration, ours against TRL 1.12.0's, in pairs: `python bench/ppo_against_trl.py` (about four minutes
on an idle machine; `--quick` about one).

Both sides do the same work on the same files: a Llama of 5M parameters as policy, reference, reward model and critic;
64 prompts of 64 tokens; 64 answer tokens each, sampled at temperature 1 with no stop; scores, reference and values; 4
epochs of one minibatch, so four AdamW updates of policy and of critic. The clock covers all of that and no logging,
evaluation or saving. Each side is a process in its own environment (`worker.py` has the protocol); iterations
alternate, the order within a pair too, with the same number of threads. The driver checks that both sampled as many
tokens and made as many updates.

TRL lives in `.venv-trl`, made on first use with venv and pip. Nothing but the standard library and
transformers is needed here.

The peer's settings are the fastest of those tried; `--peer` takes others, as in `--peer "--micro 32"`. PEER says what
was tried.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
COMPANIONS = ["torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0"]

BATCH, PROMPT, ANSWER, EPOCHS = 64, 64, 64, 4
# Tried for TRL: processor seconds on one thread of an iteration of one epoch (a busy 2-core AMD EPYC; six heads of 32):
#   fp32: micro 64 14.3, 32 12.5, 16 12.7, 8 11.5; micro 16 with rollout 64 12.7, 32 11.7, 16 12.4
#   bf16 weights: micro 64 9.8, 32 9.2, 16 9.2, 8 8.9
#   fp32 weights with bf16 autocast: micro 64 13.3 (10.5 with reference and reward in bf16), 16 11.0
#   with ALLOCATOR: fp32 micro 16 10.2; bf16 weights micro 16 7.4, 64 7.8; autocast micro 64 10.1
# So it has two rows in bf16: its fastest, with bf16 weights, and with fp32 master weights as ours, by autocast.
PEER = {
    "fp32": "--micro 8 --rollout 64 --weights fp32 --frozen fp32",
    "masters": "--micro 64 --rollout 64 --weights fp32 --frozen bf16 --autocast",
    "bf16": "--micro 8 --rollout 64 --weights bf16 --frozen bf16",
}
PRECISION = {"fp32": "fp32", "masters": "bf16", "bf16": "bf16"}
# glibc keeps freed memory: without this, page faults are a fifth of TRL's time. Both sides get it.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
WANTED = {"fp32": 1.6, "masters": 2.0, "bf16": 1.8}


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="measured pairs of a row, after one to warm up")
    parser.add_argument("--quick", action="store_true", help="does it run? one pair after one warm-up, half the epochs")
    parser.add_argument("--rows", default="fp32,masters,bf16", help="settings of PEER to compare, each a row")
    parser.add_argument("--sides", default="preferent,trl", help="run one side alone with `trl` or `preferent`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", default="", help="more arguments of trl_side.py, over the chosen ones")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--write", type=Path, help="also write the table to this Markdown file")
    return parser.parse_args(argv)


def make_models(folder: Path, asked: argparse.Namespace) -> None:
    """Write `policy` and `reward` (Hugging Face folders, random weights, one tokenizer of words w0 w1 ...) and
    `prompts.json` (token ids)."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=asked.vocabulary,
        hidden_size=asked.hidden,
        intermediate_size=asked.hidden * 8 // 3,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.hidden // 64,
        max_position_embeddings=512,
        num_labels=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    words = {
        word: index
        for index, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, asked.vocabulary))])
    }
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    for name, kind in {"policy": LlamaForCausalLM, "reward": LlamaForSequenceClassification}.items():
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    prompts = torch.randint(3, asked.vocabulary, (BATCH, PROMPT)).tolist()
    (folder / "prompts.json").write_text(json.dumps(prompts))


def peer_python(folder: str, version: str) -> Path:
    """Return the interpreter of an environment with this version of TRL; it is made if it is not there, its marker
    last, so that a broken start is made again."""
    home, packages = ROOT / folder, [f"trl=={version}", *COMPANIONS]
    marker, python = home / "made-by-bench", home / "bin" / "python"
    if not (marker.exists() and marker.read_text() == "\n".join(packages)):
        print("making", folder, "with", *packages, file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        marker.write_text("\n".join(packages))
    return python


@dataclass
class Side:
    """A worker process and what it has reported."""

    name: str
    process: subprocess.Popen[str]
    facts: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, argv: list[str], threads: int) -> "Side":
        environment = {
            **os.environ,
            **ALLOCATOR,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        side = cls(name, process)
        side.facts = side.reply()["ready"]
        return side

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} left with status {self.process.wait()}; its messages are above")
        return json.loads(line)

    def iterate(self, **work: int) -> dict[str, Any]:
        """Ask for one iteration; its report has to name the `work`."""
        assert self.process.stdin
        self.process.stdin.write("iterate\n")
        self.process.stdin.flush()
        run = self.reply()
        if {name: run[name] for name in work} != work:
            raise SystemExit(f"{self.name} did other work than {work}: {run}")
        return run

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)

    @property
    def seconds(self) -> list[float]:
        return [run["seconds"] for run in self.runs]


def alternate(sides: Sequence[Side], warm: int, measured: int, **work: int) -> None:
    """Warm the sides up and let them take turns; the order changes from pair to pair. Stop them at the end."""
    for turn in range(warm + measured):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            run = side.iterate(**work)
            if turn >= warm:
                side.runs.append(run)
    for side in sides:
        side.stop()


def measure(row: str, folder: Path, asked: argparse.Namespace) -> list[Side]:
    """Run the sides of a row."""
    pairs, epochs = (1, EPOCHS // 2) if asked.quick else (asked.pairs, EPOCHS)
    common = [
        "--folder",
        str(folder),
        "--threads",
        str(asked.threads),
        "--answer",
        str(ANSWER),
        "--epochs",
        str(epochs),
    ]
    settings = [*shlex.split(PEER[row]), *shlex.split(asked.peer)]
    commands = {
        "preferent": [sys.executable, str(BENCH / "preferent_side.py"), *common, "--precision", PRECISION[row]],
        "trl": [str(ROOT / ".venv-trl/bin/python"), str(BENCH / "trl_side.py"), *common, *settings],
    }
    sides = [Side.start(name, commands[name], asked.threads) for name in asked.sides.split(",")]
    alternate(sides, 1, pairs, updates=epochs, answer_tokens=BATCH * ANSWER)
    return sides


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(rows: dict[str, list[Side]], wanted: dict[str, float]) -> str:
    """Markdown: seconds an iteration, median (range), and the ratio pair by pair, also that of processor seconds, which
    other programs disturb less where there is one thread; then where the time goes."""
    lines = [
        "| | seconds, median (range) | | ratio of the pairs | processor seconds | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for row, sides in rows.items():
        cells = [f"{side.name} {spread(side.seconds, 2)}" for side in sides]
        ratios = [""] * 2
        if len(sides) == 2:
            pairs = list(zip(sides[0].runs, sides[1].runs, strict=True))
            ratios = [
                spread([theirs[key] / ours[key] for ours, theirs in pairs], 2) for key in ("seconds", "cpu_seconds")
            ]
        lines.append(f"| {row} | {' | '.join([*cells, *ratios])} | {wanted[row]} |")
    lines += [
        "",
        "Seconds by phase (median); processor seconds of all threads, well under threads × seconds on a busy machine:",
        "",
    ]
    for row, sides in rows.items():
        for side in sides:
            phases = {
                name: statistics.median(run["phases"][name] for run in side.runs) for name in side.runs[0]["phases"]
            }
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items())
            processor = spread([run["cpu_seconds"] for run in side.runs], 1)
            settings = f"{side.facts['precision']}; peak {side.runs[-1]['peak_mib']} MiB; processor seconds {processor}"
            lines.append(f"- {row}, {side.name} ({settings}): {parts}")
    return "\n".join(lines)


def versions(rows: dict[str, list[Side]]) -> list[str]:
    """Return a line of versions for each side."""
    sides = next(iter(rows.values()))
    return [f"- {side.name}: " + ", ".join(f"{k} {v}" for k, v in side.facts["versions"].items()) for side in sides]


def heading(rows: dict[str, list[Side]], asked: argparse.Namespace) -> str:
    sides = next(iter(rows.values()))
    parameters = sides[0].facts["parameters"] / 1e6
    lines = [
        f"`{' '.join(['python', 'bench/ppo_against_trl.py', *sys.argv[1:]])}`: one PPO iteration, "
        f"{BATCH} × ({PROMPT} + {ANSWER}) tokens, {EPOCHS // 2 if asked.quick else EPOCHS} epochs, "
        f"Llama {parameters:.1f}M (vocabulary {asked.vocabulary}, hidden {asked.hidden}, {asked.layers} layers); "
        f"{processor()}, {asked.threads} threads.",
        "",
    ]
    return "\n".join([*lines, *versions(rows), ""])


def processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    asked = options()
    if "trl" in asked.sides:
        peer_python(".venv-trl", "1.12.0")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), asked)
        for row in asked.rows.split(","):
            rows[row] = measure(row, Path(folder), asked)
            print(
                f"{row}: " + "; ".join(f"{side.name} {spread(side.seconds, 2)}" for side in rows[row]), file=sys.stderr
            )
    text = heading(rows, asked) + "\n" + table(rows, WANTED)
    print(text)
    if asked.write:
        asked.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
