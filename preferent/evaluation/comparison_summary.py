"""The figures of `metrics.json` and the rows of `judgments.jsonl`, from answers and opinions alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast

import numpy as np

from preferent.data.judgment_outcomes import JudgmentOutcomes, choices, outcomes
from preferent.data.predictions import Answers
from preferent.data.types import Judgment
from preferent.evaluation import comparison_figures, judge_agreement, statistics
from preferent.evaluation.comparison_types import (
    ChangeFigures,
    ComparisonMetrics,
    JudgeFigures,
    LengthControlledFigures,
    RatingFigures,
    SampleSizeFigures,
    SidePairFigures,
    SliceFigures,
    WinRateFigures,
)
from preferent.evaluation.judge_results import A_B, JudgeResults, pairs_of
from preferent.evaluation.statistics import length_control, paired_tests, rating

SLICED_FROM = 40
"""Prompts from which on they are also cut into four by length."""
LENGTH = "prompt "
SMALLEST = 0.01
"""Distance from one half below which nobody looks for a difference."""
SHUFFLES = 20


def verdict(
    answers: Answers, opinions: Sequence[JudgeResults], headline: str | None, names: Mapping[str, str]
) -> tuple[list[Judgment], ComparisonMetrics]:
    """All judgments, of a and b first and the headline judge's first among them, and all figures."""
    prompts = {answer.id: answer.prompt for answer in answers["a"]}
    ordered = sorted(opinions, key=lambda one: one.name != headline)
    metrics: ComparisonMetrics = {"rows": len(prompts), "prompts": len(set(prompts.values())), "headline": headline}
    metrics["sides"] = [{"key": side, "name": names[side]} for side in answers]
    labels = sliced(answers)
    judges = {one.name: judged(one, answers, prompts, labels) for one in ordered if one.said.get(A_B)}
    if headline is not None:
        rate = judges[headline]["win_rate"]
        metrics |= {"autosxs_model_a_win_rate": rate, "autosxs_model_b_win_rate": 1 - rate}
        metrics["sample_size"] = needed(judges[headline])
    metrics |= {
        "judges": judges,
        "rates": rates(ordered, answers, prompts),
        "rating": ratings(ordered, answers, prompts),
    }
    metrics |= agreement(ordered, prompts)
    metrics["identical"] = sum(a.text == b.text for a, b in zip(answers["a"], answers["b"], strict=True))
    metrics["changed"] = changed(metrics, [one for one in ordered if one.name == headline], prompts)
    metrics |= {"kl": comparison_figures.divergence(answers["a"]), "length": comparison_figures.lengths(answers)}
    metrics["ended"] = comparison_figures.ended(answers)
    if selection := comparison_figures.selection(answers["a"]):
        metrics["best_of"] = selection
    metrics |= {"duplicates": comparison_figures.duplicates(answers), "rouge": comparison_figures.rouges(answers)}
    return [row for pair in pairs_of(answers) for one in ordered for row in one.said.get(pair, ())], metrics


def judged(
    opinion: JudgeResults, answers: Answers, prompts: Mapping[str, str], labels: Mapping[str, Sequence[str]]
) -> JudgeFigures:
    """What one judge makes of a against b."""
    said = outcomes(opinion.said[A_B])
    kind = {"kind": opinion.kind, "independent": opinion.independent}
    found = cast(JudgeFigures, {**rate(said, prompts), **kind, **(opinion.facts or {})})
    lengths, _unit = comparison_figures.measured(answers)
    if opinion.scores is not None:
        every_score = np.concatenate([opinion.scores[side] for side in A_B])
        found["mean_score"] = {side: float(scores.mean()) for side, scores in opinion.scores.items()}
        found["length_correlation"] = statistics.rank_correlation(every_score, [*lengths["a"], *lengths["b"]])
    if opinion.kind == "language_model":
        ties = rate(outcomes(opinion.said[A_B], unparsable=0.5), prompts)
        found["unparsable_as_ties"] = {"win_rate": ties["win_rate"], "interval": ties["interval"]}
    place = {answer.id: index for index, answer in enumerate(answers["a"])}
    measured = [[lengths[side][place[id]] for id in said.ids] for side in A_B]
    difficulty = comparison_figures.difficulty(answers["a"])
    found["length_controlled"] = controlled(said, measured[0], measured[1], prompts, difficulty)
    found["slices"] = slices(said, prompts, labels)
    return found


def needed(judge: JudgeFigures) -> SampleSizeFigures | None:
    """Where a judge's interval holds one half: how many `prompts` it takes to see its `win_rate`, and the least rate
    that so many as there are would show (`detectable`; None where they are too few to show any). Each prompt is counted
    as one verdict, however often it was judged."""
    low, high = judge["interval"]
    if not low <= 0.5 <= high:
        return None
    ties = judge["tie"] / judge["n"]
    least = paired_tests.detectable(judge["prompts"], tie_share=ties) if ties < 1 else None
    wanted = 0.5 + max(abs(judge["win_rate"] - 0.5), SMALLEST)
    prompts = paired_tests.sample_size(wanted, tie_share=ties) if wanted <= 1 - ties / 2 else None
    return {"win_rate": wanted, "prompts": prompts, "detectable": least}


def rate(said: JudgmentOutcomes, prompts: Mapping[str, str]) -> WinRateFigures:
    """The win rate over all verdicts."""
    figures = asdict(statistics.win_rate(said.values, [prompts[id] for id in said.ids], weights=said.weights))
    return cast(WinRateFigures, figures)


