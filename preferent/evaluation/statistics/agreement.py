"""Agreement of judges: of two, of several, and with people.

Verdicts are any labels that can be sorted; those of a comparison are "A", "tie" and "B". A chance-corrected coefficient
is 1 for judges who always agree and 0 for judges who agree as often as by chance. It is None where it is undefined: if
all verdicts are the same, chance explains all agreement.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preferent.evaluation.statistics import resampling
from preferent.evaluation.statistics.win_rates import win_rate

CHOICES = ("B", "tie", "A")
"""The verdicts of a comparison in order, with a tie in the middle."""

Interval = tuple[float, float]


def percent(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Return the share of pairs on which two judges gave the same verdict, ties included."""
    return float(np.mean([first == second for first, second in zip(a, b, strict=True)]))


def cohen(a: Sequence[Any], b: Sequence[Any]) -> float | None:
    """Return Cohen's kappa of two judges (1960, Educational and Psychological Measurement 20:37).

    Kappa is 1 - observed / expected disagreement. The expected disagreement is that of two independent judges with the
    same shares of verdicts.
    """
    labels = sorted({*a, *b})
    return _kappa(_crossed(_places(a, labels), _places(b, labels), len(labels)))


def _places(verdicts: Sequence[Any], labels: Sequence[Any]) -> np.ndarray:
    place = {label: index for index, label in enumerate(labels)}
    if unknown := set(verdicts) - set(place):
        raise ValueError(f"{sorted(unknown)} are not among the labels {list(labels)}")
    return np.array([place[verdict] for verdict in verdicts], dtype=np.int64)


def _crossed(a: np.ndarray, b: np.ndarray, labels: int) -> np.ndarray:
    """Return the counts of every two labels, [labels, labels]."""
    return np.bincount(a * labels + b, minlength=labels * labels).reshape(labels, labels)


def _kappa(crossed: np.ndarray) -> float | None:
    n = int(crossed.sum())
    if n == 0:
        return None
    cost = 1 - np.eye(len(crossed))
    expected = float(np.sum(cost * np.outer(crossed.sum(1), crossed.sum(0)))) / n
    return 1 - float(np.sum(cost * crossed)) / expected if expected > 0 else None


def _tallied(ratings: Sequence[Sequence[float | None]] | np.ndarray) -> np.ndarray:
    """Return how many judges gave each pair each value that occurs, [pairs, values]."""
    table = np.asarray(ratings, dtype=np.float64)  # None becomes nan
    values = np.unique(table[~np.isnan(table)])
    return np.asarray(np.sum(table[:, :, None] == values, axis=0))


def _alpha(counts: np.ndarray) -> float | None:
    judges = counts.sum(1)
    counts, judges = counts[judges > 1], judges[judges > 1, None]
    total = counts.sum(0)
    if not total.any():
        return None
    coincidences = (counts / (judges - 1)).T @ counts  # but for the diagonal, where nothing is lost
    cost = 1 - np.eye(len(total))
    expected = float(np.sum(cost * np.outer(total, total)) / (total.sum() - 1))
    return 1 - float(np.sum(cost * coincidences)) / expected if expected > 0 else None


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """The agreement of two judges on `n` pairs of `prompts` prompts: the share of equal verdicts, and Cohen's kappa."""

    n: int
    prompts: int
    percent: float
    percent_interval: Interval
    kappa: float | None
    kappa_interval: Interval | None


def between(a: Sequence[Any], b: Sequence[Any], prompts: Sequence[str]) -> PairAgreement:
    """Return the agreement of two judges from their verdicts [n] on the same pairs; pairs of a prompt are one cluster.

    The interval of the share is that of a win rate; kappa's comes from resampling prompts (`resampling.interval`).
    """
    same = win_rate([float(first == second) for first, second in zip(a, b, strict=True)], prompts)
    labels = sorted({*a, *b})
    x, y = _places(a, labels), _places(b, labels)

    def kappa(rows: np.ndarray) -> float | None:
        return _kappa(_crossed(x[rows], y[rows], len(labels)))

    return PairAgreement(same.n, same.prompts, same.win_rate, same.interval, *_redrawn(kappa, prompts, -1.0))


@dataclass(frozen=True, slots=True)
class AlphaAgreement:
    """Krippendorff's alpha over the `units` pairs that were judged twice or more."""

    alpha: float | None
    interval: Interval | None
    units: int


