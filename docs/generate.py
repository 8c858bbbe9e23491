"""Writes the reference pages: `recipe.md` from the recipe's fields, `cli.md` from the command line's parser, `api.md`
from the signatures and docstrings of the Python calls.

python docs/generate.py          write them
"""

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import preferent
from preferent.cli.arguments import parser
from preferent.cli.help_endings import EXAMPLES
from preferent.commands import python_api, recipe_template
from preferent.config import defaults
from preferent.config.algorithms import ALGORITHMS
from preferent.config.recipe import Recipe, inner_section, listed_section
from preferent.config.sections import Section
from preferent.errors import DataError, DivergedError, Interrupted, PlatformError, PreferentError, UsageError

HERE = Path(__file__).parent

RECIPE = """# Recipe

A recipe is a YAML file. Its flat core is the `parameter_values` dictionary of `rlhf_pipeline` in GCPC (Google Cloud
Pipeline Components), so that dictionary saved as YAML is a recipe. An unknown key is an error that names the nearest.
Paths and globs are relative to the folder you are in. `--set KEY=VALUE` replaces any field for one call:
`--set ppo.epochs=2`.

The smallest recipe:

```yaml
large_model_reference: models/base
preference_dataset: data/preference.jsonl
```

`preferent recipe init my.yaml` writes a recipe with every field and what is below beside it. With it comes
`recipe.schema.json`, the [JSON Schema](recipe.schema.json) of recipes, which editors with the YAML language server read
from the first line of the recipe: they complete keys and underline what does not fit.

Keys that mean something only on Google Cloud are accepted and reported as ignored: `project`, `location`,
`deploy_model`, `encryption_spec_key_name`, `tensorboard_resource_id`, `accelerator_type`, `model_display_name`.

`large_model_reference` and `reward_model_reference` take a local path, a hub id such as `Qwen/Qwen3-0.6B` (with
`@revision` if wanted), or one of these names:

| name | model | its reward model starts from |
|---|---|---|
{models}

## What null means

Where a field says *default: …*, that is what `null` means; elsewhere its text says so. A run decides once, when it
knows its models, and its `recipe.yaml` and `stage.json` show the values. *By the model's size*: above {large}
parameters a LoRA adapter is trained, below that every weight. *By lora_dim*: the learning rate is that of an adapter or
of every weight.

| section | `lora_dim` of a large model | `learning_rate` with LoRA | of every weight |
|---|---|---|---|
{tuning}

`ppo.critic_learning_rate` is {critic_lora} beside a LoRA policy and {critic_full} beside one of which every weight
learns. *By algorithm*:

| `ppo.algorithm` | `samples_per_prompt` | `epochs` | `kl_in` | `whiten_advantages` |
|---|---|---|---|---|
{algorithms}

*By the device's memory*: each stage chooses when it begins, and writes what it chose to its `stage.json`. It takes the
most, {most}, and halves what saves most until it needs three quarters of the device's total memory, as
`preferent plan` would say for prompts and answers of the longest lengths. A resume takes the values from `stage.json`,
on another machine too, so its bits are the same. Models that are not built as Llama is take the most.
"""

CLI = """# Command line

Every verb resumes: the same command again goes on where it stopped. Exit codes: 0 done, 1 a bug in preferent, 2 wrong
usage or a recipe that does not fit, 3 something outside is missing (a file, a package, memory, the network), 4 data
that cannot be used, 5 training diverged, 130 and 143 stopped by a signal.

`preferent run` does the stages in order. Each stage is also a verb of its own, and that is how `run` calls it:
`preferent STAGE --recipe FILE --in NAME=PATH … --out DIR`; `preferent run RECIPE --dry-run --verbose` prints the
commands.

`eval "$(preferent completion)"` lets bash and zsh complete verbs and options.

A pipe that is closed early (`| head`) ends a verb quietly. Progress is a bar in a terminal, one line that is
overwritten in a notebook, and a line every ten seconds elsewhere.
"""


def recipe_page() -> str:
    """The recipe's reference, a table a section."""
    from preferent.config.gcpc_names import MODELS

    models = "\n".join(f"| `{name}` | `{hub}` | `{reward}` |" for name, (hub, reward) in MODELS.items())
    tuning = "\n".join(
        f"| `{name}` | {of.rank} | {_number(defaults.LORA_RATE)} | {_number(of.full_rate)} |"
        for name, of in defaults.TUNING.items()
    )
    algorithms = "\n".join(
        f"| `{each.name}` | {each.samples} | {each.epochs} | {each.kl_in} | {str(each.whiten).lower()} |"
        for each in ALGORITHMS.values()
    )
    most = {key.rpartition(".")[2]: count for key, count in defaults.AT_ONCE.items()}
    text = RECIPE.format(
        models=models,
        large=f"{defaults.LARGE // 1_000_000} million",
        tuning=tuning,
        critic_lora=_number(defaults.LORA_RATE),
        critic_full=_number(defaults.CRITIC_RATE),
        algorithms=algorithms,
        most=", ".join(f"{count:,} {name}" for name, count in most.items()),
    )
    tables = "\n".join(_sections(Recipe, ""))
    return f"{text}\n{tables}"


