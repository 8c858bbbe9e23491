"""PPO finds the optimum where it is known: the stage itself, on problems whose every answer can be enumerated.

P1 is the bandit ref = [.5, .3, .15, .05], r = [0, 1, 2, 3]; the MDP has 4 tokens, 4 steps and 5 prompts, and rewards of
standard deviation 1. A program with a wrong sign or without the temperature does not pass.
"""

from pathlib import Path
from typing import Any

import enumerable
import numpy as np
import pytest
from conftest import quiet_recipe

from preferent.models import checkpoint, language_models, saving
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.training import losses, ppo

pytestmark = pytest.mark.acceptance

BETA = 1.0
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


def tune(problem: enumerable.Problem, out: Path, beta: float, seed: int, steps: int, **section: Any) -> Path:
    """Run the stage `ppo` on a problem; returns the folder of the last policy, whatever validation thought of it."""
    values = {"batch_size": 512, "minibatches": 4, "epochs": 4, "learning_rate": 2e-3, "critic_learning_rate": 5e-3}
    values |= {"schedule": "linear", "validation_every": steps, "micro_batch_tokens": 100_000}
    recipe = quiet_recipe(
        kl_coeff=beta,
        seed=seed,
        prompt_sequence_length=4,
        target_sequence_length=problem.max_tokens,
        sampler={"temperature": problem.temperature, "rows": 4096},
        reinforcement_learning_train_steps=steps,
        checkpoint_every=steps,
        ppo=values | section,
        reward={"sources": "enumerable:reward", "missing_eos_score": None},
    )
    prompts = problem.folder / "prompts.jsonl"
    ppo.main(recipe, {"model": problem.folder, "train": prompts, "validation": prompts}, out)
    policy = language_models.load_policy(problem.folder, World.of(recipe), lora_dim=0)
    saved = checkpoint.latest(out / "checkpoints")
    assert saved is not None and saved.step == steps
    masters = {name: saved.tensors[f"policy.master.{name}"] for name in policy.trainable()}
    saving.save(policy, out / "last", masters, "# the last policy\n")
    return out / "last"


def mdp(folder: Path, seed: int) -> enumerable.Problem:
    problem = enumerable.make(folder, tuple(enumerable.PROMPTS), max_tokens=4, temperature=0.7, seed=seed)
    enumerable.random_rewards(problem, seed)
    return problem


def bandit(folder: Path) -> enumerable.Problem:
    problem = enumerable.make(folder, ("v",), max_tokens=1, temperature=0.7, seed=0)
    enumerable.set_distribution(problem, [0.5, 0.3, 0.15, 0.05])
    worth = {"a": 0.0, "b": 1.0, "c": 2.0, "": 3.0}
    enumerable.fill(problem, np.array([[worth[text] for text in problem.texts()]]))
    return problem


P1 = [
    (0.5, 2.5455559836, 1.6546156866),
    pytest.param(1.0, 1.7633665836, 0.5313546332, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("beta", "reward", "kl"), P1)
def test_bandit(tmp_path: Path, beta: float, reward: float, kl: float) -> None:
    problem = bandit(tmp_path / "reference")
    order = [problem.texts().index(text) for text in ("a", "b", "c", "")]
    assert np.allclose(np.exp(problem.log_probs(problem.folder))[0, order], [0.5, 0.3, 0.15, 0.05], atol=1e-6)
    outcome = enumerable.outcome(problem, tune(problem, tmp_path / "out", beta, seed=0, steps=60), beta)
    assert outcome.gap < 0.01, outcome
    assert outcome.reward == pytest.approx(reward, abs=0.1) and outcome.kl == pytest.approx(kl, abs=0.1)


def check(problem: enumerable.Problem, policy: Path) -> None:
    """The policy is within 1 % of the possible gain, and r - beta * log-ratio is nearly one number for all answers."""
    outcome = enumerable.outcome(problem, policy, BETA)
    print(outcome)
    assert outcome.gap < 0.01 and outcome.spread < 0.06, outcome


@pytest.mark.parametrize("seed", SEEDS)
def test_mdp(tmp_path: Path, seed: int) -> None:
    problem = mdp(tmp_path / "reference", seed)
    check(problem, tune(problem, tmp_path / "out", BETA, seed, steps=140))


@pytest.mark.parametrize(
    "algorithm",
    ["rloo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dr_grpo", "reinforce_plus_plus", "remax"))],
)
def test_bandit_without_a_critic(tmp_path: Path, algorithm: str) -> None:
    problem = bandit(tmp_path / "reference")
    policy = tune(problem, tmp_path / "out", 0.5, seed=0, steps=60, algorithm=algorithm, epochs=4)
    outcome = enumerable.outcome(problem, policy, 0.5)
    assert outcome.gap < 0.01, outcome


def test_grpo_goes_to_another_optimum(tmp_path: Path) -> None:
    """With eight answers to a prompt the zero of its expected gradient loses 3.35 % (tests/exact/test_on_policy.py)."""
    problem = bandit(tmp_path / "reference")
    policy = tune(problem, tmp_path / "out", 0.5, seed=0, steps=60, algorithm="grpo", epochs=4)
    outcome = enumerable.outcome(problem, policy, 0.5)
    assert outcome.gap == pytest.approx(0.0335, abs=0.005), outcome


@pytest.mark.slow
def test_mdp_by_leave_one_out(tmp_path: Path) -> None:
    problem = mdp(tmp_path / "reference", 0)
    check(problem, tune(problem, tmp_path / "out", BETA, 0, steps=140, algorithm="rloo", epochs=4))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["the sign of the KL", "no temperature in the log-probs"])
def test_a_wrong_program_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    if mutant == "the sign of the KL":
        right = losses.shaped_rewards
        monkeypatch.setattr(losses, "shaped_rewards", lambda scores, k1, mask, beta: right(scores, k1, mask, -beta))
    else:
        monkeypatch.setattr(
            language_models.Policy, "head", lambda self, temperature: lambda hidden: self.logits(hidden, 1.0)
        )
        measure = measurement.measure
        monkeypatch.setattr(measurement, "measure", lambda *parts: measure(*parts[:-1], 1.0))
    problem = mdp(tmp_path / "reference", 0)
    tuned = tune(problem, tmp_path / "out", BETA, seed=0, steps=60)
    with pytest.raises(AssertionError):
        check(problem, tuned)
