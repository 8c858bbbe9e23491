"""Files to records: detection, parsing row by row, and the count of what was left out."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Generic, Literal, TypeVar

from preferent import randomness
from preferent.data.formats import layouts, row_sources
from preferent.data.types import Demonstration, Preference, Prompt, digest
from preferent.errors import DataError, UsageError

Kind = Literal["preference", "prompt", "demonstration", "text"]
Record = Preference | Prompt | Demonstration
R = TypeVar("R", Preference, Prompt, Demonstration, Record)
LOOKED_AT = 100


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is no record: where it is and why; `reason` is `category: detail`."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"

    @property
    def category(self) -> str:
        return self.reason.partition(":")[0]


@dataclass(frozen=True, slots=True)
class RecordsRead(Generic[R]):
    """The records of some files, the rows left out, how many rows there were, and in which format."""

    records: list[R]
    dropped: list[Dropped]
    read: int
    format: str

    @property
    def reasons(self) -> dict[str, int]:
        """Rows left out by category, the most frequent first."""
        return dict(Counter(row.category for row in self.dropped).most_common())


def detect(paths: Sequence[str]) -> tuple[Kind, str]:
    """The kind, and for preferences the format, that most of the first rows of the files look like."""
    votes: Counter[tuple[str, str]] = Counter()
    keys = ""
    for file in row_sources.expand(paths):
        for _, row in islice(row_sources.rows(file), LOOKED_AT):
            if isinstance(row, dict):
                keys = keys or layouts.keys_of(row)
                votes[layouts.kind(row), layouts.preference_format(row)] += 1
    votes.pop(("", ""), None)
    if not votes:
        raise DataError(
            f"{', '.join(paths)}: no row is a preference, a prompt, a demonstration or a text"
            + (f"; the first object has the keys {keys}" if keys else "")
            + "\nA preference has input_text, candidate_0, candidate_1 and choice; a prompt has input_text."
        )
    found, format = votes.most_common(1)[0][0]
    kinds: dict[str, Kind] = {"preference": "preference", "demonstration": "demonstration", "prompt": "prompt"}
    return kinds.get(found, "text"), format


def _parser(
    kind: Kind, format: str, head: Sequence[row_sources.Row | str]
) -> tuple[str, Callable[[row_sources.Row], Record]]:
    """The format of a file and the function that reads its rows."""
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


def _read_file(file: str, kind: Kind, format: str) -> tuple[str, Iterator[Record | Dropped]]:
    rows = row_sources.rows(file)
    head = list(islice(rows, LOOKED_AT))
    format, parse = _parser(kind, format, [row for _, row in head])

    def records() -> Iterator[Record | Dropped]:
        for number, row in chain(head, rows):
            try:
                if isinstance(row, str):
                    raise layouts.Unusable(row)
                yield replace(parse(dict(row)), source=f"{file}:{number}")
            except layouts.Unusable as reason:
                other = layouts.preference_format(row) if kind == "preference" and isinstance(row, dict) else ""
                hint = f"; it is {other} in a file read as {format}: a file holds one format"
                yield Dropped(file, number, f"{reason}{hint if other not in ('', format) else ''}")

    return format, records()


def prompt_in(line: str) -> Prompt | None:
    """The prompt in a line of a file of prompts or preferences; None where the line is no such row."""
    row = row_sources.parse(line.encode(errors="surrogateescape"))
    if isinstance(row, str) or layouts.kind(row) not in ("prompt", "preference"):
        return None
    try:
        return layouts.prompt(row)
    except layouts.Unusable:
        return None


def read_rows(paths: Sequence[str], kind: Kind, format: str) -> RecordsRead[Record]:
    """`dataset.read`, whatever the kind."""
    files = row_sources.expand(paths)
    records: list[Record] = []
    dropped: list[Dropped] = []
    formats: list[str] = []
    for file in files:
        found, rows = _read_file(file, kind, format)
        formats.append(found)
        kept_here: list[Record] = []
        for row in rows:
            (dropped if isinstance(row, Dropped) else kept_here).append(row)  # type: ignore[arg-type]
        records.extend(kept_here if found not in ("trl", "hh", "openai") else _placed(kept_here))
    if not records and not dropped:
        raise DataError(f"{', '.join(paths)}: no rows; write one JSON object a line")
    return RecordsRead(records, dropped, len(records) + len(dropped), ", ".join(dict.fromkeys(formats)))


def _placed(records: Sequence[Record]) -> list[Record]:
    """Preferences of a format that names the chosen answer, each put at position 0 or 1 by a coin keyed by its content.

    Such formats do not say where the answers stood. A fixed position would say which was chosen, so position is drawn,
    as a function of the row alone: equal rows get equal positions, in whatever file or order they stand.
    """
    pairs = [record for record in records if isinstance(record, Preference)]
    items = [int(digest(pair.prompt.key, pair.candidate_0, pair.candidate_1), 16) for pair in pairs]
    coins = randomness.uniforms(0, "position", items, 0)
    return [pair.swap() if coin < 0.5 else pair for pair, coin in zip(pairs, coins, strict=True)]


def kept(reading: RecordsRead[R], max_dropped: float = 0.0) -> list[R]:
    """The records, unless more than the share `max_dropped` of the rows was left out: then a `DataError`."""
    if len(reading.dropped) > max_dropped * reading.read:
        first = "\n".join(f"  {row}" for row in reading.dropped[:5])
        more = f"\n  and {len(reading.dropped) - 5} more" if len(reading.dropped) > 5 else ""
        raise DataError(
            f"{len(reading.dropped)} of {reading.read} rows cannot be used, "
            f"more than the share of {max_dropped:g} that may be dropped:\n{first}{more}\n"
            "Mend them, or allow more with --set data.max_dropped=SHARE; `preferent data check` tells more of them."
        )
    return reading.records


def load(path: Path, kind: Kind) -> list[Record]:
    """The records of a canonical file; a file without rows is an empty list."""
    found = row_sources.expand([str(path)])
    records: list[Record] = []
    for row in _read_file(found[0], kind, "gcpc")[1]:
        if isinstance(row, Dropped):
            raise DataError(f"{row}\nMake the file again with `preferent data prepare`.")
        records.append(row)
    return records
