"""Learning from preferences directly: worked numbers, gradients and optima of the losses, and P11, that DPO's optimum is
the KL-regularised one, through the real stage on problems whose every answer can be enumerated."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import enumerable
import numpy as np
import pytest
from conftest import quiet_recipe
from test_optimum import bandit, mdp

from preferent import checkpoint, dpo, export, model, run
from preferent.world import World

BETA = 1.0


def preferences(problem: enumerable.Problem, beta_free_rows: int) -> list[dict[str, Any]]:
    """Rows of preferences: pairs of answers as the reference draws them, labels by sigmoid(r_1 - r_2).

    Nothing is drawn: the expected number of each (prompt, winner, loser) is rounded so that running sums stay within
    one of their expectation.
    """
    table, p = problem.table(), np.exp(problem.log_probs(problem.folder))
    texts = problem.texts()
    rows: list[dict[str, Any]] = []
    for prompt, r, q in zip(problem.prompts, table, p, strict=True):
        cells = list(itertools.permutations(range(len(texts)), 2))
        one, two = np.array(cells).T
        wanted = q[one] * q[two] / (1 + np.exp(r[two] - r[one]))
        wanted *= beta_free_rows / len(problem.prompts) / wanted.sum()
        counts = np.diff(np.floor(np.concatenate([[0.0], wanted.cumsum()]) + 0.5)).astype(int)
        for winner, loser, count in zip(one, two, counts, strict=True):
            side = {"input_text": prompt, "candidate_0": texts[winner], "candidate_1": texts[loser], "choice": 0}
            rows += [side] * int(count)
    return rows


def tune(problem: enumerable.Problem, out: Path, seed: int, rows: int, **values: Any) -> Path:
    """Run the stage `dpo` on a problem; returns the folder of the last policy, whatever validation thought of it."""
    steps = values.pop("steps")
    section = {"train_steps": steps, "batch_size": 512, "schedule": "linear", "learning_rate": 2e-3}
    section |= {"validation_every": steps, "micro_batch_tokens": 100_000, "lora_dim": 0} | values
    recipe = quiet_recipe(
        method="dpo",
        kl_coeff=BETA,
        seed=seed,
        prompt_sequence_length=4,
        target_sequence_length=problem.max_tokens,
        sampler={"temperature": problem.temperature},
        checkpoint_every=steps,
        dpo=section,
    )
    made = preferences(problem, rows)
    run.write_jsonl(out / "train.jsonl", made)
    run.write_jsonl(out / "few.jsonl", made[:: max(1, len(made) // 100)])
    parts = {"train": out / "train.jsonl", "validation": out / "few.jsonl", "test": out / "few.jsonl"}
    dpo.main(recipe, {"model": problem.folder} | parts, out / "policy")
    policy = model.load_policy(problem.folder, World.of(recipe), lora_dim=0)
    saved = checkpoint.latest(out / "policy/checkpoints")
    assert saved is not None and saved.step == steps
    masters = {name: saved.tensors[f"master.{name}"] for name in policy.trainable()}
    export.save(policy, out / "policy/last", masters, "# the last policy\n")
    return out / "policy/last"


@pytest.mark.acceptance
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("make", [lambda folder, seed: bandit(folder), mdp], ids=["bandit", "mdp"])
def test_the_stage_finds_the_kl_regularised_optimum(
    tmp_path: Path, make: Callable[[Path, int], enumerable.Problem], seed: int
) -> None:
    """P11: population DPO has the optimum of KL-regularised RL, at the temperature that is sampled."""
    problem = make(tmp_path / "reference", seed)
    bandit_ = len(problem.prompts) == 1
    last = tune(problem, tmp_path, seed, rows=2000 if bandit_ else 60_000, steps=200 if bandit_ else 600)
    found = enumerable.outcome(problem, last, BETA)
    print(found)
    assert found.gap < 0.01, found
