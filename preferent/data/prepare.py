"""`data prepare`: from the recipe's files to train, validation and test, disjoint by group."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar, cast

from preferent import files
from preferent.config import stage_graph
from preferent.config.recipe import Recipe, pick
from preferent.config.sections import paths
from preferent.data import datasets, splits
from preferent.data.counts import count_preferences
from preferent.data.formats import row_reader, row_sources, row_writer
from preferent.data.formats.row_reader import Dropped, RecordsRead
from preferent.data.types import Preference, Prompt, digest
from preferent.errors import DataError, UsageError
from preferent.runs import stages

PARTS = ("validation", "test", "train")
FEW = 10
SOURCES = ("preference_dataset", "prompt_dataset", "eval_dataset")
T = TypeVar("T", Preference, Prompt)


@dataclass
class DataSources:
    """The rows of a recipe's files; `eval_pairs` is None where the eval rows are prompts, or there are none."""

    pairs: list[Preference]
    prompts: list[Prompt]
    eval_pairs: list[Preference] | None
    eval_prompts: list[Prompt] | None
    counts: dict[str, Any] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class DataParts:
    """Rows by part: `validation`, `test`, `train`, and for preferences `judge`; `taken_out` counts rows in none."""

    pairs: dict[str, list[Preference]]
    prompts: dict[str, list[Prompt]]
    taken_out: dict[str, int]
    groups: dict[str, int]


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Write `preference/*.jsonl`, `prompt/*.jsonl`, `dropped.jsonl` and `counts.json` to `out`.

    The files are the recipe's. Raises `DataError` where more rows than `data.max_dropped` allows cannot be used, or
    where nothing is left to train on.
    """
    with stages.locked(out):
        files = inputs | _files(recipe)
        stage = stages.open_stage("data", out, pick(recipe, *stage_graph.FIELDS["data"]), files)
        if stage.done:
            return
        sources = _read(recipe)
        parts = _divide(recipe, sources)
        _check(recipe, parts)
        stage.finish(_write(recipe, sources, parts, out))


def _files(recipe: Recipe) -> dict[str, Path]:
    """The files that the data come from, by field and number; a hub data set is named by its field alone."""
    named = {source: paths(getattr(recipe, source)) for source in SOURCES}
    if not named["preference_dataset"] and not named["prompt_dataset"]:
        raise UsageError("recipe: preference_dataset is missing: name the files of preferences, or prompts to tune on")
    if not named["preference_dataset"] and stage_graph.trains(recipe):
        raise UsageError("recipe: preference_dataset is missing: name the files of preferences, or give reward.sources")
    if stage_graph.judged(recipe) and recipe.compare.judge_share == 0:
        raise UsageError("recipe: compare.judge_share: 0 leaves an independent judge nothing; give it a share above 0")
    named["continues"] = stage_graph.dealt(recipe)
    found = {
        source: [name for name in row_sources.expand(given) if "://" not in name] for source, given in named.items()
    }
    return {f"{source}.{i}": Path(name) for source, names in found.items() for i, name in enumerate(names)}


def _usable(
    recipe: Recipe, name: str, reading: RecordsRead[T], sources: DataSources, given: str | list[str] | None
) -> list[T]:
    """The records of a reading, counted; a warning for what is dropped, an error where it is too much."""
    records = row_reader.kept(reading, recipe.data.max_dropped)
    if reading.dropped:
        print(f"{len(reading.dropped)} of {reading.read} rows dropped, see dropped.jsonl:", file=sys.stderr)
        print("\n".join(f"  {row}" for row in reading.dropped[:5]), file=sys.stderr)
    sources.dropped += [_dropped_row(name, row) for row in reading.dropped]
    counts = {"files": paths(given), "format": reading.format, "read": reading.read, "kept": len(records)}
    pairs = cast(list[Preference], [record for record in records if isinstance(record, Preference)])
    sources.counts[name] = counts | {"dropped": reading.reasons} | (asdict(count_preferences(pairs)) if pairs else {})
    return records


def _dropped_row(name: str, row: Dropped) -> dict[str, Any]:
    return {"dataset": name, "file": row.file, "line": row.line, "reason": row.reason}


def _read(recipe: Recipe) -> DataSources:
    sources = DataSources([], [], None, None)
    format = recipe.data.format
    if recipe.preference_dataset is not None:
        reading = datasets.read(paths(recipe.preference_dataset), "preference", format)
        sources.pairs = _usable(recipe, "preference", reading, sources, recipe.preference_dataset)
    if recipe.prompt_dataset is None:
        sources.prompts = asked(sources.pairs)
        empty = sum(pair.prompt.is_empty for pair in sources.pairs)
        sources.counts["prompt"] = {"from": "preference", "kept": len(sources.prompts), "without_prompt": empty}
    else:
        sources.prompts = _read_prompts(recipe, "prompt", recipe.prompt_dataset, sources)[1]
    if recipe.eval_dataset is not None:
        sources.eval_pairs, sources.eval_prompts = _read_prompts(recipe, "eval", recipe.eval_dataset, sources)
        sources.eval_prompts = identified(sources.eval_prompts)
        sources.eval_pairs = None if sources.eval_pairs is None else identified(sources.eval_pairs)
    sources.pairs, sources.prompts = identified(sources.pairs), identified(sources.prompts)
    return sources


def _read_prompts(
    recipe: Recipe, name: str, given: str | list[str], sources: DataSources
) -> tuple[list[Preference] | None, list[Prompt]]:
    """The prompts in files, and the preferences where the rows are such."""
    if row_reader.detect(paths(given))[0] != "preference":
        return None, _usable(recipe, name, datasets.read(paths(given), "prompt"), sources, given)
    reading = datasets.read(paths(given), "preference", "auto")
    pairs = _usable(recipe, name, reading, sources, given)
    return pairs, asked(pairs)


def asked(pairs: Sequence[Preference]) -> list[Prompt]:
    """The distinct prompts of preferences, without those that are empty."""
    distinct = {pair.prompt.key: pair.prompt for pair in reversed(pairs) if not pair.prompt.is_empty}
    return list(reversed(distinct.values()))


def identified(records: Sequence[T]) -> list[T]:
    """The same records, each with an id of its own: the row's, else a digest of the row; a second use gets `-2`."""
    taken: set[str] = set()
    uses: Counter[str] = Counter()
    result = []
    for record in records:
        id = name = record.id or _content(record)
        while name in taken:
            uses[id] += 1
            name = f"{id}-{uses[id] + 1}"
        taken.add(name)
        result.append(replace(record, id=name))
    return result


