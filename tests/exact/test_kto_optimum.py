"""Where KTO's loss is least: in closed form, by a general minimiser, and through the stage, on two prompts whose four
answers can be enumerated.

Of an answer y with n_D thumbs up and n_U thumbs down the loss depends on its log-ratio rho alone, and is a number less
c sigmoid(beta (rho - z)) / 2, c = lambda_D n_D - lambda_U n_U: it has no interior minimum in rho. It is the sum of the
probabilities that gives it one. With beta < 1 and the anchor z held, the loss is convex in the probabilities of the
liked answers, those with c > 0, and least where c beta sigmoid'(beta (rho - z)) = mu pi for one number mu; what is not
liked gets the probability 0. Training recomputes z, so it ends where z is also that of the policy.
"""

from pathlib import Path
from typing import Any

import enumerable
import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from scipy.optimize import brentq, minimize
from scipy.special import log_expit, log_softmax

from preferent import files
from preferent.config.recipe import Recipe
from preferent.data.counts import kto_weights
from preferent.data.formats import row_writer
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt, Thumb
from preferent.models import checkpoint, language_models, saving
from preferent.models.world import World
from preferent.runs import metrics
from preferent.training import dpo, losses
from preferent.training.preference_pairs import PreferencePairs

BETA = 0.5
PROMPTS = ("v", "w")
ANSWERS = ("a", "b", "c", "")
REFERENCE = {"v": [0.5, 0.3, 0.15, 0.05], "w": [0.1, 0.2, 0.3, 0.4]}
UP = {"v": [12, 15, 20, 13], "w": [20, 11, 9, 20]}
DOWN = {"v": [3, 2, 1, 2], "w": [1, 1, 2, 3]}
"""120 thumbs up and 15 down. At the balanced weights 1 and 6 two answers are not liked, at 2 and 6 all are."""


def numbers(table: dict[str, list[Any]]) -> np.ndarray:
    """Return a table as float64 [prompts, answers]."""
    return np.array([table[prompt] for prompt in PROMPTS], float)


def balanced(desirable: float) -> tuple[float, float]:
    """Return the weights that the stage takes for these thumbs, of good and of bad answers."""
    weights = kto_weights(int(numbers(UP).sum()), int(numbers(DOWN).sum()))
    return desirable * weights[0], weights[1]


def liked(desirable: float) -> np.ndarray:
    """Return c [prompts, answers], the weighted thumbs up less the weighted thumbs down."""
    weights = balanced(desirable)
    return weights[0] * numbers(UP) - weights[1] * numbers(DOWN)


def best(c: np.ndarray, reference: np.ndarray, z: float) -> np.ndarray:
    """Return the probabilities [answers] of least loss at a fixed z: for each mu, the root rho of each liked answer."""

    def excess(rho: float, weight: float, mu: float, log_p: float) -> float:
        x = BETA * (rho - z)
        return float(np.log(weight * BETA / mu) + log_expit(x) + log_expit(-x) - log_p - rho)

    def at(mu: float) -> np.ndarray:
        rows = zip(c, np.log(reference), strict=True)
        rho = [brentq(excess, -200, 200, (one, mu, p), xtol=1e-13) if one > 0 else -np.inf for one, p in rows]
        return np.asarray(reference * np.exp(rho))

    return at(brentq(lambda mu: at(mu).sum() - 1, 1e-6, 1e6, xtol=1e-12, rtol=1e-14))


def loss_of(log_p: torch.Tensor, prompt: int, z: float, desirable: float) -> torch.Tensor:
    """Return the project's loss of the thumbs of one prompt, from log-probabilities [answers]."""
    rho, anchor = log_p - torch.tensor(np.log(numbers(REFERENCE)[prompt])), torch.tensor(z)
    good, bad = balanced(desirable)
    weighted = good * torch.tensor(numbers(UP)[prompt]), bad * torch.tensor(numbers(DOWN)[prompt])
    return losses.kto_loss(rho, rho, anchor, BETA, *weighted)


@pytest.mark.parametrize("z", [0.0, 0.7])
@pytest.mark.parametrize("prompt", [0, 1])
def test_the_closed_form_is_where_the_loss_is_least(prompt: int, z: float) -> None:
    """The minimiser knows nothing but the loss and its slopes in the logits."""

    def cost(logits: np.ndarray) -> tuple[float, np.ndarray]:
        table = torch.tensor(logits, requires_grad=True)
        loss = loss_of(table.log_softmax(-1), prompt, z, 2.0)
        loss.backward()
        assert table.grad is not None
        return float(loss.detach()), table.grad.numpy()

    found = minimize(cost, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 1000})
    wanted = best(liked(2.0)[prompt], numbers(REFERENCE)[prompt], z)
    assert wanted.sum() == pytest.approx(1, abs=1e-10) and wanted.min() > 0.01
    assert np.exp(log_softmax(found.x)) == pytest.approx(wanted, abs=1e-8)