def controlled(
    said: JudgmentOutcomes,
    a: Sequence[float],
    b: Sequence[float],
    prompts: Mapping[str, str],
    difficulty: Mapping[str, float] | None,
) -> LengthControlledFigures | None:
    """The win rate at equal length, where difficulties are known by AlpacaEval's whole regression on each pair's mean
    verdict; None where it cannot be told from these verdicts."""
    if difficulty is None:
        found = length_control.controlled(said.values, a, b, [prompts[id] for id in said.ids], weights=said.weights)
    else:
        ids, pair = np.unique(np.asarray(said.ids), return_inverse=True)
        mean = [(np.bincount(pair, values) / np.bincount(pair)).tolist() for values in (said.values, a, b)]
        found = length_control.alpaca(mean[0], mean[1], mean[2], [difficulty[id] for id in ids])
    if found.win_rate is None:
        return None
    return {
        "win_rate": found.win_rate,
        "interval": found.interval,
        "raw": found.raw,
        "extreme": found.extreme,
        "form": "minimal" if difficulty is None else "alpaca",
    }


def sliced(answers: Answers) -> dict[str, list[str]]:
    """The slices that each pair is in: by its tags, and by the length of its prompt where there are enough; the short
    ones first."""
    labels = {answer.id: list(answer.tags) for answer in answers["a"]}
    if len({answer.prompt for answer in answers["a"]}) >= SLICED_FROM:
        words = [len(answer.prompt.split()) for answer in answers["a"]]
        for answer, label in zip(answers["a"], paired_tests.by_length(words), strict=True):
            labels[answer.id].append(f"{LENGTH}{label}")
        shortest_first = sorted(range(len(words)), key=words.__getitem__)
        return {answers["a"][place].id: labels[answers["a"][place].id] for place in shortest_first}
    return labels


def slices(
    said: JudgmentOutcomes, prompts: Mapping[str, str], labels: Mapping[str, Sequence[str]]
) -> list[SliceFigures]:
    """The win rate in every slice: by tag, and from the shortest prompts to the longest."""
    found = paired_tests.slices(
        said.values, [prompts[id] for id in said.ids], [labels[id] for id in said.ids], weights=said.weights
    )
    tags = sorted({name for names in labels.values() for name in names if not name.startswith(LENGTH)})
    order = list(dict.fromkeys([*tags, *(name for names in labels.values() for name in names)]))
    return [
        {
            "name": one.name,
            "win_rate": one.rate.win_rate,
            "interval": one.rate.interval,
            "n": one.rate.n,
            "prompts": one.rate.prompts,
            "p": one.p,
            "p_holm": one.p_holm,
        }
        for one in sorted(found, key=lambda one: order.index(one.name))
    ]


def rates(opinions: Sequence[JudgeResults], answers: Answers, prompts: Mapping[str, str]) -> list[SidePairFigures]:
    """The win rates of every other pair of sides."""
    return [
        {"a": a, "b": b, "judge": one.name, **rate(outcomes(one.said[a, b]), prompts)}
        for a, b in pairs_of(answers)[1:]
        for one in opinions
        if one.said.get((a, b))
    ]


def ratings(
    opinions: Sequence[JudgeResults], answers: Answers, prompts: Mapping[str, str]
) -> dict[str, list[RatingFigures]]:
    """Three sides or more on one scale, by every judge that compared all of them."""
    pairs = pairs_of(answers)
    whole = [one for one in opinions if len(pairs) > 1 and all(one.said.get(pair) for pair in pairs)]
    return {one.name: _rated(one, prompts) for one in whole}


def _rated(opinion: JudgeResults, prompts: Mapping[str, str]) -> list[RatingFigures]:
    games = []
    for (a, b), judgments in opinion.said.items():
        said = outcomes(judgments)
        rows = zip(said.values, said.ids, said.weights, strict=True)
        games += [rating.Game(a, b, value, prompts[id], weight=weight) for value, id, weight in rows]
    found = rating.bradley_terry(games)
    elo = rating.elo(games, shuffles=SHUFFLES)
    return [
        {"side": side, "bradley_terry": found.rating[side], "interval": found.interval[side], "elo": elo[side]}
        for side in found.models
    ]


def agreement(opinions: Sequence[JudgeResults], prompts: Mapping[str, str]) -> ComparisonMetrics:
    """Of every two judges the agreement on the pairs of a and b that both saw and whose answers differ, and of every
    judge how it did by what people said."""
    said = {one.name: choices(one.said.get(A_B, ())) for one in opinions}
    judges = {name: one for name, one in said.items() if name != judge_agreement.PEOPLE}
    against = judge_agreement.by_people(judges, said.get(judge_agreement.PEOPLE, {}), prompts)
    return cast(ComparisonMetrics, {"agreement": judge_agreement.pairwise(said, prompts), "against_people": against})


def changed(metrics: ComparisonMetrics, headline: Sequence[JudgeResults], prompts: Mapping[str, str]) -> ChangeFigures:
    """How many answers differ, and whether the headline judge saw any difference, up or down."""
    found: ChangeFigures = {"identical": metrics["identical"], "different": metrics["rows"] - metrics["identical"]}
    if not headline:
        return found
    said = outcomes(headline[0].said[A_B])
    paired = paired_tests.paired(said.values, [prompts[id] for id in said.ids], said.weights)
    return cast(ChangeFigures, {**found, **asdict(paired)})
