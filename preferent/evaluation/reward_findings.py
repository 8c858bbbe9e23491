"""Findings from the figures of a reward model: one sentence per finding, and the bounds that decide between them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BY_LENGTH = 0.5
"""Least Spearman correlation at which length explains a quarter of the ranks' variance."""
SOMEWHAT_BY_LENGTH = 0.3
"""Correlation below which length explains less than a tenth of the ranks' variance."""
OVER_CONFIDENT = 0.1
"""Mean confidence over accuracy: ten points, twice what calibrated models of 189 to 384 test pairs show by chance."""
SHARES = 0.6
"""Minimum share before a length or position bias is reported."""
FEW = 30
"""Least number of pairs for a remark on a bucket."""

RULES = {
    "longer": "the longer wins",
    "shorter": "the shorter wins",
    "first": "the first wins",
    "second": "the second wins",
    "words": "bag of words",
}
"""Descriptions of the rules that need no model, by their names in `quality.json`."""

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence about one property of the model, and whether it is a reason to stop."""

    about: str
    warns: bool
    says: str


def remarks(quality: Figures) -> list[Remark]:
    """Return what `quality.json` says in words; nothing where nothing was held out."""
    if "reported" not in quality:
        return []
    of = (accuracy, against_rules, by_length, by_position, calibration, by_strength, beside_samples)
    return [remark for function in of for remark in function(quality)]


def percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"


def span(figures: Figures) -> str:
    low, high = figures["interval"]
    return f"{100 * low:.0f}–{100 * high:.0f}\u00a0%"


def points(share: float) -> str:
    """Return a difference of shares in percentage points; below one point, with a digit."""
    return f"{100 * share:+.{0 if abs(share) >= 0.01 else 1}f}".replace("-", "−")


def signed(number: float) -> str:
    return f"{number:.2f}".replace("-", "−")


def accuracy(quality: Figures) -> Iterator[Remark]:
    figures = quality["accuracy"]
    says = f"On {figures['count']} {quality['reported']} pairs the model prefers what people chose in "
    says += f"{percent(figures['share'])} (95 % interval {span(figures)})"
    chance = figures["interval"][0] <= 0.5
    yield Remark("accuracy", chance, says + (": that may be chance." if chance else "."))


def against_rules(quality: Figures) -> Iterator[Remark]:
    name, rule = max(quality["rules"].items(), key=lambda entry: entry[1]["share"])
    low, high = rule["lead_interval"]
    between = f"{points(rule['lead'])} points, interval {points(low)} to {points(high)}"
    says = f"Of the rules that need no model, “{RULES[name]}” is best, right in {percent(rule['share'])}: "
    if low > 0:
        yield Remark("rules", False, f"{says}the model is better ({between}).")
    elif high < 0:
        yield Remark("rules", True, f"{says}the model is worse ({between}).")
    else:
        yield Remark("rules", True, f"{says}the model cannot be distinguished from it ({between}).")


def by_length(quality: Figures) -> Iterator[Remark]:
    """Describe the labels, then the model."""
    part, preferred = quality[quality["reported"]], quality["length"]["longer_preferred"]
    if preferred is None:
        return
    correlation, longer = part["length_correlation"], part["longer_accuracy"]
    which, often = ("Longer", longer) if longer >= 0.5 else ("Shorter", 1 - longer)
    labels = f"{which} wins would be right in {percent(often)} of these pairs"
    tells = often >= SHARES
    if abs(correlation) < SOMEWHAT_BY_LENGTH:
        says = f"{labels}, {'but' if tells else 'and'} scores hardly depend on length (Spearman "
        yield Remark("length", False, f"{says}{signed(correlation)}): no length bias of the model is seen.")
        return
    strong = abs(correlation) >= BY_LENGTH
    how, habit = ("longer", preferred["share"]) if correlation > 0 else ("shorter", 1 - preferred["share"])
    says = f"{labels}, {'and' if tells else 'yet'} scores {'' if strong else 'somewhat '}depend on length (Spearman "
    says += f"{signed(correlation)}; the {how} answer scores higher in {percent(habit)}): this reward "
    yield Remark("length", strong, f"{says}{'will' if strong else 'may'} make answers {how}.")


def by_position(quality: Figures) -> Iterator[Remark]:
    figures = quality["position"]
    chosen, preferred = figures["first_chosen"], figures["first_preferred"]
    if chosen["share"] in (0, 1):
        says = "Candidate 0 is always the chosen one" if chosen["share"] else "Candidate 1 is always the chosen one"
        yield Remark("position", False, f"{says}: the order that people saw was not kept, so it cannot be judged.")
        return
    low, high = chosen["interval"]
    if low <= 0.5 <= high:
        says = f"People chose the first candidate in {percent(chosen['share'])} ({span(chosen)}): no position bias is "
        yield Remark("position", False, says + "seen.")
        return
    which, often = ("first", chosen) if low > 0.5 else ("second", _other(chosen))
    says = f"People chose the {which} candidate in {percent(often['share'])} ({span(often)}), the model "
    says += f"{percent(preferred['share'] if low > 0.5 else 1 - preferred['share'])}: the labels depend on the order; "
    yield Remark("position", often["share"] >= SHARES, says + "show candidates in random order.")


def _other(figures: Figures) -> dict[str, Any]:
    """Return the share of the complement."""
    low, high = figures["interval"]
    return {"share": 1 - figures["share"], "interval": [1 - high, 1 - low]}


def calibration(quality: Figures) -> Iterator[Remark]:
    sure, right = quality["mean_confidence"], quality["accuracy"]["share"]
    ece = quality[quality["reported"]]["ece"]
    says = f"On average the model is {percent(sure)} sure and {percent(right)} right (ECE {ece:.3f}): "
    if sure - right > OVER_CONFIDENT:
        yield Remark("calibration", True, says + "it is over-confident, its scores are too far apart.")
    elif right - sure > OVER_CONFIDENT:
        yield Remark("calibration", False, says + "it is under-confident, its scores are too close.")
    elif ece > OVER_CONFIDENT:
        yield Remark("calibration", False, says + "right on the whole, but not at every confidence; see the diagram.")
    else:
        yield Remark("calibration", False, says + "its confidence can be trusted.")


def by_strength(quality: Figures) -> Iterator[Remark]:
    buckets: Sequence[Figures] = [
        bucket for bucket in quality["by_strength"] if bucket["low"] is not None and bucket["count"] >= FEW
    ]
    if len(buckets) < 2:
        return
    faint, clear = buckets[0], buckets[-1]
    says = f"Of the least clear choices {percent(faint['share'])} are right ({span(faint)}), of the clearest "
    says += f"{percent(clear['share'])} ({span(clear)}): "
    if clear["interval"][0] > faint["interval"][1]:
        yield Remark("strength", False, says + "the model is better where people are surer.")
    elif clear["interval"][1] < faint["interval"][0]:
        yield Remark("strength", True, says + "it should be the other way round; see what `strength` means.")
    else:
        yield Remark("strength", False, says + "no clear difference.")


def beside_samples(quality: Figures) -> Iterator[Remark]:
    samples = quality.get("samples")
    if not samples:
        return
    above = samples["chosen_above"]
    low, high = above["interval"]
    says = "The answer that people chose scores above one sampled from the model that training started from in "
    says += f"{percent(above['share'])} of {above['count']} prompts ({span(above)}; mean "
    says += f"{signed(samples['chosen']['mean'])} against {signed(samples['sampled']['mean'])}, sd "
    says += f"{signed(samples['sampled']['sd'])}): "
    if low > 0.5:
        yield Remark("samples", False, says + "there is room for the policy to gain.")
    elif high < 0.5:
        yield Remark("samples", True, says + "the reward prefers what the model already writes to the chosen answers.")
    else:
        yield Remark("samples", False, says + "neither is preferred.")
