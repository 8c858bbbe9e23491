"""The whole of RLHF on one's own machine in minutes, from a world whose true preference is known."""

import os
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files, randomness
from preferent.config import recipe
from preferent.config.stage_graph import Task
from preferent.errors import PreferentError
from preferent.pipelines import executor
from preferent.pipelines.launchers import child_process
from preferent.quickstart import narration, true_preference
from preferent.quickstart.synthetic_posts import (
    ANSWER_TOKENS,
    ASK,
    CARELESS,
    HURRIED,
    Faults,
    Part,
    Post,
    draft,
    posts,
    summary,
)
from preferent.runs import metrics

DEMONSTRATIONS, PREFERENCES, PROMPTS, HELD_OUT = 12000, 24000, 6000, 768
VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 1024, 64, 3, 4, 1024

RECIPE = """\
# What `preferent quickstart` does. Change a number and see what becomes of it:
#   preferent run {lesson}/recipe.yaml --out runs/another --set kl_coeff=0.02
large_model_reference: {lesson}/model
preference_dataset: {lesson}/preferences.jsonl
prompt_dataset: {lesson}/prompts.jsonl
eval_dataset: {lesson}/held_out.jsonl
prompt_sequence_length: 64
target_sequence_length: {answer_tokens}
seed: {seed}
precision: fp32                            # numbers this small gain nothing from bf16
sft:                                       # first the model learns to write summaries at all, good and bad
  dataset: {lesson}/demonstrations.jsonl
  train_steps: 500
  learning_rate: 0.005
  warmup_steps: 20
  schedule: linear
reward_model_train_steps: 800              # then a reward model learns which of two summaries people prefer
reward:
  learning_rate: 0.003
  warmup_steps: 10
  schedule: linear
  validation_every: 50
reinforcement_learning_train_steps: 120    # then PPO tunes the model to please the reward model …
kl_coeff: 0.1                              # … without going far from where it started
ppo:
  batch_size: 128
  epochs: 2
  minibatches: 2
  learning_rate: 0.0005
  critic_learning_rate: 0.001
  warmup_steps: 5
infer:
  sampling_strategy: temperature_sampling  # the verdict is about the models as they are, not their likeliest answers
"""


def _drafts(seed: int, part: str, written: list[Post], faults: Faults, copy: int = 0) -> list[str]:
    """A draft for every post; `copy` numbers independent drafts of the same posts."""
    uniforms = randomness.uniforms(seed, f"lesson/{part}/draft/{copy}", np.arange(len(written))[:, None], np.arange(10))
    return [draft(post, row, faults) for post, row in zip(written, uniforms, strict=True)]


def demonstrations(seed: int, count: int, path: Path) -> None:
    """Write posts with one draft each, to imitate."""
    written = posts(seed, count, "demonstration")
    answers = _drafts(seed, "demonstration", written, HURRIED)
    rows = [{"input_text": p.text + ASK, "output_text": answer} for p, answer in zip(written, answers, strict=True)]
    files.write_jsonl(path, rows)


def preferences(seed: int, count: int, path: Path, part: Part = "preference") -> None:
    """Write posts with two drafts each and the annotator's choice; `reference` is the faithful summary."""
    written = posts(seed, count, part)
    copies = [_drafts(seed, part, written, CARELESS, copy) for copy in range(8)]
    uniforms = randomness.uniforms(seed, f"lesson/{part}/choice", np.arange(count), 0)
    rows = []
    for index, (post, uniform) in enumerate(zip(written, uniforms, strict=True)):
        first, *others = dict.fromkeys(copy[index] for copy in copies)
        if others:
            pair = {"candidate_0": first, "candidate_1": others[0]}
            choice = {"choice": true_preference.choose(post.facts, (first, others[0]), float(uniform))}
            rows.append({"input_text": post.text + ASK} | pair | choice | {"reference": summary(post.facts)})
    files.write_jsonl(path, rows)


def prompts(seed: int, count: int, path: Path) -> None:
    """Write posts alone, to practise on."""
    files.write_jsonl(path, [{"input_text": post.text + ASK} for post in posts(seed, count, "prompt")])


def quickstart(out: Path, seed: int = 0) -> None:
    """Make the world and a model, run the whole recipe in `out`, and judge the result by the true preference."""
    lesson = out / "lesson"
    _say(INTRODUCTION.format(lesson=lesson))
    demonstrations(seed, DEMONSTRATIONS, lesson / "demonstrations.jsonl")
    preferences(seed, PREFERENCES, lesson / "preferences.jsonl")
    preferences(seed, HELD_OUT, lesson / "held_out.jsonl", "test")
    prompts(seed, PROMPTS, lesson / "prompts.jsonl")
    files.write_atomic(lesson / "recipe.yaml", RECIPE.format(lesson=lesson, answer_tokens=ANSWER_TOKENS, seed=seed))
    _say(MODEL)
    _do(
        *("scratch", "--text", f"{lesson}/demonstrations.jsonl", "--out", f"{lesson}/model", "--seed", f"{seed}"),
        *("--vocab-size", f"{VOCABULARY}", "--hidden-size", f"{WIDTH}", "--layers", f"{LAYERS}"),
        *("--heads", f"{HEADS}", "--positions", f"{POSITIONS}"),
    )
    print(f"$ preferent run {lesson}/recipe.yaml --out {out}", flush=True)
    executor.execute(recipe.load(lesson / "recipe.yaml")[0], out, announce=partial(_teach, out))
    gold = judge(out)
    _do("report", "--recipe", f"{lesson}/recipe.yaml", "--in", f"run={out}", "--out", f"{out}")
    _say(ending(out, gold))


