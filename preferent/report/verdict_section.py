"""The verdict in words: how often the tuned model won, and what that does and does not show."""

from collections.abc import Iterator, Mapping
from typing import Any

from preferent.evaluation import comparison_types, judge_quality, verdict_sentence
from preferent.evaluation.comparison_types import (
    BestOfFigures,
    ComparisonMetrics,
    GoldFigures,
    JudgeFigures,
    RateFigures,
    RatingFigures,
)
from preferent.report import judge_names
from preferent.report.interval_tables import (
    IntervalRow,
    IntervalTable,
    counted,
    number,
    outcome_counts,
    percent,
    probability,
    rate_text,
    row,
)
from preferent.report.judge_names import ReportedJudge

ROUND = "side.round-"
"""Prefix of the keys of earlier rounds."""
IDENTICAL = 0.5
"""Share of pairs with equal answers from which on the models hardly differ."""
SAME = 0.1
"""Share of prompts with one and the same answer from which on the model no longer answers them."""
NAMES = {"a": "tuned", "b": "base"}

Judges = Mapping[str, ReportedJudge]


def sides(metrics: ComparisonMetrics) -> dict[str, str]:
    """Return the names of what was compared, by key, the tuned model first."""
    return {side["key"]: side["name"] for side in metrics["sides"]} if "sides" in metrics else dict(NAMES)


def is_of_run(metrics: ComparisonMetrics) -> bool:
    """Return whether the tuned model of a run was compared with its base, and not other models, runs or files."""
    names = sides(metrics)
    return (names["a"], names["b"]) == (NAMES["a"], NAMES["b"])


def contestants(metrics: ComparisonMetrics) -> tuple[str, str]:
    """Return what the page calls a and b: the models of a run, or the names of what was compared."""
    names = sides(metrics)
    return ("the tuned model", "the base model") if is_of_run(metrics) else (names["a"], names["b"])


def by_judge(metrics: ComparisonMetrics, gold: GoldFigures | None, judges: Judges) -> IntervalTable:
    """Return tuned against base by every judge, the headline first and the true preference last."""
    rows = [_judge_row(figures, judges[name]) for name, figures in metrics.get("judges", {}).items()]
    if gold is not None and "win_rate" in gold:
        rows.append(_truth_row(gold, judges["truth"]))
    heads = ("Judge", "Win rate", "95 % interval", "Win–tie–loss", "The judge is right on")
    a, b = contestants(metrics)
    title = "The tuned model" if a == "the tuned model" else a
    return IntervalTable(f"{title} against {b}; a tie counts as half", heads, rows)


def _judge_row(figures: JudgeFigures, judge: ReportedJudge) -> IntervalRow:
    return row(
        *(judge.title, figures["win_rate"], figures["interval"], outcome_counts(figures), accuracy(figures)),
        colour=judge.colour,
        note=judge_names.verdict_count(figures) if "n" in figures else "",
        tag="independent" if judge.independent else "not independent",
        warns=not judge.independent,
    )


def _truth_row(gold: GoldFigures, judge: ReportedJudge) -> IntervalRow:
    return row(
        *(judge.title, gold["win_rate"], gold.get("interval"), outcome_counts(gold), ""),
        colour=judge.colour,
        note=counted(gold["n"], "pair") if "n" in gold else "",
        tag="independent",
    )


def with_votes(metrics: ComparisonMetrics, judges: Judges) -> IntervalTable:
    """Return what people's votes on some prompts say alone and with each judge's verdicts on all; without rows if
    nothing is gained."""
    powered = metrics.get("prediction_powered", {})
    rows = [_votes_row(metrics["judges"]["people"], judges["people"])] if powered else []
    for name, figures in powered.items():
        judge = judges[name]
        note = f"votes on {figures['voted']} of {counted(figures['prompts'], 'prompt')}"
        cells = figures["win_rate"], figures["interval"], f"{figures['effective']:.0f}"
        rows += [
            row(f"People with {judge.name}", *cells, colour=2, note=note),
            _votes_row(metrics["judges"][name], judge),
        ]
    heads = ("Who judged", "Win rate", "95 % interval", "Worth people’s votes on")
    remark = (
        "The judge’s mean verdict on all prompts is corrected by its errors on those that people voted on, so that "
        "the rate is unbiased even if the judge is wrong or was optimised. The last column is the number of prompts "
        "that people alone would have to judge for an interval as narrow."
    )
    return IntervalTable("People’s votes with the help of a judge", heads, rows, remark)


