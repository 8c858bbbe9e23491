"""`data prepare`: from the recipe's files to train, validation and test parts, disjoint by group."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar, cast

from preferent import files
from preferent.config import stage_graph
from preferent.config.defaults import reward_reference
from preferent.config.recipe import Recipe, pick
from preferent.config.sections import paths
from preferent.data import chat_refusals, datasets, requirements, splits
from preferent.data.counts import count_preferences
from preferent.data.formats import row_reader, row_sources, row_writer
from preferent.data.formats.feedback import feedback_reader
from preferent.data.formats.row_reader import Dropped, RecordsRead
from preferent.data.tokenizer import OWN, Tokenizer
from preferent.data.tokenizer.chat_templates import ChatOptions
from preferent.data.types import Preference, Prompt, Thumb, digest
from preferent.errors import UsageError
from preferent.runs import remote_files, stages
from preferent.runs.directory import DataDirectory, StageDirectory

PARTS = ("validation", "test", "train")
FEW = 10
SOURCES = ("preference_dataset", "prompt_dataset", "eval_dataset")
Feedback = Preference | Thumb
T = TypeVar("T", Preference, Prompt, Feedback)


@dataclass
class DataSources:
    """The rows of a recipe's files; `eval_pairs` is None if the eval rows are prompts or there are none.

    `pairs` are preferences, and thumbs where there are any.

    `tokenizers` loads the tokenizers of the models that will read the rows.
    """

    pairs: list[Feedback]
    prompts: list[Prompt]
    eval_pairs: list[Preference] | None
    eval_prompts: list[Prompt] | None
    tokenizers: Callable[[], Sequence[Tokenizer]]
    counts: dict[str, Any] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class DataParts:
    """Rows by part: `validation`, `test`, `train`, and for preferences `judge`; `taken_out` counts the others.

    `repeated` counts the test prompts that repeat another one; each different prompt is tested once.
    """

    pairs: dict[str, list[Feedback]]
    prompts: dict[str, list[Prompt]]
    taken_out: dict[str, int]
    groups: dict[str, int]
    repeated: int


def main(recipe: Recipe, inputs: dict[str, Path], out: Path, offline: bool = False) -> None:
    """Read the recipe's files and write the parts, the dropped rows and the counts to `out`.

    Raise `DataError` if more rows than `data.max_dropped` allows cannot be used, or if a later stage cannot use the
    parts. If there are conversations, the tokenizers of models on the hub are downloaded unless `offline` is set.
    Remote files are copied to `out` first; a stage that was interrupted reads the copies that it has.
    """
    with stages.locked(out):
        files = inputs | _files(recipe)
        folder, fields = DataDirectory(out), pick(recipe, *stage_graph.FIELDS["data"])
        stage = stages.open_stage("data", out, fields, files, rerun=not StageDirectory(out).done.exists())
        if stage.done:
            return
        with remote_files.copied(_named(recipe), folder) as copies:
            sources = _read(recipe, offline)
        sources.counts |= {"remote": copies} if copies else {}
        parts = _divide(recipe, sources)
        requirements.require(recipe, parts.pairs, parts.prompts, sources.tokenizers)
        stage.finish(_write(recipe, sources, parts, out))


def _named(recipe: Recipe) -> list[str]:
    """Return the names of the files that the data come from."""
    return [name for source in SOURCES for name in paths(getattr(recipe, source))]


def _files(recipe: Recipe) -> dict[str, Path]:
    """Return the files that the data come from, by field and number; hub data sets and remote files are none."""
    named = {source: paths(getattr(recipe, source)) for source in SOURCES}
    if not named["preference_dataset"] and not named["prompt_dataset"]:
        raise UsageError("recipe: preference_dataset is missing: name the files of preferences, or prompts to tune on")
    if not named["preference_dataset"] and stage_graph.trains(recipe):
        raise UsageError("recipe: preference_dataset is missing: name the files of preferences, or give reward.sources")
    if stage_graph.judged(recipe) and recipe.compare.judge_share == 0:
        raise UsageError("recipe: compare.judge_share: 0 leaves an independent judge no preferences; raise it")
    named["continues"] = stage_graph.dealt(recipe)
    files = {source: row_sources.local_files(patterns) for source, patterns in named.items()}
    return {f"{source}.{i}": Path(name) for source, names in files.items() for i, name in enumerate(names)}


def _usable(
    recipe: Recipe, name: str, reading: RecordsRead[T], sources: DataSources, files: str | list[str] | None
) -> list[T]:
    """Return the records and add their counts to `sources`; warn of dropped rows, or refuse if they are too many."""
    row_reader.kept(reading, recipe.data.max_dropped)  # before a tokenizer is downloaded
    reading = chat_refusals.without(reading, sources.tokenizers, recipe.instruction)
    records = row_reader.kept(reading, recipe.data.max_dropped)
    if reading.dropped:
        print(
            f"{len(reading.dropped)} of {reading.read} rows dropped, see {DataDirectory(Path()).dropped}:",
            file=sys.stderr,
        )
        print("\n".join(f"  {row}" for row in reading.dropped[:5]), file=sys.stderr)
    sources.dropped += [_dropped_row(name, row) for row in reading.dropped]
    counts = {"files": paths(files), "format": reading.format, "read": reading.read, "kept": len(records)}
    pairs = cast(list[Preference], [record for record in records if isinstance(record, Preference)])
    thumbs = sum(isinstance(record, Thumb) for record in records)
    counts |= {"thumbs": thumbs, "pairs": len(pairs)} if name == "feedback" else {}
    sources.counts[name] = counts | {"dropped": reading.reasons} | (asdict(count_preferences(pairs)) if pairs else {})
    return records


def _dropped_row(name: str, row: Dropped) -> dict[str, Any]:
    return {"dataset": name, "file": row.file, "line": row.line, "reason": row.reason}


def _read(recipe: Recipe, offline: bool) -> DataSources:
    """Read the rows of all files that the recipe names."""
    chat = ChatOptions.of(recipe)
    references = dict.fromkeys(stage_graph.foreign(recipe).values(), OWN) | {recipe.large_model_reference: chat}
    if stage_graph.rewards(recipe) or stage_graph.judged(recipe):
        references[reward_reference(recipe)] = chat
    sources = DataSources([], [], None, None, cache(partial(chat_refusals.tokenizers, references, offline)))
    columns = recipe.data.named_columns
    texts = [] if recipe.sft is None else paths(recipe.sft.dataset)
    row_reader.require_columns([*_named(recipe), *texts, *stage_graph.pretraining(recipe)], columns)
    if recipe.preference_dataset is not None:
        _read_preferences(recipe, sources)
    if recipe.prompt_dataset is None:
        sources.prompts = distinct_prompts(sources.pairs)
        empty = sum(pair.prompt.is_empty for pair in sources.pairs)
        sources.counts["prompt"] = {"from": "preference", "kept": len(sources.prompts), "without_prompt": empty}
    else:
        sources.prompts = _read_prompts(recipe, "prompt", recipe.prompt_dataset, sources)[1]
    if recipe.eval_dataset is not None:
        sources.eval_pairs, sources.eval_prompts = _read_prompts(recipe, "eval", recipe.eval_dataset, sources)
        sources.eval_prompts = with_unique_ids(sources.eval_prompts)
        sources.eval_pairs = None if sources.eval_pairs is None else with_unique_ids(sources.eval_pairs)
    sources.pairs, sources.prompts = with_unique_ids(sources.pairs), with_unique_ids(sources.prompts)
    return sources


def _read_preferences(recipe: Recipe, sources: DataSources) -> None:
    """Read the pairs in files of preferences, and the pairs and thumbs in exports of feedback."""
    named, columns = paths(recipe.preference_dataset), recipe.data.named_columns
    exports = feedback_reader.exports(named, columns) if recipe.data.format == "auto" else []
    if exports:
        reading = feedback_reader.read_feedback(exports, columns=columns).as_rows
        sources.pairs += _usable(recipe, "feedback", reading, sources, exports)
        named = [file for file in row_sources.expand(named) if file not in exports]
    if named:
        pairs = datasets.read(named, "preference", recipe.data.format, columns)
        usable = _usable(recipe, "preference", pairs, sources, named if exports else recipe.preference_dataset)
        sources.pairs += usable


def _read_prompts(
    recipe: Recipe, name: str, files: str | list[str], sources: DataSources
) -> tuple[list[Preference] | None, list[Prompt]]:
    """Read the preferences in files, if the rows are preferences, and the prompts."""
    columns = recipe.data.named_columns
    if row_reader.detect(paths(files), columns)[0] != "preference":
        return None, _usable(recipe, name, datasets.read(paths(files), "prompt", "auto", columns), sources, files)
    reading = datasets.read(paths(files), "preference", "auto", columns)
    pairs = _usable(recipe, name, reading, sources, files)
    return pairs, distinct_prompts(pairs)


def distinct_prompts(pairs: Sequence[Feedback]) -> list[Prompt]:
    """Return the distinct prompts of preferences and thumbs, without empty prompts."""
    distinct = {pair.prompt.key: pair.prompt for pair in reversed(pairs) if not pair.prompt.is_empty}
    return list(reversed(distinct.values()))


def with_unique_ids(records: Sequence[T]) -> list[T]:
    """Return the records with unique ids: the row's id or a digest of the row; a repeated id gets `-2` and so on."""
    taken: set[str] = set()
    uses: Counter[str] = Counter()
    named = []
    for record in records:
        id = name = record.id or _content(record)
        while name in taken:
            uses[id] += 1
            name = f"{id}-{uses[id] + 1}"
        taken.add(name)
        named.append(replace(record, id=name))
    return named


