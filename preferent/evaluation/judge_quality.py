"""The decision whether a judge can tell better answers from worse, and whether its verdict may be the headline.

A judge is measured on pairs of which people chose one (`judge_accuracy`). docs/statistics.md explains the bounds.
"""

from dataclasses import dataclass

from preferent.evaluation import reward_findings
from preferent.evaluation.comparison_types import (
    AccuracyFigures,
    ComparisonMetrics,
    JudgeFigures,
    PeopleAgreementFigures,
)

CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether a judge is shown to tell better answers from worse; if not, `why` completes “right on 53 % of them, and”.

    A judge that was not measured has no `why`.
    """

    tells: bool
    measured: bool
    why: str = ""


def can_tell(accuracy: AccuracyFigures) -> Ability:
    """Return whether a judge with this accuracy can tell better answers from worse.

    Its 99 % lower limit must be above one half. The judge must be better than every rule that needs no model: than the
    longer, the shorter, the first and the second answer by the whole interval of its lead, and than a bag of words by
    the estimate.
    """
    if accuracy["lower_99"] <= CHANCE:
        return Ability(False, True, "that may be chance")
    as_good = {
        name: rule["share"]
        for name, rule in accuracy["rules"].items()
        if (accuracy["share"] <= rule["share"] if name == "words" else rule["lead_interval"][0] <= 0)
    }
    if not as_good:
        return Ability(True, True)
    name = max(as_good, key=as_good.__getitem__)
    may_be = "is as good or better" if accuracy["share"] <= as_good[name] else "may be as good"
    rule, share = reward_findings.RULES[name], reward_findings.percent(as_good[name])
    return Ability(False, True, f"“{rule}”, right on {share}, {may_be}")


def ability(judge: JudgeFigures) -> Ability:
    """Return whether a judge of a comparison can tell better answers from worse; people can."""
    if judge["kind"] == "people":
        return Ability(True, True)
    accuracy = judge.get("accuracy")
    return Ability(False, False) if accuracy is None else can_tell(accuracy)


def able(metrics: ComparisonMetrics) -> list[str]:
    """Return the names of the independent judges that can tell better answers from worse."""
    judges = metrics.get("judges", {})
    return [name for name, judge in judges.items() if judge["independent"] and ability(judge).tells]


def trusted(metrics: ComparisonMetrics) -> bool:
    """Return whether the headline may be shown as a verdict: in colour, without a word of doubt before it.

    The judge is independent and can tell better answers from worse, people do not contradict it on these answers, and
    the interval of the win rate excludes one half.
    """
    name = metrics.get("headline")
    if not name or name not in able(metrics):
        return False
    low, high = metrics["judges"][name]["interval"]
    people = metrics.get("against_people", {}).get(name)
    return not low <= 0.5 <= high and not (people and contradicted(people))


def contradicted(people: PeopleAgreementFigures) -> bool:
    """Return whether people contradict a judge on most of the pairs on which both chose a side."""
    interval = people["intervals"].get("accuracy")
    return interval is not None and interval[1] < CHANCE