def _votes_row(figures: JudgeFigures, judge: ReportedJudge) -> IntervalRow:
    worth = str(figures["prompts"]) if figures["kind"] == "people" else "–"
    note = judge_names.verdict_count(figures)
    return row(f"{judge.title} alone", figures["win_rate"], figures["interval"], worth, colour=judge.colour, note=note)


def other_pairs(metrics: ComparisonMetrics, judges: Judges) -> IntervalTable:
    """Return every other pair of models by every judge; earlier rounds have a table of their own."""
    names = sides(metrics)
    rows = [
        row(
            *(f"{names[pair['a']]} against {names[pair['b']]}".capitalize(), pair["win_rate"], pair["interval"]),
            outcome_counts(pair),
            colour=judges[pair["judge"]].colour,
            note=judges[pair["judge"]].title,
        )
        for pair in metrics.get("rates", [])
        if not (pair["a"].startswith(ROUND) or pair["b"].startswith(ROUND))
    ]
    heads = ("Models and judge", "Win rate", "95 % interval", "Win–tie–loss")
    return IntervalTable("Other pairs of models", heads, rows)


def ratings(metrics: ComparisonMetrics, judges: Judges) -> list[tuple[str, list[str]]]:
    """Return a row per judge that compared three models or more, with a cell per model; the first row names them."""
    names = sides(metrics)
    by_side = {
        name: {rating["side"]: rating for rating in ratings} for name, ratings in metrics.get("rating", {}).items()
    }
    rows = [(judges[name].title, [rating_text(places.get(key)) for key in names]) for name, places in by_side.items()]
    return [("Judge", side_titles(metrics)), *rows] if rows else []


def rating_text(rating: RatingFigures | None) -> str:
    """Return a rating, followed by its interval if there is one."""
    if rating is None:
        return ""
    shown = number(rating["bradley_terry"], 0)
    low, high = rating.get("interval") or (None, None)
    return shown if low is None or high is None else f"{shown} ({number(low, 0)}–{number(high, 0)})"


def side_titles(metrics: ComparisonMetrics) -> list[str]:
    """Return the names of what was compared as titles of columns."""
    return [name[:1].upper() + name[1:] for name in sides(metrics).values()]


def sentence(judge: JudgeFigures, a: str = "the tuned model", b: str = "the base model") -> str:
    """Return what the headline judge's figures mean about a and b; counts alone if the judge cannot tell."""
    low, high = judge["interval"]
    ties = {0: "", 1: ", with one tie"}.get(judge["tie"], f", with {judge['tie']} ties")
    counts = f"Of {_verdicts(judge)}, {a}’s answer was preferred on {judge['win']}, {b}’s on {judge['loss']}{ties}."
    ability = judge_quality.ability(judge)
    if ability.measured and not ability.tells:
        return counts
    if low > 0.5:
        meaning = f"The whole interval lies above one half: according to this judge {a} is better."
    elif high < 0.5:
        meaning = f"The whole interval lies below one half: according to this judge {a} is worse."
    else:
        meaning = "The interval contains one half: this comparison does not show that either model is better."
    return f"{counts} {meaning}"


def _verdicts(judge: JudgeFigures) -> str:
    """Return what was judged, counted."""
    prompts = counted(judge["prompts"], "test prompt")
    if judge.get("kind") == "people":
        return f"{counted(judge['n'], 'vote')} of {counted(judge['annotators'], 'person', 'people')} on {prompts}"
    if judge.get("kind") == "language_model":
        return f"{counted(judge['n'], 'verdict')} on {prompts}"
    return prompts if judge["n"] == judge["prompts"] else f"{judge['n']} answers to {prompts}"


