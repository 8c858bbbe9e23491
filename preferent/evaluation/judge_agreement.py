"""Agreement of raters (per cent, Cohen's kappa, Krippendorff's alpha), and of judges with people's verdicts."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict
from itertools import combinations
from itertools import pairwise as in_turn
from pathlib import Path
from typing import Any

from preferent.data.formats import row_sources
from preferent.data.judgment_outcomes import OUTCOMES
from preferent.data.types import Judgment
from preferent.errors import UsageError
from preferent.evaluation import judgment_files, statistics
from preferent.evaluation.judgment_files import RatedPair
from preferent.evaluation.statistics import agreement, rating

Choices = Mapping[str, Mapping[str, str]]
"""By rater, by pair: "A", "B" or "tie"."""
PEOPLE = "people"
Row = dict[str, Any]


def pairwise(choices: Choices, prompts: Mapping[str, str]) -> list[Row]:
    """Return the agreement of every two raters who saw a pair in common."""
    rows = []
    for x, y in combinations(choices, 2):
        ids = [id for id in choices[x] if id in choices[y]]
        if ids:
            of_x, of_y = ([choices[name][id] for id in ids] for name in (x, y))
            between = agreement.between(of_x, of_y, [prompts[id] for id in ids])
            rows.append({"judges": [x, y]} | asdict(between))
    return rows


def by_people(choices: Choices, people: Mapping[str, str], prompts: Mapping[str, str]) -> dict[str, Row]:
    """Return how often each judge's verdicts match those of people, under AutoSxS's names of the figures."""
    figures = {}
    for name, verdicts in choices.items():
        ids = [id for id in verdicts if id in people]
        if ids:
            of_judge, of_people = [verdicts[id] for id in ids], [people[id] for id in ids]
            matches = agreement.against_people(of_judge, of_people, [prompts[id] for id in ids])
            figures[name] = {"n": len(ids)} | asdict(matches)
    return figures


def between_files(files: Sequence[Path], people: Path | None = None, columns: Sequence[str] | None = None) -> Row:
    """Return the figures of `preferent agree`: among all raters in the files, and against the file of `people`."""
    rated, truth = read_files(files, people, columns)
    return between(rated, truth)


Rated = Mapping[Path, Sequence[RatedPair]]
"""What the raters in each file said."""


def read_files(
    files: Sequence[Path], people: Path | None = None, columns: Sequence[str] | None = None
) -> tuple[Rated, set[Path]]:
    """Return what the raters in each file said, and the file of `people`, if there is one."""
    truth = {Path(path) for path in row_sources.expand([str(people)])[:1]} if people else set()
    paths = [*map(Path, row_sources.expand([str(file) for file in files])), *truth]
    return {path: judgment_files.read(path, columns) for path in paths}, truth


def between(by_file: Rated, people: Set[Path]) -> Row:
    """Return the figures among all raters, and of the others against those in the files of `people`."""
    raters = _raters(by_file)
    pairs = [pair for rated in raters.values() for pair, _ in rated]
    with_sides = all(pair.side_a or pair.side_b for pair in pairs)
    key = _key(pairs) if with_sides else _unit
    prompts = {key(pair): pair.prompt for pair in reversed(pairs)}
    first = {key(pair): pair.side_a for pair in reversed(pairs)} if with_sides else {}
    choices = {name: _choices([pair for pair, _ in rated], key, first) for name, rated in raters.items()}
    units = Counter(unit for verdicts in choices.values() for unit in verdicts)
    shared = [unit for unit, count in units.items() if count > 1]
    if not shared and len(by_file) > 1:
        raise UsageError(
            f"{', '.join(map(str, by_file))}: no pair is in two of them: ids, prompts and answers all differ"
        )
    figures: Row = {
        "raters": {
            name: {"n": len(choices[name]), "unknown": sum(pair.choice is None for pair, _ in rated)}
            for name, rated in raters.items()
        },
        "units": len(units),
        "shared": len(shared),
        "pairs": pairwise(choices, prompts),
    }
    if len(choices) > 1:
        ratings = [[_number(verdicts.get(unit)) for unit in shared] for verdicts in choices.values()]
        figures["krippendorff"] = asdict(agreement.alpha(ratings, [prompts[unit] for unit in shared]))
    if people:
        persons = {name for name, rated in raters.items() if any(path in people for _, path in rated)}
        truth = _choices([pair for name in persons for pair, _ in raters[name]], key, first)
        judges = {name: verdicts for name, verdicts in choices.items() if name not in persons}
        figures["against_people"] = by_people(judges, truth, prompts)
    return figures


def of_judge(pairs: Sequence[RatedPair], people: Sequence[RatedPair], judgments: Sequence[Judgment]) -> Row:
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
        changed = [before != after for said in by_order.values() for before, after in in_turn(said)]
        other += map(float, changed)
        clusters += [prompts[judgment.id]] * len(changed)
    if not other:
        return None
    rate = statistics.win_rate(other, clusters)
    return {"n": rate.n, "share": rate.win_rate, "interval": rate.interval}


def _number(choice: str | None) -> float | None:
    return None if choice is None else OUTCOMES[choice]


def _raters(by_file: Mapping[Path, Sequence[RatedPair]]) -> dict[str, list[tuple[RatedPair, Path]]]:
    """Return each rater's pairs with their files; a name that occurs in two files is prefixed with the file's path."""
    files: dict[str, set[Path]] = {}
    for path, pairs in by_file.items():
        for pair in pairs:
            files.setdefault(pair.rater, set()).add(path)
    raters: dict[str, list[tuple[RatedPair, Path]]] = {}
    for path, pairs in by_file.items():
        for pair in pairs:
            name = pair.rater if len(files[pair.rater]) == 1 else f"{path}: {pair.rater}"
            raters.setdefault(name, []).append((pair, path))
    return raters


Key = Callable[[RatedPair], str]


def _unit(pair: RatedPair) -> str:
    """Return the id as the key of a pair, for files that do not say what was compared; A is then A in all files."""
    return pair.unit


def _key(pairs: Sequence[RatedPair]) -> Key:
    """Return the key that more raters share: what was compared with the pair's id, or with its prompt."""

    def by_id(pair: RatedPair) -> str:
        return repr((pair.unit, *sorted((pair.side_a, pair.side_b))))

    def by_prompt(pair: RatedPair) -> str:
        return repr((pair.prompt, *sorted((pair.side_a, pair.side_b))))

    return max((by_id, by_prompt), key=lambda key: _shared(pairs, key))


