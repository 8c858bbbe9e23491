"""The verbs that put answers side by side (compare, label): their arguments and actions."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from preferent.cli.actions import Arguments, do_stage
from preferent.cli.recipe_arguments import repeatable
from preferent.errors import UsageError
from preferent.runs.directory import RunDirectory

COMPARE = """\
Compare answers side by side, and have them judged.
  preferent compare RUN                     its tuned model with its base again, with labels or judges that were added
  preferent compare RUN RUN ...             runs, models (with --prompts) or files of answers, two or more
  preferent compare COMPARISON --write ...  a finished comparison in other formats, without judging again
  preferent compare --recipe R --in a=FILE --in b=FILE --out DIR   the stage alone, as a run does it; other inputs:
    judge, reward, score, prompts, people, original, side.NAME, model.NAME
"""
TASKS = ("summarization", "question_answering", "helpfulness")
FORMATS = ("comparator", "alpaca", "preferences", "csv")
SIDES_ONLY = (
    *("prompts", "judge", "task", "template", "votes", "key_variable", "shared", "html"),
    *("id_column", "prompt_column", "answer_column", "reference_column", "tag_columns"),
)
"""The arguments that only the form with sides reads."""


def compare(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    verb.description = COMPARE
    verb.set_defaults(stage="compare", do=do_compare)
    verb.add_argument(
        "sides",
        nargs="*",
        metavar="SIDE",
        help="a run, a model (folder or hub id), or a file of answers; the first is a",
    )
    verb.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="the prompts that models answer; tags and turns are read from it too",
    )
    verb.add_argument("--names", type=names, default=(), metavar="A,B", help="the names of the sides")
    judges(verb)
    _columns(verb)
    verb.add_argument(
        "--shared",
        action="store_true",
        help="compare only what all sides answer, and count the rest, which would otherwise be an error",
    )
    verb.add_argument("--write", type=names, default=(), metavar="FORMAT,…", help=f"also write: {', '.join(FORMATS)}")
    verb.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the comparison as a page, as a run's report"
    )
    verb.add_argument("--recipe", type=Path, metavar="FILE", help="the recipe; with sides: how models answer")
    repeatable(verb, "--set", "settings", "KEY=VALUE", "replace a field of the recipe")
    repeatable(verb, "--in", "inputs", "NAME=PATH", "an input of the stage, by its name")
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the folder of the comparison (default: runs/compare-NAMES; for one run, the run)",
    )


def judges(verb: argparse.ArgumentParser) -> None:
    """Add the arguments that name judges, and how language models among them judge."""
    repeatable(
        verb,
        "--judge",
        "judge",
        "JUDGE",
        "a judge: the folder of a reward model, people=FILE, URL#MODEL (an OpenAI-compatible endpoint) or local:MODEL",
    )
    verb.add_argument("--task", choices=TASKS, help="the rubric of language models that judge (default: helpfulness)")
    verb.add_argument("--template", metavar="FILE", help="a rubric of your own for them")
    verb.add_argument("--votes", type=int, metavar="N", help="verdicts in each of the two orders (default: 1)")
    verb.add_argument("--key-variable", metavar="NAME", help="the environment variable that holds the endpoint's key")


def _columns(verb: argparse.ArgumentParser) -> None:
    for name in ("id", "prompt", "answer", "reference"):
        verb.add_argument(f"--{name}-column", metavar="NAME", help=f"the column of the {name} in files of answers")
    verb.add_argument("--tag-columns", type=names, default=(), metavar="NAME,…", help="columns to slice the result by")


def do_compare(arguments: Arguments) -> None:
    if not arguments.sides:
        _stage(arguments)
        return
    if arguments.inputs:
        raise UsageError("compare: --in is for the stage alone; name either sides or inputs")
    compare_runs = import_module("preferent.commands.compare_runs")
    columns = import_module("preferent.data.predictions").Columns
    request = compare_runs.ComparisonRequest(
        sides=arguments.sides,
        names=arguments.names,
        prompts=arguments.prompts,
        judges=arguments.judge,
        how=how_judged(arguments),
        columns=columns(
            arguments.id_column,
            arguments.prompt_column,
            arguments.answer_column,
            arguments.reference_column,
            arguments.tag_columns,
        ),
        shared=arguments.shared,
        recipe=arguments.recipe,
        settings=arguments.settings,
        formats=_known(arguments.write),
        out=arguments.out,
        html=arguments.html,
    )
    print("\n".join(compare_runs.compare(request)))


def how_judged(arguments: Arguments) -> dict[str, Any]:
    """Return how language models among the judges judge, as far as the user said it."""
    how = {name: getattr(arguments, name) for name in ("task", "template", "votes", "key_variable")}
    return {name: setting for name, setting in how.items() if setting is not None}


def _stage(arguments: Arguments) -> None:
    """Run the stage alone: the form without sides."""
    for name in ("recipe", "out"):
        if getattr(arguments, name) is None:
            raise UsageError(
                f"compare: --{name} is missing; name two sides, or for the stage alone --recipe, --in and --out"
            )
    for name in SIDES_ONLY:
        if getattr(arguments, name):
            raise UsageError(
                f"compare: --{name.replace('_', '-')} is for a comparison of named sides; the stage alone reads --in"
            )
    formats = _known(arguments.write)
    do_stage(arguments, names=arguments.names)
    for line in import_module("preferent.commands.exports").write(arguments.out, formats):
        print(line)


def _known(formats: Sequence[str]) -> Sequence[str]:
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"--write {name}: is not a format; the formats are {', '.join(FORMATS)}")
    return formats


def label(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of `label`."""
    verb.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help="a run, whose tuned model is compared with its base (votes go to RUN/labels), or a folder that label made",
    )
    verb.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="ask about the pairs in a file: preference rows in any format, pairs without a choice, or an export of "
        "Argilla or Label Studio, whose votes are imported",
    )
    verb.add_argument(
        "--predictions", nargs=2, type=Path, metavar=("A", "B"), help="ask about the answers in two prediction files"
    )
    verb.add_argument(
        "--thumbs",
        action="store_true",
        help="ask whether one answer is good, not which of two is better; a --file may hold answers, thumbs, pairs, or "
        "an export of feedback; the votes go to thumbs.jsonl",
    )
    verb.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="the prompts that were answered, as rows of data (with --predictions), or those that --model answers",
    )
    repeatable(
        verb,
        "--model",
        "model",
        "MODEL",
        "answer the prompts with this model first: one model answers twice, two models once each",
    )
    verb.add_argument(
        "--on",
        choices=("test", "train"),
        default="test",
        help="which prompts of a run: test, for the verdict, or train, for the next round, which base and tuned model "
        "answer first (default: test)",
    )
    _asking(verb)
    _serving(verb)


