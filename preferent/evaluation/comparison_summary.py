"""The figures of `metrics.json` and the rows of `judgments.jsonl`, computed from answers and judgments alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import cast

import numpy as np

from preferent.data import judgment_outcomes
from preferent.data.judgment_outcomes import JudgmentOutcomes, choices
from preferent.data.predictions import Answers
from preferent.data.types import Judgment
from preferent.evaluation import comparison_figures, judge_accuracy, judge_agreement, statistics
from preferent.evaluation.comparison_types import (
    AccuracyFigures,
    ChangeFigures,
    ComparisonMetrics,
    JudgeFigures,
    LengthControlledFigures,
    PredictionPoweredFigures,
    RatingFigures,
    SampleSizeFigures,
    SidePairFigures,
    SliceFigures,
    WinRateFigures,
)
from preferent.evaluation.judge_results import A_B, JudgeResults, pairs_of
from preferent.evaluation.statistics import length_control, paired_tests, prediction_powered, rating

SLICED_FROM = 40
"""Least number of prompts for slices by prompt length."""
LENGTH = "prompt "
SMALLEST = 0.01
"""Least distance from one half for which a sample size is computed."""
SHUFFLES = 20


def verdict(
    answers: Answers, judges: Sequence[JudgeResults], headline: str | None, names: Mapping[str, str]
) -> tuple[list[Judgment], ComparisonMetrics]:
    """Return all judgments and all figures; judgments of a and b come first, the headline judge's first among them."""
    prompts = {answer.id: answer.prompt for answer in answers["a"]}
    ordered = sorted(judges, key=lambda judge: judge.name != headline)
    metrics: ComparisonMetrics = {"rows": len(prompts), "prompts": len(set(prompts.values())), "headline": headline}
    metrics["sides"] = [{"key": side, "name": names[side]} for side in answers]
    labels = sliced(answers)
    by_name = {judge.name: judged(judge, answers, prompts, labels) for judge in ordered if judge.judgments.get(A_B)}
    for name, accuracy in by_votes(ordered, answers, prompts).items():
        by_name[name].setdefault("accuracy", accuracy)
    if headline is not None:
        rate = by_name[headline]["win_rate"]
        metrics |= {"autosxs_model_a_win_rate": rate, "autosxs_model_b_win_rate": 1 - rate}
        metrics["sample_size"] = needed(by_name[headline])
    metrics |= {
        "judges": by_name,
        "prediction_powered": powered(ordered, prompts),
        "rates": rates(ordered, answers, prompts),
        "rating": ratings(ordered, answers, prompts),
    }
    metrics |= agreement(ordered, prompts)
    metrics["identical"] = sum(a.text == b.text for a, b in zip(answers["a"], answers["b"], strict=True))
    metrics["changed"] = changed(metrics, [judge for judge in ordered if judge.name == headline], prompts)
    metrics |= {"kl": comparison_figures.divergence(answers["a"]), "length": comparison_figures.lengths(answers)}
    metrics["ended"] = comparison_figures.ended(answers)
    if selection := comparison_figures.selection(answers["a"]):
        metrics["best_of"] = selection
    metrics |= {"duplicates": comparison_figures.duplicates(answers), "rouge": comparison_figures.rouges(answers)}
    return [row for pair in pairs_of(answers) for judge in ordered for row in judge.judgments.get(pair, ())], metrics