def _content(record: Feedback | Prompt) -> str:
    if isinstance(record, Prompt):
        return record.key
    if isinstance(record, Thumb):
        return digest(record.prompt.key, record.output_text)
    return digest(record.prompt.key, record.candidate_0, record.candidate_1)


def _divide(recipe: Recipe, sources: DataSources) -> DataParts:
    """Assign every row to a part, by its group.

    Rows that share a group with held-out eval rows are taken out of training. Eval rows on which an earlier round was
    trained are taken out too: they cannot measure anything.
    """
    eval_pairs, eval_prompts = sources.eval_pairs or [], sources.eval_prompts or []
    earlier, was_in = _earlier(recipe)
    kinds: list[Sequence[Feedback | Prompt]] = [sources.pairs, sources.prompts, eval_pairs, eval_prompts, earlier]
    names = iter(splits.components([splits.labels(row) for rows in kinds for row in rows]))
    pair_groups, prompt_groups, eval_pair_groups, eval_prompt_groups, earlier_groups = (
        [next(names) for _ in rows] for rows in kinds
    )
    eval_groups = [*eval_pair_groups, *eval_prompt_groups]
    part = _part_of(recipe, sources, pair_groups, prompt_groups, eval_groups, _known(earlier_groups, was_in))

    held = {group for group in eval_groups if part[group] != "train"}
    pairs, pairs_out = _deal_out(sources.pairs, pair_groups, part, held, sources.eval_pairs is not None)
    prompts, prompts_out = _deal_out(sources.prompts, prompt_groups, part, held, sources.eval_prompts is not None)
    for name in ("validation", "test"):
        pairs[name] += [row for row, group in zip(eval_pairs, eval_pair_groups, strict=True) if part[group] == name]
        prompts[name] += [
            row for row, group in zip(eval_prompts, eval_prompt_groups, strict=True) if part[group] == name
        ]
    pairs_out += sum(part[group] == "train" for group in eval_pair_groups)
    prompts_out += sum(part[group] == "train" for group in eval_prompt_groups)
    different = list({prompt.key: prompt for prompt in reversed(prompts["test"])}.values())[::-1]
    repeated, prompts["test"] = len(prompts["test"]) - len(different), different
    if stage_graph.judged(recipe):
        is_pair = [not isinstance(row, Prompt) for row in earlier]
        known = _known(list(compress(earlier_groups, is_pair)), list(compress(was_in, is_pair)))
        training = [group for group in pair_groups if part[group] == "train"]
        pairs["train"], pairs["judge"] = _judge_share(recipe, pairs["train"], training, known)
    shared = {*pair_groups, *eval_pair_groups} & {*prompt_groups, *eval_prompt_groups}
    groups = {"all": len(part), "shared": len(shared), **Counter(part.values())}
    return DataParts(pairs, prompts, {"preference": pairs_out, "prompt": prompts_out}, groups, repeated)


