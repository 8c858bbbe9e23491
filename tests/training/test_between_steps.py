"""What differs from step to step: rows, draws, orders and texts are new ones, and every row is used once an epoch.

The loops run with networks of one weight: what is learnt is not looked at, only on what.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import enumerable
import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from torch.nn import Parameter

from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt, Rollout
from preferent.evaluation.inference import generate
from preferent.rewards import scoring
from preferent.rewards.normalization import ScoreNormalization
from preferent.rewards.scoring import CombinedReward, UserFunction
from preferent.rollouts.decoding import Params
from preferent.rollouts.sampler import Prompts
from preferent.rollouts.scripted_sampler import ScriptedSampler
from preferent.rollouts.store import RolloutStore
from preferent.training import dpo, ppo, rejection_sampling, reward_model, sft
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.ppo import update

ROWS = 8
RATES = {"learning_rate": 0.25}


class Recorder:
    """A scripted engine that remembers what it was asked: (purpose, step, items, parameters)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, list[int], Params]] = []
        self.engine = ScriptedSampler(lambda prompt, item: ([item % 3, enumerable.EOS], [-1.0, -1.0], True))

    def sample(
        self, prompts: Sequence[np.ndarray], items: Sequence[int], purpose: str, step: int, params: Params
    ) -> list[Rollout]:
        self.asked.append((purpose, step, [int(item) for item in items], params))
        return self.engine.sample(prompts, items, purpose, step, params)

    def refresh(self, policy: Any) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("letters") / "model"
    return Tokenizer.load(enumerable.make(folder, tuple(enumerable.PROMPTS), 2, 1.0, 0).folder)


def asked(tokenizer: Tokenizer, recipe: Any) -> Prompts:
    return Prompts.of([Prompt(one + other) for one in "vw" for other in "vwxy"], tokenizer, recipe)


def networks(tokenizer: Tokenizer, recipe: Any, **others: Any) -> Any:
    reward = CombinedReward(
        {"reward": UserFunction("m:f", lambda prompts, answers: [float(len(answer)) for answer in answers])},
        ScoreNormalization.of(recipe, 0),
    )
    return SimpleNamespace(policy=SimpleNamespace(tokenizer=tokenizer), reward=reward, sampler=Recorder(), **others)


def recipe_of(**values: Any) -> Any:
    sources = None if values.get("method") == "dpo" else "m:f"
    values["reward"] = {"sources": sources, "missing_eos_score": None, "batch_size": 4, "validation_every": 4, **RATES}
    values |= {"reward_model_train_steps": 6, "reinforcement_learning_train_steps": 6, "target_sequence_length": 2}
    return quiet_recipe(**{"ppo": {"batch_size": 4, "epochs": 3, "minibatches": 4}} | values)


def test_every_rollout_of_every_step_has_a_key_of_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """And a step's prompts are the next ones: each once an epoch."""
    recipe = recipe_of()
    parts, store = networks(tokenizer, recipe), RolloutStore(tmp_path)
    prompts = asked(tokenizer, recipe)
    places = [r.prompt_index for step in range(4) for r in ppo.sample(recipe, step, parts, prompts, store)]
    assert sorted(places[:ROWS]) == sorted(places[ROWS:]) == list(range(ROWS)) and places[:ROWS] != places[ROWS:]
    items = [item for _, _, items, _ in parts.sampler.asked for item in items]
    assert items == list(range(16)) and {purpose for purpose, *_ in parts.sampler.asked} == {"rollout"}
    assert [step for _, step, *_ in parts.sampler.asked] == [0, 1, 2, 3]


def test_the_draws_of_the_scale_are_no_rollouts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    recipe = recipe_of()
    parts = networks(tokenizer, recipe)
    scoring.fit_scale(recipe, parts.policy, parts.reward, parts.sampler, asked(tokenizer, recipe), tmp_path)
    ((purpose, _, items, params),) = parts.sampler.asked
    assert purpose == "normalize" and sorted(items) == list(range(ROWS)) and params == Params(2, 1.0)


