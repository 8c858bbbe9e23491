"""The verdict in words: how often the tuned model won, and what that does and does not show."""

from collections.abc import Iterator, Mapping
from typing import Any

from preferent.report import interval_tables, judge_names
from preferent.report.interval_tables import IntervalRow, IntervalTable, counted, number, percent, row
from preferent.report.judge_names import ReportedJudge

ROUND = "side.round-"
"""What the keys of earlier rounds start with."""
IDENTICAL = 0.5
"""Share of pairs with nothing to judge, from which on the models hardly differ."""
SAME = 0.1
"""Share of prompts that get one and the same answer, from which on the model has stopped to answer."""
NAMES = {"a": "tuned", "b": "base"}
SIDES = tuple({"key": key, "name": name} for key, name in NAMES.items())

Figures = Mapping[str, Any]


def sides(metrics: Figures) -> dict[str, str]:
    """The names of what was compared, by key, the tuned model first."""
    return {side["key"]: side["name"] for side in metrics.get("sides", SIDES)}


def opinions(metrics: Figures, gold: Figures | None, jurors: Mapping[str, ReportedJudge]) -> IntervalTable:
    """Tuned against base by every judge, the headline first, then by the known truth."""
    found_by = dict(metrics.get("judges", {}))
    if gold is not None and "win_rate" in gold:
        found_by["truth"] = {"interval": None, "prompts": gold.get("n"), **gold}
    rows = [_opinion(found, jurors[name]) for name, found in found_by.items()]
    heads = ("Who judged", "Win rate", "95 % interval", "Win–tie–loss")
    return IntervalTable("The tuned model against the base model; a tie counts as half", heads, rows)


def _opinion(found: Figures, juror: ReportedJudge) -> IntervalRow:
    counts = "–".join(str(found[key]) for key in ("win", "tie", "loss")) if "win" in found else ""
    note = judge_names.whom(found) if "n" in found else ""
    tag = "independent" if juror.independent else "not independent"
    return row(
        *(juror.title, found["win_rate"], found["interval"], counts),
        colour=juror.colour,
        note=note,
        tag=tag,
        warns=not juror.independent,
    )


def others(metrics: Figures, jurors: Mapping[str, ReportedJudge]) -> IntervalTable:
    """Every other pair of models by every judge; earlier rounds have a table of their own."""
    named = sides(metrics)
    rows = [
        row(
            *(f"{named[one['a']]} against {named[one['b']]}".capitalize(), one["win_rate"], one["interval"]),
            "–".join(str(one[key]) for key in ("win", "tie", "loss")),
            colour=jurors[one["judge"]].colour,
            note=jurors[one["judge"]].title,
        )
        for one in metrics.get("rates", [])
        if not (one["a"].startswith(ROUND) or one["b"].startswith(ROUND))
    ]
    return IntervalTable(
        "Other pairs of models", ("Which, and who judged", "Win rate", "95 % interval", "Win–tie–loss"), rows
    )


def ratings(metrics: Figures, jurors: Mapping[str, ReportedJudge]) -> list[tuple[str, list[str]]]:
    """A row a judge that compared all of three models or more, a cell a model; the first row names the models."""
    found, named = metrics.get("rating", {}), sides(metrics)
    places = {name: {one["side"]: one for one in rows} for name, rows in found.items()}
    rows = [(jurors[name].title, [rated(by_side.get(key)) for key in named]) for name, by_side in places.items()]
    return [("Who judged", titles(metrics)), *rows] if rows else []


def rated(found: Figures | None) -> str:
    """A rating with its interval, where there is one."""
    if found is None:
        return ""
    shown = number(found["bradley_terry"], 0)
    low, high = found.get("interval") or (None, None)
    return shown if low is None or high is None else f"{shown} ({number(low, 0)}–{number(high, 0)})"


def titles(metrics: Figures) -> list[str]:
    """The names of what was compared, as columns are called."""
    return [name[:1].upper() + name[1:] for name in sides(metrics).values()]