def accuracy(judge: JudgeFigures) -> str:
    """Return how often a judge is right and on which pairs; nothing about people."""
    if judge.get("kind") == "people":
        return ""
    measured = judge.get("accuracy")
    if measured is None:
        return "not measured"
    pairs = (
        counted(measured["count"], "held-out pair")
        if measured["by"] == "held_out"
        else f"{measured['count']} voted pairs"
    )
    return f"{rate_text(measured['share'], measured['interval'])} of {pairs}"


def caution(metrics: ComparisonMetrics, judges: Judges) -> str:
    """Return what a reader must know before believing the headline; empty for a judge that can tell."""
    name = metrics["headline"] or ""
    judge = metrics["judges"][name]
    if not judge["independent"]:
        return (
            "Not independent: the policy was tuned to raise this reward, so a high rate is expected and says little "
            "about what people prefer."
        )
    ability = judge_quality.ability(judge)
    if ability.tells:
        return ""
    if not ability.measured:
        return (
            "Accuracy not measured: nobody checked how often this judge prefers what people prefer. Their votes on "
            "these answers would (preferent label)."
        )
    others = [judges[other].name for other in judge_quality.able(metrics)]
    who = verdict_sentence.no_judge(others)
    return f"{who[:1].upper()}{who[1:]}: right on {accuracy(judge)}, and {ability.why}."


def doubts(metrics: ComparisonMetrics, judges: Judges) -> list[str]:
    """Return the reasons to doubt the headline, the strongest first."""
    if not metrics.get("headline"):
        return list(_repeated(metrics))
    return [
        *_other_judges(metrics, judges),
        *judge_names.unparsable(metrics, judges),
        *_length(metrics, judges),
        *_identical(metrics),
        *_repeated(metrics),
    ]


def headline_judge(metrics: ComparisonMetrics) -> JudgeFigures | None:
    """Return the figures of the headline judge; None if nobody judged."""
    headline = metrics.get("headline")
    return metrics["judges"][headline] if headline else None


def _other_judges(metrics: ComparisonMetrics, judges: Judges) -> Iterator[str]:
    """Name the independent judges whose verdict differs from the headline's."""
    headline = headline_judge(metrics)
    direction = _direction(headline) if headline else 0
    for name, figures in metrics["judges"].items():
        if figures is headline or not figures["independent"] or _direction(figures) == direction or not direction:
            continue
        meaning = "does not show a difference" if not _direction(figures) else "finds the opposite"
        if name == "people":
            meaning = meaning.replace("does", "do").replace("finds", "find")
        yield f"{judges[name].title} {meaning}: {rate_text(figures['win_rate'], figures['interval'])}."


def _direction(rate: RateFigures) -> int:
    """Return 1 if the interval lies above one half, -1 if below, 0 if it contains one half."""
    low, high = rate["interval"]
    return int(low > 0.5) - int(high < 0.5)


def _length(metrics: ComparisonMetrics, judges: Judges) -> Iterator[str]:
    name, headline = metrics["headline"], headline_judge(metrics)
    controlled = headline and headline.get("length_controlled")
    if name and controlled and controlled.get("extreme") and controlled["win_rate"] is not None:
        rate = rate_text(controlled["win_rate"], controlled.get("interval"))
        yield f"Length explains much of the win rate by {judges[name].name}: at equal length it is {rate}."


def _identical(metrics: ComparisonMetrics) -> Iterator[str]:
    if metrics.get("identical", 0) >= IDENTICAL * metrics["rows"] > 0:
        yield (
            f"Both models give exactly the same answer to {metrics['identical']} of "
            f"{counted(metrics['rows'], 'prompt')}; these pairs count as ties."
        )


def _repeated(metrics: ComparisonMetrics) -> Iterator[str]:
    """Name the models that give one answer to many prompts."""
    for key, name in sides(metrics).items():
        repeated = metrics.get("duplicates", {}).get(key)
        if key in NAMES and repeated and repeated["count"] > 1 and repeated["count"] >= SAME * metrics["rows"]:
            yield (
                f"The {name} model gives the same answer to {repeated['count']} of {metrics['rows']} prompts: "
                f"{quoted(repeated['most'])}."
            )


