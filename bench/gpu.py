"""The proof for the day that a graphics card is there: `python bench/gpu.py [--only N ...]`, at most 5 minutes.

It needs a CUDA machine with Python 3.12, torch 2.11 or later and transformers 5.17 or later, no network, no
`make` and no scipy.
What else preferent imports is carried in a folder of at most 64 MiB, prepared where there is a network:

    pip install --no-deps --target build/wheels --python-version 3.12 --only-binary=:all: \\
        pydantic pydantic_core annotated_types typing_extensions typing_inspection peft bitsandbytes
    PYTHONPATH=build/wheels:. python bench/gpu.py --out lines.jsonl

Without CUDA, or with `--small`, the shapes are cut down. Every line is a JSON object, written when it is known:

1. Llama-2-7B's shape with random weights, LoRA: two reward steps and one PPO step, seconds of each phase.
2. The peak of memory of each of these phases beside what `preferent plan` says of its stage.
3. Tokens decoded per second beside the bandwidth measured here, FLOP/s of training beside those of a matrix product.
4. A model of two layers from disk through the real command line: equal to fp32 on the CPU within bounds,
   `deterministic: true`, killed with SIGKILL and resumed with the same bits.
5. The same with a backbone of 4 bits.
6. The largest difference between the sampler's log-probabilities and those of the pass that trains.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from preferent_side import networks_of

from preferent import files
from preferent.commands.inference import from_scratch
from preferent.config import defaults, memory_estimate, recipe
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape
from preferent.config.recipe import Recipe
from preferent.data.types import Prompt
from preferent.models import language_models, pretrained, saving
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.scoring import RolloutBatch
from preferent.rollouts import sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.sampler import Prompts
from preferent.runs import metrics
from preferent.training import ppo
from preferent.training.optimizer import TrainingState
from preferent.training.preference_pairs import PreferencePairs

PARTS = (1, 2, 6, 3, 4, 5)
"""In the order of what they tell."""
TEXT = "The old man walked along the river and sat down by the bridge. She likes apples, bread and cheese.\n"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes of one measurement: of a model, a batch, the decoded rows and the probes of the hardware."""

    model: dict[str, int]
    cut: dict[str, int]
    prompt: int
    answer: int
    batch: int
    decoded: tuple[int, ...]
    copied: int
    product: int


