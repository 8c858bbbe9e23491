"""What can be known exactly of a reward model: Bradley-Terry recovery, calibration, and the figures of its report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from scipy.integrate import quad
from scipy.special import expit, ndtri
from scipy.stats import norm, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from preferent import files, randomness
from preferent.commands.inference import from_scratch
from preferent.data.types import Choice, Preference, Prompt
from preferent.evaluation import bag_of_words, reward_quality, statistics
from preferent.evaluation.reward_quality import Scored
from preferent.training import losses, reward_model

BAYES = {0.5: (0.631127, 0.639951), 1.0: (0.725213, 0.539500), 2.0: (0.828012, 0.375348), 4.0: (0.905858, 0.217352)}
"""Accuracy and loss of the true reward where rewards are N(0, s²) and labels Bradley-Terry, by s."""


def maximum_likelihood(size: int, *pairs: Any) -> np.ndarray:
    """The table of rewards [size] of least `objective.pair_loss`, by its exact gradient, mean 0.

    `pairs` are indices of chosen [n] and rejected [n], and the probability [n] that the label is wrong, with weights.
    """
    chosen, rejected, wrong, weight = (torch.as_tensor(column) for column in pairs)
    table = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [table], max_iter=300, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = weight * losses.pair_loss(table[chosen], table[rejected], wrong)
        value.backward()
        return value

    optimizer.step(loss)
    found = table.detach().numpy()
    return found - found.mean()


@pytest.mark.parametrize("s", BAYES)
def test_the_closed_forms(s: float) -> None:
    """E σ(|d|) and E H(σ(d)) for d ~ N(0, 2 s²), by quadrature."""
    spread = s * np.sqrt(2)
    accuracy = quad(lambda d: 2 * expit(d) * norm.pdf(d, scale=spread), 0, 12 * spread)[0]
    loss = quad(lambda d: 2 * expit(d) * np.logaddexp(0, -d) * norm.pdf(d, scale=spread), -12 * spread, 12 * spread)[0]
    assert (accuracy, loss) == pytest.approx(BAYES[s], abs=1e-6)


@pytest.mark.parametrize("s", BAYES)
def test_bradley_terry_is_recovered(s: float) -> None:
    """Within 1 % of Bayes accuracy and loss; the reliability curve is the identity."""
    size, count = 150, 90_000
    truth = s * ndtri((np.arange(size) + 0.5) / size)
    pairs = np.stack([np.floor(randomness.uniforms(0, name, np.arange(count), 0) * size).astype(int) for name in "ab"])
    pairs = pairs[:, pairs[0] != pairs[1]]

    def labelled(purpose: str) -> np.ndarray:
        first = randomness.uniforms(0, purpose, np.arange(pairs.shape[1]), 0) < expit(truth[pairs[0]] - truth[pairs[1]])
        return np.where(first, pairs, pairs[::-1])

    chosen, rejected = labelled("train")
    found = maximum_likelihood(size, chosen, rejected, 0.0, 1.0)
    ahead = np.abs(truth[:, None] - truth)[~np.eye(size, dtype=bool)]
    believed = (np.sign(truth[:, None] - truth) * (found[:, None] - found))[~np.eye(size, dtype=bool)]
    accuracy = expit(np.sign(believed) * ahead).mean()
    loss = (expit(ahead) * np.logaddexp(0, -believed) + expit(-ahead) * np.logaddexp(0, believed)).mean()
    best = expit(ahead).mean(), (expit(ahead) * np.logaddexp(0, -ahead) + expit(-ahead) * np.logaddexp(0, ahead)).mean()
    assert best == pytest.approx(BAYES[s], rel=0.02), "a table of quantiles stands for the normal distribution"
    assert best[0] * 0.99 <= accuracy <= best[0] and best[1] <= loss <= best[1] * 1.01

    chosen, rejected = labelled("test")
    confidence = expit(np.abs(found[chosen] - found[rejected]))
    for one in statistics.reliability(confidence, reward_quality.won(found[chosen] - found[rejected])):
        error = np.sqrt(one.confidence * (1 - one.confidence) / one.count)
        assert abs(one.accuracy - one.confidence) < 4 * error + 0.01


def test_estimates_vary_as_the_fisher_information_says() -> None:
    """θ̂ - θ* ~ N(0, H⁺): (θ̂ - θ*)ᵀ H (θ̂ - θ*) has the mean and variance of χ² with K - 1 degrees of freedom."""
    truth, times, repeats = np.array([-1.0, -0.4, 0.0, 0.3, 1.1]), 400, 300
    size = len(truth)
    first, second = np.triu_indices(size, 1)
    chance = expit(truth[first] - truth[second])
    information = np.zeros((size, size))
    for i, j, p in zip(first, second, chance, strict=True):
        information[[i, j, i, j], [i, j, j, i]] += times * p * (1 - p) * np.array([1, 1, -1, -1])
    lost = np.random.default_rng(0).binomial(times, 1 - chance, (repeats, len(chance))) / times
    blocks = size * np.arange(repeats)[:, None]
    table = maximum_likelihood(
        repeats * size, (first + blocks).ravel(), (second + blocks).ravel(), lost.ravel(), float(times)
    )
    found = table.reshape(repeats, size)
    error = found - found.mean(1, keepdims=True) - (truth - truth.mean())
    distance = np.einsum("ri,ij,rj->r", error, information, error)
    degrees = size - 1
    assert distance.mean() == pytest.approx(degrees, abs=4 * np.sqrt(2 * degrees / repeats))
    assert distance.var() == pytest.approx(2 * degrees, rel=0.5)


def test_calibration_of_worked_numbers() -> None:
    bins = statistics.reliability([0.5, 0.54, 0.55, 0.97, 0.99, 1.0], [0.5, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert [(one.count, one.accuracy) for one in bins] == [(2, 0.25), (1, 1.0), (3, pytest.approx(2 / 3))]
    assert [one.confidence for one in bins] == pytest.approx([0.52, 0.55, 2.96 / 3])
    expected = (2 * abs(0.52 - 0.25) + abs(0.55 - 1.0) + 3 * abs(2.96 / 3 - 2 / 3)) / 6
    assert statistics.calibration_error(bins) == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_is_that_of_mean_ranks() -> None:
    """With many ties in one of the two: a value's rank is how many are below it, and half of those that equal it."""
    generator = np.random.default_rng(1)
    x, y = generator.integers(0, 20, 200), generator.normal(size=200)
    for other in (y, x + 5 * y, -x):
        ranks = [[np.sum(v < one) + np.sum(v == one) / 2 for one in v] for v in (x, other)]
        assert statistics.rank_correlation(x, other) == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-12)


