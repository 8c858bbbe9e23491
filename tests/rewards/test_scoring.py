"""Scores: normalisation, answers that did not end, user functions, reward models with another tokenizer."""

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import quiet_recipe

from preferent.config.recipe import Recipe
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt, Rollout
from preferent.errors import PlatformError, UsageError
from preferent.models import language_models
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.normalization import Normalizer, ScoreNormalization, Term
from preferent.rewards.scoring import CombinedReward, RewardModel, RolloutBatch, UserFunction
from preferent.rollouts.sampler import Prompts


def rollout(ids: list[int], ended: bool = True, raw: float = 0.0) -> Rollout:
    empty = np.zeros(len(ids), np.float32)
    return Rollout(0, 0, 0, np.array([1, 270], np.int32), np.array(ids, np.int32), empty, ended, {"reward": raw})


def answering(rows: list[Rollout], texts: list[str], tokenizer: Tokenizer, recipe: Recipe) -> RolloutBatch:
    return RolloutBatch(rows, Prompts.of([Prompt(text) for text in texts], tokenizer, recipe), tokenizer)


def test_normalizer_takes_the_mean_off_and_keeps_differences() -> None:
    raw = np.array([1.0, 2.0, 4.0, 5.0])
    bias = Normalizer.fit(raw, "bias")
    assert bias(raw).mean() == 0 and (np.diff(bias(raw)) == np.diff(raw)).all()
    std = Normalizer.fit(raw, "std")
    assert std(raw).mean() == pytest.approx(0) and std(raw).std() == pytest.approx(1)
    assert (Normalizer.fit(raw, "none")(raw) == raw).all()
    assert Normalizer.fit(np.ones(3), "std").gain == 1
    assert Normalizer.fit(np.array([-1.5e-8, 1.5e-8]), "std").gain == pytest.approx(1 / 1.5e-8)


def test_missing_eos_score_replaces_the_normalised_one() -> None:
    rows = [rollout([5, 2], True, 3.0), rollout([5, 6], False, 3.0)]
    scale = ScoreNormalization((Term("reward", 1.0, {"reward": Normalizer(1.0, 2.0)}),))
    assert scoring.final_scores(rows, scale, quiet_recipe()).tolist() == [4.0, -1.0]
    assert scoring.final_scores(rows, scale, quiet_recipe(reward={"missing_eos_score": None})).tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, answers: [1.0], "returned 1 scores for 2 answers"),
        (lambda prompts, answers: [1.0, float("nan")], "returned nan for the answer 'b'"),
        (lambda prompts, answers: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_function_is_told(function: Callable[[list[str], list[str]], list[float]], message: str) -> None:
    with pytest.raises(PlatformError, match=message):
        UserFunction("mine:reward", function).score_texts(["x", "y"], ["a", "b"])


def test_a_function_that_raises_is_told_by_its_innermost_line() -> None:
    def inner() -> float:
        return 1 / 0

    def outer(prompts: list[str], answers: list[str]) -> list[float]:
        return [inner()]

    line = inner.__code__.co_firstlineno + 1
    with pytest.raises(PlatformError, match=rf"ZeroDivisionError.*test_scoring\.py:{line}\)"):
        UserFunction("mine:reward", outer).score_texts(["x"], ["a"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nocolon", "'nocolon' is not of the form module:function"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("math:no_such_function", "cannot be imported: AttributeError"),
    ],
)
def test_a_function_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"reward\.sources: .*{message}"):
        UserFunction.load(name)


