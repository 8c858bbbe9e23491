"""How far raters agree: per cent, Cohen's kappa and Krippendorff's alpha, and how judges do by people's verdicts."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from preferent.data.judgment_outcomes import OUTCOMES
from preferent.errors import UsageError
from preferent.evaluation import judgment_files
from preferent.evaluation.judgment_files import RatedPair
from preferent.evaluation.statistics import agreement

Said = Mapping[str, Mapping[str, str]]
"""By rater, by pair: "A", "B" or "tie"."""
PEOPLE = "people"
Row = dict[str, Any]


def pairwise(said: Said, prompts: Mapping[str, str]) -> list[Row]:
    """Of every two raters who saw a pair in common, how far they agree."""
    found = []
    for x, y in combinations(said, 2):
        ids = [id for id in said[x] if id in said[y]]
        if ids:
            one, other = ([said[name][id] for id in ids] for name in (x, y))
            between = agreement.between(one, other, [prompts[id] for id in ids])
            found.append({"judges": [x, y]} | asdict(between))
    return found


def by_people(said: Said, people: Mapping[str, str], prompts: Mapping[str, str]) -> dict[str, Row]:
    """Of every judge, in AutoSxS's names, how often its verdicts are those of people."""
    found = {}
    for name, choices in said.items():
        ids = [id for id in choices if id in people]
        if ids:
            one, other = [choices[id] for id in ids], [people[id] for id in ids]
            figures = agreement.against_people(one, other, [prompts[id] for id in ids])
            found[name] = {"n": len(ids)} | asdict(figures)
    return found


def between_files(files: Sequence[Path], people: Path | None = None, columns: Sequence[str] | None = None) -> Row:
    """The figures of `preferent agree`: among all raters in the files, and against those in the file of `people`."""
    given = [*files, *([people] if people is not None and people not in files else [])]
    read = {path: judgment_files.read(path, columns) for path in given}
    raters = _raters(read)
    every = [one for opinions in raters.values() for one, _ in opinions]
    told = all(one.one or one.other for one in every)
    key = _key(every) if told else _unit
    prompts = {key(one): one.prompt for one in reversed(every)}
    first = {key(one): one.one for one in reversed(every)} if told else {}
    said = {name: _choices([one for one, _ in opinions], key, first) for name, opinions in raters.items()}
    units = Counter(unit for choices in said.values() for unit in choices)
    paired = [unit for unit, count in units.items() if count > 1]
    if not paired and len(given) > 1:
        raise UsageError(
            f"{', '.join(map(str, given))}: no pair is in two of them: ids, prompts and answers all differ"
        )
    found: Row = {
        "raters": {
            name: {"n": len(said[name]), "unknown": sum(one.choice is None for one, _ in opinions)}
            for name, opinions in raters.items()
        },
        "units": len(units),
        "shared": len(paired),
        "pairs": pairwise(said, prompts),
    }
    if len(said) > 1:
        ratings = [[_number(choices.get(unit)) for unit in paired] for choices in said.values()]
        found["krippendorff"] = asdict(agreement.alpha(ratings, [prompts[unit] for unit in paired]))
    if people is not None:
        theirs = {name for name, opinions in raters.items() if any(path == people for _, path in opinions)}
        truth = _choices([one for name in theirs for one, _ in raters[name]], key, first)
        found["against_people"] = by_people({name: said[name] for name in said if name not in theirs}, truth, prompts)
    return found


def _number(choice: str | None) -> float | None:
    return None if choice is None else OUTCOMES[choice]


def _raters(read: Mapping[Path, Sequence[RatedPair]]) -> dict[str, list[tuple[RatedPair, Path]]]:
    """The opinions of each rater; a name that two files use is told apart by the file's."""
    where: dict[str, set[Path]] = {}
    for path, opinions in read.items():
        for one in opinions:
            where.setdefault(one.rater, set()).add(path)
    found: dict[str, list[tuple[RatedPair, Path]]] = {}
    for path, opinions in read.items():
        for one in opinions:
            name = one.rater if len(where[one.rater]) == 1 else f"{path}: {one.rater}"
            found.setdefault(name, []).append((one, path))
    return found


Key = Callable[[RatedPair], str]


def _unit(one: RatedPair) -> str:
    """What a pair is known by where some file does not say what was compared: its id, and A is A in all files."""
    return one.unit


def _key(opinions: Sequence[RatedPair]) -> Key:
    """What a pair is known by: what was compared with its id, or with its prompt, whichever more raters share."""

    def by_id(one: RatedPair) -> str:
        return repr((one.unit, *sorted((one.one, one.other))))

    def by_prompt(one: RatedPair) -> str:
        return repr((one.prompt, *sorted((one.one, one.other))))

    return max((by_id, by_prompt), key=lambda key: _shared(opinions, key))


def _shared(opinions: Sequence[RatedPair], key: Key) -> int:
    """How many pairs every two raters have in common, all told."""
    raters: dict[str, set[tuple[str, str]]] = {}
    for one in opinions:
        raters.setdefault(key(one), set()).add((one.rater, one.place.rpartition(":")[0]))
    return sum(math.comb(len(names), 2) for names in raters.values())


def _choices(opinions: Sequence[RatedPair], key: Key, first: Mapping[str, str]) -> dict[str, str]:
    """One choice for each pair, that of the majority where there are several, with A as the first who saw it had it;
    unknown ones and pairs of equal answers are left out."""
    totals: dict[str, float] = {}
    for one in opinions:
        unit = key(one)
        choice = one.of(first.get(unit, one.one))
        if choice is not None and (one.one != one.other or not one.one):
            totals[unit] = totals.get(unit, 0.0) + OUTCOMES[choice] - 0.5
    return {unit: "A" if total > 0 else "B" if total < 0 else "tie" for unit, total in totals.items()}


def render(found: Row) -> str:
    """The figures as text."""
    lines = [f"{name}: {one['n']} pairs{_unknown(one['unknown'])}" for name, one in found["raters"].items()]
    lines.append(f"{found['shared']} of {found['units']} pairs were seen by two or more")
    for one in found["pairs"]:
        x, y = one["judges"]
        kappa = _figure(one["kappa"], one["kappa_interval"])
        lines.append(
            f"{x} and {y}: {_share(one['percent'], one['percent_interval'])} of {one['n']} pairs, kappa {kappa}"
        )
    if "krippendorff" in found:
        alpha = found["krippendorff"]
        lines.append(f"Krippendorff's alpha: {_figure(alpha['alpha'], alpha['interval'])} on {alpha['units']} pairs")
    for name, one in found.get("against_people", {}).items():
        told = [f"{key} {_figure(one[key], one['intervals'].get(key))}" for key in ("accuracy", "precision", "recall")]
        told += [f"{key} {_figure(one[key], one['intervals'].get(key))}" for key in ("f1_score", "cohens_kappa")]
        lines.append(f"{name} by people's verdicts, {one['n']} pairs: {', '.join(told)}")
    return "\n".join(lines)


def _unknown(count: int) -> str:
    return f", and {count} verdicts that could not be told" if count else ""


def _share(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.1%}" + ("" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%})")


def _figure(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")
