"""The errors a user can cause or meet. Each says what, where, why and what to do; each has an exit code."""

ERROR_FILE = "PREFERENT_ERROR_FILE"
"""Environment variable: where a stage that fails leaves its message for the process that started it."""


class PreferentError(Exception):
    """A message for the user; the command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 1


class UsageError(PreferentError):
    """The command or the recipe is wrong, or does not fit the run directory it is pointed at."""

    exit_code = 2


class PlatformError(PreferentError):
    """Something outside is missing: a file, a package, a permission, memory, disk or the network."""

    exit_code = 3


class DataError(PreferentError):
    """A row, a file or a data set is not what it should be; the message begins with `FILE:LINE` where it can."""

    exit_code = 4


class DivergedError(PreferentError):
    """Training produced a number that is not finite."""

    exit_code = 5


class Interrupted(PreferentError):
    """A signal asked the program to stop; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
