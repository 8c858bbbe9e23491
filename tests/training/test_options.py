"""Options and multipliers arrive where the recipe says: each optimizer's rate, schedule, decay and clipping."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from torch.nn import Parameter

from preferent.training import dpo, ppo, rejection_sampling, reward_model
from preferent.training.optimizer import Optimizer, Schedule, TrainingState
from preferent.training.preference_pairs import PreferencePairs

RL_STEPS, RM_STEPS = 70, 30


def network() -> Any:
    weight = Parameter(torch.zeros(1))
    return SimpleNamespace(trainable=lambda: {"w": weight})


def recipe_of(**values: Any) -> Any:
    values |= {"reinforcement_learning_train_steps": RL_STEPS, "reward_model_train_steps": RM_STEPS}
    values |= {"reward_model_learning_rate_multiplier": 3.0, "reinforcement_learning_rate_multiplier": 0.25}
    return quiet_recipe(**values)


def settings(optimizer: Optimizer) -> tuple[Schedule, float, float]:
    return optimizer.schedule, optimizer.max_grad_norm, optimizer._adam.param_groups[0]["weight_decay"]


@pytest.mark.parametrize("critic", [True, False])
def test_policy_and_critic_have_rates_of_their_own_times_one_multiplier(critic: bool) -> None:
    section = {"learning_rate": 0.4, "critic_learning_rate": 0.8, "warmup_steps": 5, "schedule": "linear"}
    recipe = recipe_of(ppo=section | {"max_grad_norm": 0.7}, kl_coeff=0.3)
    state = ppo.start(recipe, SimpleNamespace(policy=network(), critic=network() if critic else None))
    assert settings(state.policy) == (Schedule(0.1, 5, "linear", RL_STEPS), 0.7, 0.0)
    assert (state.critic is None) == (not critic)
    if state.critic is not None:
        assert settings(state.critic) == (Schedule(0.2, 5, "linear", RL_STEPS), 0.7, 0.0)
    assert state.scalars == {"kl_coeff": 0.3} and state.average is None


def test_the_moving_average_has_the_recipes_decay() -> None:
    recipe = recipe_of(ppo={"learning_rate": 0.4, "critic_learning_rate": 0.8, "ema_decay": 0.75})
    state = ppo.start(recipe, SimpleNamespace(policy=network(), critic=None))
    assert state.average is not None
    state.average.update({"w": torch.ones(1)})
    assert state.average.weights["w"].tolist() == [0.25]


def test_the_reward_models_optimizer() -> None:
    section = {"learning_rate": 0.5, "warmup_steps": 4, "schedule": "cosine", "max_grad_norm": 0.6, "weight_decay": 0.2}
    found = settings(reward_model.optimizer(recipe_of(reward=section), network()))
    assert found == (Schedule(1.5, 4, "cosine", RM_STEPS), 0.6, 0.2)


def test_the_optimizers_of_the_other_methods_know_no_multiplier() -> None:
    section = {"learning_rate": 0.5, "warmup_steps": 4, "schedule": "cosine", "max_grad_norm": 0.6, "train_steps": 9}
    found = settings(dpo.optimizer(recipe_of(method="dpo", dpo=section), network()))
    assert found == (Schedule(0.5, 4, "cosine", 9), 0.6, 0.0)
    section = {"learning_rate": 0.5, "max_grad_norm": 0.6}
    schedule, norm, decay = settings(rejection_sampling.optimizer(recipe_of(rejection=section), network()))
    assert [schedule.at(step) for step in (0, 1000)] == [0.5, 0.5] and (norm, decay) == (0.6, 0.0)


def pairs() -> PreferencePairs:
    """Four pairs: one tie, three labels of which one in ten is wrong; margins of 0, 1, 2 and 3."""
    ids = [np.array([1, 5 + i], np.int32) for i in range(4)]
    tokens, wrong = np.ones(4, np.int64), np.array([0.5, 0.1, 0.1, 0.1])
    return PreferencePairs(ids, ids, tokens, tokens, wrong, np.arange(4.0), np.ones(4), np.ones((2, 4), bool), 1, 0)


def test_margins_soft_labels_and_centering_reach_the_reward_models_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen 1.5, 0, 2 and 1, rejected 1, 0, 0.5 and 2, cut into micro-batches of one pair; the second is even."""
    weight, gains = Parameter(torch.ones(1)), {5: (1.5, 1.0), 6: (0.0, 0.0), 7: (2.0, 0.5), 8: (1.0, 2.0)}

    def scores(
        scorer: Any, given: PreferencePairs, rows: np.ndarray, offset: None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        columns = torch.tensor([gains[int(given.chosen[i][-1])] for i in rows]) * weight
        return columns[:, 0], columns[:, 1]

    monkeypatch.setattr(reward_model, "scores", scores)
    recipe = recipe_of(reward={"centering": 0.1, "micro_batch_tokens": 1})
    state = TrainingState(0, Optimizer({"w": weight}, Schedule(0.0), 1e9))
    found = reward_model.learn(recipe, state, SimpleNamespace(), pairs(), np.arange(4))
    first, second = np.array([gains[id] for id in (5, 6, 7, 8)]).T
    d, wrong, margin = first - second, np.array([0.5, 0.1, 0.1, 0.1]), np.arange(4.0)
    loss = (1 - wrong) * np.logaddexp(0, margin - d) + wrong * np.logaddexp(0, margin + d)
    sigma = [1 / (1 + np.exp(-x)) for x in (margin - d, margin + d)]
    slope = -(1 - wrong) * sigma[0] * d + wrong * sigma[1] * d + 0.1 * 2 * (first + second) ** 2
    assert found["rank_loss"] == pytest.approx(loss.mean(), abs=1e-6)
    assert found["centering"] == pytest.approx(((first + second) ** 2).mean(), abs=1e-6)
    assert found["accuracy"] == (1 + 0.5 + 1 + 0) / 4, "an even pair is half right"
    assert found["margin"] == pytest.approx(d.mean(), abs=1e-6)
    assert found["gradient_norm"] == pytest.approx(abs(slope.mean()), abs=1e-6)