def judge(out: Path) -> dict[str, Any]:
    """Write `comparison/gold.json`: the verdict of the true preference, and truth beside reward while PPO ran."""
    base, tuned = (files.read_jsonl(out / "predictions" / side / "text.jsonl") for side in ("base", "tuned"))
    gold = true_preference.verdict(base, tuned)
    samples = files.read_jsonl(out / "policy" / "rollouts" / "samples.jsonl")
    gold["curve"] = true_preference.curve(samples, metrics.read(out / "policy" / "metrics.jsonl"))
    files.write_json(out / "comparison" / "gold.json", gold)
    return gold


def _teach(out: Path, task: Task) -> None:
    if words := narration.introduce(out, task.name):
        _say(words)


def _say(text: str) -> None:
    print(f"\n{text.strip()}\n", flush=True)


def _do(*words: str) -> None:
    """Run a command of ours as the user would."""
    print(f"$ preferent {shlex.join(words)}", flush=True)
    if code := child_process.run_here([sys.executable, "-m", "preferent", *words]):
        failure = PreferentError("the lesson stopped here; once the cause is gone, the same command goes on")
        failure.exit_code = code
        raise failure


INTRODUCTION = """
A LITTLE WORLD
You are about to watch the whole of RLHF: a model learns to write from examples, people say which of two answers they
prefer, a reward model learns their taste, and reinforcement learning tunes the model to it. So that we can check the
result, the data come from a little world made here: posts about who did what where, and hurried summaries of them. Most
leave out the place, some ramble, name the wrong person, or never end. A simulated annotator prefers faithful, short
summaries that end, and errs now and then. Everything is in {lesson}; look into it.
"""
MODEL = """
A MODEL FROM NOTHING
A Llama with random weights and a vocabulary of its own. It knows nothing yet.
"""


def ending(out: Path, gold: dict[str, Any]) -> str:
    """What came out, in words, with the first examples and what to do next."""
    found = files.read_json(out / "comparison" / "metrics.json")
    judged = {name: judge["win_rate"] for name, judge in found["judges"].items()}
    low, high = gold["interval"]
    lines = [
        "WHAT CAME OUT",
        f"On {gold['n']} posts that nobody had seen, by the true preference, which no model was told, the tuned model",
        f"wins {gold['win_rate']:.0%} against the base (95 % interval {low:.0%} to {high:.0%}; a tie counts half).",
        f"The independent judge, who had to learn the preference, says {judged['judge']:.0%}; the reward model that",
        f"was optimised says {judged['reward']:.0%}, and is no witness.",
        f"Who, what and where all right:  {gold['faithful_base']:4.0%} before, {gold['faithful_tuned']:4.0%} after.",
        f"Ended by itself:                {gold['ended_base']:4.0%} before, {gold['ended_tuned']:4.0%} after.",
        f"It went {gold.get('kl_tuned', float('nan')):.1f} nats an answer away from the base (the KL).",
        "",
        "The first three posts, not chosen:",
    ]
    sides = [files.read_jsonl(out / "predictions" / side / "text.jsonl")[:3] for side in ("base", "tuned")]
    for before, after in zip(*sides, strict=True):
        lines += [f"  {before['inputs']['inputs_pretokenized'].removesuffix(ASK)}"]
        lines += [f"    before: {before['prediction'].strip()}", f"    after:  {after['prediction'].strip()}"]
    lines += [
        "",
        f"Everything, with curves and more examples: {out}/report.html",
        NEXT.format(out=out, preferent=_command()),
    ]
    return "\n".join(lines)


def _command() -> str:
    """What a shell here calls us by."""
    beside = Path(sys.executable).with_name("preferent")
    return "preferent" if shutil.which("preferent") or not beside.exists() else os.path.relpath(beside)


NEXT = """
NEXT
Ask the base and the tuned model yourself; a line of the input is a prompt, or a row that holds one:
  tail -3 {out}/data/prompt/test.jsonl | {preferent} try {out}
Take the leash off, and see what a reward model is worth when it is over-optimised; all before PPO is taken over:
  {preferent} run {out}/lesson/recipe.yaml --out runs/unleashed --set kl_coeff=0.001 --from ppo --of {out}
Your own data, as rows of input_text, candidate_0, candidate_1 and choice, and your own model, a folder or a hub id (for
a try this world's will do, {out}/sft/model):
  {preferent} data check YOUR_PREFERENCES.jsonl
  echo '{{large_model_reference: YOUR_MODEL, preference_dataset: YOUR_PREFERENCES.jsonl}}' > my.yaml
  {preferent} plan my.yaml      # says it where rows are too few for the steps, and how many would do
  {preferent} run my.yaml
"""
