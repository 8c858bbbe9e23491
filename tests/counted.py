"""`preferent`, and the stages that it starts, with a line in a file for each load and each hash of a model's weights.

python tests/counted.py FILE WORDS...
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preferent import files
from preferent.cli import main
from preferent.pipelines.launchers import child_process

file = Path(sys.argv[1])


def note(**facts: Any) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps({"command": sys.argv[1:], **facts}) + "\n")


def run_here(argv: Sequence[str], cwd: Path | None = None, env: Any = None) -> int:
    return subprocess.run([sys.executable, __file__, str(file), *argv[3:]], cwd=cwd, env=env, check=False).returncode


def count_hashes() -> None:
    sha256 = files.sha256

    def counted(path: Path) -> str:
        if path.name == "model.safetensors":
            note(hashed=str(path.resolve()))
        return sha256(path)

    files.sha256 = counted


def count_loads() -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):

        def counted(source: Path, *rest: Any, load: Any = kind.from_pretrained, **values: Any) -> Any:
            note(loaded=str(Path(source).resolve()))
            return load(source, *rest, **values)

        kind.from_pretrained = counted


if __name__ == "__main__":
    del sys.argv[1]
    child_process.run_here = run_here
    count_hashes()
    if sys.argv[1] != "run":
        count_loads()
    main.main()
