"""What survives what: kills, full disks, damage, signals, changed data, moved directories; one Markdown table.

python bench/survival.py

The tests of survival with their full counts, each of which records [what, how many, differences, partial loads]; and,
where strace is installed, one save of a checkpoint killed, and refused for want of room, at every call that the kernel
sees. About a quarter of an hour.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from faults import saved, whole  # noqa: E402

from preferent.models import checkpoint  # noqa: E402
from preferent.runs.checkpoints import step_folders  # noqa: E402

COUNTS = {"KILLS": "40", "DAMAGES": "200", "PHASES": "11", "FULL_DISKS": "8"}
TESTS = ("test_kill.py", "test_survival_stages.py", "test_survival.py", "test_survival_runs.py")
CHANGES = (
    "mkdir,mkdirat,ftruncate,fallocate,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir"
)
WRITES = ("mkdir", "mkdirat", "ftruncate", "fallocate", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat")
SAVE = """
import os, sys; from pathlib import Path
from faults import saved
from preferent.errors import PlatformError
os.write(2, b"BEGIN")
try:
    saved(Path(sys.argv[1]), 3)
except PlatformError:
    sys.exit(3)
os.write(2, b"END")
"""
Row = list[Any]


def tests(name: str) -> list[Row]:
    """What the tests of a file recorded, run with the full counts."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        argv = [sys.executable, "-m", "pytest", "-q", "-rs", "-o", "junit_family=legacy", f"--junitxml={results}"]
        environment = os.environ | {f"PREFERENT_{key}": count for key, count in COUNTS.items()}
        words = ["-m", "acceptance or not acceptance", f"tests/pipelines/{name}"]
        done = subprocess.run([*argv, *words], cwd=ROOT, env=environment, stdout=sys.stderr)
        found = ElementTree.parse(results).iterfind(".//property[@name='survival']")
        rows = [ast.literal_eval(one.attrib["value"]) for one in found]
    return rows if done.returncode == 0 else [*rows, [f"**a test in {name} failed**", 1, 1]]


def strace(folder: Path, *options: str) -> tuple[int, str]:
    """The exit code of a save under strace, and its trace."""
    for step in (1, 2):
        saved(folder, step)
    log = folder.parent / "trace"
    argv = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(log), "-e", f"trace={CHANGES}", *options]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*argv, sys.executable, "-c", SAVE, str(folder)], env=environment, capture_output=True)
    return done.returncode, log.read_text()


def calls(trace: str) -> list[tuple[str, int]]:
    """The calls of a save by name, each with its number among the calls of that name in the whole process."""
    seen: dict[str, int] = {}
    found, inside = [], False
    for name, line in re.findall(r"^\d+ +(\w+)(\(.*)$", trace, re.M):
        seen[name] = seen.get(name, 0) + 1
        if '"END"' in line:
            return found
        if inside:
            found.append((name, seen[name]))
        inside |= '"BEGIN"' in line
    raise AssertionError(trace[-2000:])


def kernel() -> list[Row]:
    """The same faults at the calls that the kernel sees."""
    if shutil.which("strace") is None:
        print("no strace here: the calls that the kernel sees are left out", file=sys.stderr)
        return []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "checkpoints")
        code, trace = strace(folder)
        assert code == 0, trace
        every = calls(trace)
        print("calls of a save:", " ".join(name for name, _ in every), file=sys.stderr)
        for what, effect, chosen, expected in (
            ("SIGKILL", "signal=KILL", every, -9),
            ("ENOSPC", "error=ENOSPC", [call for call in every if call[0] in WRITES], 3),
        ):
            differences = partial_loads = 0
            for name, number in chosen:
                shutil.rmtree(folder)
                code, trace = strace(folder, "-e", f"inject={name}:{effect}:when={number}")
                unharmed = code == 0 and whole(checkpoint.latest(folder), (3,))  # as mkdir of a folder that is there
                differences += code != expected and not unharmed
                partial_loads += not whole(checkpoint.latest(folder), (2, 3))
                saved(folder, 3)
                differences += not whole(checkpoint.latest(folder), (3,)) or step_folders.steps(folder) != [2, 3]
                differences += len(list(folder.iterdir())) != 2
            rows.append([f"{what} by strace at every call of a save", len(chosen), differences, partial_loads])
    return rows


def main() -> None:
    print("| what | how many | differences | partial loads |\n|---|---|---|---|")
    wrong = 0
    for part in (*(partial(tests, name) for name in TESTS), kernel):
        for what, count, *found in part():
            print(f"| {what} | {count} | {found[0]} | {found[1] if len(found) > 1 else '–'} |", flush=True)
            wrong += sum(found)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