def sentence(found: Figures) -> str:
    """What the headline judge's figures say, in one or two plain sentences."""
    low, high = found["interval"]
    ties = {0: "", 1: ", with one tie"}.get(found["tie"], f", with {found['tie']} ties")
    counted = (
        f"Of {_among(found)}, the tuned model’s answer was preferred on {found['win']}, the base model’s on "
        f"{found['loss']}{ties}."
    )
    if low > 0.5:
        meaning = "The whole interval lies above one half: by this judge the tuned model is better."
    elif high < 0.5:
        meaning = "The whole interval lies below one half: by this judge the tuned model is worse."
    else:
        meaning = "The interval holds one half: this comparison does not show that either model is better."
    return f"{counted} {meaning}"


def _among(found: Figures) -> str:
    """What was judged, counted."""
    prompts = counted(found["prompts"], "test prompt")
    if found.get("kind") == "people":
        return f"{counted(found['n'], 'vote')} of {counted(found['annotators'], 'person', 'people')} on {prompts}"
    if found.get("kind") == "language_model":
        return f"{counted(found['n'], 'verdict')} on {prompts}"
    return prompts if found["n"] == found["prompts"] else f"{found['n']} answers to {prompts}"


def caution(found: Figures) -> str:
    """What a reader must know before believing the headline; empty for an independent judge."""
    if found["independent"]:
        return ""
    return (
        "Not independent: this is the reward that the policy was tuned to raise, so a high rate is expected and says "
        "little about what people would prefer."
    )


def doubts(metrics: Figures, jurors: Mapping[str, ReportedJudge]) -> list[str]:
    """What speaks against the headline, or against believing it as it stands, loudest first."""
    if not metrics.get("headline"):
        return list(_repeated(metrics))
    return [
        *_against(metrics, jurors),
        *judge_names.unparsable(metrics, jurors),
        *_length(metrics, jurors),
        *_identical(metrics),
        *_repeated(metrics),
    ]


def _against(metrics: Figures, jurors: Mapping[str, ReportedJudge]) -> Iterator[str]:
    """Independent judges that do not find what the headline finds."""
    found_by, headline = metrics["judges"], metrics["headline"]
    said = _side(found_by[headline])
    for name, found in found_by.items():
        if name == headline or not found["independent"] or _side(found) == said or not said:
            continue
        meaning = "does not show a difference" if not _side(found) else "finds the opposite"
        if name == "people":
            meaning = meaning.replace("does", "do").replace("finds", "find")
        yield f"{jurors[name].title} {meaning}: {interval_tables.told(found)}."


def _side(found: Figures) -> int:
    """1 where the interval lies above one half, -1 below, 0 around it."""
    low, high = found["interval"]
    return int(low > 0.5) - int(high < 0.5)


def _length(metrics: Figures, jurors: Mapping[str, ReportedJudge]) -> Iterator[str]:
    name = metrics["headline"]
    controlled = metrics["judges"][name].get("length_controlled") or {}
    if controlled.get("extreme"):
        yield (
            f"Length explains much of the rate of {jurors[name].name}: at equal length it is "
            f"{interval_tables.told(controlled) if controlled.get('interval') else percent(controlled['win_rate'], 1)}."
        )


def _identical(metrics: Figures) -> Iterator[str]:
    if metrics.get("identical", 0) >= IDENTICAL * metrics["rows"] > 0:
        yield (
            f"The answers of both models are the same, letter by letter, on {metrics['identical']} of "
            f"{counted(metrics['rows'], 'prompt')}; these count as ties."
        )


def _repeated(metrics: Figures) -> Iterator[str]:
    """Models that say the same to many prompts."""
    for key, name in sides(metrics).items():
        found = metrics.get("duplicates", {}).get(key)
        if key in NAMES and found and found["count"] > 1 and found["count"] >= SAME * metrics["rows"]:
            yield (
                f"The {name} model gives one and the same answer to {found['count']} of {metrics['rows']} prompts: "
                f"{quoted(found['most'])}."
            )


