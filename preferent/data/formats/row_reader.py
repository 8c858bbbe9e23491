"""From files to records: detection of the format, parsing of rows, and the rows left out."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

from preferent.data.formats import ambiguous_keys, answer_positions, layouts, named_columns, row_sources
from preferent.data.formats.named_columns import NamedColumns
from preferent.data.types import Demonstration, Preference, Prompt, Record, Thumb
from preferent.errors import DataError, UsageError

Kind = Literal["preference", "prompt", "demonstration", "text"]
R = TypeVar("R", Preference, Prompt, Demonstration, Preference | Thumb, Record)
HEAD_ROWS = 100


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not a record: its place and the reason, as `category: detail`.

    `is_fault` is not set where the row is as it should be and only holds nothing to learn from.
    """

    file: str
    line: int
    reason: str
    is_fault: bool = True

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"

    @property
    def category(self) -> str:
        return self.reason.partition(":")[0]


@dataclass(frozen=True, slots=True)
class RecordsRead(Generic[R]):
    """The records of some files, the rows left out, the number of rows, and the format."""

    records: list[R]
    dropped: list[Dropped]
    read: int
    format: str

    @property
    def reasons(self) -> dict[str, int]:
        """Count the rows left out by category, the most frequent first."""
        return dict(Counter(row.category for row in self.dropped).most_common())


def _rows(file: str, columns: NamedColumns) -> Iterator[tuple[int, row_sources.Row | str]]:
    """Iterate over the rows of a file, with the keys renamed as `columns` says."""
    for number, row in row_sources.rows(file):
        yield number, row if isinstance(row, str) else named_columns.renamed(row, columns)


def require_columns(paths: Sequence[str], columns: NamedColumns) -> None:
    """Raise `UsageError` if `columns` names a key that no row of the files has."""
    missing, keys = {key for names in columns.values() for key in names}, dict[str, None]()
    if not missing:
        return
    for _, row in chain.from_iterable(row_sources.rows(file) for file in row_sources.expand(paths)):
        if isinstance(row, dict):
            missing -= row.keys()
            keys |= dict.fromkeys([*row][:20] if len(keys) < 20 else ())
        if not missing:
            return
    known = ", ".join(key[:40] for key in [*keys][:20]) or "none"
    raise UsageError(
        f"columns: no row of {', '.join(paths)} has the key {', '.join(sorted(missing))}; the keys are {known}"
    )


def detect(paths: Sequence[str], columns: NamedColumns = named_columns.NONE) -> tuple[Kind, str]:
    """Return the kind, and for preferences the format, of most of the first rows of the files."""
    votes: Counter[tuple[str, str]] = Counter()
    keys = ""
    for file in row_sources.expand(paths):
        for _, row in islice(_rows(file, columns), HEAD_ROWS):
            if isinstance(row, dict):
                keys = keys or layouts.keys_of(row)
                votes[layouts.kind(row), layouts.preference_format(row)] += 1
    votes.pop(("", ""), None)
    if not votes:
        raise DataError(
            f"{', '.join(paths)}: no row is a preference, a prompt, a demonstration or a text"
            + (f"; the first object has the keys {keys}" if keys else "")
            + "\nA preference has input_text, candidate_0, candidate_1 and choice; a prompt has input_text. Say what "
            "other keys mean: --columns prompt=KEY,chosen=KEY,… (in a recipe data.columns)."
        )
    likeliest, format = votes.most_common(1)[0][0]
    kinds: dict[str, Kind] = {"preference": "preference", "demonstration": "demonstration", "prompt": "prompt"}
    return kinds.get(likeliest, "text"), format


def _parser(
    kind: Kind, format: str, head: Sequence[row_sources.Row | str]
) -> tuple[str, Callable[[row_sources.Row], Record]]:
    """Return the format of a file and the function that parses its rows."""
    if kind != "preference":
        parsers: dict[Kind, Callable[[row_sources.Row], Record]] = {
            "prompt": layouts.prompt,
            "demonstration": layouts.demonstration,
            "text": layouts.text,
        }
        if kind not in parsers:
            raise UsageError(f"kind {kind}: unknown; rows hold preference, {', '.join(parsers)}")
        return kind, parsers[kind]
    if format == "auto":
        votes = Counter(layouts.preference_format(row) for row in head if isinstance(row, dict))
        votes.pop("", None)
        format = votes.most_common(1)[0][0] if votes else "gcpc"
    format = format.removesuffix("-conversational")
    if format not in layouts.PREFERENCE:
        raise UsageError(f"format {format}: unknown; rows are read as auto, {', '.join(layouts.PREFERENCE)}")
    return format, layouts.PREFERENCE[format]


