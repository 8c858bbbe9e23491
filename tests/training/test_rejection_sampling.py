"""Rejection sampling: what is kept and learnt, exact resume, the way to the law of the best of n."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SENTENCES, quiet_recipe
from forking import PREFERENT

from preferent import files
from preferent.commands import disk_estimate
from preferent.commands.python_api import Run
from preferent.config import defaults, memory_estimate, model_shape
from preferent.data.types import Rollout
from preferent.errors import DataError, UsageError
from preferent.models.language_models import Policy
from preferent.rewards.normalization import ScoreNormalization
from preferent.rollouts import sampler
from preferent.rollouts.store import from_columns, unsealed
from preferent.runs import metrics, stages
from preferent.training import rejection_sampling
from training.test_ppo import CopyingSampler


def vowels(prompts: list[str], answers: list[str]) -> list[float]:
    """A reward with some variety: the share of vowels."""
    return [sum(c in "aeiou" for c in answer) / (1 + len(answer)) for answer in answers]


def recipe_of(**values: Any) -> Any:
    section = {"rounds": 2, "prompts": 5, "samples": 3, "train_steps": 4, "batch_size": 4, "learning_rate": 1e-3}
    section |= values.pop("rejection", {})
    reward = {"sources": "training.test_rejection_sampling:vowels", "normalize_prompts": 6, "missing_eos_score": None}
    reward |= values.pop("reward", {})
    values |= {"method": "rejection_sampling", "ppo": {"validation_prompts": 4}, "checkpoint_every": 3}
    return quiet_recipe(rejection=section, reward=reward, **values)


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


def test_the_sampler_is_told_when_a_round_has_changed_the_weights(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, engines = sampler.make, []

    def copying(recipe: Any, policy: Policy) -> CopyingSampler:
        engines.append(CopyingSampler(make(recipe, policy)))
        return engines[-1]

    rejection_sampling.main(recipe_of(), inputs, tmp_path / "straight")
    monkeypatch.setattr(sampler, "make", copying)
    for rounds in (1, 2):
        rejection_sampling.main(recipe_of(rejection={"rounds": rounds}), inputs, tmp_path / "out")
    assert [engine.purposes for engine in engines] == [["normalize", "eval", "rollout", "eval"], ["rollout", "eval"]]
    assert bits(tmp_path / "out") == bits(tmp_path / "straight")


def test_a_round_and_another(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection_sampling.main(recipe_of(), inputs, tmp_path / "out")
    rows = {row["step"]: row for row in metrics.read(tmp_path / "out/metrics.jsonl")}
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
    samples = files.read_jsonl(tmp_path / "out/rollouts/samples.jsonl")
    assert [row["step"] for row in samples] == [0] * 15 + [4] * 15
    facts = stages.read_stage(tmp_path / "out")["facts"]
    best = max((0, 4, 8), key=lambda step: rows[step]["validation/objective"])
    assert facts["best_step"] == best and facts["steps"] == 8


def test_stopped_anywhere_it_goes_on_with_the_same_bits(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection_sampling.main(recipe_of(), inputs, tmp_path / "whole")
    whole = bits(tmp_path / "whole")
    for steps in (0, 3, 4, 6):
        out = tmp_path / f"stopped-{steps}"
        interrupted(inputs, out, steps)
        rejection_sampling.main(recipe_of(), inputs, out)
        assert bits(out) == whole, steps


def interrupted(inputs: dict[str, Path], out: Path, steps: int) -> None:
    """Leave, as a killed process does, in front of the optimizer step after `steps`."""

    class Killed(BaseException):
        pass

    right = rejection_sampling.learn

    def learn(recipe: Any, state: Any, *rest: Any) -> Any:
        if state.step == steps:
            raise Killed
        return right(recipe, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection_sampling, "learn", learn)
        with pytest.raises(Killed):
            rejection_sampling.main(recipe_of(), inputs, out)


def test_more_rounds_go_on(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection_sampling.main(recipe_of(), inputs, tmp_path / "whole")
    rejection_sampling.main(recipe_of(rejection={"rounds": 1}), inputs, tmp_path / "out")
    rejection_sampling.main(recipe_of(), inputs, tmp_path / "out")
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


def test_answers_that_were_learnt_from_are_not_sampled_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Before a step on them they are: the policy is still there that gave them."""
    rejection_sampling.main(recipe_of(), inputs, tmp_path / "whole")
    interrupted(inputs, tmp_path / "out", 4)
    first, second = (tmp_path / f"out/rollouts/00000{number}-000000.safetensors" for number in range(2))
    good = first.read_bytes()
    second.unlink()
    first.write_bytes(good[:-1] + b"x")
    with pytest.raises(
        DataError, match="answers of round 0 are damaged or missing, and the policy was trained on them; restore them"
    ):
        rejection_sampling.main(recipe_of(), inputs, tmp_path / "out")
    first.write_bytes(good)
    rejection_sampling.main(recipe_of(), inputs, tmp_path / "out")
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


