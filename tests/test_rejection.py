"""Rejection sampling: what is kept and learnt, exact resume, the way to the law of the best of n."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCES, quiet_recipe

from preferent import metric, rejection, run
from preferent.error import DataError, UsageError
from preferent.record import Rollout
from preferent.rollouts import from_columns, unsealed


def vowels(prompts: list[str], answers: list[str]) -> list[float]:
    """A reward with some variety: the share of vowels."""
    return [sum(c in "aeiou" for c in answer) / (1 + len(answer)) for answer in answers]


def recipe_of(**values: Any) -> Any:
    section = {"rounds": 2, "prompts": 5, "samples": 3, "train_steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    section |= values.pop("rejection", {})
    ppo = {"reward": "test_rejection:vowels", "validation_prompts": 4, "normalize_prompts": 6}
    ppo |= {"missing_eos_score": None} | values.pop("ppo", {})
    return quiet_recipe(method="rejection_sampling", rejection=section, ppo=ppo, checkpoint_every=3, **values)


@pytest.fixture
def inputs(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    rows = [{"input_text": text[:20]} for text in SENTENCES]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"model": tiny, "train": tmp_path / "prompts.jsonl", "validation": tmp_path / "prompts.jsonl"}


def answers_of(out: Path, name: str) -> list[Rollout]:
    columns = unsealed((out / f"rollouts/{name}.safetensors").read_bytes())
    assert columns is not None
    return from_columns(columns, [np.array([0], np.int32)] * 99)


def bits(out: Path) -> dict[str, str]:
    places = ("model/*", "metrics.jsonl", "rollouts/*", "score.json")
    files = sorted(path for place in places for path in out.glob(place))
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_round_and_another(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection.main(recipe_of(), inputs, tmp_path / "out")
    rows = {row["step"]: row for row in metric.read(tmp_path / "out/metrics.jsonl")}
    assert list(rows) == list(range(9))
    assert [step for step in rows if "reward" in rows[step]] == [1, 5]
    assert [step for step in rows if "validation/score" in rows[step]] == [0, 4, 8]
    assert all(rows[step]["rejection/best"] > rows[step]["reward"] for step in (1, 5))
    assert rows[1]["rejection/kept"] == rows[1]["rejection/best"] and rows[1]["rejection/answers"] == 5
    assert rows[5]["rejection/answers"] == 6, "the second round starts with the prompt that the first left out"
    assert rows[0]["validation/kl"] == pytest.approx(0, abs=1e-6) and rows[8]["validation/kl"] > 1e-4
    first, second = (answers_of(tmp_path / "out", f"{number:06d}-000000") for number in range(2))
    assert len(first) == len(second) == 15
    assert [r.sample_index for r in first] == [0, 1, 2] * 5
    assert {r.policy_step for r in first} == {0} and {r.policy_step for r in second} == {4}
    assert len({tuple(r.ids) for r in first[:3]}) > 1, "the samples of a prompt are drawn with one key"
    samples = run.read_jsonl(tmp_path / "out/rollouts/samples.jsonl")
    assert [row["step"] for row in samples] == [0] * 15 + [4] * 15
    facts = run.read_stage(tmp_path / "out")["facts"]
    best = max((0, 4, 8), key=lambda step: rows[step]["validation/objective"])
    assert facts["best_step"] == best and facts["steps"] == 8


def test_stopped_anywhere_it_goes_on_with_the_same_bits(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection.main(recipe_of(), inputs, tmp_path / "whole")
    whole = bits(tmp_path / "whole")
    for steps in (0, 3, 4, 6):
        out = tmp_path / f"stopped-{steps}"
        interrupted(inputs, out, steps)
        rejection.main(recipe_of(), inputs, out)
        assert bits(out) == whole, steps


def interrupted(inputs: dict[str, Path], out: Path, steps: int) -> None:
    """Leave, as a killed process does, in front of the optimizer step after `steps`."""

    class Killed(BaseException):
        pass

    right = rejection.learn

    def learn(recipe: Any, state: Any, *rest: Any) -> Any:
        if state.step == steps:
            raise Killed
        return right(recipe, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection, "learn", learn)
        with pytest.raises(Killed):
            rejection.main(recipe_of(), inputs, out)


def test_more_rounds_go_on(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection.main(recipe_of(), inputs, tmp_path / "whole")
    rejection.main(recipe_of(rejection={"rounds": 1}), inputs, tmp_path / "out")
    rejection.main(recipe_of(), inputs, tmp_path / "out")
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


def test_answers_that_were_learnt_from_are_not_sampled_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Before a step on them they are: the policy is still there that gave them."""
    rejection.main(recipe_of(), inputs, tmp_path / "whole")
    interrupted(inputs, tmp_path / "out", 4)
    first, second = (tmp_path / f"out/rollouts/00000{number}-000000.safetensors" for number in range(2))
    good = first.read_bytes()
    second.unlink()
    first.write_bytes(good[:-1] + b"x")
    with pytest.raises(
        DataError, match="the answers of round 0 were learnt from and are damaged or gone; restore them"
    ):
        rejection.main(recipe_of(), inputs, tmp_path / "out")
    first.write_bytes(good)
    rejection.main(recipe_of(), inputs, tmp_path / "out")
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


def rollout(prompt: int, token: int) -> Rollout:
    ids = np.array([token], np.int32)
    return Rollout(prompt, 0, 0, np.array([5, 6], np.int32), ids, np.zeros(1, np.float32), True)


def test_the_best_ever_is_kept() -> None:
    kept = rejection.Kept()
    for prompt, token, value in [(7, 1, 0.5), (2, 1, -1.0), (7, 2, 0.25), (2, 2, 3.0), (7, 3, 0.5), (2, 3, 2.0)]:
        kept.offer(rollout(prompt, token), value)
    assert {prompt: (value, r.ids[0]) for prompt, (value, r) in kept.answers.items()} == {7: (0.5, 1), 2: (3.0, 2)}
    assert kept.mean() == 1.75
    sequences = kept.sequences()
    assert [ids.tolist() for ids in sequences.ids] == [[5, 6, 2], [5, 6, 1]] and sequences.starts == [2, 2]


def test_an_answer_that_did_not_end_is_kept_only_where_none_is_better(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection.main(recipe_of(rejection={"rounds": 1}, ppo={"missing_eos_score": -9.0}), inputs, tmp_path / "out")
    row = metric.read(tmp_path / "out/metrics.jsonl")[1]
    found = answers_of(tmp_path / "out", "000000-000000")
    bias = run.read_sealed(tmp_path / "out/score.json")["terms"][0]["members"]["reward"]["bias"]
    scores = np.array([r.scores["reward"] - bias if r.ended else -9.0 for r in found]).reshape(5, 3)
    assert row["rejection/best"] == pytest.approx(scores.max(-1).mean(), abs=1e-6)
    assert row["reward"] == pytest.approx(scores.mean(), abs=1e-6)


def test_without_a_reward_it_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the reward model is missing"):
        rejection.main(recipe_of(ppo={"reward": None}), inputs, tmp_path / "out")
