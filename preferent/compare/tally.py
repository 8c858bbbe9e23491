"""The figures of `metrics.json` and the rows of `judgments.jsonl`, from answers and opinions alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from preferent import winrate
from preferent.answer import Answers
from preferent.compare import agreement, figure
from preferent.compare.opinion import Opinion, outcomes, pairs_of
from preferent.record import Judgment

A_B = ("a", "b")


def verdict(
    answers: Answers, opinions: Sequence[Opinion], headline: str | None, names: Mapping[str, str]
) -> tuple[list[Judgment], dict[str, Any]]:
    """All judgments, of a and b first and the headline judge's first among them, and all figures."""
    prompts = {answer.id: answer.prompt for answer in answers["a"]}
    ordered = sorted(opinions, key=lambda one: one.name != headline)
    metrics: dict[str, Any] = {"rows": len(prompts), "prompts": len(set(prompts.values())), "headline": headline}
    metrics["sides"] = [{"key": side, "name": names[side]} for side in answers]
    judges = {one.name: judged(one, answers, prompts) for one in ordered if one.said.get(A_B)}
    if headline is not None:
        rate = judges[headline]["win_rate"]
        metrics |= {"autosxs_model_a_win_rate": rate, "autosxs_model_b_win_rate": 1 - rate}
    metrics |= {"judges": judges, "rates": rates(ordered, answers, prompts)}
    metrics |= agreement.figures(ordered)
    metrics |= {"kl": figure.divergence(answers["a"]), "length": figure.lengths(answers)}
    metrics["ended"] = figure.ended(answers)
    if selection := figure.selection(answers["a"]):
        metrics["best_of"] = selection
    metrics["identical"] = sum(a.text == b.text for a, b in zip(answers["a"], answers["b"], strict=True))
    metrics |= {"duplicates": figure.duplicates(answers), "rouge": figure.rouges(answers)}
    pairs = pairs_of(answers)
    return [row for pair in pairs for one in ordered for row in one.said.get(pair, ())], metrics


def judged(opinion: Opinion, answers: Answers, prompts: Mapping[str, str]) -> dict[str, Any]:
    """What one judge makes of a against b."""
    said = opinion.said[A_B]
    found = rate(said, prompts) | {"kind": opinion.kind, "independent": opinion.independent}
    if opinion.scores is not None:
        lengths, _unit = figure.measured(answers)
        every_score = np.concatenate([opinion.scores[side] for side in A_B])
        found["mean_score"] = {side: float(scores.mean()) for side, scores in opinion.scores.items()}
        found["length_correlation"] = winrate.rank_correlation(every_score, [*lengths["a"], *lengths["b"]])
    return found


def rate(judgments: Sequence[Judgment], prompts: Mapping[str, str], unparsable: float | None = None) -> dict[str, Any]:
    """The win rate over all verdicts in judgments."""
    found = outcomes(judgments, unparsable)
    return asdict(winrate.win_rate(found.values, [prompts[id] for id in found.ids]))


def rates(opinions: Sequence[Opinion], answers: Answers, prompts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The win rates of every other pair of sides."""
    return [
        {"a": a, "b": b, "judge": one.name} | rate(one.said[a, b], prompts)
        for a, b in pairs_of(answers)[1:]
        for one in opinions
        if one.said.get((a, b))
    ]
