"""The verbs of the command line, and the arguments of each."""

import argparse
import shutil
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

from preferent.cli import (
    actions,
    agree_verb,
    comparison_verbs,
    completion,
    data_verbs,
    help_endings,
    recipe_arguments,
    train_job_verb,
)
from preferent.cli.actions import Arguments
from preferent.cli.argument_types import above_zero, size, speed
from preferent.cli.recipe_arguments import repeatable, settings

STAGES = {
    "sft": "supervised fine-tuning on answers or plain text; inputs: model",
    "reward": "train a reward model on preferences; inputs: model, train, validation, test",
    "ppo": "tune the policy; inputs: model, train, validation, reward (or reward.sources in the recipe)",
    "dpo": "tune the policy on preferences, without a reward (DPO, KTO); inputs: model, train, validation, test",
    "rejection": "tune the policy on the best of its own answers; inputs: model, train, validation, reward",
    "infer": "answer prompts with a model; inputs: model, prompts; optional: reference (for the KL), reward (best of)",
    "compare": "judge two or more sets of answers side by side: of runs, models or files",
    "report": "write the report of a run as one HTML file",
}
STARTS = ("rlhf_pipeline", "sft", "rloo", "grpo", "rejection_sampling", "dpo", "kto", "reward_function")
"""What `recipe init` can begin with."""
GROUPS = {
    "Start": ("quickstart", "recipe", "data", "plan", "run"),
    "Look at a run": ("doctor", "report", "try", "export"),
    "Compare and judge": ("compare", "label", "agree"),
    "Tools": ("import", "scratch", "train-job", "completion", "env"),
    "Stages, as a run calls them": ("sft", "reward", "ppo", "dpo", "rejection", "infer"),
}
"""The verbs in the order of `preferent --help`."""
EXAMPLE = """\
Example:
  preferent recipe init my.yaml
  preferent data check data/preference.jsonl
  preferent run my.yaml --dry-run
  preferent run my.yaml

`preferent VERB --help` describes a verb. The guides are in the folder docs of the source: begin with docs/index.md.
"""
REPORT = """\
Write the report of a run as one HTML file.
  preferent report RUN                                   of a run, finished or not
  preferent report --recipe R --in run=RUN --out DIR     the stage alone, as a run does it
"""

