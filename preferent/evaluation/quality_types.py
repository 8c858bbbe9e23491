"""The figures of a reward model on held-out pairs, `quality.json`; docs/reward_model.md defines them."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

Interval = Sequence[float]
"""The lower and the upper limit."""


class PartFigures(TypedDict):
    """The figures of one part of the pairs."""

    count: int
    loss: float
    accuracy: float
    ece: float
    length_correlation: float
    longer_accuracy: float


class ShareFigures(TypedDict):
    """A share of pairs with its interval."""

    share: float
    interval: Interval
    count: int


class MeasuredShare(ShareFigures):
    """A share with the lower limit of its 99 % interval as well."""

    lower_99: float


class RuleFigures(ShareFigures):
    """The accuracy of a rule that needs no model, and the model's lead over it."""

    lead: float
    lead_interval: Interval


class BucketFigures(ShareFigures):
    """The accuracy in a bucket of pairs, which reaches from `low` to `high`."""

    low: float | None
    high: float | None
    confidence: float


class ReliabilityFigures(TypedDict):
    """The mean confidence and the accuracy of a bin of pairs."""

    confidence: float
    accuracy: float
    count: int


class LengthShares(TypedDict):
    """The part of length; None where no pair is left."""

    longer_preferred: ShareFigures | None
    longer_won: ShareFigures | None
    shorter_won: ShareFigures | None


class PositionShares(TypedDict):
    """The part of the position."""

    first_chosen: ShareFigures
    first_preferred: ShareFigures
    correlation: float


class SpreadFigures(TypedDict):
    """The mean and the standard deviation of scores."""

    mean: float
    sd: float


class SampleFigures(TypedDict):
    """The scores of sampled answers beside those of the answers that people compared."""

    sampled: SpreadFigures
    chosen: SpreadFigures
    rejected: SpreadFigures
    chosen_above: ShareFigures
    rejected_above: ShareFigures


class QualityFigures(TypedDict, total=False):
    """All figures of a reward model; only those of the parts exist that held pairs out."""

    test: PartFigures
    validation: PartFigures
    best_step: int
    reported: Literal["test", "validation"]
    reliability: Sequence[ReliabilityFigures]
    accuracy: MeasuredShare
    mean_confidence: float
    by_confidence: Sequence[BucketFigures]
    by_strength: Sequence[BucketFigures]
    length: LengthShares
    position: PositionShares
    rules: Mapping[str, RuleFigures]
    samples: SampleFigures | None