def powered(judges: Sequence[JudgeResults], prompts: Mapping[str, str]) -> dict[str, PredictionPoweredFigures]:
    """Return the win rate by people's votes with the help of each judge; of none where people judged all prompts.

    A pair without a verdict is a tie here: whatever the judge says, the votes correct it.
    """
    people = [vote for judge in judges if judge.kind == "people" for vote in judge.judgments.get(A_B, ())]
    votes = judgment_outcomes.outcomes(people)
    voted = [prompts[id] for id in votes.ids]
    figures = {}
    for judge in judges:
        if judge.kind != "people" and judge.judgments.get(A_B):
            by_prompt: dict[str, list[float]] = {prompt: [] for prompt in prompts.values()}
            verdicts = outcomes(judge.judgments[A_B], prompts, unparsable=0.5)
            for id, outcome in zip(verdicts.ids, verdicts.values, strict=True):
                by_prompt[prompts[id]].append(outcome)
            means = {prompt: float(np.mean(said or [0.5])) for prompt, said in by_prompt.items()}
            if estimate := prediction_powered.win_rate(votes.values, voted, means, votes.weights):
                figures[judge.name] = cast(PredictionPoweredFigures, asdict(estimate))
    return figures


def judged(
    judge: JudgeResults, answers: Answers, prompts: Mapping[str, str], labels: Mapping[str, Sequence[str]]
) -> JudgeFigures:
    """Return one judge's figures of a against b."""
    verdicts = outcomes(judge.judgments[A_B], prompts)
    kind = {"kind": judge.kind, "independent": judge.independent}
    figures = cast(JudgeFigures, {**rate(verdicts, prompts), **kind, **(judge.facts or {})})
    lengths, _unit = comparison_figures.measured(answers)
    if judge.scores is not None:
        every_score = np.concatenate([judge.scores[side] for side in A_B])
        figures["mean_score"] = {side: float(scores.mean()) for side, scores in judge.scores.items()}
        figures["length_correlation"] = statistics.rank_correlation(every_score, [*lengths["a"], *lengths["b"]])
    if judge.kind == "language_model":
        ties = rate(outcomes(judge.judgments[A_B], prompts, unparsable=0.5), prompts)
        figures["unparsable_as_ties"] = {"win_rate": ties["win_rate"], "interval": ties["interval"]}
    place = {answer.id: index for index, answer in enumerate(answers["a"])}
    measured = [[lengths[side][place[id]] for id in verdicts.ids] for side in A_B]
    difficulty = comparison_figures.difficulty(answers["a"])
    figures["length_controlled"] = controlled(verdicts, measured[0], measured[1], prompts, difficulty)
    figures["slices"] = slices(verdicts, prompts, labels)
    return figures


def outcomes(
    judgments: Sequence[Judgment], prompts: Mapping[str, str], unparsable: float | None = None
) -> JudgmentOutcomes:
    """Return the outcomes of judgments; the rows of a prompt that was answered several times share its weight."""
    verdicts = judgment_outcomes.outcomes(judgments, unparsable)
    rows = Counter(prompts.values())
    weights = [weight / rows[prompts[id]] for id, weight in zip(verdicts.ids, verdicts.weights, strict=True)]
    return replace(verdicts, weights=weights)


def needed(judge: JudgeFigures) -> SampleSizeFigures | None:
    """Return how many `prompts` it takes to see the judge's `win_rate`, and the least rate that the present number of
    prompts would show (`detectable`; None where they are too few to show any).

    None where the judge's interval excludes one half. Each prompt counts as one verdict, however often it was judged.
    """
    low, high = judge["interval"]
    if not low <= 0.5 <= high:
        return None
    ties = judge["tie"] / judge["n"]
    least = paired_tests.detectable(judge["prompts"], tie_share=ties) if ties < 1 else None
    wanted = 0.5 + max(abs(judge["win_rate"] - 0.5), SMALLEST)
    prompts = paired_tests.sample_size(wanted, tie_share=ties) if wanted <= 1 - ties / 2 else None
    return {"win_rate": wanted, "prompts": prompts, "detectable": least}


def rate(verdicts: JudgmentOutcomes, prompts: Mapping[str, str]) -> WinRateFigures:
    """Return the win rate over all verdicts."""
    clusters = [prompts[id] for id in verdicts.ids]
    return cast(WinRateFigures, asdict(statistics.win_rate(verdicts.values, clusters, weights=verdicts.weights)))


