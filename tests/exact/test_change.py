"""Paired tests, several at once, slices, and how many prompts it takes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from preferent import randomness
from preferent.evaluation import statistics
from preferent.evaluation.statistics import paired_tests


def own(n: int) -> list[str]:
    return [str(i) for i in range(n)]


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 0), (7, 2), (2, 7), (10, 10), (60, 40), (121, 59)])
def test_the_sign_test_is_mcnemars_exact_one(better: int, worse: int) -> None:
    """And the sum of the binomial's tails, counted in whole numbers."""
    found = paired_tests.sign_test(better, worse)
    tosses = better + worse
    assert found == pytest.approx(mcnemar([[3, better], [worse, 4]], exact=True).pvalue if tosses else 1, abs=1e-12)
    tail = sum(math.comb(tosses, heads) for heads in range(min(better, worse) + 1))
    assert found == pytest.approx(float(min(Fraction(2 * tail, 2**tosses), Fraction(1))), rel=1e-12)


def test_lady_tasting() -> None:
    """By hand: 7 of 8 is 2 (1 + 8) / 256."""
    assert paired_tests.sign_test(7, 1) == pytest.approx(18 / 256, abs=1e-15)


@pytest.mark.parametrize(("better", "worse", "even"), [(7, 2, 4), (60, 40, 20), (3, 3, 0)])
def test_the_other_p_value_is_mcnemars_without_correction(better: int, worse: int, even: int) -> None:
    outcomes = [1.0] * better + [0.5] * even + [0.0] * worse
    found = paired_tests.paired(outcomes, own(len(outcomes)))
    assert (found.better, found.worse, found.even) == (better, worse, even)
    expected = mcnemar([[even, better], [worse, 0]], exact=False, correction=False).pvalue
    assert found.p == pytest.approx(expected, abs=1e-12)
    assert found.p_exact == paired_tests.sign_test(better, worse)


def test_a_prompt_counts_once_however_often_it_was_asked() -> None:
    outcomes = [1.0, 1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5]
    found = paired_tests.paired(outcomes, ["a", "a", "a", "b", "b", "c", "d", "d"])
    assert (found.better, found.worse, found.even) == (1, 0, 3)
    assert found.p_exact == 1