Verb = Callable[[Arguments], None]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; docs/cli.md is generated from it."""
    top = argparse.ArgumentParser(
        prog="preferent",
        usage="preferent [-h] [--version] [--debug] VERB ...",
        description="Tune language models from human feedback: preferences, reward model, PPO, side-by-side verdict.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    top.add_argument("--debug", action="store_true", help="show the Python traceback of an error")
    verbs = top.add_subparsers(prog="preferent", metavar="VERB", required=False, help=argparse.SUPPRESS)
    for name in (name for group in GROUPS.values() for name in group):
        do, text, fill = VERBS.get(name) or (actions.do_stage, STAGES[name], partial(_stage, stage=name))
        fill(_verb(verbs, name, do, text))
    top.epilog = "\n".join([*map(_listed, GROUPS), EXAMPLE])
    return top


def _listed(group: str) -> str:
    """Return the verbs of a group with their texts, for the help."""
    lines = [f"{group}:"]
    for name in GROUPS[group]:
        text = VERBS[name][1] if name in VERBS else STAGES[name]
        width = max(60, shutil.get_terminal_size().columns - 2)
        lines.append(textwrap.fill(text, width, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14))
    return "\n".join(lines) + "\n"


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, do: Verb, text: str
) -> argparse.ArgumentParser:
    words = str(verbs._prog_prefix).partition(" ")[2]
    verb = verbs.add_parser(
        name,
        help=text,
        description=textwrap.fill(f"{text[0].upper()}{text[1:]}.", 80),
        epilog=help_endings.ending(f"{words} {name}".strip()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.set_defaults(do=do)
    return verb


def _run(verb: argparse.ArgumentParser) -> None:
    recipe_arguments.recipe(verb)
    verb.add_argument("--out", type=Path, metavar="DIR", help="the run directory (default: runs/NAME_OF_THE_RECIPE)")
    settings(verb)
    verb.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    verb.add_argument("--verbose", action="store_true", help="with --dry-run: print the command of each stage too")
    verb.add_argument("--until", metavar="STAGE", help="end after this stage; the same command without it goes on")
    verb.add_argument(
        "--from", dest="from_stage", metavar="STAGE", help="start again at this stage, in a new directory"
    )
    verb.add_argument(
        "--of", dest="of_run", type=Path, metavar="RUN", help="the run whose earlier stages --from takes over"
    )
    verb.add_argument(
        "--with-labels",
        type=Path,
        metavar="RUN",
        help="start the next round after this run: learn from its labels too, and compare with it",
    )
    verb.add_argument(
        "--launcher",
        choices=("process", "ray"),
        default="process",
        help="where stages compute: in processes here, or as actors of a Ray cluster that shares the folders "
        "(default: process)",
    )
    verb.add_argument("--address", metavar="HOST:PORT", help="the Ray cluster (default: one that is begun here)")


def _quickstart(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("runs/quickstart"),
        metavar="DIR",
        help="the folder (default: runs/quickstart)",
    )
    verb.add_argument("--seed", type=int, default=0, help="the seed of all randomness (default: 0)")
    verb.add_argument(
        "--threads", metavar="N", help="CPU threads; one is faster where others compute, too (default: one a core)"
    )


def _scratch(verb: argparse.ArgumentParser) -> None:
    sizes = {
        "--vocab-size": (2048, "tokens, including bytes and special tokens"),
        "--hidden-size": (128, "width"),
        "--layers": (4, "blocks"),
        "--heads": (4, "attention heads"),
        "--kv-heads": (None, "key and value heads (default: as many as heads)"),
        "--intermediate-size": (None, "width inside the MLP (default: 8/3 of the width)"),
        "--positions": (1024, "longest sequence, in tokens"),
        "--seed": (0, "seed of the weights"),
    }
    verb.add_argument(
        "--text", nargs="+", required=True, metavar="PATH", help="text or JSONL files to learn the tokens from"
    )
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the model")
    for flag, (default, text) in sizes.items():
        shown = text if default is None else f"{text} (default: {default})"
        verb.add_argument(flag, type=int, default=default, metavar="N", help=shown)


def _plan(verb: argparse.ArgumentParser) -> None:
    recipe_arguments.recipe(verb)
    settings(verb)
    where = verb.add_mutually_exclusive_group()
    where.add_argument(
        "--memory", type=size, metavar="SIZE", help="a GPU's memory, as 80GiB (default: this machine's device)"
    )
    where.add_argument(
        "--calibrate",
        action="store_true",
        help="time this machine for half a minute, and say how long stages take",
    )
    where.add_argument(
        "--card",
        metavar="NAME",
        help="a GPU by its data sheet, as h100-80g: its memory, and how long stages take on it",
    )
    verb.add_argument(
        "--gpus", type=above_zero(int), metavar="N", help="GPUs that compute together in a node (default: `processes`)"
    )
    verb.add_argument(
        "--nodes", type=above_zero(int), default=1, metavar="N", help="nodes with as many GPUs (default: 1)"
    )
    verb.add_argument(
        "--link",
        type=speed,
        metavar="SPEED",
        help="from one GPU of a node to another, as 300GB/s (default: that of the card)",
    )
    verb.add_argument("--network", type=speed, metavar="SPEED", help="from one node to another, as 25GB/s")
    verb.add_argument("--verbose", action="store_true", help="print the command of each stage too")


def _try(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="RUN", help="the run directory")
    how = verb.add_mutually_exclusive_group()
    how.add_argument(
        "--temperature",
        type=above_zero(float),
        metavar="T",
        help="sample at this temperature (default: as `infer` does)",
    )
    how.add_argument("--greedy", action="store_true", help="take the most probable token")
    verb.add_argument(
        "--tokens", type=above_zero(int), metavar="N", help="the longest answer, in tokens (default: as in the run)"
    )
    verb.add_argument("--seed", type=int, metavar="N", help="the seed of sampling (default: as in the run)")


def _export(verb: argparse.ArgumentParser) -> None:
    forms = "merged: the tuned policy as one model; adapter: its LoRA alone; reward: the reward model as RewardBench "
    forms += "loads it; gguf: merged, as the one file of llama.cpp, with a Modelfile for Ollama"
    verb.add_argument("folder", type=Path, metavar="RUN", help="the run directory")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder")
    verb.add_argument(
        "--what", choices=("merged", "adapter", "reward", "gguf"), default="merged", help=f"{forms} (default: merged)"
    )
    verb.add_argument(
        "--precision",
        choices=("bf16", "f16"),
        help="of the matrices in a GGUF file (default: bf16 if the model is stored in it, else f16)",
    )


def _import(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", type=Path, metavar="FILE", help="the GGUF file of llama.cpp, Ollama or LM Studio")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the model; it must be new")


def _recipe(verb: argparse.ArgumentParser) -> None:
    verbs = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    init = _verb(
        verbs,
        "init",
        actions.do_init,
        "write a recipe with every field, its meaning and its default, and a schema for editors beside it",
    )
    init.add_argument(
        "file",
        type=Path,
        nargs="?",
        default=Path("recipe.yaml"),
        metavar="FILE",
        help="the new recipe (default: recipe.yaml)",
    )
    init.add_argument(
        "--from",
        dest="start",
        choices=STARTS,
        default=STARTS[0],
        metavar="START",
        help=f"what it sets: {', '.join(STARTS)} (default: {STARTS[0]})",
    )


def _env(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def _data(verb: argparse.ArgumentParser) -> None:
    verbs = verb.add_subparsers(title="verbs", metavar="VERB", required=True)
    check = _verb(verbs, "check", actions.do_check, "check files and count what is in them; exit code 4 on a bad row")
    convert = _verb(
        verbs,
        "convert",
        data_verbs.do_convert,
        "convert rows of any format to another, and exports of people's feedback to preferences, thumbs and prompts",
    )
    prepare = _verb(
        verbs, "prepare", actions.do_stage, "read, check and split the data of a recipe into parts that share no prompt"
    )
    for reader in (check, convert):
        reader.add_argument(
            "paths",
            nargs="+",
            metavar="PATH",
            help="files, globs in quotes, hf://OWNER/NAME, or gs://, s3:// and https:// addresses",
        )
        reader.add_argument(
            "--format",
            default="auto",
            metavar="NAME",
            help="the format of the rows: gcpc, trl, hh or openai (default: auto)",
        )
        reader.add_argument(
            "--columns",
            default="",
            metavar="MEANING=KEY,…",
            help="what the keys of the rows mean where they have other names: prompt=question,chosen=better; join keys "
            "with +: prompt=instruction+input; extra=KEY ignores one",
        )
    check.add_argument(
        "--kind",
        metavar="NAME",
        help="the kind of the rows: preference, prompt, demonstration, text or feedback (default: detected)",
    )
    check.add_argument("--model", metavar="MODEL", help="count tokens with the tokenizer of this model")
    check.add_argument("--chat-template", metavar="FILE", help="the chat template of the recipe, for --model")
    check.add_argument("--instruction", metavar="TEXT", help="the instruction of the recipe, counted with every prompt")
    check.add_argument(
        "--prompt-sequence-length", type=int, default=512, metavar="N", help="longest prompt, in tokens (default: 512)"
    )
    check.add_argument(
        "--target-sequence-length", type=int, default=64, metavar="N", help="longest answer, in tokens (default: 64)"
    )
    data_verbs.convert(convert)
    _stage(prepare, "data")


def _stage(verb: argparse.ArgumentParser, stage: str) -> None:
    verb.set_defaults(stage=stage)
    verb.add_argument("--recipe", type=Path, required=True, metavar="FILE", help="the recipe, a YAML file")
    settings(verb)
    repeatable(verb, "--in", "inputs", "NAME=PATH", "an input of the stage, by its name")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the stage's folder")


def _report(verb: argparse.ArgumentParser) -> None:
    verb.description = REPORT
    verb.set_defaults(stage="report")
    verb.add_argument("folder", type=Path, nargs="?", metavar="RUN", help="the run directory, finished or not")
    verb.add_argument("--recipe", type=Path, metavar="FILE", help="the recipe, a YAML file")
    settings(verb)
    repeatable(verb, "--in", "inputs", "NAME=PATH", "an input of the stage, by its name")
    verb.add_argument("--out", type=Path, metavar="DIR", help="the folder or .html file to write (default: the run)")


def _doctor(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="RUN", help="the run directory, finished or not")
    verb.add_argument("--json", action="store_true", help="print the findings as a JSON list")


VERBS: dict[str, tuple[Verb, str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": (actions.do_run, "do everything that a recipe asks for; the same command again resumes", _run),
    "quickstart": (
        actions.do_quickstart,
        "do the whole job offline, with a small model and data that are made here",
        _quickstart,
    ),
    "recipe": (actions.do_stage, "write a recipe to begin with", _recipe),
    "data": (actions.do_stage, "check, convert or prepare data files", _data),
    "plan": (actions.do_plan, "show what a run would do and need: steps, tokens, memory by part, disk", _plan),
    "doctor": (
        actions.do_doctor,
        "check a run for known failure modes; exit code 4 if a finding is sick",
        _doctor,
    ),
    "report": (actions.do_report, STAGES["report"], _report),
    "try": (
        actions.do_try,
        "talk to base and tuned model of a run side by side; each line of stdin is a prompt",
        _try,
    ),
    "export": (
        actions.do_export,
        "write the policy or reward model of a run as a folder for other programs",
        _export,
    ),
    "compare": (actions.do_stage, STAGES["compare"], comparison_verbs.compare),
    "label": (
        comparison_verbs.do_label,
        "ask people which of two answers is better, or whether one is good: a page in the browser, alone or in a team",
        comparison_verbs.label,
    ),
    "agree": (
        agree_verb.do_agree,
        "measure how far judges agree with each other and with people",
        agree_verb.agree,
    ),
    "import": (
        actions.do_import,
        "make a model folder of a GGUF file, with what quantisation left of its weights in bfloat16",
        _import,
    ),
    "scratch": (actions.do_scratch, "make a small model of the Llama 2 architecture from scratch", _scratch),
    "train-job": (
        train_job_verb.do_train_job,
        "print the Kubernetes manifest by which several nodes compute a stage of a run: a TrainJob of Kubeflow",
        train_job_verb.train_job,
    ),
    "completion": (
        lambda _: print(completion.script(parser()), end=""),
        "print what lets bash and zsh complete verbs and options",
        lambda _: None,
    ),
    "env": (actions.do_env, "show the computer and the installed versions, for a bug report", _env),
}
"""The verbs besides the stages: what each does, its text, and what adds its arguments."""