ANSWERS = [
    *("a good, clear answer.", "A Clear answer", "bad", "the bad answer!", "good and clear and good", "a, b, c"),
    *("no idea", "an idea, no?", "the clear idea", "good idea!", "clear", "bad idea: no", "unheard ofs", ""),
]


def test_the_bag_of_words_is_scikit_learns() -> None:
    chosen, rejected = ANSWERS[0::2], ANSWERS[1::2]
    words = bag_of_words.BagOfWords.learn(chosen, rejected)
    pattern = bag_of_words.WORD.pattern
    other = TfidfVectorizer(token_pattern=pattern, ngram_range=(1, 2), min_df=bag_of_words.LEAST).fit(
        [*chosen, *rejected]
    )
    assert list(words.places) == sorted(other.vocabulary_)
    order = [other.vocabulary_[term] for term in words.places]
    assert abs(words.features(ANSWERS) - other.transform(ANSWERS)[:, order]).max() < 1e-12

    differences = (words.features(chosen) - words.features(rejected)).toarray()
    mirrored = np.concatenate([differences, -differences])
    labels = np.repeat([1, 0], len(differences))
    model = LogisticRegression(C=0.5 / bag_of_words.PENALTY, fit_intercept=False, tol=1e-12, max_iter=10_000)
    assert words.weights == pytest.approx(model.fit(mirrored, labels).coef_[0], abs=1e-6)
    assert words.scores(chosen) - words.scores(rejected) == pytest.approx(differences @ words.weights, abs=1e-12)