def alpha(ratings: Sequence[Sequence[float | None]] | np.ndarray, prompts: Sequence[str]) -> AlphaAgreement:
    """Return Krippendorff's alpha of `ratings` [judges, pairs], with an interval from resampling `prompts` [pairs].

    Ratings are numbers that stand for labels; None or nan stands where a judge has not judged. Alpha is 1 - observed /
    expected disagreement over all pairs judged twice or more (Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability", nominal data). Every disagreement costs the same.
    """
    counts = _tallied(ratings)
    twice = counts.sum(1) > 1
    counts, kept = counts[twice], np.asarray(prompts)[twice]
    return AlphaAgreement(*_redrawn(lambda rows: _alpha(counts[rows]), kept, -1.0), len(kept))


@dataclass(frozen=True, slots=True)
class AgainstPeople:
    """The agreement of a judge with people, in the names of AutoSxS; side a is the model, and its win is the positive.

    Win rates are over all pairs, with a tie as half a win. The four counts are of the pairs that both decided: judge
    and people gave a true positive to a, and only the judge gave a false positive to a. `tie_count` counts the rest.
    `intervals` has an entry for every share by its name, None if it has no interval. A share that would be 0/0 is None.
    """

    model_win_rate: float
    baseline_model_win_rate: float
    human_preference_model_win_rate: float
    human_preference_baseline_model_win_rate: float
    true_positive_count: int
    false_positive_count: int
    false_negative_count: int
    true_negative_count: int
    tie_count: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1_score: float | None
    cohens_kappa: float | None
    intervals: dict[str, Interval | None]


def against_people(judge: Sequence[str], people: Sequence[str], prompts: Sequence[str]) -> AgainstPeople:
    """Return a judge's agreement with people from their verdicts "A", "B" or "tie" [n], clustered by prompt."""
    outcomes = np.stack([_places(choices, CHOICES) / 2 for choices in (judge, people)], axis=1)
    names, decided = np.asarray(prompts), np.all(outcomes != 0.5, axis=1)
    judged, human = (win_rate(outcomes[:, side], names) for side in (0, 1))
    (model, true), clusters = (outcomes[decided] == 1).T, names[decided]
    (tn, fn), (fp, tp) = (map(int, row) for row in _crossed(1 * model, 1 * true, 2))
    shares = {
        "accuracy": _share(model == true, np.full(len(true), True), clusters),
        "precision": _share(true, model, clusters),
        "recall": _share(model, true, clusters),
        "f1_score": _redrawn(lambda rows: _f1(model[rows], true[rows]), clusters, 0.0),
        "cohens_kappa": _redrawn(lambda rows: _kappa(_crossed(1 * model[rows], 1 * true[rows], 2)), clusters, -1.0),
    }
    rates: dict[str, Interval | None] = {
        "model_win_rate": judged.interval,
        "baseline_model_win_rate": _other(judged.interval),
        "human_preference_model_win_rate": human.interval,
        "human_preference_baseline_model_win_rate": _other(human.interval),
    }
    return AgainstPeople(
        model_win_rate=judged.win_rate,
        baseline_model_win_rate=1 - judged.win_rate,
        human_preference_model_win_rate=human.win_rate,
        human_preference_baseline_model_win_rate=1 - human.win_rate,
        true_positive_count=tp,
        false_positive_count=fp,
        false_negative_count=fn,
        true_negative_count=tn,
        tie_count=int(np.sum(~decided)),
        **{name: share for name, (share, _) in shares.items()},
        intervals=rates | {name: limits for name, (_, limits) in shares.items()},
    )


def _share(right: np.ndarray, among: np.ndarray, prompts: np.ndarray) -> tuple[float | None, Interval | None]:
    if not among.any():
        return None, None
    rate = win_rate(right[among].astype(np.float64), prompts[among])
    return rate.win_rate, rate.interval


def _f1(judge: np.ndarray, people: np.ndarray) -> float | None:
    count = np.sum(judge) + np.sum(people)
    return float(2 * np.sum(judge & people) / count) if count else None


def _redrawn(
    statistic: resampling.Statistic, prompts: Sequence[Any] | np.ndarray, least: float
) -> tuple[float | None, Interval | None]:
    """Return a statistic of all rows, which lies between `least` and 1, and its interval."""
    if not len(prompts):
        return None, None
    limits = resampling.interval(statistic, prompts)
    whole = statistic(np.arange(len(prompts)))
    return whole, None if limits is None else (max(limits[0], least), min(limits[1], 1.0))


def _other(interval: Interval) -> Interval:
    return 1 - interval[1], 1 - interval[0]
