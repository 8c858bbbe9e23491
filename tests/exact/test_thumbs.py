"""Feedback on one answer: weights, losses and optima of KTO and of the pointwise reward, alone and beside pairs."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from scipy.special import expit, logit
from training.test_optimum import bandit
from training.test_reward_model import rows

from preferent import files
from preferent.config.recipe import Recipe
from preferent.data.counts import kto_weights
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Preference, Prompt, Thumb
from preferent.errors import DataError
from preferent.models import language_models
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.runs import metrics
from preferent.training import dpo, losses, reward_model
from preferent.training.preference_pairs import PreferencePairs


def thumbs(count: int, offset: int, good_share: float = 0.5) -> list[dict[str, Any]]:
    """Answers with an exclamation mark have a thumb up, others down; `good_share` of the rows are up."""
    made = []
    for number, row in enumerate(rows(count, offset)):
        is_good = number < good_share * count
        answer = row["candidate_0"] if (row["choice"] == 0) == is_good else row["candidate_1"]
        made.append({"input_text": row["input_text"], "output_text": answer, "label": is_good})
    return made


@pytest.fixture
def inputs(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    parts = {"train": thumbs(48, 0, 5 / 6), "validation": thumbs(16, 5), "test": thumbs(16, 9)}
    for name, part in parts.items():
        files.write_jsonl(tmp_path / f"{name}.jsonl", part)
    return {"model": tiny} | {name: tmp_path / f"{name}.jsonl" for name in parts}


def kto(steps: int, **section: Any) -> Recipe:
    values = {"train_steps": steps, "batch_size": 48, "learning_rate": 3e-3, "validation_every": 5, "lora_dim": 0}
    return quiet_recipe(method="kto", checkpoint_every=2, sampler={"temperature": 0.8}, dpo=values | section)


def reward(steps: int, **section: Any) -> Recipe:
    values = {"batch_size": 16, "learning_rate": 1e-2, "validation_every": 5} | section
    return quiet_recipe(reward_model_train_steps=steps, checkpoint_every=4, reward=values)


@pytest.mark.parametrize(
    ("good", "bad", "weights"),
    [(10, 10, (1, 1)), (12, 10, (1, 1)), (40, 30, (1, 1)), (80, 10, (1, 6)), (10, 80, (8, 1)), (1, 2, (2, 1))],
)
def test_weights_bring_the_ratio_of_both_kinds_between_1_and_4_thirds(good: int, bad: int, weights: Any) -> None:
    found = kto_weights(good, bad)
    assert found == pytest.approx(weights)
    assert 1 - 1e-12 <= found[0] * good / (found[1] * bad) <= 4 / 3 + 1e-12 and min(found) == 1


def pair_and_thumbs(model: Path, weight: float) -> PreferencePairs:
    """A pair, a thumb up and a thumb down."""
    feedback = [
        Preference(Prompt("x"), " a", " b", 1, weight=weight),
        Thumb(Prompt("y"), " a", True),
        Thumb(Prompt("z"), " b", False),
    ]
    return PreferencePairs.of(feedback, Tokenizer.load(model), quiet_recipe())


def test_a_thumb_is_a_row_with_one_side(tiny: Path) -> None:
    pairs = pair_and_thumbs(tiny, 0.25)
    assert pairs.sides.tolist() == [[True, True, False], [True, False, True]]
    assert (pairs.chosen_tokens > 0).tolist() == pairs.sides[0].tolist()
    assert (pairs.rejected_tokens > 0).tolist() == pairs.sides[1].tolist()
    assert pairs.weights.tolist() == [0.25, 1.0, 1.0]
    assert [ids.size for ids in pairs.answers(np.array([2, 1]))] == [pairs.chosen[1].size, pairs.rejected[2].size]
    assert pairs.counts == {"pairs": 1, "ties": 0, "truncated": 0, "good": 1, "bad": 1}


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_kto_of_a_pair_and_two_thumbs_by_hand(tiny: Path) -> None:
    """Log-ratios 1.5 and -1 in the pair of weight 1/2, 0.5 up, -2 down; what stands in the empty sides is ignored."""
    pairs = pair_and_thumbs(tiny, 0.5)
    ones, zeros = np.ones(3, int), torch.zeros(3)
    part = dpo.PairSubset(pairs, dpo.AnsweredPairs([], ones, zeros), dpo.AnsweredPairs([], ones, zeros), None)
    found = torch.tensor([[1.5, 0.5, 77.0], [-1.0, 77.0, -2.0]], requires_grad=True)
    recipe = quiet_recipe(method="kto", kl_coeff=0.5, dpo={"desirable_weight": 2, "undesirable_weight": 3})
    loss, sums = dpo.losses(recipe, part, np.arange(3), found, torch.tensor(0.2))
    up, down = [0.5 * (x - 0.2) for x in (1.5, 0.5)], [0.5 * (0.2 - x) for x in (-1.0, -2.0)]
    costs = [0.5 * 2 * (1 - sigma(up[0])), 2 * (1 - sigma(up[1]))]
    costs += [0.5 * 3 * (1 - sigma(down[0])), 3 * (1 - sigma(down[1]))]
    assert float(loss.detach()) == pytest.approx(sum(costs) / 2, abs=1e-6)
    loss.backward()
    slopes = found.grad
    assert slopes is not None
    assert slopes[0, 2] == slopes[1, 1] == 0
    assert float(slopes[0, 1]) == pytest.approx(-0.5 * 2 * 0.5 * sigma(up[1]) * (1 - sigma(up[1])), abs=1e-7)
    assert float(slopes[1, 2]) == pytest.approx(0.5 * 3 * 0.5 * sigma(down[1]) * (1 - sigma(down[1])), abs=1e-7)
    assert part.count(np.arange(3)) == 2.0, "four answers are as many as those of two pairs"
    assert sums["accuracy"] == 2.0, "the pair, and half for each thumb on its side of the anchor"


def test_kto_starts_at_the_mean_weight_and_learns_from_unbalanced_thumbs(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dpo.main(kto(30), inputs, tmp_path / "out")
    facts = files.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["counts"]["train"] == {"pairs": 0, "ties": 0, "truncated": 0, "good": 40, "bad": 8}
    assert facts["balanced"] == {"desirable_weight": 1.0, "undesirable_weight": 3.75}
    assert "40 desirable and 8 undesirable answers weigh 1 and 3.75" in capsys.readouterr().err
    first, *_ = curve = metrics.read(tmp_path / "out/metrics.jsonl")
    assert first["loss"] == pytest.approx(0.5 * (40 + 3.75 * 8) / 48, abs=1e-5)
    assert curve[-1]["loss"] < 0.8 * first["loss"] and facts["quality"]["test"]["accuracy"] > 0.9


def test_kto_is_pushed_by_the_weighted_difference_of_the_two_kinds() -> None:
    """At the start dL/d rho of an answer is -beta/8 (lambda_D n_D - lambda_U n_U) for its thumbs, whatever the others:
    the policy rises where thumbs up outweigh, and nowhere else."""
    up, down = np.array([30, 10, 2, 8]), np.array([4, 10, 3, 3])
    weights = kto_weights(int(up.sum()), int(down.sum()))
    rho = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    chosen, rejected = rho.repeat_interleave(torch.tensor(up)), rho.repeat_interleave(torch.tensor(down))
    zero = torch.zeros((), dtype=torch.float64)
    loss = losses.kto_loss(chosen, torch.zeros_like(chosen), zero, 0.3, weights[0], 0)
    loss = loss + losses.kto_loss(torch.zeros_like(rejected), rejected, zero, 0.3, 0, weights[1])
    loss.backward()
    assert rho.grad is not None
    assert rho.grad.numpy() == pytest.approx(-0.3 / 8 * (weights[0] * up - weights[1] * down), abs=1e-12)


def test_an_answer_to_another_prompt_is_never_the_missing_one(inputs: dict[str, Path]) -> None:
    rows_of = [Thumb(Prompt(f"prompt {i}"), f" answer {i}", i % 3 > 0) for i in range(30)]
    pairs = PreferencePairs.of(rows_of, Tokenizer.load(inputs["model"]), kto(1))
    ids, tokens = dpo.mismatched_answers(pairs, 0, Path("p.jsonl"))
    own = pairs.chosen_tokens + pairs.rejected_tokens
    answers = [(pairs.chosen if pairs.sides[0, i] else pairs.rejected)[i][-own[i] :].tolist() for i in range(30)]
    for i, (row, count) in enumerate(zip(ids, tokens, strict=True)):
        assert row[-count:].tolist() in answers and row[-count:].tolist() != answers[i]


def least(table: np.ndarray, loss: Any) -> np.ndarray:
    """The values of least loss, from zero."""
    found = torch.zeros(len(table), dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS(
        [found], max_iter=400, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        descent.zero_grad()
        cost: torch.Tensor = loss(found)
        cost.backward()
        return cost

    descent.step(closure)
    return found.detach().numpy()


def test_pairs_and_thumbs_have_one_optimum_with_the_offset_between_them() -> None:
    """Scores of four answers, pairs with labels sigmoid(r_1 - r_2) and thumbs sigmoid(r - b): the least loss is at the
    true differences and at the true r - b, though neither kind of feedback says both."""
    truth, offset = np.array([0.0, 1.0, 2.0, 3.0]), 1.2
    one, two = (torch.tensor(column) for column in np.array([(a, b) for a in range(4) for b in range(a)]).T)
    up = torch.tensor(expit(truth - offset))

    def loss(values: torch.Tensor) -> torch.Tensor:
        r, b = values[:4], values[4].expand(4)
        wrong = torch.tensor(expit(truth[two] - truth[one]))
        pointwise = losses.pair_loss(r, b, weights=up) + losses.pair_loss(b, r, weights=1 - up)
        return losses.pair_loss(r[one], r[two], wrong) + pointwise

    found = least(np.zeros(5), loss)
    assert found[:4] - found[0] == pytest.approx(truth, abs=1e-6)
    assert found[:4] - found[4] == pytest.approx(truth - offset, abs=1e-6)


UP = {"a": 0.2, "b": 0.5, "c": 0.9}
"""Probability of a thumb up, by answer."""


def of_bandit(folder: Path, count: int, pairs: bool) -> dict[str, Path]:
    """Thumbs on the bandit's answers by their probabilities, exactly; with `pairs`, two more answers in pairs alone."""
    made: list[dict[str, Any]] = []
    for text, share in UP.items():
        ups = round(share * count)
        made += [{"input_text": "v", "output_text": text, "label": i < ups} for i in range(count)]
    if pairs:
        wins = round(count * expit(1.0))  # the empty answer is one better than c
        sides = {"input_text": "v", "candidate_0": "", "candidate_1": "c"}
        made += [sides | {"choice": int(i >= wins)} for i in range(count)]
    files.write_jsonl(folder / "train.jsonl", made)
    return dict.fromkeys(("train", "validation", "test"), folder / "train.jsonl")


