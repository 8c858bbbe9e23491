"""Learning from preferences directly: worked numbers, gradients and optima of the losses; and P11, that DPO's optimum
is the KL-regularised one, on problems whose every answer can be enumerated."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import enumerable
import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from training.test_optimum import SEEDS, bandit, mdp
from training.test_reward_model import rows

from preferent import files
from preferent.config.recipe import Recipe
from preferent.data import datasets
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Preference, Prompt
from preferent.errors import DataError
from preferent.models import checkpoint, language_models, saving
from preferent.models.world import World
from preferent.runs import metrics
from preferent.training import dpo, losses
from preferent.training.optimizer import Optimizer, Schedule
from preferent.training.preference_pairs import PreferencePairs

BETA = 1.0


def zeros(count: int = 1) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.float64)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_losses_at_the_start() -> None:
    """Where the policy is its reference every log-ratio is zero."""
    assert float(losses.dpo_loss(zeros(5), zeros(5), 0.1)) == pytest.approx(5 * math.log(2), abs=1e-12)
    assert float(losses.dpo_loss(zeros(), zeros(), 3.0, 0.2)) == pytest.approx(math.log(2), abs=1e-12)
    assert float(losses.ipo_loss(zeros(2), zeros(2), 0.1)) == pytest.approx(2 * 25.0, abs=1e-12)
    anchor = losses.kto_anchor(zeros(4))
    assert float(losses.kto_loss(zeros(3), zeros(3), anchor, 0.1)) == pytest.approx(3 * 0.5, abs=1e-12)
    assert float(losses.kto_loss(zeros(), zeros(), anchor, 0.1, 1.5, 0.5)) == pytest.approx(0.5 * 1.0, abs=1e-12)
    assert float(losses.kto_loss(zeros(), zeros(), anchor, 0.1, 4.0, 0.0)) == pytest.approx(0.5 * 2.0, abs=1e-12)


@pytest.mark.parametrize(("ratio", "loss"), [(0.0, 0.693147), (10.0, 0.313262), (20.0, 0.126928)])
def test_worked_numbers_of_dpo(ratio: float, loss: float) -> None:
    """The values in torchtune's test of its DPO loss: beta 0.1, h = 0, 10, 20."""
    for chosen, rejected in ((ratio, 0.0), (0.0, -ratio), (ratio + 3, 3.0)):
        found = losses.dpo_loss(numbers(chosen), numbers(rejected), 0.1)
        assert float(found) == pytest.approx(loss, abs=1e-6)


def test_gradient_at_the_start() -> None:
    """-beta / 2 * (grad log pi_chosen - grad log pi_rejected), times 1 - 2 w under label smoothing."""
    beta = 0.3
    table = torch.linspace(-1, 1, 6, dtype=torch.float64).requires_grad_()
    log_probs = table.log_softmax(-1)
    reference = log_probs.detach()
    by_hand = torch.autograd.grad(log_probs[1] - log_probs[4], table, retain_graph=True)[0]
    for wrong in (0.0, 0.1):
        loss = losses.dpo_loss((log_probs - reference)[1:2], (log_probs - reference)[4:5], beta, wrong)
        found = torch.autograd.grad(loss, table, retain_graph=True)[0]
        assert torch.allclose(found, -beta / 2 * (1 - 2 * wrong) * by_hand, atol=1e-14)