def held_out(count: int = 60, **changed: Any) -> Scored:
    """Pairs with drawn scores, lengths, positions and strengths; every fourth strength is not said."""
    generator = np.random.default_rng(2)
    strengths = generator.integers(0, 4, count).astype(float)
    choices: list[Choice] = [0 if u < 0.5 else 1 for u in generator.random(count)]
    preferences = [
        Preference(
            Prompt(f"prompt {i}"), f" answer {i}", f" other {i}", choices[i], f"id {i}",
            None if i % 4 == 0 else strengths[i], source=f"runs/x/data/test.jsonl:{i + 1}",
        )
        for i in range(count)
    ]  # fmt: skip
    columns = {
        "preferences": preferences,
        "chosen": generator.normal(0.5, 1, count),
        "rejected": generator.normal(0, 1, count),
        "chosen_tokens": generator.integers(5, 15, count),
        "rejected_tokens": generator.integers(5, 12, count),
    }
    return Scored(**(columns | changed))


@pytest.mark.parametrize("count", [1, 2, 4, 7, 60, 301])
def test_buckets_hold_every_pair_once(count: int) -> None:
    pairs = held_out(count)
    found = reward_quality.details(pairs, [])
    for name in ("reliability", "by_confidence", "by_strength"):
        assert sum(one["count"] for one in found[name]) in (count, 0 if count == 1 else count), name
    right = sum(one["count"] * one["share"] for one in found["by_confidence"])
    assert right == pytest.approx(pairs.right.sum())
    assert found["accuracy"]["share"] == pytest.approx(reward_quality.figures(pairs)["accuracy"])
    for low, high in zip(found["by_confidence"], found["by_confidence"][1:], strict=False):
        assert low["high"] < high["low"] and low["confidence"] < high["confidence"]