def controlled(
    verdicts: JudgmentOutcomes,
    a: Sequence[float],
    b: Sequence[float],
    prompts: Mapping[str, str],
    difficulty: Mapping[str, float] | None,
) -> LengthControlledFigures | None:
    """Return the win rate at equal length; None where these verdicts do not determine it.

    Where difficulties are known, AlpacaEval's whole regression is used, on the mean verdict of each pair.
    """
    if difficulty is None:
        estimate = length_control.controlled(
            verdicts.values, a, b, [prompts[id] for id in verdicts.ids], weights=verdicts.weights
        )
    else:
        ids, pair = np.unique(np.asarray(verdicts.ids), return_inverse=True)
        mean = [(np.bincount(pair, values) / np.bincount(pair)).tolist() for values in (verdicts.values, a, b)]
        estimate = length_control.alpaca(mean[0], mean[1], mean[2], [difficulty[id] for id in ids])
    if estimate.win_rate is None:
        return None
    return {
        "win_rate": estimate.win_rate,
        "interval": estimate.interval,
        "raw": estimate.raw,
        "extreme": estimate.extreme,
        "form": "minimal" if difficulty is None else "alpaca",
    }


def sliced(answers: Answers) -> dict[str, list[str]]:
    """Return the slices of each pair, shortest prompts first: its tags, and with enough prompts its prompt's length."""
    labels = {answer.id: list(answer.tags) for answer in answers["a"]}
    if len({answer.prompt for answer in answers["a"]}) >= SLICED_FROM:
        words = [len(answer.prompt.split()) for answer in answers["a"]]
        for answer, label in zip(answers["a"], paired_tests.by_length(words), strict=True):
            labels[answer.id].append(f"{LENGTH}{label}")
        shortest_first = sorted(range(len(words)), key=words.__getitem__)
        return {answers["a"][place].id: labels[answers["a"][place].id] for place in shortest_first}
    return labels


def slices(
    verdicts: JudgmentOutcomes, prompts: Mapping[str, str], labels: Mapping[str, Sequence[str]]
) -> list[SliceFigures]:
    """Return the win rate in every slice: by tag, and from the shortest prompts to the longest."""
    rates_by_slice = paired_tests.slices(
        verdicts.values,
        [prompts[id] for id in verdicts.ids],
        [labels[id] for id in verdicts.ids],
        weights=verdicts.weights,
    )
    tags = sorted({name for names in labels.values() for name in names if not name.startswith(LENGTH)})
    order = list(dict.fromkeys([*tags, *(name for names in labels.values() for name in names)]))
    return [
        {
            "name": part.name,
            "win_rate": part.rate.win_rate,
            "interval": part.rate.interval,
            "n": part.rate.n,
            "prompts": part.rate.prompts,
            "p": part.p,
            "p_holm": part.p_holm,
        }
        for part in sorted(rates_by_slice, key=lambda part: order.index(part.name))
    ]


def rates(judges: Sequence[JudgeResults], answers: Answers, prompts: Mapping[str, str]) -> list[SidePairFigures]:
    """Return the win rates of every pair of sides after a and b."""
    return [
        {"a": a, "b": b, "judge": judge.name, **rate(outcomes(judge.judgments[a, b], prompts), prompts)}
        for a, b in pairs_of(answers)[1:]
        for judge in judges
        if judge.judgments.get((a, b))
    ]


def ratings(
    judges: Sequence[JudgeResults], answers: Answers, prompts: Mapping[str, str]
) -> dict[str, list[RatingFigures]]:
    """Return three sides or more on one scale, by every judge that compared all of them."""
    pairs = pairs_of(answers)
    whole = [judge for judge in judges if len(pairs) > 1 and all(judge.judgments.get(pair) for pair in pairs)]
    return {judge.name: _rated(judge, prompts) for judge in whole}


