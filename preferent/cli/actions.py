"""The actions of the verbs. Each one imports what it needs when it runs, so that help is instant."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preferent.errors import ERROR_FILE, DataError, UsageError

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
"""The module of each stage, which has its `main`."""


def do_run(arguments: Arguments) -> None:
    from preferent.commands import python_api

    loaded = python_api.load_recipe(arguments.recipe, arguments.settings)
    folder = arguments.out or Path("runs") / arguments.recipe.stem
    if arguments.with_labels is not None:
        loaded = loaded.with_labels(arguments.with_labels)
        if folder.resolve() == arguments.with_labels.resolve():
            raise UsageError(f"--with-labels {arguments.with_labels}: the next round is a new run; name it with --out")
    if arguments.dry_run:
        print(loaded.plan(folder, sizes=False, commands=arguments.verbose))
    else:
        how = {name: getattr(arguments, name) for name in ("launcher", "address", "until")}
        run = loaded.run(folder, arguments.from_stage, arguments.of_run, **how)
        until = f"{folder}: done up to {arguments.until}; the same command without --until goes on"
        print(until if arguments.until else "\n".join(run.summary()))


def do_quickstart(arguments: Arguments) -> None:
    import_module("preferent.quickstart.guided_run").quickstart(
        arguments.folder, arguments.seed, [] if arguments.threads is None else [f"threads={arguments.threads}"]
    )


def do_scratch(arguments: Arguments) -> None:
    parameters = import_module("preferent.commands.inference.from_scratch").make(
        [Path(path) for path in arguments.text],
        arguments.out,
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        layers=arguments.layers,
        heads=arguments.heads,
        key_value_heads=arguments.kv_heads,
        intermediate_size=arguments.intermediate_size,
        max_position_embeddings=arguments.positions,
        seed=arguments.seed,
    )
    print(f"{arguments.out}: {parameters:,} parameters")


def do_plan(arguments: Arguments) -> None:
    from preferent.commands import python_api

    loaded, folder = python_api.load_recipe(arguments.recipe, arguments.settings), Path("runs") / arguments.recipe.stem
    names = "memory", "calibrate", "card", "gpus", "nodes", "link", "network"
    print(loaded.plan(folder, commands=arguments.verbose, **{name: getattr(arguments, name) for name in names}))


def do_try(arguments: Arguments) -> None:
    import_module("preferent.commands.inference.chat").talk(
        arguments.folder, arguments.temperature, arguments.greedy, arguments.tokens, arguments.seed
    )


def do_export(arguments: Arguments) -> None:
    export = import_module("preferent.commands.inference.export")
    print(export.write(arguments.folder, arguments.out, arguments.what, arguments.precision))


def do_import(arguments: Arguments) -> None:
    print("\n".join(import_module("preferent.commands.inference.gguf_import").read(arguments.file, arguments.out)))


def do_init(arguments: Arguments) -> None:
    print("\n".join(import_module("preferent.commands.recipe_template").init(arguments.file, arguments.start)))


def do_env(arguments: Arguments) -> None:
    from preferent.runs import environment

    facts = environment.describe()
    print(json.dumps(facts, indent=1) if arguments.json else environment.render(facts))


def do_check(arguments: Arguments) -> None:
    from preferent.commands.data_files import check
    from preferent.config import model_reference
    from preferent.data.formats import named_columns
    from preferent.data.tokenizer.chat_templates import ChatOptions
    from preferent.runs import remote_files

    for path in arguments.paths:
        if path.endswith((".yaml", ".yml")):
            raise UsageError(
                f"{path} is a recipe: name its files of data here, or count them by: preferent plan {path}"
            )
    chat = ChatOptions.read(arguments.chat_template, {})
    model = None if arguments.model is None else model_reference.resolve(arguments.model)
    lengths = arguments.prompt_sequence_length, arguments.target_sequence_length
    columns = named_columns.parse(arguments.columns)
    with remote_files.copied(arguments.paths):
        summary = check.check_files(
            arguments.paths, arguments.kind, arguments.format, model, arguments.instruction, *lengths, columns, chat
        )
    print(check.render(summary))
    if not summary.ok:
        bad = sum(len(file.dropped) for file in summary.files)
        raise DataError(
            f"{bad} of {sum(file.read for file in summary.files)} rows cannot be used, see above; fix them, or let a "
            "run drop some: --set data.max_dropped=SHARE"
        )


def do_stage(arguments: Arguments, **more: Any) -> None:
    """Run one stage, as a run starts it; `more` are arguments of this stage alone."""
    from preferent.config.recipe import load

    recipe, _ = load(arguments.recipe, arguments.settings)
    inputs = _inputs(arguments.stage, arguments.inputs)
    if not _shared(arguments.stage, recipe):
        import_module(MODULES[arguments.stage]).main(recipe, inputs, arguments.out, **more)


def _shared(stage: str, recipe: "Recipe") -> bool:
    """Start several processes that do a stage, if the recipe wants them and nobody has; return whether others do it.

    A process that is one of several joins them where the stage computes; where it does not, the first does it.
    """
    from preferent import ranks
    from preferent.pipelines.launchers import child_process
    from preferent.runs import environment

    if stage in environment.BY_ONE:
        return ranks.environment("RANK", 0) > 0
    if ranks.launched():
        import_module("preferent.models.collectives").join()
    elif (size := environment.processes(recipe, stage)) > 1:
        if error := child_process.run_verb(sys.argv[1:], size):
            if place := os.environ.get(ERROR_FILE):
                Path(place).write_text(str(error))
            sys.exit(error.exit_code)
        return True
    return False


def do_report(arguments: Arguments) -> None:
    """Write the report of a run, with what doctor calls sick; without RUN it is the stage alone."""
    from preferent.doctor import examination

    if arguments.folder is None:
        if arguments.recipe is None or arguments.out is None:
            raise UsageError("report: name a run; or for the stage alone --recipe, --in run=RUN and --out")
        do_stage(arguments, sick=examination.sick(_inputs("report", arguments.inputs)["run"]))
        return
    if arguments.inputs:
        raise UsageError("report: --in is for the stage alone; name either a run or inputs")
    from preferent.config.recipe import load
    from preferent.runs.directory import RunDirectory

    run = RunDirectory(arguments.folder)
    run.require_run()
    recipe, _ = load(arguments.recipe or run.recipe, arguments.settings)
    sick = examination.sick(run.root)
    import_module(MODULES["report"]).main(recipe, {"run": run.root}, arguments.out or run.root, sick=sick)


def do_doctor(arguments: Arguments) -> None:
    import_module("preferent.doctor.examination").main(arguments.folder, arguments.json)


def _inputs(stage: str, words: Sequence[str]) -> dict[str, Path]:
    """Return `NAME=PATH` words as a dictionary; raise `UsageError` if the stage does not read them, or needs others."""
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