def test_the_exact_test_does_not_cry_wolf() -> None:
    """Where sides are alike and a prompt's verdicts repeat each other, p < .05 comes in at most one of twenty."""
    uniform = randomness.uniforms(8, "alike", np.arange(400)[:, None], np.arange(30))
    verdicts = np.repeat((uniform < 0.5) * 1.0, 4, axis=1)
    names = [str(i // 4) for i in range(120)]
    found = [paired_tests.paired(row, names) for row in verdicts]
    assert np.mean([each.p_exact < 0.05 for each in found]) < 0.07
    assert np.mean([each.p < 0.05 for each in found]) < 0.09


def test_holm_is_statsmodels() -> None:
    for size in (1, 2, 7):
        values = randomness.uniforms(8, "holm", np.arange(size), 0) ** 3
        assert paired_tests.holm(values) == pytest.approx(multipletests(values, method="holm")[1], abs=1e-12)
    assert paired_tests.holm([]) == [] and paired_tests.holm([0.9, 0.8]) == [1.0, 1.0]
    assert paired_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_slices_are_the_rates_of_their_rows() -> None:
    outcomes = [1.0, 1.0, 0.0, 0.5, 1.0, 0.0]
    prompts = ["p", "p", "q", "r", "s", "t"]
    labels = [["law", "short"], ["law"], ["law"], ["art"], ["art", "short", "short"], []]
    found = paired_tests.slices(outcomes, prompts, labels)
    assert [each.name for each in found] == ["art", "law", "short"]
    assert found[1].rate == statistics.win_rate([1.0, 1.0, 0.0], ["p", "p", "q"])
    assert (found[2].rate.n, found[2].rate.win) == (2, 2)
    assert [each.p for each in found] == [statistics.p_value(*each) for each in (
        ([0.5, 1.0], ["r", "s"]), ([1.0, 1.0, 0.0], ["p", "p", "q"]), ([1.0, 1.0], ["p", "s"])
    )]  # fmt: skip
    assert [each.p_holm for each in found] == paired_tests.holm([each.p for each in found])
    weighted = paired_tests.slices(outcomes, prompts, labels, [1.0, 1.0, 4.0, 1.0, 1.0, 1.0])
    assert weighted[1].rate.win_rate == pytest.approx(2 / 6)
    assert weighted[1].p == statistics.p_value([1.0, 1.0, 0.0], ["p", "p", "q"], [1.0, 1.0, 4.0])


def test_slices_by_length_are_of_one_size() -> None:
    lengths = list(range(1, 101))
    names = paired_tests.by_length(lengths)
    assert [names.count(name) for name in dict.fromkeys(names)] == [25] * 4
    assert list(dict.fromkeys(names)) == [
        "length to 25",
        "length over 25 to 50",
        "length over 50 to 75",
        "length over 75 to 100",
    ]
    assert set(paired_tests.by_length([7, 7, 7])) == {"length to 7"}
    assert paired_tests.by_length([3, 1, 1, 1, 1], 2) == ["length over 1 to 3", *["length to 1"] * 4]


@pytest.mark.parametrize(
    ("rate", "ties", "needed"),
    [(0.6, 0.0, 194), (0.55, 0.0, 783), (0.4, 0.0, 194), (0.6, 0.3, 135)],
)
def test_how_many_prompts_by_hand(rate: float, ties: float, needed: int) -> None:
    """(1.96 √((1 - t) / 4) + .8416 √(p - t / 4 - p²))² / (p - ½)², rounded up."""
    z, power = 1.959963984540054, 0.8416212335729143
    by_hand = (z * np.sqrt((1 - ties) / 4) + power * np.sqrt(rate - ties / 4 - rate**2)) ** 2 / (rate - 0.5) ** 2
    assert paired_tests.sample_size(rate, tie_share=ties) == needed == np.ceil(by_hand)


def test_as_many_ties_as_can_be_leave_no_noise_and_no_error() -> None:
    for ties in np.arange(0, 1, 0.01):
        assert paired_tests.sample_size(1 - ties / 2, tie_share=ties) >= 1


def test_verdicts_of_a_prompt_save_prompts_as_far_as_they_differ() -> None:
    once = paired_tests.sample_size(0.6)
    assert paired_tests.sample_size(0.6, design_effect=4.0, verdicts=4) == once
    assert paired_tests.sample_size(0.6, design_effect=1.0, verdicts=2) == once / 2
    assert paired_tests.sample_size(0.6, power=0.9) > once and paired_tests.sample_size(0.6, level=0.99) > once


@pytest.mark.parametrize(("ties", "effect", "verdicts"), [(0.0, 1.0, 1.0), (0.3, 1.0, 1.0), (0.2, 1.8, 2.0)])
def test_what_is_detectable_takes_as_many_prompts(ties: float, effect: float, verdicts: float) -> None:
    for prompts in (30, 100, 1000):
        rate = paired_tests.detectable(prompts, 0.8, ties, effect, verdicts)
        assert rate is not None
        assert paired_tests.sample_size(rate, 0.8, ties, effect, verdicts) in (prompts, prompts + 1)
        assert paired_tests.sample_size(rate + 1e-4, 0.8, ties, effect, verdicts) <= prompts
    assert paired_tests.detectable(194) == pytest.approx(0.6, abs=2e-4)
    assert paired_tests.detectable(100, tie_share=1.0) is None
    assert paired_tests.detectable(3) is None and paired_tests.detectable(1000, tie_share=0.999) is None


@pytest.mark.parametrize(("rate", "ties", "effect"), [(0.6, 0.0, 1), (0.65, 0.3, 1), (0.6, 0.0, 2)])
def test_the_advice_is_kept(rate: float, ties: float, effect: int) -> None:
    """Of 500 comparisons of that many prompts (asked `effect` times, to the same answer), 80 % find the difference."""
    prompts = paired_tests.sample_size(rate, tie_share=ties, design_effect=effect, verdicts=effect)
    uniform = randomness.uniforms(8, f"advice {rate} {ties}", np.arange(500)[:, None], np.arange(prompts))
    drawn = np.where(uniform < rate - ties / 2, 1.0, np.where(uniform < rate + ties / 2, 0.5, 0.0))
    names = np.repeat(np.arange(prompts), effect)
    intervals = [statistics.win_rate(np.repeat(row, effect), names).interval for row in drawn]
    assert np.mean([low > 0.5 for low, _ in intervals]) == pytest.approx(0.8, abs=0.05)
    found = paired_tests.detectable(prompts, tie_share=ties)
    assert found == pytest.approx(rate, abs=2e-3)


@pytest.mark.parametrize(
    ("rate", "ties", "power"),
    [(0.5, 0, 0.8), (0.9, 0.3, 0.8), (0.08, 0.2, 0.8), (0.6, 1, 0.8), (0.6, -0.1, 0.8), (0.6, 0, 1.0), (0.6, 0, 0.0)],
)
def test_impossible_wishes_are_refused(rate: float, ties: float, power: float) -> None:
    with pytest.raises(ValueError, match="win rate of"):
        paired_tests.sample_size(rate, power, ties)
