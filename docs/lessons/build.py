"""Executes the lessons and writes their notebooks, with outputs, beside the sources.

python docs/lessons/build.py                          all, at full size
python docs/lessons/build.py 1_how_rlhf_works         these alone

A source is a Python file in percent format. Lesson 3 runs in the environment of the pipelines, `.venv-kubeflow`.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = {path.stem: path for path in sorted(HERE.glob("[0-9]_*.py"))}
INTERPRETERS = {"3_tuning": ROOT / ".venv-kubeflow/bin/python"}
"""The lessons that run in another environment than this one."""

CELL_SECONDS = 600
NOWHERE = "http://127.0.0.1:9"
"""Stands for every proxy, so that no command of a lesson reaches the network."""


def interpreter(name: str) -> Path:
    """Return the Python that a lesson runs in."""
    return INTERPRETERS.get(name, Path(sys.executable))


def executed(name: str, size: str) -> nbformat.NotebookNode:
    """Execute a lesson at `ci` or `full` size and return its notebook; raises the error of the first cell that fails.

    The notebook keeps nothing that changes without its outputs: no times, no versions, no random cell ids.
    """
    notebook = jupytext.read(SOURCES[name])
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    environment = os.environ | proxies | {"LESSON": size, "HF_HUB_OFFLINE": "1", "NO_PROXY": "localhost,127.0.0.1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as kernels:
        spec = Path(kernels) / "lesson/kernel.json"
        spec.parent.mkdir()
        argv = [str(interpreter(name)), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
        specs = KernelSpecManager(kernel_dirs=[kernels], ensure_native_kernel=False)
        manager = AsyncKernelManager(kernel_name="lesson", kernel_spec_manager=specs)
        client = NotebookClient(
            notebook, km=manager, timeout=CELL_SECONDS, record_timing=False, coalesce_streams=True,
            resources={"metadata": {"path": str(HERE)}},
        )  # fmt: skip
        client.execute(env=environment)
    return bare(notebook)


def bare(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook with the metadata that a reader needs alone."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.metadata, cell.id = nbformat.from_dict({}), f"cell-{number}"
    return notebook


def main(names: list[str]) -> None:
    for name in names or SOURCES:
        if not interpreter(name).exists():
            sys.exit(f"lesson {name} runs in {interpreter(name).relative_to(ROOT)}, which is not there: make kubeflow")
        began = time.monotonic()
        nbformat.write(executed(name, "full"), SOURCES[name].with_suffix(".ipynb"))
        print(f"{name}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