def _content(record: Preference | Prompt) -> str:
    if isinstance(record, Prompt):
        return record.key
    return digest(record.prompt.key, record.candidate_0, record.candidate_1)


def _divide(recipe: Recipe, sources: DataSources) -> DataParts:
    """Every row to its part, with its group; rows that share a group with held-out rows are taken out of training.

    Eval rows that an earlier round has learnt from judge nothing: they are taken out.
    """
    eval_pairs, eval_prompts = sources.eval_pairs or [], sources.eval_prompts or []
    before, was_in = _earlier(recipe)
    kinds: list[Sequence[Preference | Prompt]] = [sources.pairs, sources.prompts, eval_pairs, eval_prompts, before]
    names = iter(splits.components([splits.labels(row) for rows in kinds for row in rows]))
    of_pairs, of_prompts, of_eval_pairs, of_eval_prompts, of_before = ([next(names) for _ in rows] for rows in kinds)
    known = _known(of_before, was_in)
    part = _part_of(recipe, sources, of_pairs, of_prompts, [*of_eval_pairs, *of_eval_prompts], known)

    held = {of for of in (*of_eval_pairs, *of_eval_prompts) if part[of] != "train"}
    pairs, pairs_out = _deal_out(sources.pairs, of_pairs, part, held, sources.eval_pairs is not None)
    prompts, prompts_out = _deal_out(sources.prompts, of_prompts, part, held, sources.eval_prompts is not None)
    for name in ("validation", "test"):
        pairs[name] += [row for row, of in zip(eval_pairs, of_eval_pairs, strict=True) if part[of] == name]
        prompts[name] += [row for row, of in zip(eval_prompts, of_eval_prompts, strict=True) if part[of] == name]
    pairs_out += sum(part[of] == "train" for of in of_eval_pairs)
    prompts_out += sum(part[of] == "train" for of in of_eval_prompts)
    if stage_graph.judged(recipe):
        training = [of for of in of_pairs if part[of] == "train"]
        learnt = [isinstance(row, Preference) for row in before]
        known = _known(list(compress(of_before, learnt)), list(compress(was_in, learnt)))
        fresh = [of for of in training if of not in known]
        judged = {of: int(part != "judge") for of, part in known.items()}
        judged |= splits.deal(recipe.seed, "judge", fresh, [recipe.compare.judge_share])
        rows = list(zip(pairs["train"], training, strict=True))
        pairs["judge"] = [row for row, of in rows if judged[of] == 0]
        pairs["train"] = [row for row, of in rows if judged[of] != 0]
    shared = {*of_pairs, *of_eval_pairs} & {*of_prompts, *of_eval_prompts}
    groups = {"all": len(part), "shared": len(shared), **Counter(part.values())}
    return DataParts(pairs, prompts, {"preference": pairs_out, "prompt": prompts_out}, groups)


