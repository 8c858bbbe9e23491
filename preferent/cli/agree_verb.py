"""The verb `agree`: its arguments and its action."""

import argparse
import json
from importlib import import_module
from pathlib import Path

from preferent.cli.actions import Arguments
from preferent.cli.comparison_verbs import how_judged, judges, names
from preferent.errors import UsageError


def agree(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of `agree`."""
    verb.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="judgments, labels or annotations, any format"
    )
    verb.add_argument(
        "--people",
        type=Path,
        metavar="FILE",
        help="the file whose verdicts are taken as the truth (with --judge by default all files)",
    )
    verb.add_argument(
        "--columns",
        type=names,
        metavar="ID,CHOICE[,WHO]",
        help="the columns of a CSV file or of foreign rows: what was judged, the choice, and who chose",
    )
    verb.add_argument("--json", action="store_true", help="the figures as JSON")
    judges(verb)
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="with --judge: where its verdicts and replies are kept (default: runs/agree-FILE)",
    )


def do_agree(arguments: Arguments) -> None:
    judge_agreement = import_module("preferent.evaluation.judge_agreement")
    how = how_judged(arguments)
    if not arguments.judge:
        if how or arguments.out:
            raise UsageError("agree: --out and the arguments of language models need --judge")
        figures = judge_agreement.between_files(arguments.files, arguments.people, arguments.columns)
    else:
        if arguments.columns:
            raise UsageError("agree: --columns names no answers, which --judge reads; leave one of them out")
        judged_votes = import_module("preferent.commands.judged_votes")
        figures = judged_votes.agree(arguments.files, arguments.people, arguments.judge, how, arguments.out)
    print(json.dumps(figures, indent=1, ensure_ascii=False) if arguments.json else judge_agreement.render(figures))
