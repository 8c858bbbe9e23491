"""`kill -9` at random moments, then the same command: the same bits as a run that nobody disturbed, the same curves.

Every stage runs as the command line runs it, in a process of its own; adaptive KL and early stopping are on.
`PREFERENT_KILLS` says how many kills a stage gets.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import curves
import pytest
from nursery import Nursery, outcome, prepare, words_of

pytestmark = pytest.mark.acceptance
LATER = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("dpo", "rejection")]

KILLS = int(os.environ.get("PREFERENT_KILLS", "3"))


@pytest.fixture(scope="module")
def work(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("kill"), make_model(seed=5))


@pytest.fixture(scope="module")
def nursery(work: Path) -> Iterator[Nursery]:
    nursery = Nursery(work)
    yield nursery
    nursery.close()


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", *LATER, "infer"])
def test_killed_and_started_again_gives_the_same_bits(
    work: Path, nursery: Nursery, stage: str, record_property: Callable[[str, object], None]
) -> None:
    survive(work, nursery, stage, (), record_property)


def survive(
    work: Path,
    nursery: Nursery,
    stage: str,
    settings: tuple[str, ...],
    record_property: Callable[[str, object], None],
) -> None:
    """Kill a stage until it has ended at least once; what it made is what it makes undisturbed."""
    started = time.monotonic()
    code, said = nursery.run(*words_of(stage, "whole"), *settings)
    assert code == 0, said
    seconds = time.monotonic() - started
    whole = outcome(work / "whole" / stage)
    moments = random.Random(f"{stage} {KILLS}")
    kills = before = ends = differences = 0
    while kills < KILLS or not ends:
        moment = seconds * moments.random() if kills < KILLS else None
        nursery.start(*words_of(stage, f"killed-{ends}"), *settings, kill_after=moment)
        code = nursery.wait()
        assert code in (0, -signal.SIGKILL), nursery.log.read_text()
        kills += code != 0
        if code == 0:
            differences += outcome(work / f"killed-{ends}" / stage) != whole
            differences += curves.shown(work / f"killed-{ends}" / stage) != curves.logged(work / "whole" / stage)
            ends += 1
            if kills == before:  # quicker than the twin: aim earlier
                seconds *= 0.8
            before = kills
    record_property("survival", [f"SIGKILL at random moments of `{stage}`", kills, differences])
    assert kills >= 1
    assert differences == 0


ADAPTERS = ("sft.lora_dim=2", "reward.lora_dim=2", "ppo.lora_dim=2")


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ((*ADAPTERS, "gradient_checkpointing=true"), ("reward", "ppo")),
        ((*ADAPTERS, "quantize=nf4"), ("reward", "ppo")),
        (("optimizer=adamw8bit",), ("reward",)),
    ],
    ids=["one backbone, checkpointing", "nf4", "adamw8bit"],
)
def test_so_it_does_with_less_memory(
    make_model: Callable[..., Path],
    tmp_path: Path,
    settings: tuple[str, ...],
    stages: tuple[str, ...],
    record_property: Callable[[str, object], None],
) -> None:
    """A resume quantizes the same weights to the same bits, and goes on from 8-bit moments as they were."""
    if "gradient_checkpointing=true" not in settings:
        pytest.importorskip("bitsandbytes", reason="pip install 'preferent[bits]'")
    work = prepare(tmp_path, make_model(seed=5, hidden_size=64))
    nursery = Nursery(work)
    words = tuple(word for setting in settings for word in ("--set", setting))
    for stage in stages:
        survive(work, nursery, stage, words, record_property)
    nursery.close()
