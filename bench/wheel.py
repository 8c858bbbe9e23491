"""Build the wheel, install it into an empty environment, and run what needs the files beside the code.

python bench/wheel.py [--keep FOLDER]        (make wheel)

The environment sees neither this checkout nor its packages. From an empty folder it runs `quickstart` (minutes), makes
the report of that run again, and opens `label` on it: the page, and every script and style that the page names, must
come. Exits 1 where a command fails or a file is missing.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
NAMED = re.compile(r'(?:src|href)="/static/([\w.]+)"|from "(?:/static|\.)/([\w.]+)"')


def run(words: list[str], folder: Path) -> None:
    """Run a command that must succeed, and print how long it took."""
    began = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    print(f"{time.perf_counter() - began:6.1f} s  {Path(words[0]).name} {' '.join(words[1:4])}", flush=True)


def installed(folder: Path) -> Path:
    """Build the wheel and install it, with the pins of constraints.txt; return the `bin` folder of the environment."""
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], folder)
    (wheel,) = folder.glob("preferent-*.whl")
    run([sys.executable, "-m", "venv", str(folder / "environment")], folder)
    programs = folder / "environment" / "bin"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    run([str(programs / "python"), "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[ui]"], folder)
    return programs


def linked(text: str) -> list[str]:
    """Return the static files that a page or a script names; a module names those beside it."""
    return [f"/static/{name}" for groups in NAMED.findall(text) for name in groups if name]


def fetched(programs: Path, folder: Path) -> int:
    """Open `label` on the run and fetch its page with everything that it names; return the number of files."""
    words = [str(programs / "preferent"), "label", "run"]
    server = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        address = next(match.group(0) for line in server.stdout if (match := ADDRESS.search(line)))
        names, texts = ["/", "/owner"], {}
        while names:
            name = names.pop()
            if name not in texts:
                texts[name] = urllib.request.urlopen(address + name).read().decode()
                names += linked(texts[name])
        return len(texts)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--keep", type=Path, help="where to leave the environment and the run")
    arguments = words.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        programs = installed(folder)
        work = folder / "work"
        work.mkdir()
        run([str(programs / "preferent"), "quickstart", "run"], work)
        (work / "run" / "report.html").unlink()
        run(
            [str(programs / "preferent"), "report", "--recipe", "run/recipe.yaml", "--in", "run=run", "--out", "run"],
            work,
        )
        assert (work / "run" / "report.html").stat().st_size > 10_000
        print(f"label serves {fetched(programs, work)} files")


if __name__ == "__main__":
    main()
