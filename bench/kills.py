"""`kill -9` at random moments of every stage, in full and with LoRA, then the same command until it ends.

python bench/kills.py [--kills COUNT] [--minutes LIMIT] [--folder FOLDER]

Each command is a process of its own. What it leaves is compared to the last byte with what the same command left that
nobody disturbed: models, best weights, checkpoints' tensors, metrics, rollouts, samples, predictions, judgments, data.
Counts are kept in FOLDER/kills.json after every kill, so that the next call goes on there, or from the start if the
code of preferent changed; after LIMIT minutes it leaves. Prints the table when all kills are done; fails where a byte
differs.
"""

import argparse
import hashlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conftest import SENTENCES  # noqa: E402
from nursery import Nursery, prepare  # noqa: E402

from preferent import files  # noqa: E402

PAIRS = ("train=pairs.jsonl", "validation=pairs.jsonl", "test=pairs.jsonl")
PROMPTS = ("train=prompts.jsonl", "validation=prompts.jsonl")
PLACES = (
    *("model/*.safetensors", "best/*/*.safetensors", "checkpoints/*/*.safetensors", "rollouts/*", "*.jsonl"),
    *("score.json", "quality.json", "metrics.json", "counts.json", "preference/*.jsonl", "prompt/*.jsonl"),
)
ROUND = 5
"""Kills of a job before the next one's turn."""

TIMES = ("timings.jsonl",)


@dataclass(frozen=True)
class Job:
    """A stage's command: its inputs and settings."""

    stage: str
    inputs: tuple[str, ...]
    settings: tuple[str, ...] = ()

    def words(self, recipe: str, out: str) -> list[str]:
        inputs = [word for pair in self.inputs for word in ("--in", pair)]
        settings = [word for setting in self.settings for word in ("--set", setting)]
        return [*self.stage.split(), "--recipe", recipe, *inputs, *settings, "--out", out]


MEMBERS = ("reward=whole/reward/model", "reward-2=whole/reward, second member/model")
SHARES = ("data.test_share=0.2", "data.validation_share=0.2")
QUANTIZED = ("quantize=nf4", "sft.lora_dim=2", "reward.lora_dim=2", "ppo.lora_dim=2")
JOBS: dict[str, Job] = {
    "data": Job(
        "data prepare", (), ("preference_dataset=pairs.jsonl", "data.test_share=0.2", "data.validation_share=0.2")
    ),
    "sft": Job("sft", ("model=model",)),
    "sft, LoRA": Job("sft", ("model=model",), ("sft.lora_dim=2",)),
    "reward": Job("reward", ("model=model", *PAIRS)),
    "reward, second member": Job("reward", ("model=model", *PAIRS), ("seed=1",)),
    "reward, LoRA": Job("reward", ("model=model", *PAIRS), ("reward.lora_dim=2",)),
    "ppo": Job("ppo", ("model=model", MEMBERS[0], *PROMPTS)),
    "ppo, two members": Job("ppo", ("model=model", *MEMBERS, *PROMPTS), ("reward.members=2",)),
    "ppo, LoRA": Job("ppo", ("model=model", "reward=whole/reward, LoRA/model", *PROMPTS), ("ppo.lora_dim=2",)),
    "ppo, one backbone, checkpointing": Job(
        "ppo",
        ("model=model", "reward=whole/reward, LoRA/model", *PROMPTS),
        ("reward.lora_dim=2", "ppo.lora_dim=2", "gradient_checkpointing=true"),
    ),
    "reward, nf4": Job("reward", ("model=model", *PAIRS), QUANTIZED),
    "ppo, nf4": Job("ppo", ("model=model", "reward=whole/reward, nf4/model", *PROMPTS), QUANTIZED),
    "reward, adamw8bit": Job("reward", ("model=model", *PAIRS), ("optimizer=adamw8bit",)),
    "ppo, adamw8bit": Job("ppo", ("model=model", MEMBERS[0], *PROMPTS), ("optimizer=adamw8bit",)),
    "dpo": Job("dpo", ("model=model", *PAIRS)),
    "dpo, LoRA": Job("dpo", ("model=model", *PAIRS), ("dpo.lora_dim=2",)),
    "rejection": Job("rejection", ("model=model", MEMBERS[0], *PROMPTS)),
    "infer": Job("infer", ("model=whole/ppo/model", "reference=model", "prompts=prompts.jsonl")),
    "compare": Job("compare", ("a=whole/infer", "b=whole/infer, base", "judge=whole/reward/model")),
}
BASE = Job("infer", ("model=model", "prompts=prompts.jsonl"))


