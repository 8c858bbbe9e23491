"""Run all of RLHF on one machine in minutes, with generated data whose true preference is known."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
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
from preferent.runs import metrics, stages
from preferent.runs.directory import RunDirectory

DEMONSTRATIONS, PREFERENCES, PROMPTS, HELD_OUT = 12000, 24000, 6000, 768
VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 1024, 64, 3, 4, 1024

RECIPE = """\
# The recipe of `preferent quickstart`. Change a number and see what it does:
#   preferent run {lesson}/recipe.yaml --out runs/another --set kl_coeff=0.02
large_model_reference: {lesson}/model
preference_dataset: {lesson}/preferences.jsonl
prompt_dataset: {lesson}/prompts.jsonl
eval_dataset: {lesson}/held_out.jsonl
prompt_sequence_length: 64
target_sequence_length: {answer_tokens}
seed: {seed}
precision: fp32                            # numbers this small gain nothing from bf16
sft:                                       # first the model learns to write summaries, good and bad ones
  dataset: {lesson}/demonstrations.jsonl
  train_steps: 500
  learning_rate: 0.005
  warmup_steps: 20
  schedule: linear
reward_model_train_steps: 500              # then a reward model learns which of two summaries people prefer
reward:
  learning_rate: 0.003
  warmup_steps: 10
  schedule: linear
  validation_every: 100
reinforcement_learning_train_steps: 80     # then PPO tunes the model to raise its reward …
kl_coeff: 0.1                              # … while it stays close to where it started
ppo:
  batch_size: 128
  epochs: 2
  minibatches: 2
  learning_rate: 0.0005
  critic_learning_rate: 0.001
  warmup_steps: 5
infer:
  sampling_strategy: temperature_sampling  # compare what the models sample, not only their most likely answers
