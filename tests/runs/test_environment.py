"""What a bug report says about the computer: complete, quick, and nothing that is nobody's business."""

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from preferent.config.recipe import Recipe
from preferent.models.world import World
from preferent.runs import environment

GPU = "NVIDIA H200, 143771, 9.0, 570.124.06\n"
OLD = "Tesla T4, [N/A], 7.5, 570.124.06\n"


def test_it_is_what_torch_finds():
    found = environment.describe()
    assert found["versions"]["torch"] and found["versions"]["preferent"]
    world = World.of(Recipe(large_model_reference="m"))
    assert found["threads"] == world.threads
    if world.device.type == "cpu":
        assert ("bfloat16" in str(world.dtype)) == found["bf16_on_cpu"]


def test_the_json_is_the_same():
    done = subprocess.run([sys.executable, "-m", "preferent", "env", "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout) == environment.describe()


def test_nothing_private_and_nothing_heavy(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = """
import sys
sys.argv = ["preferent", "env"]
from preferent.cli.main import main
main()
heavy = {"torch", "transformers", "pydantic", "numpy", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    private = [str(Path.home()), str(Path.cwd()), sys.prefix, socket.gethostname(), "hf_secret"]
    private += [getpass.getuser()] if getpass.getuser() != "root" else []
    assert not [word for word in private if word in text]
    for fact in ("preferent", "torch", "platform", "memory", "GPU", "bf16", "threads"):
        assert fact in text


@pytest.mark.parametrize(("line", "bf16", "memory"), [(GPU, True, 140.4), (OLD, False, 0.0)])
def test_a_gpu_is_told(monkeypatch, tmp_path, line, bf16, memory):
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\nprintf '{line}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = environment.describe()
    assert [(gpu["bf16"], gpu["memory_gib"]) for gpu in found["gpus"]] == [(bf16, memory)]
    assert line.split(",")[0] in environment.render(found)


def test_a_driver_that_fails_is_no_gpu(monkeypatch, tmp_path):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'a, b, c, d'\nexit 9\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.describe()["gpus"] == []