CARD = Sizes(
    {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 32},
    {"hidden_size": 1024, "intermediate_size": 2816, "layers": 2, "heads": 8},
    512, 64, 64, (64, 256), 1 << 30, 8192,
)  # fmt: skip
SMALL = Sizes(
    {"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 4},
    {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4},
    24, 8, 8, (4, 8), 1 << 24, 512,
)  # fmt: skip


class Lines:
    """Where lines go: standard output, and a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.file = path.open("a") if path else None

    def write(self, part: int, **facts: Any) -> None:
        rounded = {name: float(f"{fact:.4g}") if isinstance(fact, float) else fact for name, fact in facts.items()}
        line = json.dumps({"part": part} | rounded)
        print(line, flush=True)
        if self.file:
            self.file.write(line + "\n")
            self.file.flush()


class Phases:
    """Seconds and peak bytes of the phases of parts 1 and 2, by name."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.seconds, self.peaks = lines, dict[str, float](), dict[str, int]()

    @contextmanager
    def phase(self, name: str, **facts: Any) -> Iterator[None]:
        on_card = torch.cuda.is_available()
        if on_card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        yield
        if on_card:
            torch.cuda.synchronize()
            self.peaks[name] = torch.cuda.max_memory_allocated()
        self.seconds[name] = time.perf_counter() - began
        self.lines.write(1, phase=name, seconds=self.seconds[name], **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", choices=sorted(PARTS), default=list(PARTS), help="which parts")
    parser.add_argument("--small", action="store_true", help="cut the shapes down, as without CUDA")
    out = Path(os.environ["OUT"]) / "gpu.jsonl" if "OUT" in os.environ else None
    parser.add_argument("--out", type=Path, default=out, help="append the lines to this file; default: $OUT/gpu.jsonl")
    asked = parser.parse_args()
    lines = Lines(asked.out)
    on_card = torch.cuda.is_available()
    sizes = SMALL if asked.small or not on_card else CARD
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    lines.write(0, device=torch.cuda.get_device_name() if on_card else "cpu", small=sizes is SMALL, **versions)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if {1, 2, 3, 6} & set(asked.only):
            measure(lines, sizes, asked.only, folder)
        for part, perform in ((4, cut), (5, quantized)):
            if part in asked.only:
                perform(lines, sizes, folder)
    lines.write(0, seconds=time.perf_counter() - began)


def measure(lines: Lines, sizes: Sizes, only: Sequence[int], folder: Path) -> None:
    """Do the parts that need the large model, which is made once."""
    source = random_folder(sizes, folder / "model")
    wanted = large_recipe(sizes, source)
    phases = Phases(lines)
    world = World.of(wanted)
    reward_steps(phases, sizes, wanted, source, world)
    with phases.phase("load policy and reward"):
        policy = language_models.load_policy(source, world, defaults.decided(wanted.ppo.lora_dim))
        scorer = language_models.load_scorer(folder / "reward", world, beside=[policy])
    if {1, 2, 6} & set(only):
        step = ppo_step(phases, sizes, wanted, policy, scorer)
        if 2 in only:
            beside_plan(phases, sizes, wanted, source)
        if 6 in only:
            lines.write(6, sampler_gap_nats=step["val/sampler_gap"], first_ratio=step["val/first_ratio"])
    if 3 in only:
        bandwidth(lines, sizes, wanted, policy)
        training_rate(lines, sizes, phases, policy)


def random_folder(sizes: Sizes, folder: Path) -> Path:
    """Make a folder with a tokenizer and the configuration of the large model, whose weights are drawn when it is
    opened."""
    text = folder.with_suffix(".txt")
    text.write_text(TEXT * 40)
    from_scratch.make([text], folder, vocab_size=384, hidden_size=32, layers=1, heads=2, max_position_embeddings=4096)
    config = files.read_json(folder / "config.json") | sizes.model
    config["head_dim"] = sizes.model["hidden_size"] // sizes.model["num_attention_heads"]
    files.write_json(folder / "config.json", config)
    pretrained.open_model = random_model
    return folder


def random_model(kind: Any, base: Path, config: Any, world: World) -> Any:
    """Stand for `pretrained.open_model`: draw weights on the device."""
    torch.manual_seed(0)
    with torch.device(world.device):
        body = kind.from_config(config, dtype=world.dtype, attn_implementation=world.attention)
    return body.to(world.device).eval()


def large_recipe(sizes: Sizes, source: Path) -> Recipe:
    values = {
        "large_model_reference": str(source),
        "prompt_sequence_length": sizes.prompt,
        "target_sequence_length": sizes.answer,
        "threads": 1 if sizes is SMALL else None,
        "precision": "fp32" if sizes is SMALL else "bf16",
        "reward": {"lora_dim": 4, "batch_size": sizes.batch, "missing_eos_score": None},
        "ppo": {"lora_dim": 1, "batch_size": sizes.batch},
    }
    return defaults.filled(defaults.resolve(recipe.parse(values)[0])[0], defaults.AT_ONCE)[0]


def reward_stage() -> Any:
    """Import the stage `reward`, also where scipy is missing: nothing here asks for its statistics."""
    modules = ("", ".optimize", ".sparse", ".sparse.csgraph", ".special", ".stats")
    absent = [] if importlib.util.find_spec("scipy") else [f"scipy{module}" for module in modules]
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in absent}):
        return importlib.import_module("preferent.training.reward_model")


def reward_steps(phases: Phases, sizes: Sizes, wanted: Recipe, source: Path, world: World) -> None:
    """Train a reward model for two steps, and write it beside the large model."""
    with phases.phase("load reward"):
        scorer = language_models.load_scorer(source, world, defaults.decided(wanted.reward.lora_dim), seed=0)
    reward_model, draw = reward_stage(), np.random.default_rng(0)
    ids = [draw.integers(3, 384, sizes.prompt + sizes.answer, np.int32) for _ in range(2 * sizes.batch)]
    tokens, none = np.full(sizes.batch, sizes.answer), np.zeros(sizes.batch, np.float32)
    pairs = PreferencePairs(
        ids[::2], ids[1::2], tokens, tokens, none, none, none + 1, np.ones((2, sizes.batch), bool), 0, 0
    )
    state = TrainingState(0, reward_model.optimizer(wanted, scorer))
    for state.step in range(2):
        with phases.phase(f"reward step {state.step + 1}", tokens=sum(map(len, ids))):
            reward_model.learn(wanted, state, scorer, pairs, np.arange(sizes.batch))
    saving.save(scorer, source.with_name("reward"), state.optimizer.masters, "# A reward model of two steps\n")