def test_an_answer_that_is_liked_too_little_has_no_optimum_but_zero() -> None:
    """12 thumbs up weigh less than 3 down, balanced: the loss falls as long as the probability does."""
    c, reference = liked(1.0)[0], numbers(REFERENCE)[0]
    assert (c > 0).tolist() == [False, True, True, True]
    limit = best(c, reference, 0.3)
    assert limit[0] == 0 and limit.sum() == pytest.approx(1, abs=1e-10)
    costs = []
    for rest in (0.5, 0.1, 1e-2, 1e-4, 1e-8, 1e-16):
        log_p = torch.tensor(np.log((1 - rest) * limit + rest * np.eye(4)[0]), requires_grad=True)
        loss = loss_of(log_p, 0, 0.3, 1.0)
        loss.backward()
        assert log_p.grad is not None and log_p.grad[0] > 0 and (log_p.grad[1:] < 0).all()
        costs.append(float(loss.detach()))
    assert costs == sorted(costs, reverse=True)


def thumbs() -> list[Thumb]:
    return [
        Thumb(Prompt(prompt), text, is_good)
        for prompt in PROMPTS
        for column, text in enumerate(ANSWERS)
        for is_good, table in ((True, UP), (False, DOWN))
        for _ in range(table[prompt][column])
    ]


def mismatched(pairs: PreferencePairs, recipe: Recipe) -> np.ndarray:
    """Return how often the stage measures its anchor on each answer of each prompt [prompts, answers]; sums to 1."""
    ids, tokens = dpo.mismatched_answers(pairs, recipe.seed, Path("thumbs.jsonl"))
    names = {id: letter for letter, id in enumerable.IDS.items()} | {enumerable.EOS: ""}
    counts = np.zeros((len(PROMPTS), len(ANSWERS)))
    for row, count in zip(ids, tokens, strict=True):
        assert count == 1
        counts[PROMPTS.index(names[int(row[0])]), ANSWERS.index(names[int(row[1])])] += 1
    return counts / counts.sum()


def fixed_point(c: np.ndarray, reference: np.ndarray, often: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the policy [prompts, answers] that is least at the anchor that is its own, and this anchor."""
    z = 0.0
    for _ in range(200):
        policy = np.stack([best(one, p, z) for one, p in zip(c, reference, strict=True)])
        before, z = z, max(0.0, float((often * np.log(policy / reference)).sum()))
        if abs(z - before) < 1e-10:
            return policy, z
    raise AssertionError("the anchor does not settle")


def test_the_stage_ends_where_the_loss_is_least_at_its_own_anchor(tmp_path: Path) -> None:
    """Batches of all thumbs, so that nothing is random. With twice the rows, 300 steps came within 2e-7."""
    made = thumbs()
    problem = enumerable.make(tmp_path / "reference", PROMPTS, max_tokens=1, temperature=0.7, seed=0)
    files.write_jsonl(tmp_path / "train.jsonl", [row_writer.row(thumb) for thumb in made])
    steps = 120
    recipe = quiet_recipe(
        method="kto",
        kl_coeff=BETA,
        prompt_sequence_length=4,
        target_sequence_length=1,
        sampler={"temperature": problem.temperature},
        checkpoint_every=steps,
        dpo={
            "train_steps": steps, "batch_size": len(made), "schedule": "linear", "learning_rate": 5e-3,
            "validation_every": steps, "lora_dim": 0, "desirable_weight": 2.0,
        },
    )  # fmt: skip
    parts = dict.fromkeys(("train", "validation", "test"), tmp_path / "train.jsonl")
    dpo.main(recipe, {"model": problem.folder} | parts, tmp_path / "out")
    balance = files.read_json(tmp_path / "out/stage.json")["facts"]["balanced"]
    assert balance == dict(zip(("desirable_weight", "undesirable_weight"), balanced(2.0), strict=True))

    often = mismatched(PreferencePairs.of(made, Tokenizer.load(problem.folder), recipe), recipe)
    order = [problem.texts().index(text) for text in ANSWERS]
    reference = np.exp(problem.log_probs(problem.folder))[:, order]
    wanted, z = fixed_point(liked(2.0), reference, often)
    last = metrics.read(tmp_path / "out/metrics.jsonl")[-1]
    found = np.exp(problem.log_probs(last_policy(problem, recipe, tmp_path / "out")))[:, order]
    assert z > 0.05 and np.abs(wanted - reference).max() > 0.1
    assert found == pytest.approx(wanted, abs=1e-3)
    assert last["anchor"] == pytest.approx(z, abs=1e-3)


def last_policy(problem: enumerable.Problem, recipe: Recipe, out: Path) -> Path:
    """Save the policy of the last step, whatever validation thought of it; return its folder."""
    policy = language_models.load_policy(problem.folder, World.of(recipe), lora_dim=0)
    saved = checkpoint.latest(out / "checkpoints")
    assert saved is not None and saved.step == recipe.dpo.train_steps
    masters = {name: saved.tensors[f"master.{name}"] for name in policy.trainable()}
    saving.save(policy, out / "last", masters, "# the last policy\n")
    return out / "last"
