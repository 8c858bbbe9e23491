"""Best of n against its closed forms: bound and law, the estimator against every subset, the Gaussian frontier."""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import enumerable
import numpy as np
import pytest
from conftest import quiet_recipe
from scipy.stats import chisquare, norm

from preferent import files
from preferent.data import predictions
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt, Rollout
from preferent.errors import UsageError
from preferent.evaluation import comparison_summary
from preferent.evaluation.inference import generate
from preferent.evaluation.judge_results import by_scores
from preferent.evaluation.statistics import best_of
from preferent.rewards.normalization import Normalizer, ScoreNormalization, Term
from preferent.rewards.scoring import CombinedReward, RolloutBatch, UserFunction
from preferent.rollouts.sampler import Prompts
from preferent.runs import metrics, stages
from preferent.training import rejection_sampling

BEST_AND_BASE = {"a": "best", "b": "base"}
REFERENCE, REWARDS = [0.5, 0.3, 0.15, 0.05], [0.0, 1.0, 2.0, 3.0]
BOUNDS = [(1, 0.0), (2, 0.1931471806), (4, 0.6362943611), (16, 1.8350887222), (64, 3.1745080834)]
BOUNDS += [(1024, 5.9324483681), (12_500, 8.4335639233), (60_000, 10.0021165079)]