def _judge_share(
    recipe: Recipe, pairs: Sequence[Feedback], groups: Sequence[str], known: dict[str, str]
) -> tuple[list[Feedback], list[Feedback]]:
    """Split training pairs between the reward model and the judge; a group of an earlier round keeps its place."""
    fresh = [group for group in groups if group not in known]
    is_judge = {group: name == "judge" for group, name in known.items()}
    dealt = splits.deal(recipe.seed, "judge", fresh, [recipe.compare.judge_share])
    is_judge |= {group: index == 0 for group, index in dealt.items()}
    rows = list(zip(pairs, groups, strict=True))
    return [row for row, group in rows if not is_judge[group]], [row for row, group in rows if is_judge[group]]


def _earlier(recipe: Recipe) -> tuple[list[Feedback | Prompt], list[str]]:
    """Return the rows of the rounds that this run continues, and the part that each was in."""
    rows: list[Feedback | Prompt] = []
    parts: list[str] = []
    for file in map(Path, row_sources.expand(stage_graph.dealt(recipe))):
        is_feedback = file.parent.name == "preference"
        rows += datasets.load_feedback(file) if is_feedback else datasets.load_prompts(file)
        parts += [file.stem] * (len(rows) - len(parts))
    return rows, parts


def _known(groups: Sequence[str], parts: Sequence[str]) -> dict[str, str]:
    """Return the earlier part of each group; if new rows join groups of several parts, a held-out part wins."""
    order = ("train", "judge", "validation", "test")
    ranked = sorted(zip(groups, parts, strict=True), key=lambda row: order.index(row[1]))
    return dict(ranked)