def test_a_function_is_looked_for_in_the_current_directory_first_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is imported, the directory stands first; after that last: what a library imports later is its own."""
    (tmp_path / "found_here.py").write_text("def reward(prompts, answers):\n    return [len(a) for a in answers]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    before = [*sys.path]
    for _ in range(2):
        assert UserFunction.load("found_here:reward").score_texts(["x", "y"], ["a", "bcd"]).tolist() == [1, 3]
        assert sys.path == [*before, str(tmp_path)]
    (tmp_path / "colorsys.py").write_text("raise SystemExit('a file beside the recipe was imported')")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert importlib.import_module("colorsys").rgb_to_hsv(0, 0, 0) == (0, 0, 0)


def test_ids_and_texts_score_alike_and_in_any_company(tiny: Path) -> None:
    recipe = quiet_recipe()
    scorer = language_models.load_scorer(tiny, World.of(recipe), seed=1)
    reward = RewardModel.of(scorer, recipe)
    texts, answers = ["Mary found", "The old man walked", "He "], [" a key.", " by the river and sat down", " wrote"]
    together = reward.score_texts(texts, answers)
    apart = [reward.score_texts([text], [answer])[0] for text, answer in zip(texts, answers, strict=True)]
    assert np.allclose(together, apart, atol=1e-5)


def test_an_ensemble_scores_with_the_mean_of_its_members(tiny: Path) -> None:
    recipe = quiet_recipe()
    members = [RewardModel.of(language_models.load_scorer(tiny, World.of(recipe), seed=s), recipe) for s in (1, 2, 3)]
    scale = ScoreNormalization.of(recipe, 3)
    reward = CombinedReward(dict(zip(scale.terms[0].members, members, strict=True)), scale)
    texts, answers = ["Mary found", "He "], [" a key.", " wrote"]
    each = np.stack([member.score_texts(texts, answers) for member in members])
    assert np.ptp(each, axis=0).min() > 1e-3
    assert np.allclose(reward.score_texts(texts, answers), each.mean(axis=0), atol=1e-6)
    tokenizer = members[0].scorer.tokenizer
    rows = [rollout(tokenizer.encode_answer(Prompt("He "), None, a, 64)[0]) for a in answers]
    batch = answering(rows, ["He "] * 2, tokenizer, recipe)
    rollouts = scoring.score_rollouts(reward, batch)
    assert [set(row.scores) for row in rollouts] == [{"reward", "reward-2", "reward-3"}] * 2
    alone = [m.score(batch) for m in members]
    assert np.allclose(scoring.final_scores(rollouts, scale, recipe), np.mean(alone, axis=0), atol=1e-6)


def test_scores_stand_by_name_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {"reward-2": np.ones(1), "a": np.ones(1), "reward": np.ones(1)}
    monkeypatch.setattr(CombinedReward, "raw", lambda self, batch: raw)
    reward = CombinedReward({}, ScoreNormalization(()))
    rows = scoring.score_rollouts(
        reward, RolloutBatch([rollout([5, 2])], Prompts([], [], []), Tokenizer.__new__(Tokenizer))
    )
    assert list(rows[0].scores) == ["a", "reward", "reward-2"]


def test_a_reward_model_with_another_tokenizer_reads_the_text(tiny: Path, make_model: Callable[..., Path]) -> None:
    recipe = quiet_recipe()
    tokenizer = Tokenizer.load(tiny)
    reward = RewardModel.of(
        language_models.load_scorer(make_model(seed=11, vocab_size=330), World.of(recipe), seed=1), recipe
    )
    assert reward.scorer.tokenizer.fingerprint != tokenizer.fingerprint
    text, answer = "Mary found ", " a silver key"
    ids, _ = tokenizer.encode_answer(Prompt(text), None, answer, 64)
    batch = answering([rollout(ids)], [text], tokenizer, recipe)
    assert batch.answers == [answer]
    assert reward.score(batch) == pytest.approx(reward.score_texts([text], [answer]))


def test_another_model_encodes_each_prompt_once(
    tiny: Path, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quiet_recipe()
    tokenizer = Tokenizer.load(tiny)
    reward = RewardModel.of(
        language_models.load_scorer(make_model(seed=11, vocab_size=330), World.of(recipe), seed=1), recipe
    )
    text, rendered = Tokenizer.text, Counter[str]()

    def rendering(self: Tokenizer, prompt: Prompt, instruction: str | None) -> str:
        rendered[prompt.input_text] += self is reward.scorer.tokenizer
        return text(self, prompt, instruction)

    monkeypatch.setattr(Tokenizer, "text", rendering)
    rows = [rollout([300, 301 + i, 2]) for i in range(4)]
    batch = answering(rows, ["Mary ", "He ", "Mary ", "Mary "], tokenizer, recipe)
    both = [reward.score(batch), reward.score_texts(batch.prompts.texts, batch.answers, batch.prompts.records)]
    assert rendered == {"Mary ": 1, "He ": 1}
    assert both[0] == pytest.approx(both[1]) and len(set(both[0])) == 4


def test_a_text_that_did_not_end_is_scored_without_an_end(tiny: Path) -> None:
    """As the ids of a cut rollout are; a function sees the same text either way."""
    recipe = quiet_recipe()
    model_ = RewardModel.of(language_models.load_scorer(tiny, World.of(recipe), seed=1), recipe)
    tokenizer, texts, answers = model_.scorer.tokenizer, ["Mary found", "He "], [" a key.", " wrote"]
    prompts = [Prompt(text) for text in texts]
    prompt_ids = [np.array(tokenizer.encode_prompt(prompt, None, 64)[0]) for prompt in prompts]
    closed = [np.array(tokenizer.encode_answer(p, None, a, 64)[0]) for p, a in zip(prompts, answers, strict=True)]
    assert all(ids[-1] == tokenizer.eos_id for ids in closed)
    expected = model_.score_ids(prompt_ids, [closed[0], closed[1][:-1]])
    length = UserFunction("m:length", lambda prompts, answers: [float(len(answer)) for answer in answers])
    scale = ScoreNormalization(
        (Term("kind", 1.0, {"kind": Normalizer()}), Term("length", 1.0, {"length": Normalizer()}))
    )
    reward = CombinedReward({"kind": model_, "length": length}, scale)
    for records in (None, prompts):
        assert model_.score_texts(texts, answers, records, [True, False]) == pytest.approx(expected, abs=1e-6)
        summed = reward.score_texts(texts, answers, records, [True, False])
        assert summed == pytest.approx(expected + np.array([7, 6]), abs=1e-6)
    assert model_.score_texts(texts, answers)[1] != pytest.approx(expected[1], abs=1e-4), "by default it ended"
