"""One step of reward-model training, ours against `RewardTrainer` of TRL 1.16.0, in pairs, in bf16:
`python bench/reward_against_trl.py` (about three minutes on an idle machine; `--quick` about one).

Both sides train the same Llama, of 5M and of 30M parameters, on the same batches: 32 pairs of the same prompt of 64
tokens with two answers of 16 to 128; one AdamW update a step, fp32 master weights. The clock covers the step and no
logging, evaluation or saving. `ppo_against_trl.py` has how the sides take turns.

TRL lives in `.venv-trl116`, made on first use with venv and pip.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ppo_against_trl as harness
from ppo_against_trl import BENCH, Side

PAIRS, PROMPT, ANSWERS, BATCHES = 32, 64, (16, 128), 8
VOCABULARY = 8192
SIZES = {"5M": {"hidden": 192, "layers": 4}, "30M": {"hidden": 448, "layers": 10}}
# Tried for TRL at 5M: see docs/measured.md. Smaller micro-batches pad less; autocast keeps fp32 master weights, bf16
# weights do not.
PEER = {
    "masters": ["--weights", "fp32", "--autocast", "--micro", "8"],
    "bf16": ["--weights", "bf16", "--micro", "8"],
}
WANTED = 1.5


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a row, after two to warm up")
    parser.add_argument("--quick", action="store_true", help="does it run? 5M, one step after two")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default="5M,30M")
    parser.add_argument("--peers", default="masters,bf16", help="settings of PEER, each a row for every size")
    parser.add_argument("--micro", help="pairs of TRL's micro-batch, instead of those of PEER")
    return parser.parse_args(argv)


def write_pairs(folder: Path) -> None:
    """Write `pairs.json`: chosen and rejected token ids, as many as BATCHES batches have."""
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(count)]

    prompts = [ids(PROMPT) for _ in range(PAIRS * BATCHES)]
    pairs = [[prompt + ids(draw.randint(*ANSWERS)) for _ in range(2)] for prompt in prompts]
    (folder / "pairs.json").write_text(json.dumps(pairs))


def measure(size: str, peer: str, folder: Path, asked: argparse.Namespace) -> list[Side]:
    """Run both sides of a row."""
    common = [str(BENCH / "reward_side.py"), "--folder", str(folder), "--threads", str(asked.threads)]
    common += ["--pairs", str(PAIRS)]
    settings = PEER[peer] + (["--micro", asked.micro] if asked.micro else [])
    trl = str(harness.ROOT / ".venv-trl116/bin/python")
    sides = [
        Side.start("preferent", [sys.executable, *common], asked.threads),
        Side.start("trl", [trl, *common, "--trl", *settings], asked.threads),
    ]
    harness.alternate(sides, 2, 1 if asked.quick else asked.steps, updates=1, pairs=PAIRS)
    return sides


def main() -> None:
    asked = options()
    harness.peer_python(".venv-trl116", "1.16.0")
    rows: dict[str, list[Side]] = {}
    for size in ["5M"] if asked.quick else asked.sizes.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            harness.make_models(folder, argparse.Namespace(vocabulary=VOCABULARY, **SIZES[size]))
            write_pairs(folder)
            for peer in asked.peers.split(","):
                rows[f"{size}, {peer}"] = measure(size, peer, folder, asked)
    print(f"`{' '.join(['python', 'bench/reward_against_trl.py', *sys.argv[1:]])}`: one step of {PAIRS} pairs;")
    print(f"{harness.processor()}, {asked.threads} threads.", "", *harness.versions(rows), "", sep="\n")
    print(harness.table(rows, dict.fromkeys(rows, WANTED)))


if __name__ == "__main__":
    main()
