"""Sampling, ours against transformers' `generate` and CTranslate2: `python bench/sampling.py` (about three minutes on
an idle machine; `--models 5m,30m,135m` for more).

All sides answer the same prompts with the same weights at temperature 1 from the whole vocabulary, 64 rows at once, and
take turns, in an order that changes. Ours and `generate` share a process. CTranslate2 has an environment of its own,
`.venv-ctranslate2`, made on first use with venv and pip, and a process that waits for its turn; it computes in fp32,
since it has no bf16 on a CPU, and is left out where it does not install.

Two jobs: `equal`, 64 prompts of 64 tokens with 64 answer tokens each and no stop; and `ragged`, 192 prompts of 8 to 64
tokens, answers of up to 64 that end at any of 1/32 of the vocabulary, where a row that ends makes room for the next
prompt if the engine can do that. Counted are answer tokens, the end included, by processor second of all threads and by
second of wall clock; the ratio is the median over pairs of turns.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CT2_PYTHON = ROOT / ".venv-ctranslate2" / "bin" / "python"
CT2_PACKAGES = ["ctranslate2==4.8.5", "torch==2.13.0", "transformers==5.23.0"]
ROWS, PROMPT, ANSWER, RAGGED = 64, 64, 64, 192
# Vocabulary, hidden size, layers, heads, key-value heads, intermediate size, tied; and the pairs that are measured.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "5m": ({"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 512}, 7),
    "30m": ({"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1365}, 3),
    "135m": (
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "tie_word_embeddings": True,
        },
        1,
    ),
}
Turn = Callable[[], int]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="5m,30m")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--jobs", default="equal,ragged")
    parser.add_argument("--sides", default="preferent,generate,ctranslate2")
    parser.add_argument("--pairs", type=int, help="measured turns of a side (default: 7 at 5m, 3 at 30m, 1 at 135m)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="dynamic", help="the cache of `generate`: dynamic or static")
    parser.add_argument("--profile", action="store_true", help="print our time by operation instead")
    parser.add_argument("--ctranslate2-worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """Write a Llama with random weights, a tokenizer of words w0 w1 ..., and prompts, to a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    given = {"vocab_size": 8192, "max_position_embeddings": 512, **shape}
    config = LlamaConfig(**given, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    size = config.vocab_size
    words = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, size))])}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = list(range(2, size, 32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    equal = torch.randint(3, size, (ROWS, PROMPT)).tolist()
    ragged = [torch.randint(3, size, (int(length),)).tolist() for length in torch.randint(8, PROMPT + 1, (RAGGED,))]
    (folder / "prompts.json").write_text(json.dumps({"equal": equal, "ragged": ragged}))


def ours(folder: Path, precision: str, job: str, prompts: list[list[int]]) -> Turn:
    import numpy as np
    import torch

    from preferent.config import defaults, recipe
    from preferent.models import language_models
    from preferent.models.world import World
    from preferent.rollouts.decoding import Params
    from preferent.rollouts.local_sampler import LocalSampler

    threads = torch.get_num_threads()
    wanted, _ = defaults.resolve(
        recipe.parse({"large_model_reference": str(folder), "precision": precision, "threads": threads})[0]
    )
    engine = LocalSampler(language_models.load_policy(folder, World.of(wanted)), 0, ROWS)
    rows = [np.array(prompt, np.int32) for prompt in prompts]
    params = Params(ANSWER, stop_at_eos=job == "ragged")
    return lambda: sum(len(answer.ids) for answer in engine.sample(rows, range(len(rows)), "rollout", 0, params))


def transformers_generate(folder: Path, precision: str, job: str, prompts: list[list[int]], cache: str) -> Turn:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    ends = model.generation_config.eos_token_id if job == "ragged" else None
    ordered = sorted(prompts, key=len)
    batches = []
    for start in range(0, len(ordered), ROWS):
        part = ordered[start : start + ROWS]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in part])
        batches.append({"input_ids": ids, "attention_mask": (ids != 0).long()})
    settings = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": ANSWER,
        "eos_token_id": ends,
        "pad_token_id": 0,
        "cache_implementation": None if cache == "dynamic" else cache,
        "disable_compile": True,
    }
    model.generation_config.eos_token_id = ends

    def turn() -> int:
        tokens = 0
        for batch in batches:
            answers = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
            if ends is None:
                tokens += answers.numel()
            else:
                tokens += int((answers != 0).sum())
        return tokens

    return turn