def _rated(judge: JudgeResults, prompts: Mapping[str, str]) -> list[RatingFigures]:
    games = []
    for (a, b), judgments in judge.judgments.items():
        verdicts = outcomes(judgments, prompts)
        rows = zip(verdicts.values, verdicts.ids, verdicts.weights, strict=True)
        games += [rating.Game(a, b, value, prompts[id], weight=weight) for value, id, weight in rows]
    fit = rating.bradley_terry(games)
    elo = rating.elo(games, shuffles=SHUFFLES)
    return [
        {"side": side, "bradley_terry": fit.rating[side], "interval": fit.interval[side], "elo": elo[side]}
        for side in fit.models
    ]


def agreement(judges: Sequence[JudgeResults], prompts: Mapping[str, str]) -> ComparisonMetrics:
    """Return the agreement of every two judges, and of every judge with people, on the differing pairs of a and b."""
    by_judge = {judge.name: choices(judge.judgments.get(A_B, ())) for judge in judges}
    models = {name: verdicts for name, verdicts in by_judge.items() if name != judge_agreement.PEOPLE}
    against = judge_agreement.by_people(models, by_judge.get(judge_agreement.PEOPLE, {}), prompts)
    figures = {"agreement": judge_agreement.pairwise(by_judge, prompts), "against_people": against}
    return cast(ComparisonMetrics, figures)


def by_votes(
    judges: Sequence[JudgeResults], answers: Answers, prompts: Mapping[str, str]
) -> dict[str, AccuracyFigures]:
    """Return the accuracy of each judge on the pairs of a and b of which people prefer an answer."""
    votes = [vote for judge in judges if judge.kind == "people" for vote in judge.judgments.get(A_B, ())]
    people = {id: choice for id, choice in choices(votes).items() if choice != "tie"}
    first = _seen_first(votes)
    places = {answer.id: place for place, answer in enumerate(answers["a"])}
    lengths, _ = comparison_figures.measured(answers)
    figures = {}
    for judge in judges:
        verdicts = {} if judge.kind == "people" else choices(judge.judgments.get(A_B, ()))
        pairs = []
        for id in (id for id in people if id in verdicts):
            chosen, rejected = ("a", "b") if people[id] == "A" else ("b", "a")
            longer = lengths[chosen][places[id]] - lengths[rejected][places[id]]
            texts = [answers[side][places[id]].text for side in (chosen, rejected)]
            right, seen = judge_accuracy.agrees(verdicts[id], people[id]), first[id]
            seen_first = seen if seen is None or chosen == "a" else 1 - seen
            pairs.append(judge_accuracy.VotedPair(prompts[id], right, seen_first, longer, *texts))
        if accuracy := judge_accuracy.by_votes(pairs):
            figures[judge.name] = accuracy
    return figures


def _seen_first(votes: Sequence[Judgment]) -> dict[str, float | None]:
    """Return by pair 1 if most voters saw a first, 0 if fewer than half did, 1/2 for half, None if it is unknown."""
    sides: dict[str, list[object]] = {}
    for vote in votes:
        sides.setdefault(vote.id, []).append(vote.extra.get("first"))
    leads = {id: 2 * seen.count("a") - len(seen) if set(seen) <= {*A_B} else None for id, seen in sides.items()}
    return {id: None if lead is None else 0.5 + (lead > 0) / 2 - (lead < 0) / 2 for id, lead in leads.items()}


def changed(metrics: ComparisonMetrics, headline: Sequence[JudgeResults], prompts: Mapping[str, str]) -> ChangeFigures:
    """Return how many answers differ, and the headline judge's test of a difference, up or down."""
    counts: ChangeFigures = {"identical": metrics["identical"], "different": metrics["rows"] - metrics["identical"]}
    if not headline:
        return counts
    verdicts = outcomes(headline[0].judgments[A_B], prompts)
    test = paired_tests.paired(verdicts.values, [prompts[id] for id in verdicts.ids], verdicts.weights)
    return cast(ChangeFigures, {**counts, **asdict(test)})
