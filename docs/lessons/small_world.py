"""The world of `preferent quickstart` made smaller, and the stages of a run in this process.

Posts have two sentences: who was where, and what happened. A model learns them in seconds.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
from IPython import display
from PIL import Image

from preferent import files
from preferent.cli.actions import MODULES
from preferent.cli.arguments import parser
from preferent.commands import compare_runs
from preferent.commands.inference import from_scratch
from preferent.commands.python_api import LoadedRecipe, Run
from preferent.config import recipe as recipes
from preferent.config.recipe import Recipe
from preferent.pipelines.launchers import child_process
from preferent.quickstart import guided_run

PROMPT_TOKENS, ANSWER_TOKENS = 32, 24
OF_TWO = 4
"""One post in four has two sentences and no more."""


def stage(name: str, recipe: Recipe, out: Path, **inputs: Path) -> None:
    """Do what the command `preferent NAME --recipe … --in … --out OUT` does, in this process and without a word."""
    with contextlib.redirect_stderr(io.StringIO()):
        import_module(MODULES[name]).main(recipe, inputs, out)


def make(demonstrations: int, preferences: int, prompts: int, test: int, seed: int = 0) -> None:
    """Write about as many rows to `demonstrations.jsonl`, `preference.jsonl`, `prompt.jsonl` and `test.jsonl`, and a
    model of random weights to `model`. The posts of the test tell what no other post tells."""
    writers: dict[str, Callable[[Path], None]] = {
        "demonstrations": lambda path: guided_run.demonstrations(seed, OF_TWO * demonstrations, path),
        "preference": lambda path: guided_run.preferences(seed, OF_TWO * preferences, path),
        "prompt": lambda path: guided_run.prompts(seed, OF_TWO * prompts, path),
        "test": lambda path: guided_run.preferences(seed, OF_TWO * test, path, "test"),
    }
    for name, write in writers.items():
        path = Path(f"{name}.jsonl")
        write(path)
        files.write_jsonl(path, [row for row in files.read_jsonl(path) if _sentences(row["input_text"]) == 2])
    sizes = {"vocab_size": 1024, "hidden_size": 48, "layers": 2, "heads": 4, "max_position_embeddings": 1024}
    from_scratch.make([Path("demonstrations.jsonl")], Path("model"), **sizes, seed=seed)


def _sentences(text: str) -> int:
    return len(re.findall(r"[.!?]", text))


def recipe(**changes: Any) -> Recipe:
    """Return a recipe on this world's files; `changes` are fields, whole sections among them."""
    asked = {
        "large_model_reference": "model",
        "preference_dataset": "preference.jsonl",
        "prompt_dataset": "prompt.jsonl",
        "eval_dataset": "test.jsonl",
        "prompt_sequence_length": PROMPT_TOKENS,
        "target_sequence_length": ANSWER_TOKENS,
        "precision": "fp32",
        "threads": 1,
    }
    return recipes.parse(asked | changes)[0]


def draw(colours: int = 24) -> None:
    """Show the figure that is open as a picture of few colours, which takes a third of the room in a notebook."""
    drawn, few = io.BytesIO(), io.BytesIO()
    plt.gcf().savefig(drawn)
    plt.close()
    Image.open(drawn).convert("RGB").quantize(colours).save(few, "png", optimize=True)
    display.display(display.Image(few.getvalue()))


def pairs(run: Path, train: str = "train") -> dict[str, Path]:
    """Return the inputs of stage `reward` in a run."""
    named = {"train": train, "validation": "validation", "test": "test"}
    return {name: run / f"data/preference/{part}.jsonl" for name, part in named.items()}


@contextlib.contextmanager
def here() -> Iterator[None]:
    """Let `preferent` run its commands in this process, and without a word, instead of starting one for each."""

    def run_verb(words: Sequence[str], _size: int = 1) -> None:
        arguments = parser().parse_args(list(words))
        arguments.do(arguments)

    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        mock.patch.object(child_process, "run_verb", run_verb),
    ):
        yield


def run(recipe: Recipe, out: Path, earlier: Path | None = None) -> Run:
    """Do what `preferent run RECIPE --out OUT [--with-labels EARLIER]` does."""
    with here():
        loaded = LoadedRecipe(recipe) if earlier is None else LoadedRecipe(recipe).with_labels(earlier)
        return loaded.run(out)


def sample(
    out: Path, number: int, prompts: Path | None = None, model: Path | None = None, run: Path | None = None
) -> list[str]:
    """Sample two answers to each of `number` prompts: of a model, or of base and tuned model of a run to its training
    prompts. Return the words after `preferent label` that ask about them."""
    with here():
        if run is None:
            pairs = compare_runs.sample(prompts, [str(model)], out, number)
        else:
            pairs = compare_runs.sample_of_run(run, out, number)
    return ["--predictions", *map(str, pairs.predictions), "--prompts", str(pairs.prompts), "--out", str(out)]
