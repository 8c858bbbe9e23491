"""Agreement: against published tables, other programs, and what must be so by definition."""

import itertools
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, precision_score, recall_score
from statsmodels.stats.inter_rater import cohens_kappa, fleiss_kappa

from preferent import randomness
from preferent.evaluation import statistics
from preferent.evaluation.statistics import agreement, resampling

NAN = float("nan")
FLEISS_1971 = """
444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445
333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555
"""
KRIPPENDORFF_2011 = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def own(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def verdicts(purpose: str, n: int, follow: float = 0.6) -> tuple[list[str], list[str]]:
    """Two judges' verdicts, who follow the same answer with a probability."""
    uniform = randomness.uniforms(3, purpose, np.arange(5)[:, None], np.arange(n))
    answer, one, other = (np.digitize(row, [0.4, 0.6]) for row in uniform[:3])
    a, b = (np.where(row < follow, answer, own) for row, own in zip(uniform[3:], (one, other), strict=True))
    return [agreement.CHOICES[i] for i in a], [agreement.CHOICES[i] for i in b]


def spread(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """The two judges' verdicts behind a table of counts."""
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in cells], [j for _, j in cells]


def test_cohens_table() -> None:
    """Cohen 1968, Psychological Bulletin 70:213, table 1: two judges, 200 patients, three diagnoses; kappa .492."""
    a, b = spread([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    assert agreement.cohen(a, b) == pytest.approx(0.29 / 0.59, abs=1e-12)
    assert agreement.cohen(a, b) == pytest.approx(0.492, abs=5e-4)
    assert agreement.percent(a, b) == pytest.approx(0.70)


@pytest.mark.parametrize("n", [7, 60, 500])
def test_cohen_is_that_of_other_programs(n: int) -> None:
    a, b = verdicts("cohen", n)
    ours = agreement.cohen(a, b)
    assert ours == pytest.approx(cohen_kappa_score(a, b, labels=agreement.CHOICES), abs=1e-12)
    places = [[agreement.CHOICES.index(one) for one in side] for side in (a, b)]
    table = np.zeros((3, 3))
    np.add.at(table, tuple(places), 1)
    assert ours == pytest.approx(cohens_kappa(table).kappa, abs=1e-12)


def alpha_of(ratings: Any) -> float | None:
    """Alpha of ratings [judges, pairs], each pair of a prompt of its own."""
    return agreement.alpha(ratings, own(len(ratings[0]))).alpha


def test_alpha_of_fleiss_table_is_his_kappa_of_a_small_sample() -> None:
    """Fleiss 1971, Psychological Bulletin 76:378: six psychiatrists, 30 patients, five diagnoses; kappa .430.

    Where every pair has as many judges the two differ only in the disagreement that is expected: alpha's is without
    replacement, so that 1 - alpha = (1 - kappa) (N - 1) / N of N ratings.
    """
    units = [[int(label) for label in row] for row in FLEISS_1971.split()]
    kappa = fleiss_kappa(np.array([[unit.count(label) for label in range(1, 6)] for unit in units]))
    assert (len(units), kappa) == (30, pytest.approx(0.430, abs=5e-4))
    assert alpha_of(np.transpose(units)) == pytest.approx(1 - (1 - kappa) * 179 / 180, abs=1e-12)


def test_krippendorffs_example() -> None:
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", C: four coders, twelve units, some missing;
    nominal alpha .743, without rounding 113 / 152. None means missing as nan does."""
    found = agreement.alpha(KRIPPENDORFF_2011, own(12))
    assert (found.alpha, found.units) == (pytest.approx(113 / 152, abs=1e-14), 11)
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.interval is not None and found.interval[0] < 113 / 152 < found.interval[1] <= 1
    whole = [[None if value != value else value for value in row] for row in KRIPPENDORFF_2011]
    assert agreement.alpha(whole, own(12)) == found


@pytest.mark.parametrize("missing", [0.0, 0.2, 0.5])
def test_alpha_by_its_definition(missing: float) -> None:
    """Over all pairs of values: within units, weighted 1 / (m - 1), against any two values at all."""
    uniform = randomness.uniforms(4, "ratings", np.arange(5)[:, None], np.arange(60)).reshape(5, 3, 20)
    ratings = np.where(uniform[:, 0] < missing, NAN, np.floor(uniform[:1, 1] * 4 + uniform[:, 2] * 2))
    units = [[value for value in column if value == value] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    values = [value for unit in units for value in unit]
    within = sum(sum(x != y for x, y in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    among = sum(x != y for x, y in itertools.permutations(values, 2)) / (len(values) - 1)
    assert alpha_of(ratings) == pytest.approx(1 - within / among, abs=1e-12)


def test_alpha_knows_labels_apart_and_nothing_else_of_them() -> None:
    ratings = np.array(KRIPPENDORFF_2011)
    assert alpha_of(-(ratings**3)) == pytest.approx(alpha_of(ratings), abs=1e-14)


def test_what_chance_explains_is_undefined() -> None:
    assert agreement.cohen(["A"] * 5, ["A"] * 5) is None
    assert agreement.cohen([], []) is None
    assert alpha_of([[1, 1], [1, 1]]) is None
    assert alpha_of([[1, 2, NAN]]) is None
    assert agreement.alpha([[1, NAN], [NAN, 2]], own(2)) == agreement.AlphaAgreement(None, None, 0)
    found = agreement.between(["A"] * 5, ["A"] * 5, own(5))
    assert (found.percent, found.kappa, found.kappa_interval) == (1.0, None, None)
    assert found.percent_interval[0] < 0.7


def test_perfect_agreement_is_one_and_opposition_below_zero() -> None:
    a, _ = verdicts("perfect", 40)
    assert agreement.cohen(a, a) == 1
    assert agreement.cohen(["A", "B"], ["B", "A"]) == -1
    assert agreement.between(a, a, own(40)).kappa_interval is None


def test_limits_stay_between_minus_one_and_one() -> None:
    a = ["A", "B"] * 6
    found = agreement.between([*a, "A"], [*a[::-1], "A"], own(13))
    assert found.kappa_interval is not None and found.kappa_interval[0] == -1
    judge, people = [*a, "A"], [*a[::-1], "A"]
    assert agreement.against_people(judge, people, own(13)).intervals["cohens_kappa"] == found.kappa_interval
    opposed = agreement.alpha([[0, 1] * 6 + [0], [1, 0] * 6 + [0]], own(13))
    assert opposed.interval is not None and opposed.interval[0] == -1
    agreed = agreement.between([*a, "A"], [*a, "B"], own(13))
    assert agreed.kappa_interval is not None and agreed.kappa_interval[1] == 1


def test_between_is_the_figures_apart() -> None:
    a, b = verdicts("between", 80)
    names = [str(i // 2) for i in range(80)]
    found = agreement.between(a, b, names)
    assert (found.n, found.prompts) == (80, 40)
    assert (found.percent, found.kappa) == (agreement.percent(a, b), agreement.cohen(a, b))
    same = [float(x == y) for x, y in zip(a, b, strict=True)]
    assert found.percent_interval == statistics.win_rate(same, names).interval
    assert found.kappa_interval == resampling.jackknife(
        lambda rows: agreement.cohen([a[i] for i in rows], [b[i] for i in rows]), names
    )


def test_the_interval_of_kappa_shrinks_with_the_root_of_the_prompts_and_is_that_of_the_large_sample_formula() -> None:
    """Fleiss, Cohen and Everitt's (1969) standard error, as statsmodels computes it, at 2000 pairs; and repeatable."""
    a, b = verdicts("large", 2000)
    found = agreement.between(a, b, own(2000))
    table = np.zeros((3, 3))
    np.add.at(table, tuple([agreement.CHOICES.index(one) for one in side] for side in (a, b)), 1)
    assert found.kappa_interval is not None
    width = found.kappa_interval[1] - found.kappa_interval[0]
    assert width == pytest.approx(2 * 1.96 * cohens_kappa(table).std_kappa, rel=0.1)
    assert found == agreement.between(a, b, own(2000))


def test_against_people_is_scikit_learns() -> None:
    judge, people = verdicts("people", 300)
    names = own(300)
    found = agreement.against_people(judge, people, names)
    both = [(x, y) for x, y in zip(judge, people, strict=True) if "tie" not in (x, y)]
    said, true = [x == "A" for x, _ in both], [y == "A" for _, y in both]
    for name, score in {
        "accuracy": accuracy_score,
        "precision": precision_score,
        "recall": recall_score,
        "f1_score": f1_score,
        "cohens_kappa": cohen_kappa_score,
    }.items():
        assert getattr(found, name) == pytest.approx(score(true, said), abs=1e-12)
        limits = found.intervals[name]
        assert limits is not None and limits[0] < getattr(found, name) < limits[1]
    counts = (
        found.true_positive_count,
        found.false_positive_count,
        found.false_negative_count,
        found.true_negative_count,
    )
    assert counts == (
        sum(x and y for x, y in zip(said, true, strict=True)),
        sum(x and not y for x, y in zip(said, true, strict=True)),
        sum(y and not x for x, y in zip(said, true, strict=True)),
        sum(not x and not y for x, y in zip(said, true, strict=True)),
    )
    assert sum(counts) + found.tie_count == 300
    outcomes = [agreement.CHOICES.index(x) / 2 for x in judge]
    assert found.model_win_rate == pytest.approx(np.mean(outcomes), abs=1e-12)
    assert found.model_win_rate + found.baseline_model_win_rate == pytest.approx(1)
    assert found.intervals["model_win_rate"] == statistics.win_rate(outcomes, names).interval
    low, high = statistics.win_rate(outcomes, names).interval
    assert found.intervals["baseline_model_win_rate"] == (1 - high, 1 - low)
    human = np.mean([agreement.CHOICES.index(x) / 2 for x in people])
    assert found.human_preference_model_win_rate == pytest.approx(human)
    assert found.human_preference_baseline_model_win_rate == pytest.approx(1 - human)


def test_a_label_that_is_no_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="both_bad"):
        agreement.against_people(["A"], ["both_bad"], own(1))


def test_against_people_who_only_tie_or_never_choose_a() -> None:
    tied = agreement.against_people(["A", "tie"], ["tie", "B"], own(2))
    assert (tied.tie_count, tied.accuracy, tied.precision, tied.recall, tied.cohens_kappa) == (
        2,
        None,
        None,
        None,
        None,
    )
    assert tied.intervals["f1_score"] is None
    never = agreement.against_people(["B"] * 3, ["B"] * 3, own(3))
    assert (never.accuracy, never.precision, never.recall, never.f1_score, never.cohens_kappa) == (1, *[None] * 4)
    half = agreement.against_people(["A", "A", "B"], ["A", "B", "A"], own(3))
    assert (half.precision, half.recall, half.f1_score) == (0.5, 0.5, 0.5)
