"""The bytes of a file, of a compressed file, of the copy of a remote file, or of a pipe, which is read once and kept
until the process ends."""

import contextlib
import functools
import gzip
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import IO

from preferent.config.remote_names import is_remote
from preferent.runs import remote_files

STDIN = "/dev/stdin"
DEVICES = (STDIN, "/dev/null")
GZIP = b"\x1f\x8b"


def is_pipe(file: str) -> bool:
    """Return whether a name stands for standard input, a named pipe or the output of a command, `<(…)`."""
    try:
        mode = os.stat(STDIN if file == "-" else file).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and file in DEVICES)


@contextlib.contextmanager
def opened(file: str) -> Iterator[IO[bytes]]:
    """Open a file or a pipe to read its bytes, unpacked if they are compressed."""
    with _raw(file) as stream:
        packed = stream.read(len(GZIP)) == GZIP
        stream.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield stream


def _raw(file: str) -> IO[bytes]:
    if is_remote(file):
        return open(remote_files.path_of(file), "rb")
    if not is_pipe(file):
        return open(file, "rb")
    about = os.stat(file)
    whole = os.dup(_copied(file, about.st_dev, about.st_ino).fileno())
    os.lseek(whole, 0, os.SEEK_SET)
    return open(whole, "rb")


@functools.cache
def _copied(file: str, _device: int, _inode: int) -> IO[bytes]:
    """Copy what a pipe says to a temporary file without a name."""
    whole = tempfile.TemporaryFile()  # noqa: SIM115
    with open(0, "rb", closefd=False) if file == STDIN else open(file, "rb") as pipe:
        shutil.copyfileobj(pipe, whole)
    whole.flush()
    return whole
