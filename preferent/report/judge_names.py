"""The judges of a comparison, people among them: who they are, and whether the place of an answer moved them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from preferent.config.recipe import Recipe
from preferent.evaluation.judges.protocol import MUCH_UNPARSABLE
from preferent.report import charts, interval_tables
from preferent.report.interval_tables import IntervalRow, IntervalTable, counted, percent, row

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReportedJudge:
    """A judge in words: `name` within a sentence, and what it is; `colour` is one of the style sheet's.

    A `proper` name is somebody else's, and never written with another letter.
    """

    name: str
    what: str
    colour: int
    independent: bool = True
    proper: bool = False

    @property
    def title(self) -> str:
        """The name where a sentence or a row starts with it."""
        return self.name if self.proper else self.name[:1].upper() + self.name[1:]

    @property
    def told(self) -> str:
        """Who it is and what."""
        return f"{self.name}, {self.what}"


KNOWN = {
    "judge": ReportedJudge("independent judge", "a reward model that learned from other preferences", 1),
    "reward": ReportedJudge("the optimised reward", "what the policy was tuned to raise", 4, independent=False),
    "people": ReportedJudge("people", "who saw both answers without knowing which model wrote them", 2),
    "truth": ReportedJudge("the true preference", "known, as these preferences are generated", 3),
}


def jurors(metrics: Figures, recipe: Recipe) -> dict[str, ReportedJudge]:
    """Everybody who judged, people (of an earlier round, if not of this) and the truth, by the name in the files."""
    colours = cycle((5, 6))
    models = {judge.name: judge.model for judge in recipe.compare.judges}
    found = {}
    for name, figures in metrics.get("judges", {}).items():
        what = f"the language model {models[name]}" if name in models else "a language model"
        found[name] = KNOWN.get(name) or ReportedJudge(
            name, what, next(colours), figures.get("independent", True), True
        )
    return found | {name: KNOWN[name] for name in ("people", "truth")}


def whom(found: Figures) -> str:
    """On how many verdicts a rate rests: of how many people, on how many prompts."""
    verdicts = {"people": "vote", "language_model": "verdict"}.get(found.get("kind", ""), "pair")
    people = f" of {counted(found['annotators'], 'person', 'people')}" if "annotators" in found else ""
    prompts = "" if found["prompts"] == found["n"] else f" on {counted(found['prompts'], 'prompt')}"
    return f"{counted(found['n'], verdicts)}{people}{prompts}"


def order(metrics: Figures, jury: Mapping[str, ReportedJudge]) -> IntervalTable | None:
    """What depends on which answer stood first, of judges that see both at once."""
    seen = {name: one for name, one in metrics.get("judges", {}).items() if one.get("order")}
    if not seen:
        return None
    heads = ("First answer preferred by", "Share", "95 % interval", "Same verdict both ways", "Verdicts", "No verdict")
    rows = [_first(one, jury[name]) for name, one in seen.items()]
    remark = (
        "A judge that looks at what is said and not at where it stands prefers the first answer in half of its "
        "verdicts. Language models judge every pair in both orders, so that a liking for a place cancels out in the "
        "win rate; it adds ties or noise."
    )
    return IntervalTable("Order: does the place decide?", heads, rows, remark)


def _first(found: Figures, juror: ReportedJudge) -> IntervalRow:
    seen = found["order"]
    consistent, first, asked = seen.get("consistent"), seen.get("first_slot"), found["kind"] == "language_model"
    replies = seen["parsed"] + seen["unparsable"] if "parsed" in seen else seen["verdicts"]
    none = f"{seen['unparsable']} ({percent(seen.get('unparsable_share') or 0.0, 1)})" if asked else "–"
    cells = ("–" if consistent is None else percent(consistent), str(replies), none)
    if first is None:
        return IntervalRow(juror.title, ("–", "–", *cells), charts.no_interval(), _cost(seen))
    interval = seen.get("first_slot_interval")
    return row(
        *(juror.title, first, interval, *cells),
        colour=juror.colour,
        note=_cost(seen),
        tag=_place(interval),
        warns=True,
    )


def _cost(seen: Figures) -> str:
    """What a language model's verdicts took."""
    calls, seconds, tokens = (seen.get(name) for name in ("calls", "seconds", "tokens"))
    parts = [counted(calls, "call") if calls else "", f"{seconds:.0f} s" if seconds else ""]
    return ", ".join(filter(None, [*parts, f"{tokens} tokens" if tokens else ""]))


def _place(interval: Sequence[float] | None) -> str:
    """Which place a judge likes, where it is shown that it likes one."""
    low, high = interval or (0.5, 0.5)
    return "likes the first place" if low > 0.5 else "likes the second place" if high < 0.5 else ""


def unparsable(metrics: Figures, jury: Mapping[str, ReportedJudge]) -> Iterator[str]:
    """A warning for each language model whose replies too often held no verdict, with what becomes of its rate."""
    for name, found in metrics.get("judges", {}).items():
        seen = found.get("order") or {}
        if (seen.get("unparsable_share") or 0.0) > MUCH_UNPARSABLE:
            said = (
                f"{jury[name].title}: {percent(seen['unparsable_share'], 1)} of its replies "
                f"({seen['unparsable']}) held no verdict."
            )
            ties = found.get("unparsable_as_ties")
            yield (
                f"{said} Counted as ties they make {interval_tables.told(ties)} of {interval_tables.told(found)}."
                if ties
                else said
            )


def names(jury: Mapping[str, ReportedJudge], there: Sequence[str]) -> str:
    """Who the judges are that have the names, each once."""
    told = ". ".join(f"{jury[name].title}: {jury[name].what}" for name in dict.fromkeys(there))
    return f"{told}." if told else ""
