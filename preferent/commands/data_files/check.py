"""`data check`: the contents of data files and the faults in them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import Literal

from preferent.data import chat_refusals, splits
from preferent.data.counts import PreferenceCounts, count_preferences
from preferent.data.formats import row_reader, row_sources
from preferent.data.formats.feedback import feedback_reader
from preferent.data.formats.named_columns import NONE, NamedColumns
from preferent.data.formats.row_reader import Dropped, Kind, RecordsRead
from preferent.data.tokenizer import OWN, Tokenizer
from preferent.data.tokenizer.chat_templates import ChatOptions
from preferent.data.types import Demonstration, Preference, Prompt, Record, Thumb
from preferent.errors import DataError

ENDLESS = 1 << 40
SHOWN = 20
SHOWN_RECORDS = 3
SHOWN_LETTERS = 60
FEW_PROMPTS = 200
"""Of fewer different prompts 5 % are fewer than ten."""

CheckedKind = Kind | Literal["feedback"]


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Token lengths of texts.

    `histogram` maps a bound to the number of texts that are at most as long and longer than the bound before it. `cut`
    counts the texts that are longer than `limit`.
    """

    limit: int
    texts: int
    cut: int
    longest: int
    histogram: dict[int, int]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The check of one file: the kind of its rows, the number that can be used, and further counts.

    `examples` are the first records, as text.
    """

    file: str
    kind: CheckedKind
    format: str
    read: int
    kept: int
    dropped: list[Dropped]
    without_prompt: int
    repeated_prompts: int
    different_prompts: int
    examples: list[str]
    tally: PreferenceCounts | None
    prompt_lengths: LengthHistogram | None = None
    answer_lengths: LengthHistogram | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """The checks of several files, and the number of prompts (or candidates without prompts) that two of them share."""

    files: list[FileCheck]
    shared: dict[tuple[str, str], int]

    @property
    def ok(self) -> bool:
        """Return whether every row can be used, or holds nothing to learn from as exports of feedback may."""
        return not any(row.is_fault for file in self.files for row in file.dropped)


def check_files(
    paths: Sequence[str],
    kind: CheckedKind | None = None,
    format: str = "auto",
    tokenizer: Path | None = None,
    instruction: str | None = None,
    prompt_tokens: int = 512,
    target_tokens: int = 64,
    columns: NamedColumns = NONE,
    chat: ChatOptions = OWN,
) -> Check:
    """Read files, with keys named by `columns`, and report their contents.

    With a tokenizer's folder, also report the token lengths, the texts cut and the conversations that it refuses.
    """
    loaded = None if tokenizer is None else Tokenizer.load(tokenizer, chat)
    files, labels = [], {}
    row_reader.require_columns(paths, columns)
    for file in row_sources.expand(paths):
        file_kind, reading = _read(file, kind, format, columns)
        if loaded is not None:
            reading = chat_refusals.without(reading, partial(list, [loaded]), instruction)
        prompts = [record if isinstance(record, Prompt) else record.prompt for record in reading.records]
        lengths: tuple[LengthHistogram | None, LengthHistogram | None] = (None, None)
        if loaded is not None:
            lengths = _lengths(loaded, reading.records, prompts, instruction, prompt_tokens, target_tokens)
        files.append(_file(file, file_kind, reading, prompts, *lengths))
        labelled = [record for record in reading.records if not isinstance(record, Demonstration)]
        labels[file] = {label for record in labelled for label in splits.labels(record)}
    shared = {(a, b): len(labels[a] & labels[b]) for a, b in combinations(labels, 2) if labels[a] & labels[b]}
    return Check(files, shared)


def _read(
    file: str, kind: CheckedKind | None, format: str, columns: NamedColumns
) -> tuple[CheckedKind, RecordsRead[Record]]:
    """Return the kind of a file's rows, and the rows: an export of feedback is converted as a recipe reads it."""
    kind = _kind(file, columns) if kind is None else kind
    if kind == "feedback":
        feedback = feedback_reader.read_feedback([file], columns=columns).as_rows
        return kind, RecordsRead([*feedback.records], feedback.dropped, feedback.read, feedback.format)
    return kind, row_reader.read_rows([file], kind, format, columns)