def rollout(prompt: int, token: int) -> Rollout:
    ids = np.array([token], np.int32)
    return Rollout(prompt, 0, 0, np.array([5, 6], np.int32), ids, np.zeros(1, np.float32), True)


def test_the_best_ever_is_kept() -> None:
    kept = rejection_sampling.BestAnswers()
    for prompt, token, value in [(7, 1, 0.5), (2, 1, -1.0), (7, 2, 0.25), (2, 2, 3.0), (7, 3, 0.5), (2, 3, 2.0)]:
        kept.offer(rollout(prompt, token), value)
    assert {prompt: (value, r.ids[0]) for prompt, (value, r) in kept.answers.items()} == {7: (0.5, 1), 2: (3.0, 2)}
    assert kept.mean() == 1.75
    sequences = kept.sequences()
    assert [ids.tolist() for ids in sequences.ids] == [[5, 6, 2], [5, 6, 1]] and sequences.starts == [2, 2]


def test_an_answer_that_did_not_end_is_kept_only_where_none_is_better(inputs: dict[str, Path], tmp_path: Path) -> None:
    rejection_sampling.main(
        recipe_of(rejection={"rounds": 1}, reward={"missing_eos_score": -9.0}), inputs, tmp_path / "out"
    )
    row = metrics.read(tmp_path / "out/metrics.jsonl")[1]
    answers = answers_of(tmp_path / "out", "000000-000000")
    bias = ScoreNormalization.read(tmp_path / "out/score.json").normalizer("reward").bias
    scores = np.array([r.scores["reward"] - bias if r.ended else -9.0 for r in answers]).reshape(5, 3)
    assert row["rejection/best"] == pytest.approx(scores.max(-1).mean(), abs=1e-6)
    assert row["reward"] == pytest.approx(scores.mean(), abs=1e-6)


