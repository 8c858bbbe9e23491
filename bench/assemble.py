"""What PPO computes of a step's rollouts before it learns (`assemble`), against bare forward passes of the same tokens:
`python bench/assemble.py` (about three minutes; `--quick` half a minute).

A bare pass is the policy's logits at the answers, from transformers' own decoder without a gradient: `model(tokens)`,
then the output head. `assemble` has to make two of them, policy and reference; the critic's pass is measured beside
it. *Vocabulary* is the share of `assemble`, the critic left out, that takes logits to log-probabilities, k1, KL and
entropy. All are processor seconds of one thread, in one process, in turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ppo_against_trl as harness
import preferent_side
import torch

from preferent.models import vocabulary
from preferent.rewards import scoring
from preferent.rewards.scoring import RolloutBatch
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.training import ppo

SIZES = {"5M": {"hidden": 192, "layers": 4}, "30M": {"hidden": 448, "layers": 10}}
WANTED = "at most 1.2 and, at 5M with 8192 tokens, 20 %"


def seconds(function: Callable[[], Any]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


@torch.no_grad()
def bare(policy: Any, micros: list[Any]) -> None:
    """Make one pass of transformers over the micro-batches, with logits at the answers."""
    for micro in micros:
        hidden = policy.body.base_model(input_ids=micro.tokens, use_cache=False).last_hidden_state
        policy.logits(hidden[micro.rows, micro.columns])


def measure(size: str, vocabulary_size: int, precision: str, pairs: int) -> str:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        harness.make_models(folder, argparse.Namespace(vocabulary=vocabulary_size, **SIZES[size]))
        wanted, parts, ids, prompts = preferent_side.load(folder, precision, 1, harness.ANSWER, 1, 2048)
    policy, state = parts.policy, ppo.start(wanted, parts)
    rollouts = parts.sampler.sample(
        ids, np.arange(len(ids)).tolist(), "rollout", 0, Params(harness.ANSWER, stop_at_eos=False)
    )
    rollouts = scoring.score_rollouts(parts.reward, RolloutBatch(rollouts, prompts, policy.tokenizer))
    batch = ppo.assemble(wanted, state, rollouts, parts)
    micros = [micro for part in batch.minibatches for micro in part]
    shape = tuple(batch.mask.shape)
    arithmetic = [0.0]
    measures = vocabulary.measures

    def timed(*given: Any) -> Any:
        began = time.process_time()
        found = measures(*given)
        arithmetic[-1] += time.process_time() - began
        return found

    vocabulary.measures = timed
    runs = []
    for turn in range(1 + pairs):
        arithmetic.append(0.0)
        run = {
            "bare": seconds(lambda: bare(policy, micros)) + seconds(lambda: bare(parts.reference, micros)),
            "all": seconds(lambda: ppo.assemble(wanted, state, rollouts, parts)),
            "critic": seconds(lambda: measurement.values_of(parts.critic, micros, shape)),
        }
        if turn:
            run["ratio"] = (run["all"] - run["critic"]) / run["bare"]
            runs.append(run | {"share": arithmetic[-1] / (run["all"] - run["critic"])})
    vocabulary.measures = measures
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return (
        f"| {size}, {vocabulary_size}, {precision} | {middle['bare']:.2f} | {middle['all']:.2f} | "
        f"{middle['critic']:.2f} | {middle['ratio']:.2f} | {middle['share']:.0%} |"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=3, help="measured turns, after one to warm up")
    options.add_argument("--quick", action="store_true", help="does it run? one row, one turn")
    asked = options.parse_args()
    rows = [(size, 8192, precision) for size in SIZES for precision in ("bf16", "fp32")] + [("5M", 49152, "bf16")]
    print(f"`python bench/assemble.py`: 64 × (64 + 64) tokens; {harness.processor()}, one thread; wanted {WANTED}.", "")
    print("| model, vocabulary | two bare passes | assemble | its critic | ratio without the critic | vocabulary |")
    print("|---|---|---|---|---|---|", flush=True)
    for row in rows[:1] if asked.quick else rows:
        print(measure(*row, 1 if asked.quick else asked.pairs), flush=True)


if __name__ == "__main__":
    main()
