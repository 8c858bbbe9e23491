"""The arguments of verbs that read a recipe."""

import argparse
from pathlib import Path

RECIPE = """\
A recipe is a YAML file. The smallest one:
  large_model_reference: MODEL            a folder, a hub id (OWNER/NAME), or llama-2-7b
  preference_dataset: preference.jsonl    rows of input_text, candidate_0, candidate_1, choice; or TRL, HH, OpenAI
The next fields that people set: prompt_dataset, instruction, kl_coeff, reward_model_train_steps,
reinforcement_learning_train_steps. The recipe.yaml of a run has every field with its value.
"""


def recipe(verb: argparse.ArgumentParser) -> None:
    """Add the recipe, and say in the help what it is."""
    verb.epilog = f"{RECIPE}\n{verb.epilog}"
    verb.add_argument("recipe", type=Path, metavar="RECIPE", help="the recipe, a YAML file")


def settings(verb: argparse.ArgumentParser) -> None:
    """Add `--set`."""
    repeatable(verb, "--set", "settings", "KEY=VALUE", "replace a field of the recipe, as in --set ppo.epochs=2")


def repeatable(verb: argparse.ArgumentParser, flag: str, name: str, metavar: str, text: str) -> None:
    """Add an option that may be given several times."""
    verb.add_argument(flag, dest=name, action="append", default=[], metavar=metavar, help=f"{text}; repeatable")