def test_the_first_loss_is_that_of_the_kept_answers_as_they_were_sampled(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """At the sampling temperature, by the policy that sampled them: minus the sampler's log-probs, per token."""
    section = {"rounds": 1, "train_steps": 1, "prompts": 5, "batch_size": 5}
    rejection_sampling.main(recipe_of(rejection=section, sampler={"temperature": 0.6}), inputs, tmp_path / "out")
    answers = answers_of(tmp_path / "out", "000000-000000")
    kept = [max(answers[i : i + 3], key=lambda r: r.scores["reward"]) for i in range(0, 15, 3)]
    log_probs = np.concatenate([r.sampler_log_probs for r in kept])
    rows = metrics.read(tmp_path / "out/metrics.jsonl")
    assert rows[1]["loss/imitation"] == pytest.approx(-log_probs.mean(), abs=1e-5)
    assert [row["validation/sampler_gap"] <= 1e-5 for row in rows] == [True, True]


def test_without_a_reward_it_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the reward model is missing"):
        rejection_sampling.main(recipe_of(reward={"sources": None}), inputs, tmp_path / "out")


def test_what_it_needs() -> None:
    """One policy that learns, no critic; a reference where every weight learns and a KL is charged."""
    shape = model_shape.LLAMA_2["meta-llama/Llama-2-7b-hf"]
    prompts = {"train": 1000, "validation": 10, "test": 10}

    def facts_of(recipe: Any) -> memory_estimate.ModelFacts:
        resolved, _ = defaults.resolve(recipe, shape.policy, shape.policy)
        return memory_estimate.ModelFacts(resolved, shape, shape, 2, 32, prompts)

    def need(**values: Any) -> memory_estimate.MemoryNeed:
        recipe = quiet_recipe(method="rejection_sampling", preference_dataset="p.jsonl", **values)
        return memory_estimate.rejection(facts_of(recipe))

    full, free, lora = need(rejection={"lora_dim": 0}), need(rejection={"lora_dim": 0}, kl_coeff=0), need()
    assert full.parts["reference"] == 2 * shape.policy and free.parts["reference"] == lora.parts["reference"] == 0
    assert lora.peak < full.peak and full.parts["reward"] == 2 * shape.scorer
    two = quiet_recipe(method="rejection_sampling", rejection={"rounds": 3, "prompts": 5000, "samples": 2})
    facts = facts_of(two)
    assert disk_estimate.rollout_tokens(facts) == 3 * 1000 * 2 * facts.length
    choice = {"best_of": 4, "sampling_strategy": "temperature_sampling"}
    several = quiet_recipe(infer=choice, reward={"lora_dim": 0})
    assert memory_estimate.infer(facts_of(several)).parts["reward"] == 2 * shape.scorer


RECIPE = """
large_model_reference: model
method: rejection_sampling
preference_dataset: pairs.jsonl
prompt_sequence_length: 24
target_sequence_length: 10
precision: fp32
checkpoint_every: 5
reward_model_train_steps: 6
data: {validation_share: 0.2, test_share: 0.2}
reward: {batch_size: 8, learning_rate: 1.0e-3, validation_every: 3}
rejection: {rounds: 2, prompts: 12, samples: 3, train_steps: 4, batch_size: 8, lora_dim: 2, learning_rate: 1.0e-2}
infer: {best_of: 3, sampling_strategy: temperature_sampling}
"""


@pytest.mark.acceptance
def test_the_whole_job(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """A run by its one command; then plan and doctor, and the best of n of a model that nobody tuned."""
    make_model(seed=7).rename(tmp_path / "model")
    words = [word for sentence in SENTENCES for word in sentence.split()]
    texts = [" ".join(words[i : i + 5]) for i in range(40)]
    pairs = [
        {"input_text": text, "candidate_0": f" {words[i]} a", "candidate_1": f" {words[i + 3]} be it", "choice": i % 2}
        for i, text in enumerate(texts)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def preferent(*words: str) -> str:
        argv = [*PREFERENT, *words]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode in (0, 4) and "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 or words[0] == "doctor", done.stderr
        return done.stdout + done.stderr

    output = preferent("run", "recipe.yaml", "--out", "run")
    assert "keeping the best of 3 answers moves them at most 0.43 nats from the policy" in output
    done = Run(tmp_path / "run")
    assert done.verdict()["best_of"]["n"] == 3 and list(done.verdict()["best_of"]["score"]) == ["1", "2", "3"]
    assert all(row["best_of"] == 3 for row in done.predictions()) and "best_of" not in done.predictions("base")[0]
    assert "Rejection sampling: sampled and kept answers" in done.report().read_text()
    assert "tuned answers are the best of 3" in done.report().read_text()
    assert (tmp_path / "run/policy/model/adapter_config.json").exists()
    assert "2 rounds of 3 answers to " in preferent("plan", "recipe.yaml")
    assert "rules" in preferent("doctor", "run")

    inputs = ["--in", "prompts=run/data/prompt/test.jsonl", "--in", "model=model"]
    preferent("infer", "--recipe", "recipe.yaml", *inputs, "--in", "reward=run/reward/model", "--out", "best")
    preferent(
        "compare", "--recipe", "recipe.yaml", "--in", "a=best", "--in", "b=run/predictions/base", "--out", "verdict"
    )
    assert files.read_json(tmp_path / "verdict/metrics.json")["best_of"]["n"] == 3
