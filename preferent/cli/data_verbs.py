"""The verb `data convert`: its arguments, and what it does with rows of preferences and with exports of feedback."""

import argparse
import sys
from pathlib import Path

from preferent.cli.actions import Arguments
from preferent.errors import UsageError

EXPORTS_ONLY = ("personal", "no_context", "no_reasoning", "neighbours", "rating")
"""The arguments that only exports of feedback have a use for."""


def convert(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of `data convert` besides the files."""
    verb.add_argument(
        "--to", metavar="NAME", help="the format to write: gcpc, trl, trl-conversational, hh or openai (default: gcpc)"
    )
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="the file to write, .gz is compressed; for exports of feedback, the folder of preferences.jsonl, "
        "thumbs.jsonl, prompts.jsonl and summary.json",
    )
    feedback = verb.add_argument_group("exports of feedback")
    feedback.add_argument(
        "--personal", action="store_true", help="keep user ids, titles and comments, which are otherwise left out"
    )
    feedback.add_argument(
        "--no-context", action="store_true", help="leave texts that were retrieved for a question out of the prompt"
    )
    feedback.add_argument("--no-reasoning", action="store_true", help="take blocks of reasoning out of answers")
    feedback.add_argument(
        "--neighbours", action="store_true", help="pair an answer of a ranking with the next one only, not with all"
    )
    feedback.add_argument("--rating", metavar="KEY", help="the rating that decides, where answers have several")


def do_convert(arguments: Arguments) -> None:
    from preferent.commands.data_files import convert
    from preferent.data.formats import named_columns, row_sources
    from preferent.data.formats.feedback import feedback_reader
    from preferent.data.formats.feedback.converted_records import FeedbackOptions
    from preferent.runs import remote_files

    columns = named_columns.parse(arguments.columns)
    with remote_files.copied(arguments.paths):
        sources = row_sources.expand(arguments.paths)
        is_export = arguments.format == "auto" and arguments.to is None
        if is_export and any(feedback_reader.layout_of_file(file, columns) for file in sources):
            options = FeedbackOptions(
                arguments.personal,
                not arguments.no_context,
                not arguments.no_reasoning,
                arguments.neighbours,
                arguments.rating,
            )
            reading = convert.convert_feedback(arguments.paths, arguments.out, options, columns)
            print(convert.render(reading, arguments.out))
            return
        given = [name for name in EXPORTS_ONLY if getattr(arguments, name)]
        if given:
            raise UsageError(
                f"--{given[0].replace('_', '-')}: is for exports of feedback, and the files are none; drop it"
            )
        to = arguments.to or "gcpc"
        done = convert.convert_files(arguments.paths, arguments.out, to, arguments.format, columns)
    for row in done.dropped:
        print(row, file=sys.stderr)
    left_out = {"ties": done.ties, "without a prompt": done.without_prompt, "bad rows": len(done.dropped)}
    left_out[f"that would be misread as {to}"] = done.misread
    others = "".join(f", {count} {name} left out" for name, count in left_out.items() if count)
    print(f"{arguments.out}: {done.written} of {done.read} rows written{others}")
