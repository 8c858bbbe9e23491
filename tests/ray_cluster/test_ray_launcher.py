"""A run whose stages are actors of a Ray cluster: of two nodes, and of one that begins with the run; `make ray`."""

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_docs import write_data

from preferent.errors import PlatformError, UsageError
from preferent.pipelines.launchers import ray as launcher

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray has an environment of its own: make ray"
)
SECONDS = 600
SIZES = ["--vocab-size", "300", "--hidden-size", "32", "--layers", "2", "--heads", "2", "--positions", "64"]
LONG = """
large_model_reference: models/base
preference_dataset: data/preference.jsonl
prompt_sequence_length: 24
target_sequence_length: 8
reward_model_train_steps: 120
reinforcement_learning_train_steps: 30
checkpoint_every: 5
reward: {normalize_prompts: 8, batch_size: 8, validation_every: 60}
ppo: {batch_size: 8, validation_every: 15, validation_prompts: 8}
compare: {judge: reward}
infer: {max_prompts: 8}
threads: 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home without a token, in which we are; with data, recipes and a model."""
    folder = tmp_path_factory.mktemp("home")
    write_data(folder)
    (folder / "preferent.py").write_text("raise ImportError('from the working folder')")
    (folder / "long.yaml").write_text(LONG)
    (folder / "short.yaml").write_text(LONG.replace("steps: 120", "steps: 20").replace("steps: 30", "steps: 2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        for name in (*launcher.TOKENS, *launcher.ALONE, "RAY_ADDRESS", "RAY_AUTH_MODE", launcher.THREADS):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        assert started("scratch", "--text", "data/text.jsonl", "--out", "models/base", *SIZES).wait(SECONDS) == 0
        yield folder


@pytest.fixture(scope="module")
def two_nodes(home: Path) -> Iterator[str]:
    """The address of a cluster on 127.0.0.1: a head that computes nothing, and two nodes."""
    with pytest.MonkeyPatch.context() as patch:
        token = {launcher.TOKENS[0]: secrets.token_hex(32)}
        for name, text in (launcher.SETTINGS | launcher.ALONE | token).items():
            patch.setenv(name, text)
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, **small)
            for _ in range(2):
                cluster.add_node(num_cpus=1, **small)
            yield cluster.address
        finally:
            cluster.shutdown()


def started(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "preferent", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def processes(home: Path, title: str = "") -> list[int]:
    """The processes that were started in a home, whose command begins with a title."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and f"HOME={home}" in read(entry / "environ").split("\0")
        and read(entry / "cmdline").startswith(title)
    ]


def actor(home: Path) -> int:
    """The process of the stage that is an actor now."""
    return int(until(lambda: processes(home, "ray::StageActor"))[0])


def steps(folder: str) -> list[Path]:
    return list(Path(folder).glob("**/step-*"))


@needs_ray
def test_sigterm_reaches_the_actor(home: Path, two_nodes: str) -> None:
    """And the same command, without the cluster, goes on from there."""
    run = started("run", "long.yaml", "--out", "runs/here", "--launcher", "ray", "--address", two_nodes)
    until(lambda: steps("runs/here/reward"))
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 128 + signal.SIGTERM and "the same command goes on from here" in said, said
    until(lambda: not processes(home, "ray::StageActor"))
    assert started("run", "long.yaml", "--out", "runs/here").wait(SECONDS) == 0


@needs_ray
def test_a_run_survives_an_actor_and_a_node(home: Path, two_nodes: str) -> None:
    """The same bits as those of a run here."""
    if not Path("runs/here/report.html").exists():
        assert started("run", "long.yaml", "--out", "runs/here").wait(SECONDS) == 0
    run = started("run", "long.yaml", "--out", "runs/there", "--launcher", "ray", "--address", two_nodes)
    until(lambda: steps("runs/there/reward"))
    os.kill(actor(home), signal.SIGKILL)
    until(lambda: steps("runs/there/policy"))
    os.kill(node_of(actor(home)), signal.SIGKILL)
    _, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said
    lost = [line for line in said.splitlines() if "was lost; it goes on from its last checkpoint" in line]
    assert [line.partition(":")[0] for line in lost] == ["reward", "ppo"]
    for name in ("reward", "policy"):
        here, there = (Path(f"runs/{place}/{name}/model/model.safetensors").read_bytes() for place in ("here", "there"))
        assert here == there


def node_of(process: int) -> int:
    """The process that is the node of an actor."""
    variables = read(Path(f"/proc/{process}/environ")).split("\0")
    return int(next(line.partition("=")[2] for line in variables if line.startswith("RAY_RAYLET_PID=")))


@needs_ray
def test_a_cluster_of_this_machine_listens_on_loopback_alone(home: Path) -> None:
    others = set(processes(home))
    run = started("run", "short.yaml", "--launcher", "ray")
    actor(home)
    ours = set(processes(home)) - others
    places = [place for process in ours for place in listening(process)]
    assert len(places) > 4 and all(place.endswith("0100007F") for place in places), places
    variables = {variable for process in ours for variable in read(Path(f"/proc/{process}/environ")).split("\0")}
    assert len([variable for variable in variables if variable.startswith(f"{launcher.TOKENS[0]}=")]) == 1
    assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0"} <= variables
    _, said = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, said
    until(lambda: set(processes(home)) <= others)


def listening(process: int) -> list[str]:
    """The addresses on which a process listens, as hexadecimal digits."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in read(Path(f"/proc/net/{name}")).splitlines()]
    places = {f"socket:[{line[9]}]": line[1].partition(":")[0] for line in lines if line[3] == "0A"}
    try:
        sockets = [os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return []
    return [places[name] for name in sockets if name in places]


def test_nodes_that_do_not_share_the_folder(tmp_path: Path) -> None:
    code, said = launcher.StageActor().run(["env"], 1, str(tmp_path / "absent"), None)
    assert code == PlatformError.exit_code and "does not share it" in said


def test_an_address_without_a_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in launcher.TOKENS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="a cluster without a token lets anybody"), joined("127.0.0.1:6379"):
        pass


def test_ray_that_was_imported_with_other_settings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", pytest)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UsageError, match="imported already, with other settings"), joined(None):
        pass


def joined(address: str | None) -> Any:
    return launcher.joined(address, on_gpu=False)