def law(probabilities: Sequence[float] | np.ndarray, rewards: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    """The probability [m] of each answer to be the one kept, from p(y) [m] and r(y) [m]; F(r) is the probability of a
    reward of at most r.

    An answer that ties with no other is kept with probability F(r(y))^n - F(r(y)-)^n. Answers of one reward share that
    in proportion to their own probability.
    """
    p = np.asarray(probabilities, np.float64)
    _, level = np.unique(np.asarray(rewards), return_inverse=True)
    mass = np.bincount(level, p)
    kept = np.diff((np.cumsum(mass) / mass.sum()) ** n, prepend=0.0)
    return np.asarray(p / np.maximum(mass[level], np.finfo(np.float64).tiny) * kept[level])


def kl(probabilities: Sequence[float] | np.ndarray, rewards: Sequence[float] | np.ndarray, n: int) -> float:
    """The KL, in nats, of what is kept to what was sampled."""
    p, q = np.asarray(probabilities, np.float64), law(probabilities, rewards, n)
    there = q > 0
    return float(np.sum(q[there] * np.log(q[there] / p[there])))


@pytest.mark.parametrize(("n", "nats"), BOUNDS)
def test_the_bound(n: int, nats: float) -> None:
    assert best_of.kl_bound(n) == pytest.approx(nats, abs=1e-10)


def test_the_law_of_the_bandit() -> None:
    kept = law(REFERENCE, REWARDS, 4)
    assert kept == pytest.approx([0.0625, 0.3471, 0.40490625, 0.18549375], abs=1e-12)
    assert kept @ REWARDS == pytest.approx(1.71339375, abs=1e-12)
    assert kl(REFERENCE, REWARDS, 4) == pytest.approx(0.5659147331, abs=1e-10)
    assert law(REFERENCE, REWARDS, 1) == pytest.approx(REFERENCE, abs=1e-15)


@pytest.mark.parametrize("rewards", [REWARDS, [1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 3.0, 3.0, 1.0]])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_law_is_that_of_all_draws(rewards: list[float], n: int) -> None:
    """Every one of the 4^n draws, its best the first of the highest reward."""
    kept = np.zeros(4)
    for draws in itertools.product(range(4), repeat=n):
        winner = draws[int(best_of.best(np.array([[rewards[i] for i in draws]]))[0])]
        kept[winner] += math.prod(REFERENCE[i] for i in draws)
    assert law(REFERENCE, rewards, n) == pytest.approx(kept, abs=1e-12)
    divergence = float(np.sum(kept * np.log(kept / REFERENCE)))
    assert kl(REFERENCE, rewards, n) == pytest.approx(divergence, abs=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_the_bound_is_reached_without_ties_and_only_then(n: int) -> None:
    """Many answers of nearly no probability each are as good as a continuous reward; ties always cost."""
    many = 1_000_000
    even = np.full(many, 1 / many)
    assert kl(even, np.arange(many), n) == pytest.approx(best_of.kl_bound(n), abs=1e-4)
    for rewards in (REWARDS, [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]):
        assert kl(REFERENCE, rewards, n) < best_of.kl_bound(n)
    assert kl(REFERENCE, [1.0] * 4, n) == pytest.approx(0.0, abs=1e-15)


def test_answers_without_probability_are_never_kept() -> None:
    kept = law([0.5, 0.0, 0.5, 0.0], [0.0, 9.0, 1.0, 1.0], 3)
    assert kept == pytest.approx([0.125, 0.0, 0.875, 0.0], abs=1e-15)
    assert kl([0.5, 0.0, 0.5, 0.0], [0.0, 9.0, 1.0, 1.0], 3) > 0


SAMPLES = {
    "no ties": [0.3, -1.2, 2.5, 0.9, -0.4, 1.7, 0.0],
    "ties": [1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 2.0],
    "all equal": [1.0] * 7,
}


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("proxy", SAMPLES.values(), ids=SAMPLES)
def test_the_estimator_is_the_mean_over_all_subsets(proxy: list[float], n: int) -> None:
    """By the score itself and by a second one, a tie in the first broken at random."""
    gold = [0.11, 0.52, -0.73, 0.24, 0.95, -0.36, 0.47]
    for values in (proxy, gold):
        found = []
        for subset in itertools.combinations(range(7), n):
            most = max(proxy[i] for i in subset)
            found.append(np.mean([values[i] for i in subset if proxy[i] == most]))
        assert best_of.expected(values, proxy, n) == pytest.approx(np.mean(found), abs=1e-12)
        assert best_of.expected(values[::-1], proxy[::-1], n) == pytest.approx(np.mean(found), abs=1e-12)


def test_the_weights_are_exact_at_any_size() -> None:
    size = 12_500
    for n in (1, 2, 100, 6_000, size):
        weights = best_of.weights(size, n)
        assert weights.sum() == pytest.approx(1.0, abs=1e-10)
        for rank in (n, (n + size) // 2, size - 1, size):
            exact = float(Fraction(math.comb(rank - 1, n - 1), math.comb(size, n)))
            assert weights[rank - 1] == pytest.approx(exact, rel=1e-10, abs=1e-300)
        assert not weights[: n - 1].any()


@pytest.mark.parametrize("n", [0, 8])
def test_no_more_than_was_sampled_can_be_estimated(n: int) -> None:
    with pytest.raises(ValueError, match=f"the best of {n} cannot be estimated from 7 samples"):
        best_of.expected([0.0] * 7, [0.0] * 7, n)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_best_of_n_wins_n_of_n_plus_1(n: int) -> None:
    """Against one answer of the base, by enumeration, ties one half: n / (n + 1) where rewards hardly ever tie."""
    many = 100_000
    even = np.full(many, 1 / many)
    kept = law(even, np.arange(many), n)
    below = np.cumsum(even) - even
    assert float(kept @ (below + even / 2)) == pytest.approx(n / (n + 1), abs=1e-5)


FRONTIER = {2: 0.9077, 4: 0.9125, 16: 0.9218, 64: 0.9302}


@pytest.mark.parametrize(("n", "ratio"), FRONTIER.items())
def test_the_gaussian_frontier(n: int, ratio: float) -> None:
    """Rewards N(0, 1): the gain of the best of n over the most that its KL can buy, sqrt(2 KL)."""
    edges = np.linspace(-9, 9, 400_001)
    p = np.diff(norm.cdf(edges))
    middle = (edges[1:] + edges[:-1]) / 2
    gain = float(law(p / p.sum(), middle, n) @ middle)
    assert gain / math.sqrt(2 * best_of.kl_bound(n)) == pytest.approx(ratio, abs=5e-5)


def test_the_first_of_equals_is_kept() -> None:
    assert best_of.best(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 5.0]])).tolist() == [1, 0, 2]


LETTERS = ["a", "b", "c", ""]


def bandit(folder: Path, rewards: list[float], rows: int) -> dict[str, Path]:
    """One prompt asked `rows` times, its answers a, b, c and none with the probabilities of REFERENCE."""
    problem = enumerable.make(folder, ("v",), max_tokens=1, temperature=0.7, seed=0)
    enumerable.set_distribution(problem, REFERENCE)
    worth = dict(zip(LETTERS, rewards, strict=True))
    enumerable.fill(problem, np.array([[worth[text] for text in problem.texts()]]))
    lines = [json.dumps({"input_text": "v", "id": str(row)}) + "\n" for row in range(rows)]
    (folder / "many.jsonl").write_text("".join(lines))
    (folder / "few.jsonl").write_text("".join(lines[:64]))
    return {"model": folder, "prompts": folder / "many.jsonl"}