def ppo_step(
    phases: Phases, sizes: Sizes, wanted: Recipe, policy: language_models.Policy, scorer: language_models.Scorer
) -> dict[str, float]:
    """Do one step of PPO by the functions of the stage; return its metrics."""
    networks = networks_of(wanted, policy, scorer)
    state = ppo.start(wanted, networks)
    ids = prompts_of(sizes, sizes.batch)
    prompts = Prompts(ids, [""] * len(ids), [Prompt()] * len(ids))
    with phases.phase("sample", rows=sizes.batch, tokens=sizes.batch * sizes.answer):
        params = Params(sizes.answer, stop_at_eos=False)
        rollouts = networks.sampler.sample(ids, range(len(ids)), "rollout", 0, params)
    with phases.phase("score"):
        rollouts = scoring.score_rollouts(networks.reward, RolloutBatch(rollouts, prompts, policy.tokenizer))
    with phases.phase("assemble"):
        batch = ppo.assemble(wanted, state, rollouts, networks)
    with phases.phase("learn", epochs=wanted.ppo.epochs):
        step = ppo.learn(wanted, state, batch, networks)
    return step | ppo.summary(batch, state)


def prompts_of(sizes: Sizes, count: int) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [draw.integers(3, 384, sizes.prompt, np.int32) for _ in range(count)]


def beside_plan(phases: Phases, sizes: Sizes, wanted: Recipe, source: Path) -> None:
    """Write the peak of each phase, and what the plan says of the stage that it is a part of."""
    shape = Shape.of(files.read_json(source / "config.json"))
    assert shape is not None
    on_card = torch.cuda.is_available()
    counts = {"train": sizes.batch, "validation": 0, "test": 0}
    facts = ModelFacts(wanted, shape, shape, 2 if on_card else 4, sizes.prompt, counts, on_gpu=on_card)
    for need in (memory_estimate.need(facts, stage) for stage in ("reward", "ppo")):
        for name, parts in need.phases.items():
            planned = sum(need.parts.values()) + sum(parts.values())
            phases.lines.write(2, stage=need.stage, planned=name, gib=planned / 2**30)
    for name, peak in phases.peaks.items():
        phases.lines.write(2, phase=name, measured_gib=peak / 2**30)
    if not on_card:
        phases.lines.write(2, note="peaks are measured on CUDA only")


def bandwidth(lines: Lines, sizes: Sizes, wanted: Recipe, policy: language_models.Policy) -> None:
    """Write the tokens decoded per second, and the share of the bandwidth that weights and cache take of it."""
    device = policy.world.device
    block = torch.empty(sizes.copied, dtype=torch.uint8, device=device)
    rate = 2 * sizes.copied / fastest(lambda: block.clone())
    lines.write(3, bandwidth_gb_per_second=rate / 1e9)
    config, width = policy.body.config, policy.world.dtype.itemsize
    weights = sum(p.numel() * p.element_size() for p in policy.body.parameters())
    heads = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    cached = 2 * width * config.num_hidden_layers * heads
    for rows in sizes.decoded:
        engine, ids = sampler.make(wanted, policy, rows), prompts_of(sizes, rows)
        one, whole = (
            once(partial(engine.sample, ids, range(rows), "rollout", 0, Params(length, stop_at_eos=False)))
            for length in (1, sizes.answer)
        )
        step = (whole - one) / (sizes.answer - 1)
        read = weights + rows * (sizes.prompt + sizes.answer / 2) * cached
        share = read / step / rate
        lines.write(3, rows=rows, tokens_per_second=rows / step, share_of_bandwidth=share, prefill_seconds=one)


def training_rate(lines: Lines, sizes: Sizes, phases: Phases, policy: language_models.Policy) -> None:
    """Write the FLOP/s of a reward step, 4 a frozen weight and token, and those of a matrix product."""
    square = torch.randn(sizes.product, sizes.product, device=policy.world.device, dtype=policy.world.dtype)
    product = 2 * sizes.product**3 / fastest(lambda: square @ square)
    layers = sum(p.numel() for name, p in policy.body.named_parameters() if "layers" in name)
    tokens = 2 * sizes.batch * (sizes.prompt + sizes.answer)
    trained = 4 * layers * tokens / phases.seconds["reward step 2"]
    lines.write(3, product_tflops=product / 1e12, training_tflops=trained / 1e12, share=trained / product)


