"""Ranks as a run starts them: the launcher, a whole run with two processes, torchrun, and what listens meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from nursery import prepare
from ranked import SMALL

from preferent.config import recipe as recipes
from preferent.errors import ERROR_FILE
from preferent.pipelines.launchers import child_process, train_job
from preferent.pipelines.launchers.train_job import Nodes
from preferent.runs import environment

RUN = """
preference_dataset: pairs.jsonl
prompt_dataset: prompts.jsonl
processes: 2
device: cpu
"""


def ended(size: int, code: str, **more: str) -> int:
    """Run a piece of Python as ranks; `r` is the rank."""
    begin = "import os, sys, time; r = int(os.environ['RANK']); "
    return child_process.run_ranks([sys.executable, "-c", begin + code], size, dict(os.environ) | more)


def test_ranks_know_which_they_are_and_where_they_meet(tmp_path: Path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PREFERENT_RENDEZVOUS")
    assert ended(3, f"print(*[os.environ[n] for n in {names}], file=open(os.environ['OUT'] + str(r), 'w'))",
                 OUT=str(tmp_path / "rank-")) == 0  # fmt: skip
    said = [(tmp_path / f"rank-{rank}").read_text().split() for rank in range(3)]
    assert [words[:4] for words in said] == [[str(rank), str(rank), "3", "3"] for rank in range(3)]
    assert len({words[4] for words in said}) == 1


def test_the_meeting_place_is_of_this_user_alone_and_gone_afterwards(capfd: pytest.CaptureFixture[str]):
    code = "p = os.path.dirname(os.environ['PREFERENT_RENDEZVOUS']); print(p, oct(os.stat(p).st_mode & 0o777))"
    assert ended(2, code) == 0
    folder, mode = capfd.readouterr().out.split()
    assert mode == "0o700"
    assert not Path(folder).exists()


def test_one_rank_that_fails_ends_all_and_says_why(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    code = (
        "print('out', r, flush=True); print('rank', r, 'says', file=sys.stderr, flush=True)\n"
        f"place = os.environ['{ERROR_FILE}']; open(place, 'w').write('why')\n"
        "while r and not os.path.exists(place[:-1] + '0'): time.sleep(0.01)\n"
        "r or time.sleep(60); sys.exit(5)"
    )
    assert ended(2, code, **{ERROR_FILE: str(tmp_path / "error")}) == 5
    said = capfd.readouterr()
    assert (said.out, said.err.splitlines()) == ("out 0\n", ["rank 0 says", "out 1", "rank 1 says"])
    assert (tmp_path / "error").read_text() == "why"


def test_a_rank_that_is_killed_is_named(capfd: pytest.CaptureFixture[str]):
    assert ended(2, "os.kill(os.getpid(), 9) if r else time.sleep(60)") == 137
    assert "rank 1 of 2 was ended by SIGKILL" in capfd.readouterr().err


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "_gpus", lambda: [{}] * 4)

    def count(stage: str, **values: object) -> int:
        return environment.processes(recipes.parse({"large_model_reference": "m"} | values)[0], stage)

    assert count("ppo") == 1
    assert count("ppo", processes=3) == 3
    assert count("data", processes=3) == count("report", processes=3) == 1
    assert count("ppo", processes="auto") == 4
    assert count("ppo", processes="auto", device="cpu") == 1
    monkeypatch.setattr(environment, "_gpus", list)
    assert count("ppo", processes="auto") == 1


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("processes"), make_model())
    small = "".join(f"{name}: {value}\n" for name, value in SMALL.items() if name not in ("sft", "ppo"))
    text = "".join(line for line in (folder / "recipe.yaml").read_text().splitlines(True) if line.startswith("large"))
    text += "precision: fp32\nthreads: 1\nprompt_sequence_length: 24\ntarget_sequence_length: 8\n"
    text += f"ppo: {SMALL['ppo']}\n{small}{RUN}"
    (folder / "recipe.yaml").write_text(text)
    return folder


def preferent(folder: Path, *words: str, **options: object) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "preferent", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(argv, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def listening(process: int) -> list[str]:
    """Return the local addresses, as the kernel writes them, at which a process and what it started listen."""
    tasks = Path(f"/proc/{process}/task")
    children = [int(word) for task in tasks.glob("*") for word in (task / "children").read_text().split()]
    addresses = [address for child in children for address in listening(child)]
    sockets = {os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, _, _, _, _, _, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                addresses.append(local.partition(":")[0])
    return addresses


@pytest.mark.ranks
def test_a_run_with_two_processes_listens_on_loopback_only(folder: Path):
    process = preferent(folder, "run", "recipe.yaml", "--out", "run")
    seen: list[str] = []
    while process.poll() is None:
        with contextlib.suppress(OSError):  # a process ended while it was looked at
            seen += listening(process.pid)
        time.sleep(0.05)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    index = json.loads((folder / "run/run.json").read_text())["stages"]
    assert all(stage["done"] for stage in index.values())
    sizes = {name: stage["facts"].get("size") for name, stage in index.items()}
    computing = ("reward", "judge", "ppo", "infer-base", "infer-tuned")
    assert {name: size for name, size in sizes.items() if size} == dict.fromkeys(computing, 2)
    assert seen
    assert set(seen) == {"0100007F"}
    assert said.count("ppo 3/3") == 1
    again = preferent(folder, "run", "recipe.yaml", "--out", "run")
    assert again.communicate()[0].count("done already") == len(index) - 1


@pytest.mark.ranks
def test_a_stage_that_is_started_alone_has_its_ranks_and_is_stopped_by_one_signal(folder: Path):
    section = SMALL["sft"].replace("train_steps: 4", "train_steps: 5000")
    words = ("sft", "--recipe", "recipe.yaml", "--in", "model=model", "--set", f"sft={section}", "--out", "stopped")
    process = preferent(folder, *words)
    metrics = folder / "stopped/metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert said.count("stopping; the same command goes on from here") == 1
    assert said.count("stopped; the same command goes on from here") == 1
    assert "rank 1" not in said
    done = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert (folder / f"stopped/checkpoints/step-{done:06d}").is_dir()


@pytest.mark.ranks
def test_torchrun_sets_the_same_environment(folder: Path):
    argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2", "--master-port"]
    argv += [str(free_port()), "-m", "preferent", "sft", "--recipe", "recipe.yaml", "--in", "model=model"]
    argv += ["--set", f"sft={SMALL['sft']}"]
    done = subprocess.run([*argv, "--out", "torchrun"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "torchrun/stage.json").read_text())["facts"]["size"] == 2
    refused = subprocess.run(
        [sys.executable, "-m", "preferent", "run", "recipe.yaml", "--out", "refused"],
        cwd=folder, env=os.environ | {"WORLD_SIZE": "2", "RANK": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "set processes in the recipe" in refused.stderr


@pytest.mark.ranks
def test_a_train_job_of_two_nodes_does_a_stage_of_a_run(folder: Path):
    """Both nodes are processes here, with what Kubeflow Trainer says to torchrun in the environment."""
    words = ("run", "recipe.yaml", "--set", "compare.judge=reward", "--out", "nodes", "--until")
    said, _ = preferent(folder, *words, "reward").communicate()
    assert said.endswith("nodes: done up to reward; the same command without --until goes on\n"), said
    stages = json.loads((folder / "nodes/run.json").read_text())["stages"]
    assert [name for name, stage in stages.items() if stage["done"]] == ["data", "reward"]
    recipe, nodes = recipes.load(folder / "nodes/recipe.yaml")[0], Nodes("image", "claim", folder=folder)
    _, job = yaml.safe_load_all(train_job.text(recipe, "ppo", folder / "nodes", nodes))
    trainer, port = job["spec"]["trainer"], str(free_port())
    argv = [sys.executable, "-m", "torch.distributed.run", *trainer["command"][1:], *trainer["args"]]
    env = {each["name"]: each["value"] for each in trainer["env"]} | {"PET_NNODES": str(trainer["numNodes"])}
    env |= {"PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    env |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(argv, cwd=folder, env=os.environ | env | {"PET_NODE_RANK": str(node)}, stderr=subprocess.PIPE)
        for node in range(trainer["numNodes"])
    ]
    errors = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert json.loads((folder / "nodes/policy/stage.json").read_text())["facts"]["size"] == 2
    assert "3/7 ppo: done already" in preferent(folder, *words, "ppo").communicate()[0]


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