def _part_of(
    recipe: Recipe,
    sources: DataSources,
    pair_groups: Sequence[str],
    prompt_groups: Sequence[str],
    eval_groups: Sequence[str],
    known: dict[str, str],
) -> dict[str, str]:
    """Return the part of every group.

    A group of an earlier round keeps its part. Other eval rows are split in halves for validation and test; without
    eval rows, shares are split off. Groups with preferences are dealt before groups with only prompts, so that each
    kind gets its share.
    """
    shares, none = [recipe.data.validation_share, recipe.data.test_share], [0.0, 0.0]
    part = {group: PARTS.index("train" if name == "judge" else name) for group, name in known.items()}
    part |= splits.deal(recipe.seed, "eval", [group for group in eval_groups if group not in part], [0.5])
    for groups, replaced in ((pair_groups, sources.eval_pairs), (prompt_groups, sources.eval_prompts)):
        free = [group for group in groups if group not in part]
        part |= splits.deal(recipe.seed, "split", free, shares if replaced is None else none)
    return {group: PARTS[index] for group, index in part.items()}


def _deal_out(
    rows: Sequence[T], groups: Sequence[str], part: dict[str, str], held: set[str], replaced: bool
) -> tuple[dict[str, list[T]], int]:
    """Return rows by part, and the number of rows in no part.

    A row is in no part if its group is in `held`, or if it is held out although eval rows replace the held-out parts.
    """
    parts: dict[str, list[T]] = {name: [] for name in PARTS}
    for row, group in zip(rows, groups, strict=True):
        if group not in held and not (replaced and part[group] != "train"):
            parts[part[group]].append(row)
    return parts, len(rows) - sum(map(len, parts.values()))


def _warn(recipe: Recipe, parts: DataParts) -> None:
    """Warn of held-out parts with few rows; say it if the data have few prompts, which no other share helps."""
    folder = DataDirectory(Path())
    counts = {folder.rows("prompt", part): len(parts.prompts[part]) for part in PARTS}
    if recipe.preference_dataset is not None:
        counts |= {folder.rows("preference", part): len(parts.pairs[part]) for part in PARTS}
    few = {file: count for file, count in counts.items() if count < FEW and file.stem != "train"}
    for file, count in few.items():
        print(f"{file} holds only {count} rows: too few for reliable measurements", file=sys.stderr)
    different = {prompt.key for rows in parts.prompts.values() for prompt in rows}
    different |= {pair.prompt.key for rows in parts.pairs.values() for pair in rows}
    if few and len(different) < 2 * FEW / max(recipe.data.test_share, 0.05):
        print(
            f"the data have only {len(different)} different prompts, and no prompt is in two parts: give more prompts",
            file=sys.stderr,
        )
    if few:
        print("raise data.validation_share and data.test_share, or name an eval_dataset", file=sys.stderr)


def _write(recipe: Recipe, sources: DataSources, parts: DataParts, out: Path) -> list[str]:
    """Write the parts and the counts; return the names of the files."""
    _warn(recipe, parts)
    kinds: dict[str, dict[str, Any]] = {"prompt": parts.prompts}
    if recipe.preference_dataset is not None or sources.eval_pairs is not None:
        kinds["preference"] = parts.pairs
    folder = DataDirectory(out)
    written = []
    for kind, by_part in kinds.items():
        for part, rows in by_part.items():
            written.append(folder.rows(kind, part))
            row_writer.write(rows, written[-1])
    files.write_jsonl(folder.dropped, sources.dropped)
    thumbs = {part: sum(isinstance(row, Thumb) for row in rows) for part, rows in parts.pairs.items()}
    rows_of = {kind: {part: len(rows) for part, rows in by_part.items()} for kind, by_part in kinds.items()}
    counts = sources.counts | {"parts": rows_of, "groups": parts.groups, "taken_out": parts.taken_out}
    counts |= {"repeated": {"test": parts.repeated}} | ({"thumbs": thumbs} if any(thumbs.values()) else {})
    files.write_json(folder.counts, counts)
    return [path.relative_to(out).as_posix() for path in (*written, folder.dropped, folder.counts)]