def sample_size(metrics: Figures) -> str:
    """How many prompts it would take, where the interval holds one half and the file says it."""
    found = metrics.get("sample_size")
    if not found or found["prompts"] is None:
        return ""
    return f"To show a win rate of {percent(found['win_rate'], 1)}, about {found['prompts']} prompts are needed."


def _compared(p: float) -> str:
    text = interval_tables.probability(p)
    return text if text.startswith("<") else f"= {text}"


def quoted(text: str | None) -> str:
    """The beginning of a text."""
    line = " ".join((text or "").split())
    return f"“{line[:80]} …”" if len(line) > 80 else f"“{line}”" if line else "the empty one"


def measures(metrics: Figures, jurors: Mapping[str, ReportedJudge]) -> list[tuple[str, list[str]]]:
    """Rows of the table that sets the models side by side: a name and a text for each."""
    keys = list(sides(metrics))
    rows: list[tuple[str, list[str]]] = []
    length = metrics.get("length", {})
    if length:
        means = [length.get(f"mean_{key}") for key in keys]
        rows.append((f"mean length, {length['unit']}", [f"{mean:.1f}" if mean is not None else "" for mean in means]))
    ended = metrics.get("ended", {})
    if ended:
        rows.append(("ended by itself", [percent(ended[key], 1) if key in ended else "" for key in keys]))
    repeated = metrics.get("duplicates", {})
    if repeated:
        shares = [repeated.get(key, {}).get("share") for key in keys]
        rows.append(("answers given more than once", [percent(one, 1) if one is not None else "" for one in shares]))
    for name, found in metrics.get("judges", {}).items():
        if scores := found.get("mean_score"):
            shown = [number(scores[key], 3) if scores.get(key) is not None else "" for key in keys]
            rows.append((f"mean score, {jurors[name].name}", shown))
    rouge = metrics.get("rouge") or {}
    for measure, name in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
        if rouge:
            shown = [f"{rouge[key][measure]:.3f}" if key in rouge else "" for key in keys]
            rows.append((f"{name} F1 ({rouge['n']} references)", shown))
    return rows


def _selection(found: Mapping[str, Any]) -> tuple[str, str]:
    """What keeping the best of several answers did, and how far it can have gone."""
    scores = ", ".join(f"{score:.3f} of {n}" for n, score in found["score"].items()).replace("-", "−")
    return (
        f"tuned answers are the best of {found['n']}",
        f"by the reward; keeping them moves the answers at most {found['kl_bound']:.2f} nats from the policy, a bound, "
        f"which is not in the KL above; mean score of the best: {scores}",
    )


def notes(metrics: Figures, jurors: Mapping[str, ReportedJudge]) -> list[tuple[str, str]]:
    """What else bears on the verdict: a name and a text each."""
    rows = []
    length = metrics.get("length", {})
    if length:
        longer, shorter = percent(length["share_longer"]), percent(length["share_shorter"])
        gap = f"{number(length['difference'], 1, sign=True)} {length['unit']}"
        rows.append(("tuned answers are", f"{gap} on average; longer on {longer}, shorter on {shorter} of prompts"))
    if "best_of" in metrics:
        rows.append(_selection(metrics["best_of"]))
    for name, found in metrics.get("judges", {}).items():
        if "length_correlation" in found:
            correlation = number(found["length_correlation"], sign=True)
            rows.append((f"score and length, {jurors[name].name}", f"rank correlation {correlation}"))
        if found.get("both_bad"):
            rows.append(("both answers are bad", f"said {jurors[name].name} in {found['both_bad']} of {found['n']}"))
    changed = metrics.get("changed", {})
    if "better" in changed:
        moved = f"better on {changed['better']}, worse on {changed['worse']}, even on {changed['even']} prompts"
        rows.append(("on balance", f"{moved}; sign test: p {_compared(changed['p_exact'])}"))
    rows.append(("identical answers", f"{metrics.get('identical', 0)} of {metrics.get('rows', 0)}"))
    return rows
