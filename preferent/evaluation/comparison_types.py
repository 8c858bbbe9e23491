"""The figures of a comparison, `comparison/metrics.json`, as `compare` writes them and report and doctor read them.

docs/metrics.md defines every figure. Side a is the tuned model, b is what it is compared with. A key that is
`NotRequired` depends on the kind of judge or on what the answers hold.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

from preferent.evaluation.judge_results import Kind

Interval = Sequence[float]
"""The lower and the upper limit."""


class RateFigures(TypedDict):
    """A win rate with its interval."""

    win_rate: float
    interval: Interval


class WinRateFigures(RateFigures):
    """A win rate with the verdicts it is taken over."""

    win: int
    tie: int
    loss: int
    n: int
    prompts: int
    method: str


class OrderFigures(TypedDict, total=False):
    """How the order of two answers moved a judge that sees both; people have only some of these figures."""

    verdicts: int
    identical: int
    parsed: int
    unparsable: int
    unparsable_share: float
    cut: int
    both_orders: int
    consistent: float | None
    first_slot: float | None
    first_slot_interval: Interval | None
    calls: int
    seconds: float
    tokens: int | None
    log_probs: int


class LengthControlledFigures(TypedDict):
    """The win rate at equal length, and the raw one; None where the verdicts do not determine it."""

    win_rate: float | None
    interval: Interval | None
    raw: float
    extreme: bool
    form: str


class SliceFigures(RateFigures):
    """The win rate in one slice; `p_holm` is corrected for the number of slices."""

    name: str
    n: int
    prompts: int
    p: float
    p_holm: float


class RuleLeadFigures(TypedDict):
    """The accuracy of a rule that needs no model, and the interval of the judge's lead over it."""

    share: float
    lead_interval: Interval


class AccuracyFigures(TypedDict):
    """How often a judge prefers the answer that people chose, on `count` pairs, and the same of the rules.

    The pairs are those held out when the judge learned, or those of this comparison that people voted on.
    """

    by: Literal["held_out", "people"]
    share: float
    interval: Interval
    lower_99: float
    count: int
    rules: Mapping[str, RuleLeadFigures]


class JudgeFigures(WinRateFigures):
    """The verdict of one judge on a against b; `accuracy` is missing where nobody measured it."""

    kind: Kind
    independent: bool
    accuracy: NotRequired[AccuracyFigures]
    order: NotRequired[OrderFigures]
    both_bad: NotRequired[int]
    annotators: NotRequired[int]
    flagged: NotRequired[int]
    elsewhere: NotRequired[int]
    mean_score: NotRequired[Mapping[str, float]]
    length_correlation: NotRequired[float]
    unparsable_as_ties: NotRequired[RateFigures]
    length_controlled: LengthControlledFigures | None
    slices: Sequence[SliceFigures]


class SidePairFigures(WinRateFigures):
    """The verdict of one judge on another pair of sides."""

    a: str
    b: str
    judge: str


class RatingFigures(TypedDict):
    """The place of one side on a common scale."""

    side: str
    bradley_terry: float
    interval: Interval | None
    elo: float


class AgreementFigures(TypedDict):
    """The agreement of two judges on the pairs that both saw and whose answers differ."""

    judges: Sequence[str]
    n: int
    prompts: int
    percent: float
    percent_interval: Interval
    kappa: float | None
    kappa_interval: Interval | None


class PeopleAgreementFigures(TypedDict):
    """The agreement of a judge with people, in the names of AutoSxS."""

    n: int
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
    intervals: Mapping[str, Interval | None]


class SideName(TypedDict):
    """The key of a side, by which figures refer to it, and its name."""

    key: str
    name: str


class SampleSizeFigures(TypedDict):
    """The number of prompts that a verdict takes whose interval contains one half."""

    win_rate: float
    prompts: int | None
    detectable: float | None


class ChangeFigures(TypedDict):
    """The answers that differ, and the prompts on which the headline judge sees a difference."""

    identical: int
    different: int
    better: NotRequired[int]
    worse: NotRequired[int]
    even: NotRequired[int]
    p: NotRequired[float]
    p_exact: NotRequired[float]


class KLFigures(TypedDict):
    """KL to the reference in nats per answer."""

    mean: float
    standard_error: float | None
    n: int
    k1_mean: NotRequired[float]


class BestOfFigures(TypedDict):
    """The best of n answers: `score` is the mean score of the best of k, by k."""

    n: int
    kl_bound: float
    score: Mapping[str, float]


class LengthFigures(TypedDict):
    """Mean lengths of the answers; that of every further side stands under `mean_SIDE`: see `mean_length`."""

    unit: str
    mean_a: float
    mean_b: float
    difference: float
    standard_error: float | None
    share_longer: float
    share_shorter: float


class DuplicateFigures(TypedDict):
    """The answers that a side gave to several prompts, and the most frequent of them."""

    rows: int
    share: float
    most: str | None
    count: int


class PredictionPoweredFigures(RateFigures):
    """The win rate by people's votes on `voted` of `prompts` prompts and a judge's verdicts on all of them.

    `factor` is λ, by which the judge counts. People alone would have to judge `effective` prompts for such an interval.
    """

    voted: int
    prompts: int
    factor: float
    effective: float


class ComparisonMetrics(TypedDict, total=False):
    """All figures of a comparison. Where nothing was compared, a reader has none of them."""

    rows: int
    prompts: int
    headline: str | None
    sides: Sequence[SideName]
    autosxs_model_a_win_rate: float
    autosxs_model_b_win_rate: float
    sample_size: SampleSizeFigures | None
    judges: Mapping[str, JudgeFigures]
    prediction_powered: Mapping[str, PredictionPoweredFigures]
    rates: Sequence[SidePairFigures]
    rating: Mapping[str, Sequence[RatingFigures]]
    agreement: Sequence[AgreementFigures]
    against_people: Mapping[str, PeopleAgreementFigures]
    identical: int
    changed: ChangeFigures
    kl: KLFigures | None
    length: LengthFigures
    ended: Mapping[str, float]
    best_of: BestOfFigures
    duplicates: Mapping[str, DuplicateFigures]
    rouge: Mapping[str, Any] | None


class GoldFigures(TypedDict, total=False):
    """`comparison/gold.json`: the verdict of the true preference, where that is known."""

    win_rate: float
    interval: Interval
    n: int
    win: int
    tie: int
    loss: int
    curve: Sequence[Mapping[str, Any]]


def mean_length(length: LengthFigures, side: str) -> float | None:
    """Return the mean length of a side's answers; None where it is unknown."""
    return cast(Mapping[str, float | None], length).get(f"mean_{side}")
