"""Ranks that are killed, stopped, hung or mistaken: all end at the same step, with one message, and can go on."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from nursery import outcome, words_of
from ranked import FUNCTION, Ranked, difference, settings, tokens, weights

pytestmark = pytest.mark.ranks

KILLS = int(os.environ.get("RANK_KILLS", "2"))
"""Random moments at which a rank is killed, besides one in a save; the acceptance is 20."""
STEPS = "reinforcement_learning_train_steps=6"
CALLS = {"CALLS": os.devnull}


def tuning(out: str) -> list[str]:
    """Return the words of a short PPO with a reward function."""
    words = words_of("ppo", out)
    place = words.index("reward=whole/reward/model")
    del words[place - 1 : place + 1]
    return [*words, *settings(FUNCTION, STEPS, "shard=none")]


@pytest.fixture(scope="module")
def unharmed(ranked: Ranked) -> tuple[dict[str, str], float]:
    """What two ranks make that nobody harms, and the seconds that it takes."""
    began = time.monotonic()
    ranked.ran(2, *tuning("unharmed"), env=CALLS)
    return outcome(ranked.folder / "unharmed/ppo"), time.monotonic() - began


@pytest.mark.parametrize("number", range(KILLS))
def test_a_rank_killed_at_any_moment_costs_no_bit(ranked: Ranked, unharmed: tuple[dict[str, str], float], number: int):
    expected, seconds = unharmed
    chance = random.Random(number)
    out, rank, after = f"killed-{number}", chance.randrange(2), chance.uniform(0.1, 1) * seconds
    codes = ranked.run(2, *tuning(out), env=CALLS, rank=rank, after=after, number=int(signal.SIGKILL))
    assert codes == [0, 0] or -signal.SIGKILL in codes
    ranked.ran(2, *tuning(out), env=CALLS)
    assert outcome(ranked.folder / out / "ppo") == expected


def test_the_first_rank_killed_in_a_save_costs_no_bit(ranked: Ranked, unharmed: tuple[dict[str, str], float]):
    codes = ranked.run(2, *tuning("in-save"), env=CALLS, save=3)
    assert codes[0] == -signal.SIGKILL
    assert list((ranked.folder / "in-save/ppo").glob("*/.step-*"))
    ranked.ran(2, *tuning("in-save"), env=CALLS)
    assert outcome(ranked.folder / "in-save/ppo") == unharmed[0]


def test_a_rank_killed_in_a_save_of_shards_costs_no_bit(ranked: Ranked):
    """The first before the manifest, the second before its rows are written: the checkpoint before it counts."""
    ranked.ran(2, *words_of("sft", "shards"), *settings())
    for rank in (0, 1):
        out = f"shards-{rank}"
        codes = ranked.run(2, *words_of("sft", out), *settings(), save=2, rank=rank)
        assert codes[rank] == -signal.SIGKILL
        assert [path.name for path in (ranked.folder / out / "sft/checkpoints").glob("step-*")] == ["step-000002"]
        ranked.ran(2, *words_of("sft", out), *settings())
        assert outcome(ranked.folder / out / "sft") == outcome(ranked.folder / "shards/sft")


def steps_done(folder: Path) -> int:
    return len((folder / "metrics.jsonl").read_text().splitlines()) - 1


def stopped_by_one(ranked: Ranked, size: int, out: str, rank: int, steps: int) -> None:
    """Start a tuning, and send SIGTERM to one rank when some steps are done."""
    folder = ranked.folder / out / "ppo"
    ranked.start(size, *tuning(out), env=CALLS)
    while not (folder / "metrics.jsonl").exists() or steps_done(folder) < steps:
        time.sleep(0.01)
    os.kill(int((ranked.folder / f"rank-{rank}.pid").read_text()), signal.SIGTERM)
    assert ranked.wait() == [143] * size


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_any_number_goes_on(ranked: Ranked):
    ranked.ran(1, *tuning("never-stopped"), env=CALLS)
    stopped_by_one(ranked, 2, "stopped", 1, 2)
    done = steps_done(ranked.folder / "stopped/ppo")
    assert (ranked.folder / f"stopped/ppo/checkpoints/step-{done:06d}").is_dir()
    assert ranked.steps(0) == ranked.steps(1)
    assert ranked.said(0).count("stopped; the same command goes on from here") == 1
    assert ranked.said(1) == ""
    ranked.ran(1, *tuning("stopped"), env=CALLS)
    assert "size was 2, is 1" in ranked.said(0)
    ranked.ran(3, *tuning("stopped"), "--set", "reinforcement_learning_train_steps=8", env=CALLS)
    assert "size was 1, is 3" in ranked.said(0)
    ranked.ran(1, *tuning("never-stopped"), "--set", "reinforcement_learning_train_steps=8", env=CALLS)
    one, other = ranked.folder / "never-stopped/ppo", ranked.folder / "stopped/ppo"
    assert tokens(one) == tokens(other)
    assert difference(last(one), last(other)) <= 1e-6


def last(folder: Path) -> dict[str, object]:
    return {name: tensor for name, tensor in weights(folder).items() if "model/" in name or "step-000008" in name}


def test_a_rank_that_hangs_is_named(ranked: Ranked):
    began = time.monotonic()
    codes = ranked.run(
        2, *tuning("hung"), env=CALLS | {"PREFERENT_RANK_SECONDS": "3"}, rank=1, after=1.0, number=int(signal.SIGSTOP)
    )
    assert codes[0] == 3, (codes, time.monotonic() - began)
    assert "rank 1 of 2 ended, or did not answer within the PREFERENT_RANK_SECONDS of 3" in ranked.said(0)


def test_an_error_of_one_rank_ends_all_with_its_message(ranked: Ranked):
    (ranked.folder / "fails.py").write_text("def score(prompts, answers):\n    raise ValueError('no such answer')\n")
    words = tuning("fails")
    words[words.index(FUNCTION)] = "reward.sources=[{source: fails:score}]"
    codes = ranked.run(2, *words)
    assert codes[0] == 3
    assert codes[1] in (3, -signal.SIGKILL)
    assert ranked.said(0).count("no such answer") == 1
    assert ranked.said(1) == ""


def test_a_mistake_that_all_ranks_make_is_said_once(ranked: Ranked):
    codes = ranked.run(2, *tuning("mistaken"), "--set", "ppo.batch_size=no")
    assert codes[0] == 2
    said = [ranked.said(rank) for rank in (0, 1)]
    assert sum("ppo.batch_size" in text for text in said) == 1


def test_the_description_says_how_many_computed(ranked: Ranked, unharmed: tuple[dict[str, str], float]):
    described = json.loads((ranked.folder / "unharmed/ppo/stage.json").read_text())
    assert described["facts"]["size"] == 2