def _read_file(
    file: str, kind: Kind, format: str, columns: NamedColumns = named_columns.NONE, is_ours: bool = False
) -> tuple[str, Iterator[Record | Dropped]]:
    """Return the format of a file and an iterator over its rows, parsed or dropped.

    The other keys of a row are ignored without a look at what they mean if `is_ours` is set.
    """
    rows = _rows(file, columns)
    head = list(islice(rows, HEAD_ROWS))
    format, parse = _parser(kind, format, [row for _, row in head])
    if is_ours and kind == "preference":
        parse = layouts.pair_or_thumb

    def records() -> Iterator[Record | Dropped]:
        for number, row in chain(head, rows):
            try:
                if isinstance(row, str):
                    raise layouts.Unusable(row)
                record = parse(dict(row))
                if not is_ours and (reason := ambiguous_keys.ambiguity(row, record, kind, format)):
                    raise layouts.Unusable(reason)
                yield replace(record, source=f"{file}:{number}")
            except layouts.Unusable as error:
                other = layouts.preference_format(row) if kind == "preference" and isinstance(row, dict) else ""
                hint = f"; the row looks like {other}, but the file is read as {format}: a file holds one format"
                yield Dropped(file, number, f"{error}{hint if other not in ('', format) else ''}")

    return format, records()


def prompt_in(line: str) -> Prompt | None:
    """Return the prompt in a line of a file of prompts or preferences, or None if the line is not such a row."""
    row = row_sources.parse(line.encode(errors="surrogateescape"))
    if isinstance(row, str) or layouts.kind(row) not in ("prompt", "preference"):
        return None
    try:
        return layouts.prompt(row)
    except layouts.Unusable:
        return None


def read_rows(
    paths: Sequence[str], kind: Kind, format: str, columns: NamedColumns = named_columns.NONE
) -> RecordsRead[Record]:
    """Read rows of any kind; `datasets.read` is the same with types by kind."""
    files = row_sources.expand(paths)
    records: list[Record] = []
    dropped: list[Dropped] = []
    formats: list[str] = []
    for file in files:
        file_format, rows = _read_file(file, kind, format, columns)
        formats.append(file_format)
        kept_here: list[Record] = []
        for row in rows:
            (dropped if isinstance(row, Dropped) else kept_here).append(row)  # type: ignore[arg-type]
        records.extend(
            kept_here if file_format not in ("trl", "hh", "openai") else answer_positions.randomized(kept_here)
        )
    if not records and not dropped:
        raise DataError(f"{', '.join(paths)}: no rows; write one JSON object per line")
    return RecordsRead(records, dropped, len(records) + len(dropped), ", ".join(dict.fromkeys(formats)))


def kept(reading: RecordsRead[R], max_dropped: float = 0.0) -> list[R]:
    """Return the records, or raise `DataError` if more than the share `max_dropped` of the rows was left out."""
    faults = [row for row in reading.dropped if row.is_fault]
    if len(faults) > max_dropped * reading.read:
        first = "\n".join(f"  {row}" for row in faults[:5])
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise DataError(
            f"{len(faults)} of {reading.read} rows cannot be used, "
            f"more than the share of {max_dropped:g} that may be dropped:\n{first}{more}\n"
            "Correct them, or allow more with --set data.max_dropped=SHARE; `preferent data check` lists more of them."
        )
    return reading.records


def load(path: Path, kind: Kind) -> list[Record]:
    """Load the records of a canonical file; a file without rows gives an empty list."""
    file = row_sources.expand([str(path)])[0]
    records: list[Record] = []
    for row in _read_file(file, kind, "gcpc", is_ours=True)[1]:
        if isinstance(row, Dropped):
            raise DataError(f"{row}\nMake the file again with `preferent data prepare`.")
        records.append(row)
    return records