def _number(value: float) -> str:
    """A small number as people write it: 1e-4."""
    return f"{value:.0e}".replace("e-0", "e-")


def _sections(section: type[Section], prefix: str) -> Iterator[str]:
    fields = section.model_fields.items()
    rows = [_row(prefix + name, field) for name, field in fields if inner_section(field) is None]
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## The flat core"
    yield "\n".join([title, "", "| field | default | meaning |", "|---|---|---|", *rows, ""])
    for name, field in fields:
        inner = inner_section(field)
        if inner is not None:
            yield from _sections(inner, f"{prefix}{name}.")
        if (listed := listed_section(field)) is not None:
            yield from _sections(listed, f"{prefix}{name}[].")


def _row(name: str, field: FieldInfo) -> str:
    text = (field.description or "").replace("|", "\\|").replace("\n", " ")
    values = _values(field)
    if values:
        text += f" One of {', '.join(f'`{value}`' for value in values)}."
    return f"| `{name}` | {_default(field)} | {text} |"


def _values(field: FieldInfo) -> tuple[str, ...]:
    """What a field that takes one of a few words may be."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "*required*"
    return f"`{yaml.safe_dump(field.default).splitlines()[0].strip(chr(39))}`"


def cli_page() -> str:
    """The command line's reference, a section a verb."""
    return CLI + "\n" + "\n".join(_verbs(parser(), "preferent"))


def _verbs(verb: argparse.ArgumentParser, name: str) -> Iterator[str]:
    inner: dict[str, Any] = {}
    rows = []
    for action in verb._actions:
        if isinstance(action, argparse._SubParsersAction):
            inner = dict(action.choices)
        elif action.help is not None and not isinstance(action, argparse._HelpAction):
            rows.append(f"| `{_spelled(action)}` | {action.help[0].upper() + action.help[1:]} |")
    first, *forms = str(verb.description).partition("\n  ")
    yield f"## `{name}`\n\n{first.strip()}\n"
    if any(forms):
        yield f"```text\n{textwrap.dedent('  ' + forms[1]).rstrip()}\n```\n"
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows, ""])
    if guide := name.partition(" ")[2]:
        page, *commands = EXAMPLES[guide]
        yield "```text\n" + "\n".join(commands) + f"\n```\n\nGuide: [{page}]({page}.md)\n"
    for word, parser_ in inner.items():
        yield from _verbs(parser_, f"{name} {word}")


def _spelled(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return f"{action.option_strings[0]} {{{','.join(map(str, action.choices))}}}"
    names = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
    words = [*action.option_strings[:1], *(name for name in names if name and action.nargs != 0)]
    return " ".join(words) + (" …" if action.nargs == "+" else "")


API = """# Python reference

Generated from the code. The guide is [Python](python.md).
"""


def api_page() -> str:
    """Return the page of the public names: signatures and docstrings."""
    parts = [API]
    for name in ("run", "load_recipe"):
        parts.append(_call(f"preferent.{name}", getattr(preferent, name)))
    for kind in (python_api.LoadedRecipe, python_api.Run):
        parts.append(f"## `{kind.__name__}`\n\n{inspect.getdoc(kind)}\n")
        members = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
        public = {name: member for name, member in members.items() if _public(member)}
        parts += [_call(f"{kind.__name__}.{name}", member, "###") for name, member in public.items()]
    parts.append("## Errors\n")
    for error in (PreferentError, UsageError, PlatformError, DataError, DivergedError, Interrupted):
        parts.append(f"- `preferent.errors.{error.__name__}`, exit code {error.exit_code}: {inspect.getdoc(error)}")
    return "\n".join(parts) + "\n"


def _public(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, property)


def _call(name: str, member: Any, heading: str = "##") -> str:
    if isinstance(member, property):
        return f"{heading} `{name}`\n\n{inspect.getdoc(member)}\n"
    signature = str(inspect.signature(member)).replace("pathlib._local.Path", "Path").replace("pathlib.Path", "Path")
    short = re.sub(r"(?:collections\.abc|typing|preferent(?:\.\w+)+)\.", "", signature).replace("(self, ", "(")
    return f"{heading} `{name}`\n\n```text\n{name}{short.replace('(self)', '()')}\n```\n\n{inspect.getdoc(member)}\n"


PAGES = {
    "recipe.schema.json": recipe_template.schema_text,
    "recipe.md": recipe_page,
    "cli.md": cli_page,
    "api.md": api_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
