"""What each verb does; it imports what it needs when it runs, so that help is instant."""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preferent.errors import DataError, UsageError

if TYPE_CHECKING:
    from preferent.config.recipe import Recipe

Arguments = argparse.Namespace

MODULES = {
    "data": "preferent.data.prepare",
    "sft": "preferent.training.sft",
    "reward": "preferent.training.reward_model",
    "ppo": "preferent.training.ppo",
    "dpo": "preferent.training.dpo",
    "rejection": "preferent.training.rejection_sampling",
    "infer": "preferent.evaluation.inference.generate",
    "compare": "preferent.evaluation.inference.compare",
    "report": "preferent.report.page",
}
"""Where the `main` of each stage is."""


def do_run(given: Arguments) -> None:
    recipe, ignored = _recipe(given)
    folder = given.out or Path("runs") / given.recipe.stem
    if given.with_labels is not None:
        from preferent.pipelines.next_round import with_labels

        recipe = with_labels(recipe, given.with_labels)
        if folder.resolve() == given.with_labels.resolve():
            raise UsageError(f"--with-labels {given.with_labels}: the next round is a new run; name it with --out")
    if given.dry_run:
        from preferent.commands import plan

        print(plan.describe(recipe, ignored, folder))
        return
    from preferent.pipelines import executor

    if ignored:
        print(f"ignored, they mean something only on Google Cloud: {', '.join(ignored)}", file=sys.stderr)
    done = executor.execute(recipe, folder, given.from_stage, given.of_run)
    print(done.headline())


def do_quickstart(given: Arguments) -> None:
    import_module("preferent.quickstart.guided_run").quickstart(given.folder, given.seed)


def do_scratch(given: Arguments) -> None:
    parameters = import_module("preferent.models.from_scratch").make(
        [Path(path) for path in given.text],
        given.out,
        vocab_size=given.vocab_size,
        hidden_size=given.hidden_size,
        layers=given.layers,
        heads=given.heads,
        key_value_heads=given.kv_heads,
        intermediate_size=given.intermediate_size,
        max_position_embeddings=given.positions,
        seed=given.seed,
    )
    print(f"{given.out}: {parameters:,} parameters")


def do_plan(given: Arguments) -> None:
    from preferent.commands import plan

    print(plan.describe(*_recipe(given), Path("runs") / given.recipe.stem, sizes=True))


def do_try(given: Arguments) -> None:
    import_module("preferent.commands.inference.chat").talk(
        given.folder, given.temperature, given.greedy, given.tokens, given.seed
    )


def do_export(given: Arguments) -> None:
    print(import_module("preferent.commands.inference.export").deliver(given.folder, given.out, given.what))


def do_env(given: Arguments) -> None:
    from preferent.runs import environment

    found = environment.describe()
    print(json.dumps(found, indent=1) if given.json else environment.render(found))


def do_check(given: Arguments) -> None:
    from preferent.config import model_reference
    from preferent.data import check

    model = None if given.model is None else model_reference.resolve(given.model)
    lengths = given.prompt_sequence_length, given.target_sequence_length
    result = check.check_files(given.paths, given.kind, given.format, model, given.instruction, *lengths)
    print(check.render(result))
    if not result.ok:
        bad = sum(len(file.dropped) for file in result.files)
        raise DataError(
            f"{bad} of {sum(file.read for file in result.files)} rows cannot be used, see above; mend them, or let a "
            "run drop some: --set data.max_dropped=SHARE"
        )


def do_convert(given: Arguments) -> None:
    from preferent.data import convert

    done = convert.convert_files(given.paths, given.out, given.to, given.format)
    for row in done.dropped:
        print(row, file=sys.stderr)
    left_out = {"ties": done.ties, "without a prompt": done.without_prompt, "bad rows": len(done.dropped)}
    others = "".join(f", {count} {name} left out" for name, count in left_out.items() if count)
    print(f"{given.out}: {done.written} of {done.read} rows written{others}")


def do_stage(given: Arguments, **more: Any) -> None:
    """A stage as a run calls it; `more` is what this stage alone is told."""
    recipe, _ = _recipe(given)
    inputs = _inputs(given.stage, given.inputs)
    import_module(MODULES[given.stage]).main(recipe, inputs, given.out, **more)


def do_doctor(given: Arguments) -> None:
    import_module("preferent.doctor.examination").main(given.folder, given.json)


def _recipe(given: Arguments) -> tuple["Recipe", list[str]]:
    from preferent.config.recipe import load

    return load(given.recipe, given.settings)


def _inputs(stage: str, words: Sequence[str]) -> dict[str, Path]:
    """`NAME=PATH` words as a dictionary, checked against what the stage reads."""
    from preferent.config.stage_graph import INPUTS, reads

    required, optional = INPUTS[stage]
    known = ", ".join(required + optional) or "nothing"
    inputs: dict[str, Path] = {}
    for word in words:
        name, _, path = word.partition("=")
        if not path:
            raise UsageError(f"--in {word}: write it as NAME=PATH; {stage} reads {known}")
        if not reads(stage, name):
            raise UsageError(f"--in {word}: {stage} does not read '{name}'; it reads {known}")
        inputs[name] = Path(path)
    for name in required:
        if name not in inputs:
            raise UsageError(f"{stage}: --in {name}=PATH is missing; it reads {known}")
    return inputs