def _earlier(recipe: Recipe) -> tuple[list[Preference | Prompt], list[str]]:
    """The rows of the rounds that this run continues, and the part that each was in."""
    rows: list[Preference | Prompt] = []
    parts: list[str] = []
    for file in map(Path, row_sources.expand(stage_graph.dealt(recipe))):
        rows += datasets.load_preferences(file) if file.parent.name == "preference" else datasets.load_prompts(file)
        parts += [file.stem] * (len(rows) - len(parts))
    return rows, parts


def _known(groups: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
    """The part that a group was in before; where new rows join groups of several parts, the one that is held out."""
    order = ("train", "judge", "validation", "test")
    ranked = sorted(zip(groups, parts, strict=True), key=lambda row: order.index(row[1]))
    return dict(ranked)


def _part_of(
    recipe: Recipe,
    sources: DataSources,
    of_pairs: Sequence[str],
    of_prompts: Sequence[str],
    of_eval: Sequence[str],
    known: dict[str, str],
) -> dict[str, str]:
    """The part of every group: as in an earlier round; else eval rows serve validation and test half each; without
    them shares are split off.

    Groups with preferences are dealt first and those with prompts alone after them, so that each kind gets its share.
    """
    shares, none = [recipe.data.validation_share, recipe.data.test_share], [0.0, 0.0]
    part = {of: PARTS.index("train" if name == "judge" else name) for of, name in known.items()}
    part |= splits.deal(recipe.seed, "eval", [of for of in of_eval if of not in part], [0.5])
    for of_rows, replaced in ((of_pairs, sources.eval_pairs), (of_prompts, sources.eval_prompts)):
        free = [of for of in of_rows if of not in part]
        part |= splits.deal(recipe.seed, "split", free, shares if replaced is None else none)
    return {of: PARTS[index] for of, index in part.items()}


def _deal_out(
    rows: Sequence[T], of_rows: Sequence[str], part: dict[str, str], held: set[str], replaced: bool
) -> tuple[dict[str, list[T]], int]:
    """Rows by part and how many are in none: of a group in `held`, or held out although eval rows replace them."""
    parts: dict[str, list[T]] = {name: [] for name in PARTS}
    for row, of in zip(rows, of_rows, strict=True):
        if of not in held and not (replaced and part[of] != "train"):
            parts[part[of]].append(row)
    return parts, len(rows) - sum(map(len, parts.values()))


def _check(recipe: Recipe, parts: DataParts) -> None:
    """Nothing to train on is an error; few rows to measure by are a warning."""
    if not parts.prompts["train"]:
        raise DataError(
            "no prompt is left to train on: the preferences have none (input_text is empty), or all were held out; "
            "name a prompt_dataset, or lower data.validation_share and data.test_share"
        )
    if recipe.preference_dataset is None:
        return
    for name in ("train", "judge") if stage_graph.judged(recipe) else ("train",):
        if not any(pair.choice != "tie" for pair in parts.pairs[name]):
            raise DataError(
                f"no preference is left for the part {name!r}: too few prompts, or only ties; give more preferences, "
                "or set compare.judge: reward to do without an independent judge"
            )


def _warn(recipe: Recipe, parts: DataParts) -> None:
    counted = {f"prompt/{name}": len(parts.prompts[name]) for name in PARTS}
    if recipe.preference_dataset is not None:
        counted |= {f"preference/{name}": len(parts.pairs[name]) for name in PARTS}
    few = {name: count for name, count in counted.items() if count < FEW and not name.endswith("train")}
    for name, count in few.items():
        print(f"{name}.jsonl holds only {count} rows; what is measured on it says little", file=sys.stderr)
    if few:
        print("raise data.validation_share and data.test_share, or name an eval_dataset", file=sys.stderr)


def _write(recipe: Recipe, sources: DataSources, parts: DataParts, out: Path) -> list[str]:
    """Write the parts and the counts; returns the names of the files."""
    _warn(recipe, parts)
    kinds: dict[str, dict[str, Any]] = {"prompt": parts.prompts}
    if recipe.preference_dataset is not None or sources.eval_pairs is not None:
        kinds["preference"] = parts.pairs
    names = []
    for kind, by_part in kinds.items():
        for name, rows in by_part.items():
            row_writer.write(rows, out / kind / f"{name}.jsonl")
            names.append(f"{kind}/{name}.jsonl")
    files.write_jsonl(out / "dropped.jsonl", sources.dropped)
    rows_of = {kind: {name: len(rows) for name, rows in by_part.items()} for kind, by_part in kinds.items()}
    counts = sources.counts | {"parts": rows_of, "groups": parts.groups, "taken_out": parts.taken_out}
    files.write_json(out / "counts.json", counts)
    return [*names, "dropped.jsonl", "counts.json"]
