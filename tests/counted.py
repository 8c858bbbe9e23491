"""`preferent`, and the stages that it starts, with a line in a file for each load and each hash of a model's weights.

python tests/counted.py FILE WORDS...
"""

import json
import sys
from pathlib import Path
from typing import Any

import forking

from preferent import files
from preferent.cli import main

file = Path(sys.argv[1])


def note(**facts: Any) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps({"command": sys.argv[1:], **facts}) + "\n")


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
    count_hashes()
    forking.fork_stages(count_loads)
    main.main()