def _shared(pairs: Sequence[RatedPair], key: Key) -> int:
    """Return how many pairs every two raters have in common, summed over the raters."""
    raters: dict[str, set[tuple[str, str]]] = {}
    for pair in pairs:
        raters.setdefault(key(pair), set()).add((pair.rater, pair.place.rpartition(":")[0]))
    return sum(math.comb(len(names), 2) for names in raters.values())


def _choices(pairs: Sequence[RatedPair], key: Key, first: Mapping[str, str]) -> dict[str, str]:
    """Return one choice per pair, that of the majority where there are several.

    A is the side that stands in `first`. Unknown choices and pairs of equal answers are left out.
    """
    totals: dict[str, float] = {}
    for pair in pairs:
        unit = key(pair)
        choice = pair.choice_with_a(first.get(unit, pair.side_a))
        if choice is not None and (pair.side_a != pair.side_b or not pair.side_a):
            totals[unit] = totals.get(unit, 0.0) + OUTCOMES[choice] - 0.5
    return {unit: "A" if total > 0 else "B" if total < 0 else "tie" for unit, total in totals.items()}


def render(figures: Row) -> str:
    """Return the figures as text."""
    lines = [f"{name}: {rater['n']} pairs{_unknown(rater['unknown'])}" for name, rater in figures["raters"].items()]
    lines.append(f"{figures['shared']} of {figures['units']} pairs were seen by two or more")
    for pair in figures["pairs"]:
        x, y = pair["judges"]
        kappa = _figure(pair["kappa"], pair["kappa_interval"])
        lines.append(
            f"{x} and {y}: {_share(pair['percent'], pair['percent_interval'])} of {pair['n']} pairs, kappa {kappa}"
        )
    if "krippendorff" in figures:
        alpha = figures["krippendorff"]
        lines.append(f"Krippendorff's alpha: {_figure(alpha['alpha'], alpha['interval'])} on {alpha['units']} pairs")
    shown = ("accuracy", "precision", "recall", "f1_score", "cohens_kappa")
    for name, judge in figures.get("against_people", {}).items():
        texts = [f"{key} {_figure(judge[key], judge['intervals'].get(key))}" for key in shown]
        lines.append(f"{name} against people's verdicts, {judge['n']} pairs: {', '.join(texts)}")
    for name, judge in figures.get("judges", {}).items():
        lines += [f"{name}: {text}" for text in _own(judge)]
    return "\n".join(lines)


def _own(judge: Row) -> list[str]:
    """Return a judge's ratings, order effect and repeats in words."""
    ratings, order, flips = judge["ratings"], judge.get("order"), judge["flips"]
    unknown = "unknown: fewer than three models are named that met each other"
    rank = f"Spearman {ratings['spearman']:.3f} of {ratings['models']} models" if ratings else unknown
    lines = [f"order of the models by Bradley-Terry ratings, its own and people's: {rank}"]
    if order is None:
        return [*lines, "scores each answer alone: neither the order nor a repetition changes a verdict"]
    if order["first_slot"] is not None:
        lines.append(f"prefers the answer shown first in {_share(order['first_slot'], order['first_slot_interval'])}")
    if order["consistent"] is not None:
        lines.append(f"says the same in both orders in {order['consistent']:.1%} of {order['both_orders']}")
    again = "not measured: --votes 2 asks everything twice"
    told = f"{_share(flips['share'], flips['interval'])} of {flips['n']} repetitions" if flips else again
    return [*lines, f"says something else when asked again: {told}"]


def _unknown(count: int) -> str:
    return f", and {count} verdicts that could not be read" if count else ""


def _share(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.1%}" + ("" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%})")


def _figure(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")