"""


def _drafts(seed: int, part: str, written: list[Post], faults: Faults, copy: int = 0) -> list[str]:
    """Return a draft per post. `copy` numbers independent drafts of the same posts."""
    uniforms = randomness.uniforms(seed, f"lesson/{part}/draft/{copy}", np.arange(len(written))[:, None], np.arange(10))
    return [draft(post, row, faults) for post, row in zip(written, uniforms, strict=True)]


def demonstrations(seed: int, count: int, path: Path) -> None:
    """Write posts with one draft each, as demonstrations."""
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
    """Write posts without a summary, as prompts."""
    files.write_jsonl(path, [{"input_text": post.text + ASK} for post in posts(seed, count, "prompt")])


def quickstart(out: Path, seed: int = 0, settings: Sequence[str] = ()) -> None:
    """Generate the data and a model, run the whole recipe in `out`, and judge the outcome by the true preference.

    `settings` change the recipe as `--set` does.
    """
    with stages.locked(out, "run"):
        if not RunDirectory(out).index.exists():
            executor.index((), out)
    lesson = out / "lesson"
    _say(INTRODUCTION.format(lesson=lesson))
    demonstrations(seed, DEMONSTRATIONS, lesson / "demonstrations.jsonl")
    preferences(seed, PREFERENCES, lesson / "preferences.jsonl")
    preferences(seed, HELD_OUT, lesson / "held_out.jsonl", "test")
    prompts(seed, PROMPTS, lesson / "prompts.jsonl")
    files.write_atomic(lesson / "recipe.yaml", RECIPE.format(lesson=lesson, answer_tokens=ANSWER_TOKENS, seed=seed))
    _say(MODEL)
    _run(
        *("scratch", "--text", f"{lesson}/demonstrations.jsonl", "--out", f"{lesson}/model", "--seed", f"{seed}"),
        *("--vocab-size", f"{VOCABULARY}", "--hidden-size", f"{WIDTH}", "--layers", f"{LAYERS}"),
        *("--heads", f"{HEADS}", "--positions", f"{POSITIONS}"),
    )
    changed = "".join(f" --set {setting}" for setting in settings)
    print(f"$ preferent run {lesson}/recipe.yaml{changed} --out {out}", flush=True)
    executor.execute(recipe.load(lesson / "recipe.yaml", settings)[0], out, announce=partial(_introduce, out))
    gold = judge(out)
    _run("report", "--recipe", f"{lesson}/recipe.yaml", "--in", f"run={out}", "--out", f"{out}")
    _say(summarize(out, gold))


def judge(out: Path) -> dict[str, Any]:
    """Write and return the verdict of the true preference, with the true preference and the reward while PPO ran."""
    run = RunDirectory(out)
    base, tuned = (files.read_jsonl(run.predictions(side)) for side in ("base", "tuned"))
    gold = true_preference.verdict(base, tuned)
    gold["curve"] = true_preference.curve(files.read_jsonl(run.policy.samples), metrics.read(run.policy.metrics))
    files.write_json(run.comparison.gold, gold)
    return gold


def _introduce(out: Path, task: Task) -> None:
    """Print the introduction to a task, if it has one."""
    if text := narration.introduction(out, task.name):
        _say(text)


def _say(text: str) -> None:
    print(f"\n{text.strip()}\n", flush=True)


def _run(*words: str) -> None:
    """Run a command of preferent as the user would."""
    print(f"$ preferent {shlex.join(words)}", flush=True)
    if error := child_process.run_verb(words):
        failure = PreferentError(
            "quickstart: the command above failed; fix the cause, then run the same quickstart command again"
        )
        failure.exit_code = error.exit_code
        raise failure from error


INTRODUCTION = """
A SMALL WORLD
You are about to watch all of RLHF. A model learns to write from examples, people choose the better of two answers, a
reward model learns what they prefer, and reinforcement learning tunes the model to it. The data are generated here, so
that the outcome can be checked: posts about who did what where, and hurried summaries of them. Most summaries leave out
the place; some ramble, name the wrong person, or never end. A simulated annotator prefers faithful, short summaries
that end, and sometimes makes a mistake. It takes about four minutes on two cores; Ctrl-C stops it, and the same command
goes on. All files are in {lesson}; have a look.
"""
MODEL = """
A MODEL FROM SCRATCH
A Llama with random weights and its own vocabulary. It knows nothing yet.
"""


def summarize(out: Path, gold: dict[str, Any]) -> str:
    """Return the outcome in words, with the first examples and the next steps."""
    run = RunDirectory(out)
    judges = files.read_json(run.comparison.metrics)["judges"]
    judge, reward = (judges[name]["win_rate"] for name in ("judge", "reward"))
    low, high = gold["interval"]
    lines = [
        "THE OUTCOME",
        f"On {gold['n']} posts that no model had seen, by the true preference, which was hidden from all of them, the",
        f"tuned model wins {gold['win_rate']:.0%} against the base (95 % interval {low:.0%} to {high:.0%}; a tie",
        f"counts half). The independent judge, which had to learn the preference, says {judge:.0%}. The reward model",
        f"says {reward:.0%}; it is biased, because the tuned model was optimised for it.",
        f"Who, what and where all right:  {gold['faithful_base']:4.0%} before, {gold['faithful_tuned']:4.0%} after.",
        f"Ended by itself:                {gold['ended_base']:4.0%} before, {gold['ended_tuned']:4.0%} after.",
        f"KL to the base:                 {gold.get('kl_tuned', float('nan')):.1f} nats per answer.",
        "",
        "The first three posts, not selected:",
    ]
    sides = [files.read_jsonl(run.predictions(side))[:3] for side in ("base", "tuned")]
    for before, after in zip(*sides, strict=True):
        lines += [f"  {before['inputs']['inputs_pretokenized'].removesuffix(ASK)}"]
        lines += [f"    before: {before['prediction'].strip()}", f"    after:  {after['prediction'].strip()}"]
    lines += [
        "",
        f"The report has curves and more examples: {run.report}",
        NEXT.format(out=out, prompts=run.prompts("test"), model=run.stage("sft").model, preferent=_command()),
    ]
    return "\n".join(lines)


def _command() -> str:
    """Return the name by which a shell here can call preferent."""
    beside = Path(sys.executable).with_name("preferent")
    return "preferent" if shutil.which("preferent") or not beside.exists() else os.path.relpath(beside)


NEXT = """
NEXT STEPS
Ask the base and the tuned model yourself. Each line of the input is a prompt, or a row with one:
  tail -3 {prompts} | {preferent} try {out}
Lower the KL penalty and watch the reward model being over-optimised. All stages before PPO are reused:
  {preferent} run {out}/lesson/recipe.yaml --out runs/unleashed --set kl_coeff=0.001 --from ppo --of {out}
Use your own data, rows of input_text, candidate_0, candidate_1 and choice, and your own model, a folder or a hub id. To
try it out, take the model of this run, {model}:
  {preferent} data check YOUR_PREFERENCES.jsonl
  echo '{{large_model_reference: YOUR_MODEL, preference_dataset: YOUR_PREFERENCES.jsonl}}' > my.yaml
  {preferent} plan my.yaml      # warns if there are too few rows for the steps, and says how many are enough
  {preferent} run my.yaml
"""
