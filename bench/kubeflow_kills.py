"""`kill -9` once in every task of `rlhf_pipeline` on this machine, then the same job again: the same weights.

python bench/kubeflow_kills.py           # in .venv-kubeflow
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/kubeflow")]

from conftest import SENTENCES  # noqa: E402
from work import parameter_values, write_data  # noqa: E402

from preferent import files  # noqa: E402
from preferent.commands.inference import from_scratch  # noqa: E402
from preferent.kubeflow import PipelineJob, local_execution, rlhf_pipeline  # noqa: E402

TASKS = (
    *("validate-pipeline", "rlhf-preprocessor", "supervised-fine-tuner", "reward-model-trainer", "judge-model-trainer"),
    *("reinforcer", "bulk-inferrer", "side-by-side", "run-report", "refined-upload-llm-model"),
)
COMPARED = ("reward/model", "judge/model", "policy/model", "predictions/tuned/text.jsonl", "comparison/judgments.jsonl")


def killed(job: PipelineJob, task: str, seconds: float) -> bool:
    """Start a job and kill it `seconds` after a task began; return whether the task was still running."""
    job.submit()
    process = job._process
    assert process is not None
    while (task, "RUNNING") not in local_execution.events(job._said()):
        assert process.poll() is None, job._said()[-2000:]
        time.sleep(0.02)
    time.sleep(seconds)
    running = (task, "SUCCESS") not in local_execution.events(job._said())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def main() -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        folder = Path(place)
        write_data(folder)
        (folder / "text.txt").write_text("\n".join(SENTENCES))
        sizes = {"vocab_size": 384, "hidden_size": 32, "layers": 2, "heads": 4, "max_position_embeddings": 128}
        from_scratch.make([folder / "text.txt"], folder / "model", **sizes)
        job = PipelineJob("killed", None, "bucket", parameter_values(folder / "model"), rlhf_pipeline)
        print("| task | killed while it ran |\n|---|---|")
        for task in TASKS:
            print(f"| `{task}` | {'yes' if killed(job, task, 0.6) else 'no: it had ended'} |", flush=True)
        job.run()
        argv = [sys.executable, "-m", "preferent", "run", "bucket/killed/recipe.yaml", "--out", "straight"]
        subprocess.run(argv, check=True, capture_output=True)
        same = {name: files.fingerprint(Path("bucket/killed", name)) == files.fingerprint(Path("straight", name))
                for name in COMPARED}  # fmt: skip
    print(f"\nequal to `preferent run`: {same}")
    sys.exit(not all(same.values()))


if __name__ == "__main__":
    main()
