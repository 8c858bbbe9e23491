"""A judge measured against people's votes: it judges the pairs in their files, by the stage that compares."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from preferent import files
from preferent.commands import compare_runs
from preferent.commands.compare_runs import ComparisonRequest
from preferent.data import judgments
from preferent.data.judgment_outcomes import OUTCOMES, parsed
from preferent.data.types import Judgment
from preferent.errors import DataError, UsageError
from preferent.evaluation import judge_agreement, statistics
from preferent.evaluation.judge_agreement import Rated, Row
from preferent.evaluation.judgment_files import RatedPair
from preferent.evaluation.statistics import rating
from preferent.runs.directory import ComparisonDirectory

Pairs = Mapping[tuple[str, ...], RatedPair]
"""What is judged: every two answers to a prompt once."""


def agree(
    paths: Sequence[Path], people: Path | None, judges: Sequence[str], how: Mapping[str, Any], out: Path | None = None
) -> Row:
    """Return the figures of `preferent agree` with these judges among the raters.

    People are the raters in the file of `people`, or in all files where none is named. Replies of language models are
    kept in `out`, so that the same command again calls none.
    """
    if person := next((word for word in judges if word.startswith("people=")), None):
        raise UsageError(f"--judge {person}: people's verdicts are a FILE of agree, not a judge; name the file alone")
    rated, truth = judge_agreement.read_files(paths, people)
    persons = truth or set(rated)
    voted = [pair for path in sorted(persons) for pair in rated[path]]
    pairs = _pairs(voted)
    folder = out or Path("runs") / f"agree-{paths[0].stem}"
    comparison = ComparisonDirectory(_judged(pairs, judges, how, folder))
    by_judge: dict[str, list[Judgment]] = {}
    for judgment in judgments.read(comparison.judgments):
        by_judge.setdefault(judgment.judge, []).append(judgment)
    own = {name: _as_rated(list(pairs.values()), said, name) for name, said in by_judge.items()}
    verdicts: Rated = {folder / name: rows for name, rows in own.items()}
    figures = judge_agreement.between({**rated, **verdicts}, persons)
    orders = files.read_json(comparison.metrics)["judges"]
    figures["judges"] = {
        name: _of_judge(rows, voted, by_judge[name]) | {"order": orders[name].get("order")}
        for name, rows in own.items()
    }
    return figures


def render(figures: Row) -> str:
    """Return the figures as text."""
    lines = [f"{name}: {text}" for name, judge in figures["judges"].items() for text in _own(judge)]
    return "\n".join([judge_agreement.render(figures), *lines])


def _own(judge: Row) -> list[str]:
    """Return a judge's ratings, order effect and repeats in words."""
    ratings, order, flips = judge["ratings"], judge.get("order"), judge["flips"]
    unknown = "unknown: fewer than three models are named that met each other"
    rank = f"Spearman {ratings['spearman']:.3f} of {ratings['models']} models" if ratings else unknown
    lines = [f"order of the models by Bradley-Terry ratings, its own and people's: {rank}"]
    if order is None:
        return [*lines, "scores each answer alone: neither the order nor a repetition changes a verdict"]
    if order["first_slot"] is not None:
        first = judge_agreement.share(order["first_slot"], order["first_slot_interval"])
        lines.append(f"prefers the answer shown first in {first}")
    if order["consistent"] is not None:
        lines.append(f"says the same in both orders in {order['consistent']:.1%} of {order['both_orders']}")
    again = "not measured: --votes 2 asks everything twice"
    told = f"{judge_agreement.share(flips['share'], flips['interval'])} of {flips['n']} repetitions" if flips else again
    return [*lines, f"says something else when asked again: {told}"]


def _of_judge(pairs: Sequence[RatedPair], people: Sequence[RatedPair], judgments: Sequence[Judgment]) -> Row:
    """Return what a judge's own verdicts on people's pairs show besides agreement: ratings, order, and repeats."""
    prompts = {judgment.id: pair.prompt for judgment, pair in zip(judgments, pairs, strict=True)}
    return {"ratings": _ratings(pairs, people), "flips": _flips(judgments, prompts)}