def _asking(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--columns",
        type=names,
        metavar="PROMPT,A,B",
        help="the names of the fields of a foreign export, if they are not recognised",
    )
    verb.add_argument("--out", type=Path, metavar="DIR", help="where votes and exports go (default: RUN/labels)")
    verb.add_argument("--export", action="store_true", help="export the votes so far, and serve nothing")
    verb.add_argument(
        "--recover",
        action="store_true",
        help="export the votes of a damaged database, up to the damage",
    )
    verb.add_argument("--no-browser", action="store_true", help="do not open the link in a browser")
    verb.add_argument(
        "--annotators",
        type=names,
        default=(),
        metavar="NAME,…",
        help="the people who take part: each gets a link, and so does the owner (default: one person alone)",
    )
    verb.add_argument(
        "--overlap", type=int, default=1, metavar="K", help="how many of them answer each question (default: 1)"
    )
    verb.add_argument(
        "--strengths", type=int, default=0, metavar="N", help="ask how clear the choice was, on a scale of 1 to N"
    )
    verb.add_argument(
        "--gold", type=Path, metavar="FILE", help="control questions: preference rows whose choice is known"
    )
    verb.add_argument(
        "--gold-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="the share of control questions for each annotator (default: 0.1)",
    )
    _selecting(verb)


