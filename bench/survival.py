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
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_survival import saved, whole  # noqa: E402

from preferent import checkpoint  # noqa: E402

COUNTS = {"KILLS": "40", "DAMAGES": "200", "PHASES": "11", "FULL_DISKS": "16"}
TESTS = ("test_survival.py", "test_survival_runs.py", "test_survival_stages.py", "test_kill.py")
CHANGES = (
    "mkdir,mkdirat,ftruncate,fallocate,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir"
)
WRITES = ("mkdir", "mkdirat", "ftruncate", "fallocate", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat")
SAVE = """
import os, sys; from pathlib import Path
from test_survival import saved
from preferent.error import PlatformError
os.write(2, b"BEGIN")
try:
    saved(Path(sys.argv[1]), 3)
except PlatformError:
    sys.exit(3)
os.write(2, b"END")
"""
Row = list[object]


def tests() -> list[Row]:
    """What the tests recorded, run with the full counts."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-m",
            "acceptance or not acceptance",
            f"--junitxml={results}",
        ]
        environment = os.environ | {f"PREFERENT_{name}": count for name, count in COUNTS.items()}
        done = subprocess.run([*argv, *(f"tests/{name}" for name in TESTS)], cwd=ROOT, env=environment)
        found = ElementTree.parse(results).iterfind(".//property[@name='survival']")
        rows = [ast.literal_eval(one.attrib["value"]) for one in found]
    if done.returncode:
        sys.exit("a test failed, see above")
    return rows


def strace(folder: Path, *options: str) -> tuple[int, str]:
    """The exit code of a save under strace, and its trace."""
    for step in (1, 2):
        saved(folder, step)
    log = folder.parent / "trace"
    argv = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CHANGES}", *options]
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
        print("no strace here: the calls that the kernel sees are left out")
        return []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "checkpoints")
        code, trace = strace(folder)
        assert code == 0, trace
        every = calls(trace)
        print("calls of a save:", " ".join(name for name, _ in every))
        for what, effect, chosen, expected in (
            ("SIGKILL", "signal=KILL", every, -9),
            ("ENOSPC", "error=ENOSPC", [call for call in every if call[0] in WRITES], 3),
        ):
            differences = partial_loads = 0
            for name, number in chosen:
                shutil.rmtree(folder)
                code, trace = strace(folder, "-e", f"inject={name}:{effect}:when={number}")
                differences += code != expected
                partial_loads += not whole(checkpoint.latest(folder), (2, 3))
                saved(folder, 3)
                differences += not whole(checkpoint.latest(folder), (3,)) or checkpoint.steps(folder) != [2, 3]
                differences += len(list(folder.iterdir())) != 2
            rows.append([f"{what} by strace at every call of a save", len(chosen), differences, partial_loads])
    return rows


def main() -> None:
    rows = [*kernel(), *tests()]
    print("\n| what | how many | differences | partial loads |\n|---|---|---|---|")
    for what, count, differences, *partial_loads in rows:
        print(f"| {what} | {count} | {differences} | {partial_loads[0] if partial_loads else '–'} |")


if __name__ == "__main__":
    main()