def least(loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Where a convex function of one number is least, by halving an interval on the sign of its derivative."""
    low, high = -200.0, 200.0
    for _ in range(80):
        place = numbers((low + high) / 2).requires_grad_()
        slope = torch.autograd.grad(loss(place), place)[0]
        middle = float(place.detach())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return low


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_minima(beta: float) -> None:
    assert least(lambda h: losses.ipo_loss(h, zeros(), beta)) == pytest.approx(1 / (2 * beta), abs=1e-9)
    smoothed = least(lambda h: losses.dpo_loss(h, zeros(), beta, 0.2))
    assert smoothed == pytest.approx(math.log(0.8 / 0.2) / beta, abs=1e-6)


def test_reference_free_loss() -> None:
    """-log sigmoid(2 * (-1 - -1.5) - 0.5) = log(1 + e^-0.5); the margin moves the loss, not what is preferred."""
    found = losses.reference_free_loss(numbers(-1.0), numbers(-1.5), 2.0, 0.5)
    assert float(found) == pytest.approx(0.4740769842, abs=1e-9)
    found = losses.reference_free_loss(numbers(-1.0), numbers(-1.5), 2.0)
    assert float(found) == pytest.approx(0.3132616875, abs=1e-9)


def test_kto_anchor_and_loss() -> None:
    ratios = numbers(1.0, 4.0).requires_grad_()
    anchor = losses.kto_anchor(ratios)
    assert float(anchor) == 2.5 and not anchor.requires_grad, "the mean, not scaled by beta, without a gradient"
    assert float(losses.kto_anchor(numbers(1.0, -4.0))) == 0.0, "an estimate of a divergence is not below zero"
    chosen, rejected = numbers(4.5).requires_grad_(), numbers(0.5).requires_grad_()
    loss = losses.kto_loss(chosen, rejected, anchor, 0.5, desirable=2.0, undesirable=3.0)
    at_one = 1 / (1 + math.exp(-1.0))
    assert float(loss.detach()) == pytest.approx(0.5 * (2 + 3) * (1 - at_one), abs=1e-12)
    slopes = torch.autograd.grad(loss, (chosen, rejected))
    wanted = [-0.5 * 2 * 0.5 * at_one * (1 - at_one), 0.5 * 3 * 0.5 * at_one * (1 - at_one)]
    assert [float(slope) for slope in slopes] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_loss_has_the_kl_regularised_optimum(beta: float) -> None:
    """P11 on the bandit of P1: all pairs with labels sigmoid(r_1 - r_2), exact gradients, a table of logits."""
    reference, reward = numbers(0.5, 0.3, 0.15, 0.05).log(), numbers(0, 1, 2, 3)
    one, two = torch.tensor(list(itertools.combinations(range(4), 2))).T
    wrong = (reward[two] - reward[one]).sigmoid()
    table = reference.clone().requires_grad_()
    descent = torch.optim.LBFGS([table], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        ratios = table.log_softmax(-1) - reference
        loss = losses.dpo_loss(ratios[one], ratios[two], beta, wrong)
        loss.backward()
        return loss

    descent.step(closure)
    found = table.detach().log_softmax(-1)
    best = (reference + reward / beta).log_softmax(-1)
    value, highest, start = ((p.exp() * (reward - beta * (p - reference))).sum() for p in (found, best, reference))
    assert float((highest - value) / (highest - start)) < 1e-4
    assert torch.allclose(found.exp(), best.exp(), atol=1e-6)


VARIANTS: list[dict[str, Any]] = [
    {"method": "dpo"},
    {"method": "dpo", "dpo": {"label_smoothing": 0.1}},
    {"method": "dpo", "dpo": {"loss": "ipo"}},
    {"method": "dpo", "dpo": {"loss": "reference_free", "target_margin": 0.5}},
    {"method": "kto", "dpo": {"desirable_weight": 1.5}},
]


@pytest.fixture
def inputs(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    for name, part in {"train": rows(48, 0), "validation": rows(16, 5), "test": rows(16, 9)}.items():
        files.write_jsonl(tmp_path / f"{name}.jsonl", part)
    return {"model": tiny} | {name: tmp_path / f"{name}.jsonl" for name in ("train", "validation", "test")}


def recipe_of(variant: dict[str, Any], steps: int, **section: Any) -> Recipe:
    values = {"train_steps": steps, "batch_size": 16, "learning_rate": 3e-3, "validation_every": 2, "lora_dim": 0}
    values |= variant.get("dpo", {}) | section
    return quiet_recipe(method=variant["method"], checkpoint_every=2, sampler={"temperature": 0.8}, dpo=values)


def tuned(recipe: Recipe, inputs: dict[str, Path], out: Path) -> list[dict[str, Any]]:
    dpo.main(recipe, inputs, out)
    return metrics.read(out / "metrics.jsonl")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_batch_may_be_cut_anyhow(inputs: dict[str, Path], tmp_path: Path, variant: dict[str, Any]) -> None:
    curves = [
        tuned(recipe_of(variant, 3, micro_batch_tokens=tokens), inputs, tmp_path / str(tokens))
        for tokens in (10_000, 60)
    ]
    for curve in curves:
        del curve[0]["accuracy"]  # of rewards that are zero up to rounding
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5) and one.keys() == other.keys()


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[4]], ids=str)
def test_goes_on_with_the_same_bits(inputs: dict[str, Path], tmp_path: Path, variant: dict[str, Any]) -> None:
    """What the reference said is computed again, by the policy as it was loaded and not as it was left."""
    whole = tuned(recipe_of(variant, 4), inputs, tmp_path / "whole")
    tuned(recipe_of(variant, 2), inputs, tmp_path / "cut")
    assert tuned(recipe_of(variant, 4), inputs, tmp_path / "cut") == whole
    files = [tmp_path / name / "model/model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_starts_at_log_2_and_learns(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = tuned(recipe_of(VARIANTS[0], 30, validation_every=5), inputs, tmp_path / "out")
    first = found[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert [first[f"rewards/{side}"] for side in ("chosen", "rejected")] == pytest.approx([0, 0], abs=1e-5)
    assert found[-1]["margin"] == pytest.approx(found[-1]["rewards/chosen"] - found[-1]["rewards/rejected"], abs=1e-5)
    facts = files.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["quality"]["test"]["accuracy"] == 1.0 and facts["quality"]["test"]["loss"] < 0.6
    least_step = min((row for row in found if "validation/loss" in row), key=lambda row: row["validation/loss"])["step"]
    assert facts["best_step"] == least_step


def test_kto_starts_at_half_and_learns(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = tuned(recipe_of({"method": "kto"}, 30, validation_every=5), inputs, tmp_path / "out")
    assert found[0]["loss"] == pytest.approx(0.5, abs=1e-6) and found[0]["anchor"] == pytest.approx(0, abs=1e-5)
    assert all(row["anchor"] >= 0 for row in found)
    assert files.read_json(tmp_path / "out/stage.json")["facts"]["quality"]["test"]["accuracy"] > 0.9


def test_an_adapter_is_trained_and_saved(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = tuned(recipe_of(VARIANTS[0], 3, lora_dim=2), inputs, tmp_path / "out")
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and found[-1]["loss"] < found[0]["loss"]
    assert (tmp_path / "out/model/adapter_config.json").exists()


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_what_the_stage_makes_a_loss_of(tiny: Path) -> None:
    """Two pairs: log-ratios 1.5 and 0.5 chosen, -1 and -2 rejected; answers of 2 and 5, of 5 and 1 tokens."""
    chosen = dpo.AnsweredPairs([], np.array([2, 5]), torch.tensor([-3.5, -4.5]))
    rejected = dpo.AnsweredPairs([], np.array([5, 1]), torch.tensor([-4.0, -2.0]))
    part = dpo.PairSubset(pairs_of(tiny, ["a dog", "a cat"]), chosen, rejected, None)
    found, places = torch.tensor([[-2.0, -4.0], [-5.0, -4.0]]), np.array([0, 1])

    def loss(anchor: torch.Tensor | None = None, **values: Any) -> float:
        recipe = quiet_recipe(**({"method": "dpo", "kl_coeff": 0.5} | values))
        return float(dpo.losses(recipe, part, places, found, anchor)[0])

    h = [2.5, 2.5]
    assert loss() == pytest.approx(sum(-math.log(sigma(0.5 * x)) for x in h), abs=1e-5)
    smoothed = sum(-0.9 * math.log(sigma(0.5 * x)) - 0.1 * math.log(sigma(-0.5 * x)) for x in h)
    assert loss(dpo={"label_smoothing": 0.1}) == pytest.approx(smoothed, abs=1e-5)
    assert loss(dpo={"loss": "ipo"}) == pytest.approx(sum((x - 1) ** 2 for x in h), abs=1e-5)
    by_length = [-2 / 2 - -5 / 5, -4 / 5 - -4 / 1]
    free = sum(-math.log(sigma(0.5 * x - 0.3)) for x in by_length)
    assert loss(dpo={"loss": "reference_free", "target_margin": 0.3}) == pytest.approx(free, abs=1e-5)
    gains = [0.5 * (x - 0.2) for x in (1.5, 0.5)]
    pains = [0.5 * (0.2 - x) for x in (-1.0, -2.0)]
    kto = sum(1 - sigma(x) for x in gains) + 1.5 * sum(1 - sigma(x) for x in pains)
    asked = {"method": "kto", "dpo": {"undesirable_weight": 1.5}}
    assert loss(torch.tensor(0.2), **asked) == pytest.approx(kto / 2, abs=1e-5)
    sums = dpo.losses(quiet_recipe(method="dpo", kl_coeff=0.5), part, places, found, None)[1]
    assert sums["accuracy"] == 2.0 and sums["margin"] == pytest.approx(2.5, abs=1e-5)
    assert sums["rewards/chosen"] == pytest.approx(1.0, abs=1e-5) and sums["log_probs/chosen"] == -6.0
    even = torch.stack([chosen.reference + 0.25, rejected.reference + torch.tensor([0.25, 0.5])])
    sums = dpo.losses(quiet_recipe(method="dpo", kl_coeff=0.5), part, places, even, None)[1]
    assert sums["accuracy"] == 0.5, "equal implicit rewards are half right, smaller ones wrong"


def pairs_of(tiny: Path, prompts: list[str]) -> PreferencePairs:
    preferences = [Preference(Prompt(p), f" {p} good", f" {p} bad one", 0) for p in prompts]
    return PreferencePairs.of(preferences, Tokenizer.load(tiny), recipe_of(VARIANTS[0], 1))


def test_mismatched_answers_are_to_other_prompts(tiny: Path) -> None:
    pairs = pairs_of(tiny, ["the dog"] * 5 + ["a key"] * 3 + ["cold"])
    ids, tokens = dpo.mismatched_answers(pairs, 0, Path("p.jsonl"))
    answers = {tuple(row[-count:]) for row, count in zip(ids, tokens, strict=True)}
    for i, (row, count) in enumerate(zip(ids, tokens, strict=True)):
        prompt = pairs.chosen[i][: -pairs.chosen_tokens[i]]
        assert row[:-count].tolist() == prompt.tolist()
        own = [
            (side[i], n[i])
            for side, n in ((pairs.chosen, pairs.chosen_tokens), (pairs.rejected, pairs.rejected_tokens))
        ]
        assert tuple(row[-count:]) not in {tuple(side[-n:]) for side, n in own}
    assert len(answers) > 2, "chosen and rejected ones"
    with pytest.raises(DataError, match=r"p\.jsonl: all pairs have the same prompt"):
        dpo.mismatched_answers(pairs_of(tiny, ["the dog"] * 3), 0, Path("p.jsonl"))


def test_kto_measures_its_anchor_on_mismatched_answers(inputs: dict[str, Path]) -> None:
    recipe = recipe_of({"method": "kto"}, 1)
    policy = language_models.load_policy(inputs["model"], World.of(recipe), lora_dim=0)
    pairs = PreferencePairs.of(datasets.load_preferences(inputs["test"]), policy.tokenizer, recipe)
    part = dpo.with_reference(recipe, policy, pairs, inputs["test"])
    ids, tokens = dpo.mismatched_answers(pairs, recipe.seed, inputs["test"])
    before = dpo.measure_log_probs(recipe, policy, ids, tokens)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    wanted = float((dpo.measure_log_probs(recipe, policy, ids, tokens) - before).mean())
    found = float(dpo.batch_anchor(recipe, policy, part, np.arange(len(pairs))))
    assert found == pytest.approx(wanted, abs=1e-5) and wanted > 0.01


def test_log_probs_are_those_of_the_sampled_policy(tmp_path: Path) -> None:
    """Summed over the answer with its EOS, at `sampler.temperature`, as enumeration has them."""
    problem = mdp(tmp_path / "reference", 0)
    recipe = quiet_recipe(sampler={"temperature": problem.temperature})
    policy = language_models.load_policy(problem.folder, World.of(recipe))
    ids = [np.array([enumerable.IDS[p], *a], np.int32) for p in problem.prompts for a in problem.answers()]
    tokens = np.array([len(row) - 1 for row in ids])
    found = dpo.measure_log_probs(recipe, policy, ids, tokens).view(len(problem.prompts), -1)
    assert np.allclose(found, problem.log_probs(problem.folder), atol=1e-4)


def preferences(problem: enumerable.Problem, count: int, share: float = 0.9) -> list[dict[str, Any]]:
    """About `count` rows of preferences with labels by sigmoid(r_1 - r_2), on pairs of answers of which one half is
    drawn from the reference and one half from all answers alike.

    Nothing is random: the numbers of pairs are rounded in running sums, and a label goes to the answer that lacks more
    of its expected wins. Since log sigmoid(d) = d / 2 - log(2 cosh(d / 2)), labels enter the loss through the answers'
    numbers of wins alone: the loss of these rows is that of the population.
    """
    table, p, texts = problem.table(), np.exp(problem.log_probs(problem.folder)), problem.texts()
    cells = np.array(list(itertools.combinations(range(len(texts)), 2)))
    found: list[dict[str, Any]] = []
    for prompt, r, q in zip(problem.prompts, table, p, strict=True):
        often = (share * q + (1 - share) / len(texts))[cells].prod(-1)
        wanted = (often * count / len(problem.prompts) / often.sum()).cumsum()
        counts = np.diff(np.floor(wanted + 0.5), prepend=0.0).astype(int)
        lacking = np.zeros(len(texts))
        for one, other in np.repeat(cells, counts, axis=0).tolist():
            wins = 1 / (1 + math.exp(r[other] - r[one]))
            lacking[[one, other]] += wins, 1 - wins
            winner, loser = (one, other) if lacking[one] >= lacking[other] else (other, one)
            lacking[winner] -= 1
            found.append({"input_text": prompt, "candidate_0": texts[winner], "candidate_1": texts[loser], "choice": 0})
        assert np.abs(lacking).max() < 2
    return found


def tune(problem: enumerable.Problem, out: Path, seed: int, count: int, **values: Any) -> Path:
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
    made = preferences(problem, count)
    files.write_jsonl(out / "train.jsonl", made)
    files.write_jsonl(out / "few.jsonl", made[:: max(1, len(made) // 100)])
    parts = {"train": out / "train.jsonl", "validation": out / "few.jsonl", "test": out / "few.jsonl"}
    dpo.main(recipe, {"model": problem.folder} | parts, out / "policy")
    policy = language_models.load_policy(problem.folder, World.of(recipe), lora_dim=0)
    saved = checkpoint.latest(out / "policy/checkpoints")
    assert saved is not None and saved.step == steps
    masters = {name: saved.tensors[f"master.{name}"] for name in policy.trainable()}
    saving.save(policy, out / "policy/last", masters, "# the last policy\n")
    return out / "policy/last"


@pytest.mark.acceptance
@pytest.mark.parametrize("seed", SEEDS)
def test_the_stage_finds_the_kl_regularised_optimum(tmp_path: Path, seed: int) -> None:
    """P11 on the bandit: DPO has the optimum of KL-regularised RL, at the temperature that is sampled."""
    problem = bandit(tmp_path / "reference")
    last = tune(problem, tmp_path, seed, count=2000, steps=200)
    found = enumerable.outcome(problem, last, BETA)
    print(found)
    assert found.gap < 0.01, found


@pytest.mark.acceptance
@pytest.mark.parametrize("seed", SEEDS)
def test_exact_gradients_find_the_optimum_of_a_token_mdp(tmp_path: Path, seed: int) -> None:
    """P11 on all pairs of answers at once, weighted as in `preferences`: the stage's log-probabilities, loss and
    optimizer, without its batches."""
    problem = mdp(tmp_path / "reference", seed)
    recipe = quiet_recipe(sampler={"temperature": problem.temperature})
    policy = language_models.load_policy(problem.folder, World.of(recipe), lora_dim=0)
    ids = [np.array([enumerable.IDS[p], *a], np.int32) for p in problem.prompts for a in problem.answers()]
    tokens = np.array([len(row) - 1 for row in ids])
    reward, reference = torch.tensor(problem.table()), torch.tensor(problem.log_probs(problem.folder))
    often = 0.9 * reference.exp() + 0.1 / reference.shape[1]
    one, two = torch.tensor(list(itertools.combinations(range(reference.shape[1]), 2))).T
    weight = often[:, one] * often[:, two]
    wrong = (reward[:, two] - reward[:, one]).sigmoid()
    optimizer = Optimizer(policy.trainable(), Schedule(2e-3, 0, "linear", 400), 1.0)
    for step in range(400):
        ratios = dpo.answer_log_probs(recipe, policy, ids, tokens).view(reference.shape).double() - reference
        chosen = BETA * (ratios[:, one] - ratios[:, two])
        slope = torch.autograd.grad(losses.dpo_loss(chosen, torch.zeros_like(chosen), 1.0, wrong), chosen)[0]
        (chosen * slope.detach() * weight / weight.sum()).sum().backward()
        optimizer.step(step)
    saving.save(policy, tmp_path / "last", optimizer.masters, "# the last policy\n")
    found = enumerable.outcome(problem, tmp_path / "last", BETA)
    print(found)
    assert found.gap < 0.01, found