def outcome(folder: Path) -> dict[str, str]:
    """Return the hash of everything that must be equal to the last byte."""
    paths = sorted({path for place in PLACES for path in folder.glob(place) if path.name not in TIMES})
    assert paths, folder
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def code_digest() -> str:
    """Return the hash of the code that is killed."""
    paths = sorted((ROOT / "preferent").rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()


def begin(folder: Path) -> None:
    """Make a small model, data and recipe, once for each state of the code."""
    code = folder / "code.sha256"
    if code.exists() and code.read_text() == code_digest():
        return
    from preferent.commands.inference import from_scratch

    if folder.exists():
        if not (folder / "recipe.yaml").exists() or not (folder / "whole").exists():
            sys.exit(f"{folder}: is no folder of this bench; name another one")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    text = folder / "text.txt"
    text.write_text("\n".join(SENTENCES))
    sizes: dict[str, Any] = {"vocab_size": 384, "hidden_size": 64, "layers": 2, "heads": 2, "seed": 5}
    from_scratch.make([text], folder / "made", max_position_embeddings=64, **sizes)
    prepare(folder, folder / "made")
    (folder / "whole").mkdir()
    code.write_text(code_digest())


def whole(nursery: Nursery, folder: Path, name: str, job: Job) -> float:
    """Run a job without a kill, once; return the seconds that it takes."""
    path = folder / "whole" / name
    started = time.monotonic()
    if not (path / "DONE").exists():
        code, said = nursery.run(*job.words("recipe.yaml", f"whole/{name}"))
        assert code == 0, (name, said)
        (path.parent / f"{name}.seconds").write_text(str(time.monotonic() - started))
    return float((path.parent / f"{name}.seconds").read_text())


def kill(
    nursery: Nursery, folder: Path, name: str, counts: dict[str, Any], save: Callable[[], None], until: int
) -> None:
    """Kill a job at random moments until it has ended as often as it must; count kills and differences."""
    seconds, expected = whole(nursery, folder, name, JOBS[name]), outcome(folder / "whole" / name)
    while counts["kills"] < until or counts["running"]:
        moment = random.Random(f"{name} {counts['kills']} {counts['ends']}").random() * seconds * counts["share"]
        out = f"killed/{name}"
        nursery.start(*JOBS[name].words("recipe.yaml", out), kill_after=moment if counts["kills"] < until else None)
        code = nursery.wait()
        assert code in (0, -signal.SIGKILL), (name, nursery.log.read_text())
        counts["running"] = code != 0
        counts["kills"] += code != 0
        if code == 0:
            counts["ends"] += 1
            counts["differences"] += outcome(folder / out) != expected
            counts["share"] = counts["share"] * 0.8 if counts["since"] == 0 else counts["share"]
            counts["since"] = 0
            shutil.rmtree(folder / out)
        else:
            counts["since"] += 1
        save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=29, help="kills of each of the jobs (default: 29, 522 in all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="leave after so many minutes")
    parser.add_argument("--folder", type=Path, default=Path("build/kills"))
    arguments = parser.parse_args()
    folder, end = arguments.folder, time.monotonic() + 60 * arguments.minutes
    begin(folder)
    path = folder / "kills.json"
    fresh = {"kills": 0, "ends": 0, "differences": 0, "running": False, "since": 0, "share": 1.0}
    table: dict[str, dict[str, Any]] = {name: dict(fresh) for name in JOBS} | (
        files.read_json(path) if path.exists() else {}
    )
    nursery = Nursery(folder)
    whole(nursery, folder, "infer, base", BASE)
    for number in [*range(ROUND, arguments.kills, ROUND), arguments.kills]:
        for name in JOBS:
            if time.monotonic() > end:
                nursery.close()
                print(f"{sum(row['kills'] for row in table.values())} kills so far; the same command goes on")
                return
            kill(nursery, folder, name, table[name], lambda: files.write_json(path, table), number)
    nursery.close()
    print("| stage | kills | runs that ended | differences |\n|---|---|---|---|")
    columns = ("kills", "ends", "differences")
    sums = {"all": {key: sum(row[key] for row in table.values()) for key in columns}}
    for name, row in (table | sums).items():
        print(f"| `{name}` | {' | '.join(str(row[key]) for key in columns)} |")
    sys.exit(any(row["differences"] for row in table.values()))


if __name__ == "__main__":
    main()
