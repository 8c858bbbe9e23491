"""The judges of a comparison, people among them: their names, and whether the order of the answers moved them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from preferent.config.recipe import Recipe
from preferent.evaluation.comparison_types import ComparisonMetrics, JudgeFigures, OrderFigures
from preferent.evaluation.judges.protocol import MUCH_UNPARSABLE
from preferent.report import charts
from preferent.report.interval_tables import IntervalRow, IntervalTable, counted, percent, rate_text, row


@dataclass(frozen=True, slots=True)
class ReportedJudge:
    """A judge in words: `name` within a sentence, and what it is; `colour` is one of the style sheet's.

    A `proper` name was given by a user and is always written as it is.
    """

    name: str
    what: str
    colour: int
    independent: bool = True
    proper: bool = False

    @property
    def title(self) -> str:
        """The name at the beginning of a sentence or a row."""
        return self.name if self.proper else self.name[:1].upper() + self.name[1:]

    @property
    def description(self) -> str:
        """The name and what the judge is."""
        return f"{self.name}, {self.what}"


KNOWN = {
    "judge": ReportedJudge("independent judge", "a reward model that learned from other preferences", 1),
    "reward": ReportedJudge("the optimised reward", "what the policy was tuned to raise", 4, independent=False),
    "people": ReportedJudge("people", "who saw both answers without knowing which model wrote them", 2),
    "truth": ReportedJudge("the true preference", "known, as these preferences are generated", 3),
}


def reported_judges(metrics: ComparisonMetrics, recipe: Recipe) -> dict[str, ReportedJudge]:
    """Return all judges by the name in the files; people and the true preference are always among them."""
    colours = cycle((5, 6))
    models = {judge.name: judge.model for judge in recipe.compare.judges}
    judges = {}
    for name, figures in metrics.get("judges", {}).items():
        what = f"the language model {models[name]}" if name in models else "a language model"
        judges[name] = KNOWN.get(name) or ReportedJudge(
            name, what, next(colours), figures.get("independent", True), True
        )
    return judges | {name: KNOWN[name] for name in ("people", "truth")}


def verdict_count(judge: JudgeFigures) -> str:
    """Return the number of verdicts that a rate is taken over, of how many people, on how many prompts."""
    verdicts = {"people": "vote", "language_model": "verdict"}.get(judge.get("kind", ""), "pair")
    people = f" of {counted(judge['annotators'], 'person', 'people')}" if "annotators" in judge else ""
    prompts = "" if judge["prompts"] == judge["n"] else f" on {counted(judge['prompts'], 'prompt')}"
    return f"{counted(judge['n'], verdicts)}{people}{prompts}"


def order(metrics: ComparisonMetrics, judges: Mapping[str, ReportedJudge]) -> IntervalTable | None:
    """Return how the order of the answers moved the judges that see both at once."""
    rows = [
        _order_row(figures["order"], figures["kind"] == "language_model", judges[name])
        for name, figures in metrics.get("judges", {}).items()
        if figures.get("order")
    ]
    heads = ("First answer preferred by", "Share", "95 % interval", "Same verdict both ways", "Verdicts", "No verdict")
    remark = (
        "A judge that is not influenced by the order prefers the first answer in half of its verdicts. Language "
        "models judge every pair in both orders, so that a position bias cancels out in the win rate; it adds ties or "
        "noise."
    )
    return IntervalTable("Order: does the position decide?", heads, rows, remark) if rows else None


def _order_row(figures: OrderFigures, is_model: bool, judge: ReportedJudge) -> IntervalRow:
    consistent, first = figures.get("consistent"), figures.get("first_slot")
    replies = figures["parsed"] + figures["unparsable"] if "parsed" in figures else figures["verdicts"]
    share = percent(figures.get("unparsable_share") or 0.0, 1)
    none = f"{figures['unparsable']} ({share})" if is_model else "–"
    cells = ("–" if consistent is None else percent(consistent), str(replies), none)
    if first is None:
        return IntervalRow(judge.title, ("–", "–", *cells), charts.no_interval(), _cost(figures))
    interval = figures.get("first_slot_interval")
    return row(
        *(judge.title, first, interval, *cells),
        colour=judge.colour,
        note=_cost(figures),
        tag=_position_bias(interval),
        warns=True,
    )


def _cost(figures: OrderFigures) -> str:
    """Return the calls, time and tokens that a language model's verdicts took."""
    calls, seconds, tokens = figures.get("calls"), figures.get("seconds"), figures.get("tokens")
    parts = [counted(calls, "call") if calls else "", f"{seconds:.0f} s" if seconds else ""]
    return ", ".join(filter(None, [*parts, f"{tokens} tokens" if tokens else ""]))


def _position_bias(interval: Sequence[float] | None) -> str:
    """Return which position a judge prefers, if its interval shows a preference."""
    low, high = interval or (0.5, 0.5)
    return "prefers the first answer" if low > 0.5 else "prefers the second answer" if high < 0.5 else ""


def unparsable(metrics: ComparisonMetrics, judges: Mapping[str, ReportedJudge]) -> Iterator[str]:
    """Warn about each language model of which too many replies contain no verdict, with the rate if they were ties."""
    for name, figures in metrics.get("judges", {}).items():
        replies = figures.get("order") or {}
        if (replies.get("unparsable_share") or 0.0) > MUCH_UNPARSABLE:
            share = percent(replies["unparsable_share"], 1)
            warning = f"{judges[name].title}: {share} of its replies ({replies['unparsable']}) contain no verdict."
            if ties := figures.get("unparsable_as_ties"):
                as_ties, as_read = (rate_text(rate["win_rate"], rate["interval"]) for rate in (ties, figures))
                warning += f" If they count as ties, the win rate is {as_ties} instead of {as_read}."
            yield warning


def descriptions(judges: Mapping[str, ReportedJudge], names: Sequence[str]) -> str:
    """Return what the judges of these names are, each once."""
    text = ". ".join(f"{judges[name].title}: {judges[name].what}" for name in dict.fromkeys(names))
    return f"{text}." if text else ""