@pytest.mark.parametrize("pairs", [False, True], ids=["thumbs", "both"])
def test_the_reward_stage_learns_the_log_odds_of_a_thumb(tmp_path: Path, pairs: bool) -> None:
    problem = bandit(tmp_path / "reference")
    parts = of_bandit(tmp_path, 40, pairs)
    values = {"batch_size": 160 if pairs else 120, "learning_rate": 1e-2, "schedule": "linear", "lora_dim": 0}
    recipe = quiet_recipe(
        reward_model_train_steps=150,
        checkpoint_every=150,
        prompt_sequence_length=4,
        target_sequence_length=1,
        reward=values,
    )
    reward_model.main(recipe, {"model": problem.folder} | parts, tmp_path / "reward")
    scorer = language_models.load_scorer(tmp_path / "reward/model", World.of(recipe))
    texts = [*UP, *([""] if pairs else [])]
    tokenizer = Tokenizer.load(problem.folder)
    rows_of = [Thumb(Prompt("v"), text, True) for text in texts]
    encoded = PreferencePairs.of(rows_of, tokenizer, recipe)
    scores = measurement.last_scores(scorer, encoded.chosen, 1000).astype(float)
    quality = files.read_json(tmp_path / "reward/quality.json")["thumbs"]
    wanted = [logit(share) for share in UP.values()]
    assert scores[:3] - quality["offset"] == pytest.approx(wanted, abs=0.05)
    if pairs:
        wins = round(40 * expit(1.0)) / 40
        assert scores[3] - scores[2] == pytest.approx(logit(wins), abs=0.05)
    assert quality["test"]["accuracy"] == pytest.approx((0.8 + 0.5 + 0.9) / 3, abs=0.2 / 3)


