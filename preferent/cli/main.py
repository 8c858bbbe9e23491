"""The command line: `preferent VERB …`. A verb imports what it needs when it runs, so that help is instant."""

import errno
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import TextIO

from preferent import files, ranks
from preferent.cli.actions import Arguments
from preferent.cli.arguments import STAGES, parser
from preferent.errors import ERROR_FILE, Interrupted, PlatformError, PreferentError, UsageError
from preferent.runs import interruption, stages

__all__ = ["STAGES", "main", "parser"]

# A thread that waits gives its core away soon, for another program may need it. Set before torch starts.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, without importing torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _known(error: BaseException) -> PreferentError | None:
    """Return the error as a message for the user; None if it is a bug of ours."""
    if isinstance(error, PreferentError):
        return error
    if _out_of_memory(error):
        from preferent.runs.memory_choice import smaller

        stage = next((word for word in sys.argv[1:] if word in STAGES), "ppo")
        after = dict(zip(sys.argv, sys.argv[1:], strict=False)).get("--out")
        out = None if after is None else Path(after)
        first = str(error).split("\n")[0][:200]
        return PlatformError(f"out of memory{f': {first}' if first else ''}\n{smaller(stage, out)}")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{str(error.filename)[:100]}…: is too long for the name of a file")
    if why := files.refusal(error):
        named = isinstance(error, OSError) and error.filename
        return PlatformError(f"{named or 'disk'}: {why}; fix that, then run the same command again")
    return None


def _unexpected(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Print an error that is a bug of ours, in place of Python's traceback."""
    if kind is KeyboardInterrupt:  # before or after the work, where no handler is installed
        return
    print(
        f"preferent: {ranks.speak()}unexpected {kind.__name__}: {error}\n"
        f"This is a bug in preferent. To see where it happened: "
        f"preferent --debug {' '.join(sys.argv[1:])}",
        file=sys.stderr,
    )
    ranks.leave(1)


def main() -> None:
    """Run the command line and exit with its code; end quietly where nobody reads the output to its end."""
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
        ranks.leave(0)
    except (BrokenPipeError, SystemExit) as end:
        pipes = [stream for stream in (sys.stdout, sys.stderr) if _unread(stream)]
        broken = isinstance(end, BrokenPipeError) or isinstance(end.__context__, BrokenPipeError)
        if not broken or not (pipes or isinstance(end, SystemExit)):
            raise
        for stream in pipes:  # what is left in its buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE if ERROR_FILE in os.environ else 0)  # a run must know that its stage left


def _unread(stream: TextIO) -> bool:
    """Return whether a stream is a pipe whose reader left, as `| head` does."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):  # a stream without a file
        return False


def _run() -> None:
    top = parser()
    arguments = top.parse_args()
    debug = arguments.debug or "PREFERENT_DEBUG" in os.environ
    if debug:
        os.environ["PREFERENT_DEBUG"] = "1"  # for the stages that `run` starts
    else:
        sys.excepthook = _unexpected
    if arguments.version:
        print(stages.versions()["preferent"])
    elif not hasattr(arguments, "do"):
        top.print_help()
    else:
        _leave(arguments, debug)


def _leave(arguments: Arguments, debug: bool) -> None:
    try:
        ranks.quiet()
        with interruption.stoppable() as stop:
            arguments.do(arguments)
            with ranks.alone():  # the others may be done since long
                stop.check()
    except Exception as error:
        if known := _known(error):
            if debug:
                traceback.print_exc()
            named = "" if isinstance(known, Interrupted) else ranks.speak()
            print(f"preferent: {named}{known}", file=sys.stderr)
            if place := os.environ.get(ERROR_FILE):
                Path(place).write_text(str(known))
            ranks.leave(known.exit_code)
            sys.exit(known.exit_code)
        raise