def test_a_rounds_answers_have_keys_of_their_own_and_its_batches_an_order(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"rounds": 3, "prompts": 8, "samples": 2, "train_steps": 2, "batch_size": 4}
    recipe = recipe_of(method="rejection_sampling", rejection=section)
    parts, store, batches = networks(tokenizer, recipe), RolloutStore(tmp_path), []
    kept, prompts = rejection_sampling.BestAnswers(), asked(tokenizer, recipe)
    weight = Parameter(torch.zeros(1))
    state = TrainingState(0, Optimizer({"w": weight}, Schedule(0.1), 1.0))

    def accumulate(policy: Any, sequences: Any, *rest: Any) -> float:
        batches.append([ids.tolist() for ids in sequences.ids])
        (weight * 0).sum().backward()
        return 0.0

    monkeypatch.setattr(rejection_sampling, "accumulate_gradients", accumulate)
    for number in range(3):
        rejection_sampling.collect(recipe, state, number, parts, prompts, kept, store)
        for _ in range(2):
            rejection_sampling.learn(recipe, state, number, parts.policy, kept.sequences())
            state.step += 1
    items = [item for _, _, items, _ in parts.sampler.asked for item in items]
    assert sorted(items) == list(range(3 * 16))
    orders = [[tuple(ids[:2]) for batch in batches[i : i + 2] for ids in batch] for i in (0, 2, 4)]
    assert all(len(set(order)) == 8 for order in orders), "a round's two batches hold every kept answer"
    assert len({tuple(order) for order in orders}) == 3


def test_epochs_and_steps_have_orders_and_texts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, minibatches, texts = recipe_of(), [], []
    state = SimpleNamespace(step=0, policy=SimpleNamespace(step=lambda step: (0.1, 1.0)), critic=None, average=None)
    batch = SimpleNamespace(minibatches=[0, 1, 2, 3])

    def visit(recipe: Any, batch: Any, minibatch: int, networks: Any) -> dict[str, float]:
        minibatches.append(minibatch)
        return {"rl_loss": 0.0, "val/ratio": 1.0}

    def text(recipe: Any, networks: Any, number: int) -> float:
        texts.append(number)
        return 0.0

    monkeypatch.setattr(update, "update", visit)
    monkeypatch.setattr(update, "pretraining_gradients", text)
    for state.step in range(5):
        update.learn(recipe, state, batch, SimpleNamespace(pretraining=True))
    orders = [tuple(minibatches[i : i + 4]) for i in range(0, len(minibatches), 4)]
    assert len(orders) == 15 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders[::3])) > 2 and len(set(orders[:3])) > 1, "not one order for all steps, nor for all epochs"
    assert sorted(texts) == list(range(60))


def used(rows: list[list[int]]) -> None:
    """A step of four rows is half an epoch of eight: each row once in two steps, in another order in the next two."""
    assert sorted(rows[0] + rows[1]) == sorted(rows[2] + rows[3]) == list(range(ROWS))
    assert rows[0] + rows[1] != rows[2] + rows[3]


class Part:
    """Rows that only know their numbers."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = [int(row) for row in rows]
        self.pairs = self
        self.sides = np.ones((2, len(rows)), bool)

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: Sequence[int]) -> "Part":
        return Part(rows)


def trained(name: str) -> Any:
    """A network with one weight."""
    return SimpleNamespace(trainable=lambda: {"w": Parameter(torch.zeros(1))}, name=name)


def recorded(
    monkeypatch: pytest.MonkeyPatch, module: Any, figures: dict[str, float]
) -> tuple[list[Any], list[tuple[int, Part]]]:
    """Let a stage learn and validate nothing; the rows of its steps, and when it validates on which part."""
    rows: list[Any] = []
    validated: list[tuple[int, Part]] = []

    def learn(recipe: Any, state: Any, network: Any, part: Any, chosen: np.ndarray) -> dict[str, float]:
        rows.append(chosen.tolist())
        return figures

    def validate(recipe: Any, state: Any, network: Any, part: Part, out: Path) -> dict[str, float]:
        validated.append((state.step, part))
        return {}

    monkeypatch.setattr(module, "learn", learn)
    monkeypatch.setattr(module, "validate", validate)
    return rows, validated


def test_the_reward_models_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of every step; validation is on the validation pairs, at the steps that the recipe names and at the end."""
    rows, validated = recorded(monkeypatch, reward_model, {"rank_loss": 0.0, "accuracy": 0.0})
    parts = {"train": Part(range(ROWS)), "validation": Part([]), "test": Part([])}
    state = reward_model.train(recipe_of(), SimpleNamespace(folder=tmp_path), trained("reward"), parts)
    used(rows)
    assert validated == [(4, parts["validation"]), (6, parts["validation"])] and state.scalars["kept_step"] == 6