def _kind(file: str, columns: NamedColumns) -> CheckedKind:
    """Return the kind of a file's rows; rows that no format knows are feedback if they have the layout of an export,
    and otherwise read as preferences to name their faults."""
    try:
        return row_reader.detect([file], columns)[0]
    except DataError:
        return "feedback" if feedback_reader.layout_of_file(file, columns) else "preference"


def _file(
    file: str,
    kind: CheckedKind,
    reading: RecordsRead[Record],
    prompts: Sequence[Prompt],
    prompt_lengths: LengthHistogram | None,
    answer_lengths: LengthHistogram | None,
) -> FileCheck:
    pairs = [record for record in reading.records if isinstance(record, Preference)]
    keys = [prompt.key for prompt in prompts if not prompt.is_empty]
    return FileCheck(
        file,
        kind,
        reading.format,
        reading.read,
        len(reading.records),
        reading.dropped,
        len(prompts) - len(keys),
        len(keys) - len(set(keys)),
        len(set(keys)),
        list(islice(dict.fromkeys(map(example, reading.records)), SHOWN_RECORDS)),
        count_preferences(pairs) if kind in ("preference", "feedback") else None,
        prompt_lengths,
        answer_lengths,
    )


def example(record: Record) -> str:
    """Return a record in one line, its texts cut: the end of the prompt, and the answers, the chosen one marked."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    asked = prompt.messages[-1].content if prompt.messages else prompt.input_text
    words = [] if isinstance(record, Demonstration) and prompt.is_empty else [_cut(asked, at_end=True)]
    if isinstance(record, Preference):
        marks = ["chosen" if record.choice == place else "" for place in (0, 1)]
        names = ("tie", "tie") if record.choice == "tie" else [mark or "rejected" for mark in marks]
        words += [f"{name} {_cut(answer)}" for name, answer in zip(names, _answers(record), strict=True)]
    elif isinstance(record, Thumb):
        words.append(f"{'up' if record.is_good else 'down'} {_cut(record.output_text)}")
    else:
        words += [_cut(answer) for answer in _answers(record)]
    return " | ".join(words)


def _cut(text: str, at_end: bool = False) -> str:
    """Return at most `SHOWN_LETTERS` letters of a text in one line, from its beginning or its end."""
    line = " ".join(text.split())
    if len(line) > SHOWN_LETTERS:
        line = f"…{line[1 - SHOWN_LETTERS :]}" if at_end else f"{line[: SHOWN_LETTERS - 1]}…"
    return repr(line)


def _lengths(
    tokenizer: Tokenizer,
    records: Sequence[Record],
    prompts: Sequence[Prompt],
    instruction: str | None,
    prompt_tokens: int,
    target_tokens: int,
) -> tuple[LengthHistogram | None, LengthHistogram | None]:
    """Measure the lengths of prompts (with instruction and template) and of answers (with their end)."""
    encoded = tokenizer.encode_prompts(prompts, instruction, ENDLESS)
    pairs = [(prompt, answer) for prompt, record in zip(encoded, records, strict=True) for answer in _answers(record)]
    texts, ends = [prompt.text for prompt, _ in pairs], [prompt.end for prompt, _ in pairs]
    answers = tokenizer.encode_answers(texts, [answer for _, answer in pairs], ENDLESS, ends)
    return (
        _histogram([prompt.ids for prompt in encoded], prompt_tokens),
        _histogram([ids for ids, _ in answers], target_tokens),
    )


def _answers(record: Record) -> tuple[str, ...]:
    """Return the answers in a row."""
    if isinstance(record, Preference):
        return record.candidate_0, record.candidate_1
    return () if isinstance(record, Prompt) else (record.output_text,)


def _histogram(texts: Sequence[Sequence[int]], limit: int) -> LengthHistogram | None:
    """Count lengths in bins that end at powers of two."""
    lengths = [len(ids) for ids in texts]
    if not lengths:
        return None
    bins = Counter(1 << max(length - 1, 0).bit_length() for length in lengths)
    cut = sum(length > limit for length in lengths)
    return LengthHistogram(limit, len(lengths), cut, max(lengths), dict(sorted(bins.items())))


def render(check: Check) -> str:
    """Return a check as text."""
    parts = [_describe(file) for file in check.files]
    for (first, second), count in check.shared.items():
        parts.append(
            f"{first} and {second} share {count} prompts; a run that reads both keeps each prompt in one part of its "
            "data (train, validation or test)"
        )
    return "\n".join(parts)


def _describe(file: FileCheck) -> str:
    name = f"{file.kind} ({file.format})" if file.kind in ("preference", "feedback") else file.kind
    lines = [f"{file.file}: {name}, {file.read} rows, {file.kept} usable"]
    if file.kind != "text":
        lines.append(f"  {file.different_prompts} different prompts, {file.repeated_prompts} repeated prompts")
    if file.tally is not None:
        lines.append(
            f"  {file.tally.ties} ties, {file.tally.duplicates} duplicates, "
            f"{file.tally.contradictory} contradictory pairs, {file.without_prompt} without a prompt"
        )
    if 0 < file.different_prompts < min(FEW_PROMPTS, file.kept) and file.kind in ("preference", "prompt"):
        lines.append(
            f"  few prompts: a run splits by prompt, so its test set (data.test_share, 5 % by default) has about "
            f"{max(1, round(0.05 * file.different_prompts))} of the {file.different_prompts}; more rows on the same "
            "prompts do not change that"
        )
    lines += [f"  {line}" for line in file.examples]
    for texts, lengths in (("prompt", file.prompt_lengths), ("answer", file.answer_lengths)):
        if lengths is not None:
            lines += _draw(texts, lengths)
    lines += [f"  {line}" for line in _faults(file.dropped)]
    return "\n".join(lines)


def _faults(dropped: Sequence[Dropped]) -> list[str]:
    """Return a line for each reason that left out rows: its first row, and the lines of the others."""
    reasons: dict[str, list[Dropped]] = {}
    for row in dropped:
        reasons.setdefault(row.reason, []).append(row)
    shown = list(reasons.values())[:SHOWN]
    lines = [
        f"{first}" + (f"; the same in {len(others)} more: {_places(others)}" if others else "")
        for first, *others in shown
    ]
    rest = len(dropped) - sum(map(len, shown))
    return [*lines, *([f"and {rest} more bad rows"] if rest else [])]


def _places(rows: Sequence[Dropped]) -> str:
    """Return the lines of some rows, those that follow each other as a range; of many ranges, the first."""
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and row.line == ranges[-1][1] + 1:
            ranges[-1][1] = row.line
        else:
            ranges.append([row.line, row.line])
    shown = [f"{first}" if first == last else f"{first} to {last}" for first, last in ranges[:SHOWN]]
    return f"line{'' if len(rows) == 1 else 's'} {', '.join(shown)}{', …' if len(ranges) > SHOWN else ''}"


def _draw(texts: str, lengths: LengthHistogram) -> list[str]:
    """Return a histogram of token lengths as lines of text."""
    share = lengths.cut / lengths.texts
    lines = [f"  {texts} tokens: longest {lengths.longest}; {lengths.cut} ({share:.1%}) are cut at {lengths.limit}"]
    highest = max(lengths.histogram.values())
    for bound, count in lengths.histogram.items():
        lines.append(f"    {f'≤ {bound}':>8} {count:>8} {'█' * round(30 * count / highest)}")
    return lines
