"""A judge measured against people's votes: it judges the pairs in their files, by the stage that compares."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preferent import files
from preferent.commands import compare_runs
from preferent.commands.compare_runs import ComparisonRequest
from preferent.data import judgments
from preferent.data.judgment_outcomes import parsed
from preferent.data.types import Judgment
from preferent.errors import DataError, UsageError
from preferent.evaluation import judge_agreement
from preferent.evaluation.judge_agreement import Rated
from preferent.evaluation.judgment_files import RatedPair
from preferent.runs.directory import ComparisonDirectory

Pairs = Mapping[tuple[str, ...], RatedPair]
"""What is judged: every two answers to a prompt once."""


def agree(
    paths: Sequence[Path], people: Path | None, judges: Sequence[str], how: Mapping[str, Any], out: Path | None = None
) -> dict[str, Any]:
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
        name: judge_agreement.of_judge(rows, voted, by_judge[name]) | {"order": orders[name].get("order")}
        for name, rows in own.items()
    }
    return figures


def _pairs(voted: Sequence[RatedPair]) -> Pairs:
    """Return what people judged, each pair once; raise `DataError` for files without answers."""
    if names := next((pair for pair in voted if pair.question is None), None):
        raise DataError(
            f"{names.place}: the row names models but holds no answers that a judge could read; judgments of "
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