def once(function: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def fastest(function: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of five calls."""
    return min(once(function) for _ in range(5))


def vowels(prompts: list[str], answers: list[str]) -> list[float]:
    """The reward of parts 4 and 5: the share of vowels."""
    return [sum(letter in "aeiou" for letter in answer) / (1 + len(answer)) for answer in answers]


def cut(lines: Lines, sizes: Sizes, folder: Path, **fields: Any) -> None:
    """Run stage ppo on a small model from disk: on the CPU, on the card, and there again with a kill."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = prepare(sizes, folder)
    host = run(folder, words, "host", device="cpu")
    whole = run(folder, words, "whole", device=device, deterministic=True)
    first = [next(row for row in metrics.read(out / "metrics.jsonl") if row["step"] == 1) for out in (host, whole)]
    gaps = {name: abs(first[0][name] - first[1][name]) for name in ("reward", "objective/entropy", "kl_loss")}
    lines.write(4, host_and_device=gaps, equal=all(gap < 1e-3 for gap in gaps.values()))
    run(folder, words, "killed", kill_at=2, device=device, deterministic=True)
    killed = run(folder, words, "killed", device=device, deterministic=True)
    lines.write(4, deterministic=True, resumed_has_the_same_bits=bits(killed) == bits(whole))


def quantized(lines: Lines, sizes: Sizes, folder: Path) -> None:
    """Run stage ppo with a backbone of 4 bits, twice."""
    words = prepare(sizes, folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds, outs = [], []
    for name in ("nf4", "nf4-again"):
        began = time.perf_counter()
        outs.append(run(folder, words, name, device=device, deterministic=True, quantize="nf4"))
        seconds.append(time.perf_counter() - began)
    last = metrics.read(outs[0] / "metrics.jsonl")[-1]
    lines.write(
        5, seconds=seconds[1], sampler_gap_nats=last["val/sampler_gap"], same_bits=bits(outs[0]) == bits(outs[1])
    )


def prepare(sizes: Sizes, folder: Path) -> list[str]:
    """Write a model of two layers and prompts, once; return the command line's inputs."""
    model, prompts = folder / "cut", folder / "prompts.jsonl"
    if not prompts.exists():
        text = folder / "cut.txt"
        text.write_text(TEXT * 40)
        from_scratch.make([text], model, vocab_size=384, max_position_embeddings=256, **sizes.cut)
        prompts.write_text("".join(json.dumps({"input_text": TEXT[i : i + 20]}) + "\n" for i in range(16)))
    inputs = {"model": model, "train": prompts, "validation": prompts}
    return [word for name, path in inputs.items() for word in ("--in", f"{name}={path}")]


def run(folder: Path, words: Sequence[str], name: str, kill_at: int | None = None, **fields: Any) -> Path:
    """Run `preferent ppo` in a process of its own, into folder/name; kill it once `kill_at` steps are logged."""
    section = {"batch_size": 16, "lora_dim": 2, "learning_rate": 1e-2, "critic_learning_rate": 1e-2, "epochs": 2}
    values = {
        "large_model_reference": "cut",
        "prompt_sequence_length": 32,
        "target_sequence_length": 16,
        "precision": "fp32",
        "threads": 1,
        "checkpoint_every": 1,
        "reinforcement_learning_train_steps": 4,
        "ppo": section,
        "reward": {"sources": "gpu:vowels", "normalize_prompts": 4, "missing_eos_score": None},
    }
    written = folder / f"{name}.yaml"
    written.write_text(json.dumps(values | fields))
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent.parent), str(here.parent), os.environ.get("PYTHONPATH", "")])
    argv = [sys.executable, "-m", "preferent", "ppo", "--recipe", str(written), *words, "--out", str(folder / name)]
    log = folder / f"{name}.log"
    with log.open("ab") as said:
        child = subprocess.Popen(argv, stdout=said, stderr=said, env=os.environ | {"PYTHONPATH": path}, cwd=folder)
        logged = folder / name / "metrics.jsonl"
        while child.poll() is None:
            if kill_at and logged.exists() and logged.read_bytes().count(b"\n") > kill_at:
                child.send_signal(signal.SIGKILL)
            time.sleep(0.02)
    if child.returncode and not kill_at:
        sys.exit(f"{' '.join(argv)} failed; it said:\n{log.read_text()}")
    return folder / name


def bits(out: Path) -> dict[str, str]:
    """Return digests of the weights, metrics and rollouts of a stage."""
    paths = [*out.glob("model/*.safetensors"), out / "metrics.jsonl", *out.glob("rollouts/*.safetensors")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    main()
