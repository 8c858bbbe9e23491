"""`data check`: what is in some files, and what is wrong with them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from preferent.data import splits
from preferent.data.counts import PreferenceCounts, count_preferences
from preferent.data.formats import row_reader, row_sources
from preferent.data.formats.row_reader import Dropped, Kind, RecordsRead
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Demonstration, Preference, Prompt
from preferent.errors import DataError

ENDLESS = 1 << 40
SHOWN = 20
Record = Preference | Prompt | Demonstration


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Token lengths: how many texts have at most `bounds[i]` tokens and more than the bound before, and those cut."""

    limit: int
    texts: int
    cut: int
    longest: int
    histogram: dict[int, int]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file: what its rows are, how many can be used, and what there is to know about them."""

    file: str
    kind: Kind
    format: str
    read: int
    kept: int
    dropped: list[Dropped]
    without_prompt: int
    repeated_prompts: int
    tally: PreferenceCounts | None
    prompt_lengths: LengthHistogram | None = None
    answer_lengths: LengthHistogram | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Several files, and how many prompts (or, without prompts, candidates) each two of them share."""

    files: list[FileCheck]
    shared: dict[tuple[str, str], int]

    @property
    def ok(self) -> bool:
        """Whether every row can be used."""
        return not any(each.dropped for each in self.files)


def check_files(
    paths: Sequence[str],
    kind: Kind | None = None,
    format: str = "auto",
    tokenizer: Path | None = None,
    instruction: str | None = None,
    prompt_tokens: int = 512,
    target_tokens: int = 64,
) -> Check:
    """Read files and say what is in them; with a tokenizer's folder also how long the texts are and which are cut."""
    loaded = None if tokenizer is None else Tokenizer.load(tokenizer)
    files, labels = [], {}
    for file in row_sources.expand(paths):
        found = _kind(file) if kind is None else kind
        reading = row_reader.read_rows([file], found, format)
        prompts = [record if isinstance(record, Prompt) else record.prompt for record in reading.records]
        lengths: tuple[LengthHistogram | None, LengthHistogram | None] = (None, None)
        if loaded is not None:
            lengths = _lengths(loaded, reading.records, prompts, instruction, prompt_tokens, target_tokens)
        files.append(_file(file, found, reading, prompts, *lengths))
        tied = [record for record in reading.records if not isinstance(record, Demonstration)]
        labels[file] = {label for record in tied for label in splits.labels(record)}
    shared = {(a, b): len(labels[a] & labels[b]) for a, b in combinations(labels, 2) if labels[a] & labels[b]}
    return Check(files, shared)


def _kind(file: str) -> Kind:
    """What a file looks like; a file of which no row looks like anything is read as preferences, to name its faults."""
    try:
        return row_reader.detect([file])[0]
    except DataError:
        return "preference"


def _file(
    file: str,
    kind: Kind,
    reading: RecordsRead[Record],
    prompts: Sequence[Prompt],
    prompt_lengths: LengthHistogram | None,
    answer_lengths: LengthHistogram | None,
) -> FileCheck:
    pairs = [record for record in reading.records if isinstance(record, Preference)]
    asked = [prompt.key for prompt in prompts if not prompt.is_empty]
    return FileCheck(
        file,
        kind,
        reading.format,
        reading.read,
        len(reading.records),
        reading.dropped,
        len(prompts) - len(asked),
        len(asked) - len(set(asked)),
        count_preferences(pairs) if kind == "preference" else None,
        prompt_lengths,
        answer_lengths,
    )


def _lengths(
    tokenizer: Tokenizer,
    records: Sequence[Record],
    prompts: Sequence[Prompt],
    instruction: str | None,
    prompt_tokens: int,
    target_tokens: int,
) -> tuple[LengthHistogram | None, LengthHistogram | None]:
    """How long prompts (with instruction and template) and answers (with EOS) are."""
    encoded = tokenizer.encode_prompts(prompts, instruction, ENDLESS)
    pairs = [
        (prompt.text, answer) for prompt, record in zip(encoded, records, strict=True) for answer in _answers(record)
    ]
    answers = tokenizer.encode_answers([text for text, _ in pairs], [answer for _, answer in pairs], ENDLESS)
    return (
        _histogram([prompt.ids for prompt in encoded], prompt_tokens),
        _histogram([ids for ids, _ in answers], target_tokens),
    )


def _answers(record: Record) -> tuple[str, ...]:
    """The answers that a row holds."""
    if isinstance(record, Preference):
        return record.candidate_0, record.candidate_1
    return (record.output_text,) if isinstance(record, Demonstration) else ()


def _histogram(texts: Sequence[Sequence[int]], limit: int) -> LengthHistogram | None:
    """Lengths in bins that end at powers of two."""
    lengths = [len(ids) for ids in texts]
    if not lengths:
        return None
    bins = Counter(1 << max(length - 1, 0).bit_length() for length in lengths)
    cut = sum(length > limit for length in lengths)
    return LengthHistogram(limit, len(lengths), cut, max(lengths), dict(sorted(bins.items())))


def render(result: Check) -> str:
    """A check as text."""
    parts = [_describe(each) for each in result.files]
    for (first, second), count in result.shared.items():
        parts.append(f"{first} and {second} share {count} prompts; split by prompt, or a held-out score means nothing")
    return "\n".join(parts)


def _describe(each: FileCheck) -> str:
    name = each.kind if each.kind != "preference" else f"preference ({each.format})"
    lines = [f"{each.file}: {name}, {each.read} rows, {each.kept} usable"]
    if each.tally is not None:
        lines.append(
            f"  {each.tally.ties} ties, {each.tally.duplicates} duplicates, "
            f"{each.tally.contradictory} contradictory pairs, {each.without_prompt} without a prompt"
        )
    if each.kind == "prompt":
        lines.append(f"  {each.repeated_prompts} repeated prompts")
    for what, lengths in (("prompt", each.prompt_lengths), ("answer", each.answer_lengths)):
        if lengths is not None:
            lines += _drawn(what, lengths)
    lines += [f"  {row}" for row in each.dropped[:SHOWN]]
    if len(each.dropped) > SHOWN:
        lines.append(f"  and {len(each.dropped) - SHOWN} more bad rows")
    return "\n".join(lines)


def _drawn(what: str, lengths: LengthHistogram) -> list[str]:
    share = lengths.cut / lengths.texts
    lines = [f"  {what} tokens: longest {lengths.longest}; {lengths.cut} ({share:.1%}) are cut at {lengths.limit}"]
    most = max(lengths.histogram.values())
    for bound, count in lengths.histogram.items():
        lines.append(f"    {f'≤ {bound}':>8} {count:>8} {'█' * round(30 * count / most)}")
    return lines
