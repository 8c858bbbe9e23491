"""`data convert`: from any format to any other, and from exports of feedback to pairs, thumbs and prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from preferent import files
from preferent.commands.data_files.check import SHOWN_RECORDS, example
from preferent.data import prepare
from preferent.data.formats import row_reader, row_sources, row_writer
from preferent.data.formats.feedback import feedback_reader
from preferent.data.formats.feedback.converted_records import AS_THEY_ARE, ConvertedRecord, FeedbackOptions
from preferent.data.formats.feedback.feedback_reader import FeedbackRead
from preferent.data.formats.named_columns import NONE, NamedColumns
from preferent.data.formats.row_reader import Dropped
from preferent.data.types import Preference, Record, Thumb
from preferent.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Conversion:
    """The number of rows by outcome: `read` = `written` + `ties` + `without_prompt` + `misread` + bad rows."""

    read: int
    written: int
    ties: int
    without_prompt: int
    misread: int
    dropped: list[Dropped]


def convert_files(
    paths: Sequence[str], out: Path, to: str = "gcpc", format: str = "auto", columns: NamedColumns = NONE
) -> Conversion:
    """Read files of any format, with keys named by `columns`, and write one file of the format `to`.

    A format that names the chosen answer cannot hold ties. A format of conversations cannot hold answers without a
    prompt, and one that marks turns inside texts cannot hold texts with such marks. All are left out and counted, as
    are bad rows.
    """
    files = row_sources.expand(paths)
    if out.exists() and any(Path(file).exists() and out.samefile(file) for file in files):
        raise UsageError(f"{out}: is one of the files to read; write to another file")
    if to not in row_writer.FORMATS:
        raise UsageError(f"format {to}: unknown; the formats are {', '.join(row_writer.FORMATS)}")
    row_reader.require_columns(files, columns)
    reading = row_reader.read_rows(files, row_reader.detect(files, columns)[0], format, columns)
    written = row_writer.write(reading.records, out, to)
    left_out = written.ties, written.without_prompt, written.misread
    return Conversion(reading.read, written.rows, *left_out, reading.dropped)


@dataclass(frozen=True, slots=True)
class RecordCounts:
    """The records of an export by what they became: `records` = `in_pairs` + `thumbs` + `dropped`, always.

    `pairs` counts the pairs, `reasons` the dropped records by category, and `notes` what records do not tell.
    """

    records: int
    in_pairs: int
    thumbs: int
    dropped: int
    pairs: int
    good: int
    reasons: dict[str, int]
    notes: dict[str, int]

    @classmethod
    def of(cls, converted: Sequence[ConvertedRecord]) -> "RecordCounts":
        kinds = Counter(record.kind for record in converted)
        rows = [row for record in converted for row in record.rows]
        reasons = Counter(record.reason.partition(":")[0] for record in converted if record.kind == "dropped")
        return cls(
            len(converted),
            kinds["pair"],
            kinds["thumb"],
            kinds["dropped"],
            sum(isinstance(row, Preference) for row in rows),
            sum(isinstance(row, Thumb) and row.is_good for row in rows),
            dict(reasons.most_common()),
            dict(Counter(record.note for record in converted if record.note).most_common()),
        )


def convert_feedback(
    paths: Sequence[str], out: Path, options: FeedbackOptions = AS_THEY_ARE, columns: NamedColumns = NONE
) -> FeedbackRead:
    """Read exports of feedback and write `preferences.jsonl`, `thumbs.jsonl`, `prompts.jsonl` and `summary.json` to the
    folder `out`; raise `DataError` if nothing can be learned from them."""
    if out.is_file() or out.suffix in (".jsonl", ".json", ".gz"):
        raise UsageError(
            f"{out}: an export gives preferences, thumbs and prompts; name a folder with --out, or read its rows as "
            "preferences or demonstrations with --to gcpc"
        )
    sources = row_sources.expand(paths)
    row_reader.require_columns(sources, columns)
    others = [file for file in sources if not feedback_reader.layout_of_file(file, columns)]
    if others:
        raise UsageError(
            f"{others[0]}: has no layout of an export of feedback; see docs/feedback.md for those that are read, and "
            "convert files of other formats by a command of their own"
        )
    reading = feedback_reader.read_feedback(sources, options, columns)
    if not reading.pairs and not reading.thumbs:
        raise DataError(f"{', '.join(paths)}: nothing can be learned from the export\n{render(reading)}")
    for name, rows in _written(reading).items():
        row_writer.write(rows, out / name)
    files.write_json(out / "summary.json", {"layouts": reading.layouts} | asdict(RecordCounts.of(reading.converted)))
    return reading


def _written(reading: FeedbackRead) -> dict[str, Sequence[Record]]:
    prompts = prepare.distinct_prompts(reading.as_rows.records)
    return {"preferences.jsonl": reading.pairs, "thumbs.jsonl": reading.thumbs, "prompts.jsonl": prompts}


def render(reading: FeedbackRead, out: Path | None = None) -> str:
    """Return what became of the records of exports as text, with three rows of each file in `out`."""
    counts = RecordCounts.of(reading.converted)
    lines = [
        f"{', '.join(reading.layouts)}: {counts.records} records = {counts.in_pairs} in pairs + {counts.thumbs} thumbs "
        f"({counts.good} up, {counts.thumbs - counts.good} down) + {counts.dropped} dropped"
    ]
    first = {record.reason.partition(":")[0]: record for record in reversed(reading.converted) if record.reason}
    for category, count in counts.reasons.items():
        record = first[category]
        lines.append(f"  dropped {count}: {record.reason} (first: {record.place})")
    lines += [f"  not told apart {count}: {note}" for note, count in counts.notes.items()]
    for name, rows in _written(reading).items() if out is not None else ():
        lines.append(f"{out}/{name}: {len(rows)} rows")
        lines += [f"  {example(row)}" for row in rows[:SHOWN_RECORDS]]
    return "\n".join(lines)
