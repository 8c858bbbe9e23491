"""The install lines of the Dockerfile, run in an empty environment with the files that it copies.

python bench/dockerfile.py
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "src")
        source.mkdir()
        for line in lines:
            if match := re.fullmatch(r"COPY (.+) \./?(\w*)", line):
                for name in match[1].split():
                    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                    copy(ROOT / name, source / name)
        venv.create(Path(folder, "env"), with_pip=True)
        python = Path(folder, "env/bin/python")
        for line in lines:
            if line.startswith("RUN python "):
                print(line, flush=True)
                words = shlex.split(line.removeprefix("RUN python "))
                if "--extra-index-url" in words:  # the index of CPU builds; the one in use may have them already
                    place = words.index("--extra-index-url")
                    del words[place : place + 2]
                subprocess.run([python, *words, "--quiet"], cwd=source, check=True)
        for words in (["-m", "preferent", "env"], ["-c", "from preferent.kubeflow import rlhf_pipeline"]):
            subprocess.run([python, *words], cwd=folder, check=True)
    print("the install lines work")


if __name__ == "__main__":
    sys.exit(main())
