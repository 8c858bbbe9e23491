"""`preferent`, whose stages are forks of the process that runs it and has imported what they need.

python tests/forking.py WORDS...

A stage is still a process of its own, but begins seconds earlier.
"""

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from preferent.cli import main
from preferent.pipelines.launchers import child_process

PREFERENT = (sys.executable, __file__)
"""What to put before the words of a command, in the place of `preferent`."""


def fork_stages(prepare: Callable[[], None] = lambda: None) -> None:
    """Let stages be forks of this process, in which `prepare` runs first."""
    from preferent.evaluation import inference  # noqa: F401 - imported once for all stages
    from preferent.training import ppo  # noqa: F401

    gc.freeze()  # no stage looks through all this for garbage

    def run_here(argv: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.environ.update(env or {})
            if cwd is not None:
                os.chdir(cwd)
            sys.argv = ["preferent", *argv[3:]]
            prepare()
            perform()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code if code >= 0 else 128 - code

    child_process.run_here = run_here


def perform() -> None:
    """Do what `sys.argv` says, and leave."""
    code = 1
    try:
        main.main()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if "run" in sys.argv:
        fork_stages()
    main.main()
