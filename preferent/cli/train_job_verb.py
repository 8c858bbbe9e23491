"""The verb `train-job`: its arguments and its action."""

import argparse
from importlib import import_module
from pathlib import Path

from preferent.cli import recipe_arguments
from preferent.cli.actions import Arguments
from preferent.cli.argument_types import above_zero


def train_job(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of `train-job`."""
    recipe_arguments.recipe(verb)
    count = above_zero(int)
    verb.add_argument("stage", metavar="STAGE", help="the stage, as a run calls it: sft, reward, judge, ppo, …")
    verb.add_argument("--image", required=True, metavar="IMAGE", help="the image, which has preferent and torch")
    verb.add_argument("--claim", required=True, metavar="NAME", help="the persistent volume claim that all nodes mount")
    verb.add_argument(
        "--folder", type=Path, default=Path("/runs"), metavar="DIR", help="where they mount it (default: /runs)"
    )
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="the run directory there (default: /runs/NAME_OF_THE_RECIPE)"
    )
    verb.add_argument("--nodes", type=count, default=2, metavar="N", help="nodes that compute together (default: 2)")
    verb.add_argument(
        "--gpus", type=count, metavar="N", help="GPUs of a node, a process each (default: none, and `processes`)"
    )
    verb.add_argument("--cpu", metavar="CORES", help="the cores that a node needs")
    verb.add_argument("--memory", metavar="QUANTITY", help="the main memory that a node needs, as 64Gi")
    verb.add_argument(
        "--runtime", default="torch-distributed", metavar="NAME", help="the runtime (default: torch-distributed)"
    )


def do_train_job(arguments: Arguments) -> None:
    from preferent.config.recipe import load

    rendered = import_module("preferent.pipelines.launchers.train_job")
    names = "image", "claim", "nodes", "gpus", "cpu", "memory", "folder", "runtime"
    nodes = rendered.Nodes(**{name: getattr(arguments, name) for name in names})
    out = arguments.out or arguments.folder / arguments.recipe.stem
    print(rendered.text(load(arguments.recipe)[0], arguments.stage, out, nodes), end="")