def _selecting(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--select",
        choices=("random", "informative"),
        default="random",
        help="which pairs to ask about, with --number, or to ask about first, with --until-…: random ones, or "
        "those a judge is unsure of (default: random)",
    )
    verb.add_argument(
        "--until-width",
        type=float,
        metavar="WIDTH",
        help="ask until the interval of the win rate, which may be looked at after every vote, is as narrow as this",
    )
    verb.add_argument("--until-decided", action="store_true", help="ask until that interval leaves out one half")
    verb.add_argument("--number", type=int, metavar="N", help="ask about this many of the questions (default: all)")
    verb.add_argument(
        "--judgments",
        type=Path,
        metavar="FILE",
        help="the judgments that tell which pairs are informative, and help --until-… (default for a run: its "
        "comparison/judgments.jsonl)",
    )
    verb.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="the seed of selection and order (default: a random number, stored with the votes)",
    )


def _serving(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="the address to listen on; any but that of this computer needs --annotators (default: 127.0.0.1)",
    )
    verb.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="the port (default: that of the last time, otherwise the first free one from 8484)",
    )
    verb.add_argument(
        "--url", metavar="URL", help="the address at which people reach the page, if it differs (a proxy or a tunnel)"
    )


ASKING = (
    "annotators",
    "overlap",
    "strengths",
    "gold",
    "gold_share",
    "seed",
    "select",
    "judgments",
    "until_width",
    "until_decided",
    "host",
    "port",
    "url",
    "thumbs",
)
"""The arguments that are passed to the server unchanged."""


def do_label(arguments: Arguments) -> None:
    serving = import_module("preferent.labeling.serving")
    place = _place(arguments)
    for wanted, write in ((arguments.export, serving.export), (arguments.recover, serving.recover)):
        if wanted:
            print(write(place, "thumbs" if arguments.thumbs else "pairs"))
            return
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ASKING} | {"number": arguments.number}
    if arguments.model or arguments.on == "train":
        sampled = _sampled(arguments, place)
        options |= {
            "predictions": sampled.predictions,
            "prompts": sampled.prompts,
            "models": sampled.models,
            "out": place,
        }
    else:
        two = None if arguments.predictions is None else tuple(arguments.predictions)
        columns = None if arguments.columns is None else tuple(arguments.columns)
        options |= {
            "folder": arguments.folder,
            "file": arguments.file,
            "predictions": two,
            "prompts": arguments.prompts,
        }
        options |= {"columns": columns, "out": arguments.out}
    screen = sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    serving.serve(**options, browser=screen and sys.stdout.isatty() and not arguments.no_browser)


def _place(arguments: Arguments) -> Path:
    """Return the folder of the votes."""
    if arguments.out is not None:
        return Path(arguments.out)
    if arguments.folder is None:
        raise UsageError("label: no folder for the votes; name a run, or add --out DIR")
    if arguments.on == "train":
        return RunDirectory(Path(arguments.folder)).training_labels
    return Path(arguments.folder)


def _sampled(arguments: Arguments, place: Path) -> Any:
    """Sample answers first: of base and tuned model of a run to its training prompts, or of the models named."""
    compare_runs = import_module("preferent.commands.compare_runs")
    if arguments.on == "train":
        if arguments.folder is None or arguments.model or arguments.prompts or arguments.file or arguments.predictions:
            raise UsageError("label: --on train is for a run alone: preferent label RUN --on train")
        return compare_runs.sample_of_run(arguments.folder, place, arguments.number)
    if (
        arguments.prompts is None
        or arguments.folder
        or arguments.file
        or arguments.predictions
        or len(arguments.model) > 2
    ):
        raise UsageError(
            "label: --model answers prompts: preferent label --prompts FILE --model M [--model M] --out DIR"
        )
    return compare_runs.sample(arguments.prompts, arguments.model, place, arguments.number)


def names(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated text, for argparse."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