def _ratings(pairs: Sequence[RatedPair], people: Sequence[RatedPair]) -> Row | None:
    """Return Spearman's correlation of the models' Bradley-Terry ratings by the judge and by people.

    None unless three models or more are named that all met, if only through others.
    """
    fits = []
    for rated in (pairs, people):
        known = [pair for pair in rated if pair.choice and all(pair.models) and pair.models[0] != pair.models[1]]
        games = [rating.Game(*pair.models, OUTCOMES[str(pair.choice)], pair.prompt) for pair in known]
        try:
            fits.append(rating.bradley_terry(games).strength)
        except ValueError:
            return None
    models = sorted(fits[0].keys() & fits[1].keys())
    if len(models) < 3:
        return None
    by_judge, by_people = ([fit[model] for model in models] for fit in fits)
    return {"models": len(models), "spearman": statistics.rank_correlation(by_judge, by_people)}


def _flips(judgments: Sequence[Judgment], prompts: Mapping[str, str]) -> Row | None:
    """Return how often a judge that is asked the same again says something else; None where it was asked once.

    Each verdict is compared with the next about the same pair in the same order; verdicts of a prompt are a cluster.
    """
    other: list[float] = []
    clusters: list[str] = []
    for judgment in judgments:
        by_order: dict[str, list[str]] = {}
        for verdict in judgment.extra.get("verdicts", ()):
            if verdict["choice"] is not None:
                by_order.setdefault(verdict["first"], []).append(verdict["choice"])
        changed = [before != after for said in by_order.values() for before, after in pairwise(said)]
        other += map(float, changed)
        clusters += [prompts[judgment.id]] * len(changed)
    if not other:
        return None
    rate = statistics.win_rate(other, clusters)
    return {"n": rate.n, "share": rate.win_rate, "interval": rate.interval}


def _pairs(voted: Sequence[RatedPair]) -> Pairs:
    """Return what people judged, each pair once; raise `DataError` for files without answers."""
    if names := next((pair for pair in voted if pair.question is None), None):
        raise DataError(
            f"{names.place}: the row holds no two answers that a judge could compare; judgments of "
            "`preferent label` or `compare`, preference rows and AlpacaEval's annotations hold them"
        )
    different = [pair for pair in voted if pair.side_a != pair.side_b]
    return {(pair.prompt, *sorted((pair.side_a, pair.side_b))): pair for pair in reversed(different)}


def _judged(pairs: Pairs, judges: Sequence[str], how: Mapping[str, Any], folder: Path) -> Path:
    """Have all pairs judged; return the folder of the comparison."""
    rows = [(str(number), pair) for number, pair in enumerate(pairs.values(), start=1)]
    with tempfile.TemporaryDirectory() as beside:
        prompts, *sides = (Path(beside) / f"{name}.jsonl" for name in ("prompts", "first", "second"))
        files.write_jsonl(prompts, [{"id": id, **(pair.question or {})} for id, pair in rows])
        for path, side in zip(sides, ("side_a", "side_b"), strict=True):
            files.write_jsonl(path, [{"id": id, "answer": getattr(pair, side)} for id, pair in rows])
        settings = [f"infer.max_prompts={len(pairs)}"]
        words = [str(path) for path in sides]
        compare_runs.compare(ComparisonRequest(words, (), prompts, judges, how, settings=settings, out=folder))
    return folder / "comparison"


def _as_rated(pairs: Sequence[RatedPair], said: Sequence[Judgment], judge: str) -> list[RatedPair]:
    """Return a judge's judgments as what it says of people's pairs, which keep their ids and the order of sides."""
    return [
        replace(pairs[int(judgment.id) - 1], rater=judge, choice=judgment.choice if parsed(judgment) else None)
        for judgment in said
    ]