def test_buckets_of_worked_numbers() -> None:
    keys = np.array([3.0, 1.0, 1.0, 2.0, 3.0, 3.0])
    pairs = held_out(6, chosen=np.array([1.0, 1, 0, 0, 0, 1]), rejected=np.array([0.0, 0, 1, 0, 1, 0]))
    found = reward_quality.buckets(pairs, keys, np.array([True, True, True, True, True, False]))
    assert [(one["low"], one["high"], one["count"], one["share"]) for one in found] == [
        (1.0, 1.0, 2, 0.5),
        (2.0, 2.0, 1, 0.5),
        (3.0, 3.0, 2, 0.5),
    ]
    many = reward_quality.buckets(held_out(60), np.arange(60) // 7, np.ones(60, bool))
    spans = [(one["low"], one["high"], one["count"]) for one in many]
    assert spans == [(0, 1, 14), (2, 3, 14), (4, 5, 14), (6, 6, 7), (7, 8, 11)], "seven equal keys stay together"


def test_a_share_without_ties_has_wilsons_interval() -> None:
    found = reward_quality.share(np.array([1.0] * 30 + [0.0] * 10), [str(i) for i in range(40)])
    z, p, n = ndtri(0.975), 0.75, 40
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    half /= 1 + z * z / n
    assert found["interval"] == pytest.approx([middle - half, middle + half], abs=1e-8)


def test_pairs_of_one_prompt_are_one_cluster_where_there_are_enough_prompts() -> None:
    pairs = held_out(60)

    def of(prompts: list[Prompt]) -> int:
        changed = [Preference(prompt, " a", " b", 0) for prompt in prompts]
        return len(set(held_out(60, preferences=changed).clusters))

    assert len(set(pairs.clusters)) == 60
    assert of([Prompt(f"{i // 2}") for i in range(60)]) == 30
    assert of([Prompt(f"{i // 10}") for i in range(60)]) == 60, "six prompts say nothing of how prompts differ"
    assert of([Prompt() for _ in range(60)]) == 60
    assert of([Prompt(f"{i}" if i < 30 else "") for i in range(60)]) == 60, "an empty prompt is none"


def test_the_lead_over_a_rule() -> None:
    pairs = held_out(4, chosen=np.array([1.0, 1, 0, 1]), rejected=np.array([0.0, 0, 1, 0]))
    found = reward_quality.lead(pairs.right, np.array([1.0, 0.0, 0.0, 0.5]), pairs.clusters)
    assert found["lead"] == pytest.approx(0.75 - 0.375)
    low, high = found["lead_interval"]
    assert -1 <= low < found["lead"] < high <= 1
    even = held_out(400, chosen=np.tile([1.0, 0.0], 200), rejected=np.tile([0.0, 1.0], 200))
    found = reward_quality.lead(even.right, np.tile([0.0, 1.0, 0.0, 0.0], 100), even.clusters)
    plain = statistics.win_rate(np.tile([1.0, 0.0, 1.0, 0.5], 100), [str(i) for i in range(400)])
    assert found["lead"] == pytest.approx(2 * plain.win_rate - 1)
    assert found["lead_interval"] == pytest.approx([2 * limit - 1 for limit in plain.interval], abs=2e-3)


def test_rules_position_and_length() -> None:
    """Scores are the lengths; the first candidate is always chosen, so there is no rule of the position."""
    chosen, rejected = np.array([5, 7, 9, 4, 6, 6]), np.array([3, 8, 2, 4, 5, 1])
    preferences = [Preference(Prompt(), " good", " bad", 0) for _ in chosen]
    pairs = Scored(preferences, chosen.astype(float), rejected.astype(float), chosen, rejected)
    found = reward_quality.details(pairs, preferences)
    shares = {name: rule["share"] for name, rule in found["rules"].items()}
    assert shares == pytest.approx({"longer": 4.5 / 6, "shorter": 1.5 / 6, "words": 1.0})
    assert found["rules"]["longer"]["lead"] == 0
    assert found["mean_confidence"] == pytest.approx(expit([2, 1, 7, 0, 1, 5]).mean())
    assert reward_quality.figures(pairs)["length_correlation"] == pytest.approx(1.0)
    assert found["length"]["longer_preferred"]["share"] == 1.0 and found["length"]["longer_preferred"]["count"] == 5
    assert found["length"]["longer_won"]["share"] == 1.0 and found["length"]["shorter_won"]["share"] == 0.0
    assert found["position"]["first_chosen"]["share"] == 1.0
    assert found["position"]["first_preferred"]["share"] == pytest.approx(4.5 / 6)
    scores, first = [*chosen, *rejected], [1] * 6 + [0] * 6
    assert found["position"]["correlation"] == pytest.approx(spearmanr(scores, first).statistic)
    swapped = Scored(
        [p.swap() for p in preferences], *(getattr(pairs, n) for n in list(pairs.__dataclass_fields__)[1:])
    )
    turned = reward_quality.position(swapped)
    assert turned["first_chosen"]["share"] == 0.0 and turned["correlation"] == -found["position"]["correlation"]


def test_the_rule_of_the_position_is_there_where_both_places_won() -> None:
    preferences = [Preference(Prompt(), " good", " bad", int(i > 2)) for i in range(4)]
    pairs = Scored(preferences, *np.arange(16.0).reshape(4, 4))
    outcomes = reward_quality.rule_outcomes(pairs, preferences)
    assert outcomes["first"].tolist() == [1, 1, 1, 0] and outcomes["second"].tolist() == [0, 0, 0, 1]


def test_mistakes_are_the_surest_with_their_place(tmp_path: Path) -> None:
    place = tmp_path / "data" / "test.jsonl"
    preferences = [Preference(Prompt(f"p{i}"), " a", " b", i % 2, source=f"{place}:{i + 1}") for i in range(30)]
    margins = np.where(np.arange(30) < 25, -np.arange(30.0), 1.0)
    pairs = held_out(30, preferences=preferences, chosen=margins, rejected=np.zeros(30))
    found = reward_quality.mistakes(pairs, tmp_path)
    assert [row["source"] for row in found] == [f"data/test.jsonl:{i + 1}" for i in range(24, 4, -1)]
    assert found[0] | {"score_0": -24.0, "score_1": 0.0, "choice": 0, "input_text": "p24"} == found[0]
    assert found[1] | {"score_0": 0.0, "score_1": -23.0, "choice": 1} == found[1]
    assert found[0]["confidence"] == pytest.approx(1.0) and len(found) == reward_quality.MISTAKES
    right = held_out(30, preferences=preferences, chosen=np.ones(30), rejected=np.zeros(30))
    assert reward_quality.mistakes(right, tmp_path) == []


def test_samples_lie_beside_what_people_compared() -> None:
    found = reward_quality.beside(
        np.array([0.0, 2.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, 3.0]), np.array([0.0, -1.0, -1.0, 1.0])
    )
    assert found["sampled"] == {"mean": 1.0, "sd": 1.0}
    assert (found["chosen_above"]["share"], found["rejected_above"]["share"]) == (0.75, 0.125)


@pytest.mark.acceptance
def test_the_stage_recovers_bradley_terry(tmp_path: Path) -> None:
    """The real stage on 30 items of known reward, s = 2: within 1 % of the true reward's accuracy on the same pairs,
    and calibrated."""
    size, counts = 30, {"train": 6000, "validation": 500, "test": 4000}
    truth = 2.0 * ndtri((np.arange(size) + 0.5) / size)
    names = [f" {a}{b}" for a in "bdfklm" for b in "aeiou"]
    true_right = {}
    for part, count in counts.items():
        first, second = (
            np.floor(randomness.uniforms(0, f"{part} {n}", np.arange(count), 0) * size).astype(int) for n in "ab"
        )
        second = np.where(first == second, (second + 1) % size, second)
        choice = (randomness.uniforms(0, part, np.arange(count), 0) > expit(truth[first] - truth[second])).astype(int)
        rows = [
            {"input_text": "Name:", "candidate_0": names[i], "candidate_1": names[j], "choice": int(c)}
            for i, j, c in zip(first, second, choice, strict=True)
        ]
        files.write_jsonl(tmp_path / f"{part}.jsonl", rows)
        true_right[part] = np.mean((truth[first] > truth[second]) == (choice == 0))
    (tmp_path / "text.txt").write_text("Name:" + "".join(names))
    from_scratch.make(
        [tmp_path / "text.txt"], tmp_path / "model", vocab_size=300, hidden_size=32, layers=1, heads=2,
        key_value_heads=2, intermediate_size=64, max_position_embeddings=32, seed=0,
    )  # fmt: skip
    section = {"learning_rate": 3e-3, "validation_every": 50, "schedule": "linear"}
    recipe = quiet_recipe(
        reward_model_train_steps=300, prompt_sequence_length=8, target_sequence_length=6, reward=section
    )
    inputs = {"model": tmp_path / "model"} | {part: tmp_path / f"{part}.jsonl" for part in counts}
    reward_model.main(recipe, inputs, tmp_path / "reward")
    found = json.loads((tmp_path / "reward/quality.json").read_text())
    assert found["test"]["accuracy"] == pytest.approx(true_right["test"], rel=0.01)
    assert found["test"]["accuracy"] == pytest.approx(BAYES[2.0][0], rel=0.03)
    assert found["test"]["ece"] < 0.03