def test_a_reward_model_of_thumbs_goes_on_with_the_same_bits(inputs: dict[str, Path], tmp_path: Path) -> None:
    reward_model.main(reward(20), inputs, tmp_path / "whole")
    reward_model.main(reward(8), inputs, tmp_path / "cut")
    reward_model.main(reward(20), inputs, tmp_path / "cut")
    weights = [tmp_path / name / "model/model.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    quality = files.read_json(tmp_path / "whole/quality.json")
    assert quality == files.read_json(tmp_path / "cut/quality.json")
    assert quality["thumbs"]["test"]["accuracy"] > 0.7 and quality["thumbs"]["offset"] != 0


def test_a_batch_of_pairs_and_thumbs_may_be_cut_anyhow(inputs: dict[str, Path], tmp_path: Path) -> None:
    mixed = [row | {"weight": 0.5} for row in rows(16, 3)] + files.read_jsonl(inputs["train"])[30:]
    files.write_jsonl(inputs["train"], mixed)
    curves = []
    for tokens in (10_000, 40):
        out = tmp_path / str(tokens)
        reward_model.main(reward(3, batch_size=34, micro_batch_tokens=tokens), inputs, out / "reward")
        dpo.main(kto(3, batch_size=34, micro_batch_tokens=tokens), inputs, out / "policy")
        curves.append([row for name in ("reward", "policy") for row in metrics.read(out / name / "metrics.jsonl")])
    for one, other in zip(*curves, strict=True):
        assert {**one, "accuracy": 0} == pytest.approx({**other, "accuracy": 0}, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("is_good", [True, False])
def test_one_class_alone_is_refused_before_training(inputs: dict[str, Path], tmp_path: Path, is_good: bool) -> None:
    alone = [row for row in files.read_jsonl(inputs["train"]) if row["label"] == is_good]
    files.write_jsonl(inputs["train"], alone)
    for stage, recipe in ((dpo, kto(2)), (reward_model, reward(2))):
        with pytest.raises(DataError, match="no thumbs of both kinds"):
            stage.main(recipe, inputs, tmp_path / stage.__name__)
        assert not (tmp_path / stage.__name__ / "metrics.jsonl").exists()


def test_the_weight_of_a_pair_reaches_the_step_of_the_reward_model(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for weight in (1.0, 3.0):
        files.write_jsonl(inputs["train"], [row | {"weight": weight} for row in rows(16, 3)])
        reward_model.main(reward(1), inputs, tmp_path / str(weight))
        found.append(metrics.read(tmp_path / str(weight) / "metrics.jsonl")[0]["rank_loss"])
    assert found[1] == pytest.approx(3 * found[0], rel=1e-5)


def test_the_weight_of_a_pair_weighs_its_loss() -> None:
    d, weights = torch.tensor([1.0, -2.0]), torch.tensor([0.25, 3.0])
    each = [float(losses.pair_loss(x, torch.zeros(()))) for x in d]
    zero = torch.zeros(2)
    assert float(losses.pair_loss(d, zero, weights=weights)) == pytest.approx(0.25 * each[0] + 3 * each[1], rel=1e-6)
    assert float(losses.dpo_loss(d, zero, 1.0, weights=weights)) == pytest.approx(
        0.25 * each[0] + 3 * each[1], rel=1e-6
    )
    squares = [(x - 0.5) ** 2 for x in (1.0, -2.0)]
    assert float(losses.ipo_loss(d, zero, 1.0, weights)) == pytest.approx(0.25 * squares[0] + 3 * squares[1], rel=1e-6)