def test_dpos_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, validated = recorded(monkeypatch, dpo, {"loss": 0.0, "accuracy": 0.0})
    monkeypatch.setattr(dpo, "finish", lambda *rest: None)
    section = {"train_steps": 6, "batch_size": 4, "validation_every": 4, **RATES}
    parts = {"train": Part(range(ROWS)), "validation": Part([]), "test": Part([])}
    recipe = recipe_of(method="dpo", dpo=section)
    dpo.train(recipe, SimpleNamespace(folder=tmp_path), trained("policy"), parts)
    used(rows)
    assert validated == [(4, parts["validation"]), (6, parts["validation"])]


def test_fine_tunings_batches_rates_and_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, rates, validated = [], [], []

    def learn(section: Any, state: Any, policy: Any, sequences: Part) -> dict[str, float]:
        rows.append(sequences.rows)
        rates.append(state.optimizer.schedule.at(state.step))
        assert state.optimizer.max_grad_norm == 0.375
        return {"loss": 0.0}

    monkeypatch.setattr(sft, "learn", learn)
    monkeypatch.setattr(sft, "mean_loss", lambda policy, part, tokens: validated.append(part.rows) or 1.0)
    monkeypatch.setattr(sft, "finish", lambda *rest: None)
    section = {"dataset": "s.jsonl", "train_steps": 6, "batch_size": 4, "validation_every": 4, **RATES}
    section |= {"warmup_steps": 1, "schedule": "linear", "max_grad_norm": 0.375}
    recipe = recipe_of(sft=section)
    sft.train(recipe.sft, recipe, SimpleNamespace(folder=tmp_path), trained("policy"), Part(range(ROWS)), Part([77]))
    used(rows)
    assert validated == [[77], [77]]
    assert rates == pytest.approx([0.125, 0.25, 0.2, 0.15, 0.1, 0.05])


def test_the_best_of_n_are_drawn_each_by_itself_with_the_recipes_filters(tokenizer: Tokenizer) -> None:
    """Keys of all prompts and samples differ, also from one part of the prompts to the next; rollouts are unfiltered,
    answers are not."""
    settings = {"temperature": 0.6, "top_p": 0.9, "top_k": 5}
    infer = {"sampling_strategy": "temperature_sampling", "best_of": 3}
    recipe = recipe_of(sampler=settings, infer=infer)
    parts, prompts = networks(tokenizer, recipe), [Prompt(letter) for letter in "vwxyz"]
    for items in (range(3), range(3, 5)):
        rows = generate.answered(recipe, parts.policy, None, parts.sampler, prompts, items, parts.reward)
        assert len(rows) == len(items)
    keys = [key for _, _, items, _ in parts.sampler.asked for key in items]
    assert len(set(keys)) == len(keys) == 15
    alone = recipe_of(sampler=settings, infer={"sampling_strategy": "temperature_sampling"})
    generate.answered(alone, parts.policy, None, parts.sampler, prompts, range(2, 5))
    purpose, _, items, params = parts.sampler.asked[-1]
    assert (purpose, items, params) == ("infer", [2, 3, 4], Params(2, 0.6, 0.9, 5))
    assert [(purpose, params) for purpose, _, _, params in parts.sampler.asked[:2]] == [("best of", params)] * 2