def ctranslate2_worker(folder: Path, threads: int) -> None:
    """Answer one job for each line read, `equal` or `ragged`: the tokens and the seconds, wall and processor."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    converted = str(folder / "ctranslate2")
    TransformersConverter(str(folder)).convert(converted, force=True)
    generator = ctranslate2.Generator(converted, device="cpu", compute_type="float32", intra_threads=threads)
    prompts = json.loads((folder / "prompts.json").read_text())
    words = {job: [[word(id) for id in prompt] for prompt in rows] for job, rows in prompts.items()}
    ends = [word(id) for id in json.loads((folder / "generation_config.json").read_text())["eos_token_id"]]
    print(json.dumps({"version": ctranslate2.__version__}), file=replies, flush=True)
    for line in sys.stdin:
        job = line.strip()
        began, cpu_began = time.perf_counter(), time.process_time()
        answers = generator.generate_batch(
            words[job],
            max_batch_size=ROWS,
            max_length=ANSWER,
            min_length=0 if job == "ragged" else ANSWER,
            sampling_topk=0,
            sampling_temperature=1,
            end_token=ends if job == "ragged" else "</s>",
            include_prompt_in_result=False,
            return_end_token=True,
        )
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        tokens = sum(len(answer.sequences_ids[0]) for answer in answers)
        print(json.dumps({"tokens": tokens, "seconds": seconds, "cpu": cpu_seconds}), file=replies, flush=True)


def word(id: int) -> str:
    return ["<pad>", "<s>", "</s>"][id] if id < 3 else f"w{id}"


def ensure_peer() -> bool:
    """Make `.venv-ctranslate2` if it is not there; return whether it is. The marker is written last."""
    folder = CT2_PYTHON.parent.parent
    marker = folder / "made-by-bench"
    if marker.exists() and marker.read_text() == "\n".join(CT2_PACKAGES):
        return True
    print(f"making {folder.name} with", *CT2_PACKAGES, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    done = subprocess.run([str(CT2_PYTHON), "-m", "pip", "install", "--quiet", *CT2_PACKAGES], check=False)
    if done.returncode == 0:
        marker.write_text("\n".join(CT2_PACKAGES))
    return done.returncode == 0


class Peer:
    """The process of CTranslate2."""

    def __init__(self, folder: Path, threads: int) -> None:
        argv = [str(CT2_PYTHON), __file__, "--ctranslate2-worker", str(folder)]
        self.process = subprocess.Popen(
            [*argv, "--threads", str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.reply()

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def run(self, job: str) -> dict[str, Any]:
        assert self.process.stdin
        print(job, file=self.process.stdin, flush=True)
        return self.reply()

    def stop(self) -> None:
        self.process.communicate(timeout=30)


def timed(turn: Turn, job: str) -> dict[str, Any]:
    began, cpu_began = time.perf_counter(), time.process_time()
    tokens = turn()
    return {"tokens": tokens, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu_began}


def measure(folder: Path, precision: str, job: str, pairs: int, asked: argparse.Namespace) -> dict[str, list[Any]]:
    """Return what each side did in its turns, after one to warm up."""
    prompts = json.loads((folder / "prompts.json").read_text())[job]
    sides: dict[str, Callable[[str], dict[str, Any]]] = {}
    peer = None
    for name in asked.sides.split(","):
        if name == "preferent":
            sides[name] = partial(timed, ours(folder, precision, job, prompts))
        elif name == "generate":
            sides[name] = partial(timed, transformers_generate(folder, precision, job, prompts, asked.cache))
        elif precision == "fp32":
            peer = Peer(folder, asked.threads)
            sides[name] = peer.run
    runs = defaultdict(list)
    for number in range(pairs + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            run = sides[name](job)
            if job == "equal" and run["tokens"] != ROWS * ANSWER:
                raise SystemExit(f"{name} did other work than asked: {run}")
            if number:
                runs[name].append(run)
    if peer:
        peer.stop()
    return {name: runs[name] for name in sides}


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def row(model: str, precision: str, job: str, runs: dict[str, list[Any]]) -> list[str]:
    """A line of the table for each side: tokens a processor second, a second, and the ratio to `generate`."""
    lines = []
    for name, turns in runs.items():
        rates = [turn["tokens"] / turn["cpu"] for turn in turns]
        wall = statistics.median(turn["tokens"] / turn["seconds"] for turn in turns)
        base = [turn["tokens"] / turn["cpu"] for turn in runs.get("generate", turns)]
        ratio = spread([rate / other for rate, other in zip(rates, base, strict=True)], 2)
        lines.append(f"| {model} | {precision} | {job} | {name} | {spread(rates, 0)} | {wall:.0f} | {ratio} |")
        print(lines[-1], file=sys.stderr)
    return lines


def profile(folder: Path, precision: str, job: str) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    turn = ours(folder, precision, job, json.loads((folder / "prompts.json").read_text())[job])
    turn()
    with profiled(activities=[ProfilerActivity.CPU]) as found:
        turn()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))


def main() -> None:
    asked = options()
    if asked.ctranslate2_worker:
        ctranslate2_worker(asked.ctranslate2_worker, asked.threads)
        return
    if "ctranslate2" in asked.sides and not ensure_peer():
        asked.sides = asked.sides.replace(",ctranslate2", "")
    sys.path.insert(0, str(ROOT))
    import torch
    import transformers

    torch.set_num_threads(asked.threads)
    lines = [
        f"`{' '.join(['python', 'bench/sampling.py', *sys.argv[1:]])}`: {platform.processor() or platform.machine()}, "
        f"{asked.threads} thread(s), torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{CT2_PACKAGES[0] if 'ctranslate2' in asked.sides else 'no CTranslate2'}.",
        "",
        "| model | precision | job | side | tokens a processor second | tokens a second | times `generate` |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in asked.models.split(","):
        shape, pairs = MODELS[model]
        with tempfile.TemporaryDirectory() as folder:
            make_model(Path(folder), shape)
            for precision in asked.precisions.split(","):
                for job in asked.jobs.split(",") if model == "5m" else asked.jobs.split(",")[:1]:
                    if asked.profile:
                        profile(Path(folder), precision, job)
                    else:
                        runs = measure(Path(folder), precision, job, asked.pairs or pairs, asked)
                        lines += row(model, precision, job, runs)
    if not asked.profile:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