def sample_size(metrics: ComparisonMetrics) -> str:
    """Return how many prompts a clear verdict would take, if the interval contains one half."""
    needed = metrics.get("sample_size")
    if not needed or needed["prompts"] is None:
        return ""
    return f"To show a win rate of {percent(needed['win_rate'], 1)}, about {needed['prompts']} prompts are needed."


def _compared(p: float) -> str:
    text = probability(p)
    return text if text.startswith("<") else f"= {text}"


def quoted(text: str | None) -> str:
    """Return the beginning of a text in quotation marks."""
    line = " ".join((text or "").split())
    return f"“{line[:80]} …”" if len(line) > 80 else f"“{line}”" if line else "the empty answer"


def measures(metrics: ComparisonMetrics, judges: Judges) -> list[tuple[str, list[str]]]:
    """Return the rows of the table that puts the models side by side: a name and a text per model."""
    keys = list(sides(metrics))
    rows: list[tuple[str, list[str]]] = []
    if length := metrics.get("length"):
        means = [comparison_types.mean_length(length, key) for key in keys]
        rows.append((f"mean length, {length['unit']}", [f"{mean:.1f}" if mean is not None else "" for mean in means]))
    if ended := metrics.get("ended"):
        rows.append(("ended by itself", [percent(ended[key], 1) if key in ended else "" for key in keys]))
    if repeated := metrics.get("duplicates"):
        shares = [percent(repeated[key]["share"], 1) if key in repeated else "" for key in keys]
        rows.append(("answers given more than once", shares))
    for name, figures in metrics.get("judges", {}).items():
        if scores := figures.get("mean_score"):
            shown = [number(scores[key], 3) if key in scores else "" for key in keys]
            rows.append((f"mean score, {judges[name].name}", shown))
    if rouge := metrics.get("rouge"):
        for measure, name in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
            shown = [f"{rouge[key][measure]:.3f}" if key in rouge else "" for key in keys]
            rows.append((f"{name} F1 ({rouge['n']} references)", shown))
    return rows


def _selection(best_of: BestOfFigures) -> tuple[str, str]:
    """Return what keeping the best of several answers did, and the bound on its KL."""
    scores = ", ".join(f"{score:.3f} of {n}" for n, score in best_of["score"].items()).replace("-", "−")
    return (
        f"tuned answers are the best of {best_of['n']}",
        f"by the reward. Keeping them moves the answers at most {best_of['kl_bound']:.2f} nats from the policy, which "
        f"the KL above does not include. Mean score of the best: {scores}",
    )


def notes(metrics: ComparisonMetrics, judges: Judges) -> list[tuple[str, str]]:
    """Return further facts about the verdict: a name and a text each."""
    rows = []
    if length := metrics.get("length"):
        longer, shorter = percent(length["share_longer"]), percent(length["share_shorter"])
        gap = f"{number(length['difference'], 1, sign=True)} {length['unit']}"
        says = f"{gap} on average; longer on {longer}, shorter on {shorter} of prompts"
        rows.append((f"{sides(metrics)['a']} answers are", says))
    if "best_of" in metrics:
        rows.append(_selection(metrics["best_of"]))
    for name, figures in metrics.get("judges", {}).items():
        if "length_correlation" in figures:
            correlation = number(figures["length_correlation"], sign=True)
            rows.append((f"score and length, {judges[name].name}", f"rank correlation {correlation}"))
        if figures.get("both_bad"):
            bad = f"in {figures['both_bad']} of {figures['n']} verdicts, according to {judges[name].name}"
            rows.append(("both answers are bad", bad))
    changed: Mapping[str, Any] = metrics.get("changed", {})
    if "better" in changed:
        counts = f"{sides(metrics)['a']} is better on {changed['better']}, worse on {changed['worse']}, "
        counts += f"equal on {changed['even']}"
        rows.append(("prompt by prompt", f"{counts} prompts; sign test: p {_compared(changed['p_exact'])}"))
    rows.append(("identical answers", f"{metrics.get('identical', 0)} of {metrics.get('rows', 0)}"))
    return rows