def recipe_of(n: int, **values: Any) -> Any:
    return quiet_recipe(
        infer={"sampling_strategy": "temperature_sampling", "best_of": n, "max_prompts": None},
        reward={"sources": "enumerable:reward", "missing_eos_score": None},
        sampler={"temperature": 0.7, "rows": 4096},
        prompt_sequence_length=4,
        target_sequence_length=1,
        **values,
    )


def counts(texts: list[str]) -> list[int]:
    found = Counter(texts)
    return [found[letter] for letter in LETTERS]


@pytest.mark.parametrize("rewards", [REWARDS, [1.0, 0.0, 1.0, 0.0]], ids=["no ties", "ties"])
def test_the_stage_samples_the_law(tmp_path: Path, rewards: list[float]) -> None:
    """The stage `infer` on 2,000 prompts, beside a base that gives one answer; and what `compare` makes of both."""
    rows, n = 1_500, 4
    reference = enumerable.make(tmp_path / "reference", ("v",), max_tokens=1, temperature=0.7, seed=1).folder
    inputs = bandit(tmp_path / "model", rewards, rows) | {"reference": reference}
    generate.main(recipe_of(n), inputs, tmp_path / "best")
    generate.main(recipe_of(1), inputs, tmp_path / "base")
    best, base = (files.read_jsonl(tmp_path / name / "text.jsonl") for name in ("best", "base"))
    shares = law(REFERENCE, rewards, n)
    assert chisquare(counts([row["prediction"] for row in best]), shares * rows).pvalue > 0.01
    assert chisquare(counts([row["prediction"] for row in base]), np.array(REFERENCE) * rows).pvalue > 0.01
    assert all(row["best_of"] == n == len(row["scores"]) and row["score"] == max(row["scores"]) for row in best)
    scored = dict(zip(LETTERS, rewards, strict=True))
    assert all(row["score"] == scored[row["prediction"]] for row in best)
    divergence = [[row[name] for row in side for name in ("kl", "kl_k1")] for side in (best, base)]
    assert divergence[0] == pytest.approx(divergence[1], abs=1e-5), "it is the policy's, whatever is chosen"
    assert min(row["kl"] for row in best) > 0.01
    assert "best_of" not in base[0] and "score" not in base[0]

    answers = predictions.join(
        {side: predictions.read(tmp_path / f"{name}/text.jsonl") for side, name in BEST_AND_BASE.items()}
    )
    scores = {side: np.array([scored[answer.text] for answer in given]) for side, given in answers.items()}
    opinion = by_scores("reward", scores, answers, None, BEST_AND_BASE)
    _, metrics = comparison_summary.verdict(answers, [opinion], "reward", BEST_AND_BASE)
    assert metrics["best_of"]["n"] == n and metrics["best_of"]["kl_bound"] == best_of.kl_bound(n)
    for k, score in metrics["best_of"]["score"].items():
        expected = float(law(REFERENCE, rewards, int(k)) @ rewards)
        assert score == pytest.approx(expected, abs=4 * np.std(rewards) / math.sqrt(rows)), k
    against = np.subtract.outer(rewards, rewards)
    expected = float(shares @ np.where(against == 0, 0.5, against > 0) @ REFERENCE)
    assert metrics["judges"]["reward"]["win_rate"] == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(rows))


def test_the_score_that_chooses_is_the_one_that_tuning_raises(tmp_path: Path) -> None:
    """Clipped, less what is overlong, and -1 for an answer that did not end: as rejection sampling ranks. Without a
    scale these limits mean nothing, and raw scores choose."""
    tokenizer = Tokenizer.load(enumerable.make(tmp_path / "model", ("v",), max_tokens=4, temperature=1, seed=0).folder)
    raw = [9.0, 3.0, 5.0, 4.0, -5.0, -6.0]
    ended = [False, True, True, True, False, True]
    lengths = [4, 2, 4, 1, 4, 2]
    reward = CombinedReward(
        {"reward": UserFunction("m:f", lambda prompts, answers: raw)},
        ScoreNormalization((Term("reward", 1.0, {"reward": Normalizer(1.0, 2.0)}),), prompts=8),
    )
    limits = {"clip": 7.0, "overlong_tokens": 3, "overlong_penalty": 1.5, "missing_eos_score": -1.0}
    recipe = quiet_recipe(
        infer={"sampling_strategy": "temperature_sampling", "best_of": 2}, reward=limits, target_sequence_length=4
    )
    rollouts = [
        Rollout(i, 0, 0, np.array([5]), np.full(n, 5), np.zeros(n, np.float32), whole)
        for i, (n, whole) in enumerate(zip(lengths, ended, strict=True))
    ]
    prompts = Prompts([np.array([5])] * 6, ["v"] * 6, [Prompt("v")] * 6)
    batch, facts = generate.favourites(recipe, reward, RolloutBatch(rollouts, prompts, tokenizer))
    assert [fact["scores"] for fact in facts] == [[-1.0, 3.5], [5.5, 6.0], [-1.0, -7.5]]
    assert [r.prompt_index for r in batch.rollouts] == [1, 3, 4] and [fact["score"] for fact in facts] == [3.5, 6, -1]
    unknown = dataclasses.replace(reward, scale=ScoreNormalization.of(recipe, 1))
    batch, facts = generate.favourites(recipe, unknown, RolloutBatch(rollouts, prompts, tokenizer))
    assert [fact["scores"] for fact in facts] == [[9.0, 3.0], [5.0, 4.0], [-5.0, -6.0]]
    assert [r.prompt_index for r in batch.rollouts] == [0, 2, 4]


def test_several_need_a_reward_and_one_needs_none(tmp_path: Path) -> None:
    inputs = bandit(tmp_path / "model", REWARDS, 2)
    recipe = quiet_recipe(infer={"sampling_strategy": "temperature_sampling", "best_of": 2})
    with pytest.raises(UsageError, match="the reward model is missing: give --in reward=FOLDER"):
        generate.main(recipe, inputs, tmp_path / "out")
    with pytest.raises(UsageError, match="--in reward chooses among several answers"):
        generate.main(quiet_recipe(), inputs | {"reward": tmp_path}, tmp_path / "out")
    with pytest.raises(UsageError, match=r"infer\.best_of: needs infer\.sampling_strategy"):
        quiet_recipe(infer={"best_of": 2})


@pytest.mark.acceptance
@pytest.mark.parametrize(("rounds", "equals"), [(1, 4), pytest.param(2, 4 + 4 * 4, marks=pytest.mark.slow)])
def test_rejection_sampling_ends_at_the_law_of_the_best_of_n(tmp_path: Path, rounds: int, equals: int) -> None:
    """With many prompts and many steps the policy becomes the law of what is kept.

    That is F^4 after a round of four samples. The second samples from F^4, and the best ever of both is F^4 (F^4)^4.
    """
    rows = 4096
    inputs = bandit(tmp_path / "model", REWARDS, rows)
    section = {"rounds": rounds, "prompts": rows, "samples": 4, "train_steps": 40, "batch_size": rows}
    section |= {"learning_rate": 3e-3, "micro_batch_tokens": 100_000}
    recipe = recipe_of(1, method="rejection_sampling", rejection=section, kl_coeff=0.0)
    prompts = {"train": inputs["prompts"], "validation": tmp_path / "model/few.jsonl"}
    rejection_sampling.main(recipe, {"model": inputs["model"]} | prompts, tmp_path / "out")
    assert stages.read_stage(tmp_path / "out")["facts"]["best_step"] == rounds * 40
    problem = enumerable.Problem(tmp_path / "model", ("v",), 1, 0.7)
    order = [problem.texts().index(letter) for letter in LETTERS]
    learnt = np.exp(problem.log_probs(tmp_path / "out/model"))[0, order]
    shares = law(REFERENCE, REWARDS, equals)
    print(learnt, shares)
    assert learnt == pytest.approx(shares, abs=0.025)
    kept = metrics.read(tmp_path / "out/metrics.jsonl")[1 + 40 * (rounds - 1)]["rejection/kept"]
    bias = ScoreNormalization.read(tmp_path / "out/score.json").normalizer("reward").bias
    assert kept + bias == pytest.approx(float(shares @ REWARDS), abs=0.05)
