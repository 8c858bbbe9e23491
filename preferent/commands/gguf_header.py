"""The header of a GGUF file, read within bounds before any library opens the file.

Layout: magic, version, number of tensors, number of metadata entries; the entries (key, kind, value); the tensors
(name, dimensions, kind, offset); then, aligned, the data. Source: docs/gguf.md of ggml. Versions 2 and 3 are read,
little endian.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from preferent.errors import PlatformError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES, MOST_TENSORS = 4096, 1 << 16
LONGEST_NAME, LONGEST_TEXT = 256, 1 << 26
"""Bytes of a key or of a tensor's name, and of a text; the longest texts are whole tokenizer.json files."""
MOST_ELEMENTS = 1 << 21
"""Elements of all arrays together: the package gguf keeps some hundred bytes for each. Gemma 3 has 1.3 million."""
MOST_DIMENSIONS, MOST_NUMBERS = 4, 1 << 44
LARGEST_ALIGNMENT = 1 << 16
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The kinds of metadata with a fixed size, as `struct` names them."""
TEXT, ARRAY = 8, 9
WAY_OUT = "copy or download it again"

BlockSizes = Mapping[int, tuple[int, int]]
"""By the number of a tensor's kind: numbers in a block, and bytes of a block."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in the file: its shape (rows first, as in torch), its kind, and the bytes from `start` on."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    length: int

    @property
    def count(self) -> int:
        """Return how many numbers the tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata of a GGUF file by key, and its tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: list[GgufTensor]

    def text(self, key: str) -> str | None:
        """Return a text of the metadata; None where there is none."""
        entry = self.metadata.get(key)
        return entry if isinstance(entry, str) else None

    def number(self, key: str) -> int | None:
        """Return a whole number of the metadata; None where there is none."""
        entry = self.metadata.get(key)
        return entry if isinstance(entry, int) and not isinstance(entry, bool) else None


class _Place:
    """A position in the mapped bytes of a file, which moves on as they are read."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.at = path, content, 0
        self.elements = 0

    def refuse(self, why: str, at: int | None = None) -> NoReturn:
        offset = self.at if at is None else at
        raise PlatformError(f"{self.path}: byte {offset:,}: {why}; the file is damaged or was not made well: {WAY_OUT}")

    def bytes(self, count: int, what: str) -> memoryview:
        if count > len(self.content) - self.at:
            self.refuse(f"{what} takes {count:,} bytes, but the file ends after {len(self.content) - self.at:,}")
        with memoryview(self.content) as view:
            part = view[self.at : self.at + count]
        self.at += count
        return part

    def number(self, form: str, what: str) -> Any:
        with self.bytes(struct.calcsize(f"<{form}"), what) as part:
            (number,) = struct.unpack(f"<{form}", part)
        return number

    def count(self, form: str, most: int, what: str) -> int:
        start = self.at
        number = int(self.number(form, what))
        if number > most:
            self.refuse(f"{what} is {number:,}, more than the {most:,} that any model needs", start)
        return number

    def text(self, longest: int, what: str) -> str:
        start = self.at
        with self.bytes(self.count("Q", longest, f"the length of {what}"), what) as part:
            try:
                return str(part, encoding="utf-8")
            except UnicodeDecodeError:
                self.refuse(f"{what} is not UTF-8", start)

    def value(self, kind: int, key: str) -> Any:
        """Read a value of the metadata: a number, a text, or an array of these."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], key)
        if kind == TEXT:
            return self.text(LONGEST_TEXT, key)
        if kind != ARRAY:
            self.refuse(f"{key} is of kind {kind}, which GGUF does not have")
        inner = self.number("I", f"the kind of {key}")
        if inner not in NUMBERS and inner != TEXT:
            self.refuse(f"{key} is an array of kind {inner}, which is not read here")
        count = self.count("Q", MOST_ELEMENTS - self.elements, f"the length of {key}")
        self.elements += count
        if inner == TEXT:
            return [self.text(LONGEST_TEXT, f"{key}[{index}]") for index in range(count)]
        form = f"<{count}{NUMBERS[inner]}"
        with self.bytes(struct.calcsize(form), key) as part:
            return list(struct.unpack(form, part))


def read(path: Path, blocks: BlockSizes) -> GgufHeader:
    """Return the header of a GGUF file. Raise `PlatformError` if it is none, is cut, or contradicts itself.

    Every count, length, kind and offset is held against the file before it is followed. `blocks` are the sizes of the
    kinds of tensors that can be read.
    """
    if not path.is_file():
        raise PlatformError(f"{path}: is not a file; name a GGUF file")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _header(_Place(path, content), blocks)
    except OSError as error:
        raise PlatformError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # mmap refuses an empty file
        raise PlatformError(f"{path}: is empty; {WAY_OUT}") from None


def _header(place: _Place, blocks: BlockSizes) -> GgufHeader:
    with place.bytes(4, "the mark GGUF") as mark:
        if mark != MAGIC:
            place.refuse("does not begin with GGUF, so it is no GGUF file", 0)
    version = place.number("I", "the version")
    if version not in VERSIONS:
        swapped = " (of a file for machines with the other byte order)" if version & 0xFFFF == 0 else ""
        place.refuse(f"is of version {version}{swapped}; versions 2 and 3 are read", 4)
    tensors = place.count("Q", MOST_TENSORS, "the number of tensors")
    entries = place.count("Q", MOST_ENTRIES, "the number of metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        start = place.at
        key = place.text(LONGEST_NAME, "a key")
        if key in metadata:
            place.refuse(f"{key} stands twice in the metadata", start)
        metadata[key] = place.value(place.number("I", f"the kind of {key}"), key)
    table = list(_tensors(place, tensors, blocks))
    _check_data(place, metadata, table)
    data_start = _aligned(place.at, metadata.get("general.alignment", 32))
    placed = [GgufTensor(t.name, t.shape, t.kind, data_start + t.start, t.length) for _, t in table]
    return GgufHeader(place.path, metadata, placed)


def _tensors(place: _Place, count: int, blocks: BlockSizes) -> Iterator[tuple[int, GgufTensor]]:
    """Yield each entry of the table of tensors with its place; `start` is relative to the data."""
    names: set[str] = set()
    for _ in range(count):
        entry = place.at
        name = place.text(LONGEST_NAME, "a tensor's name")
        if name in names:
            place.refuse(f"tensor {name} stands twice", entry)
        names.add(name)
        dimensions = place.count("I", MOST_DIMENSIONS, f"the number of dimensions of {name}")
        shape = tuple(place.number("Q", f"a dimension of {name}") for _ in range(dimensions))[::-1]
        if not shape or 0 in shape or math.prod(shape) > MOST_NUMBERS:
            place.refuse(f"tensor {name} has the shape {list(shape)}, which none has", entry)
        kind = place.number("I", f"the kind of {name}")
        if kind not in blocks:
            place.refuse(f"tensor {name} is of kind {kind}, which the installed package gguf does not know", entry)
        numbers, length = blocks[kind]
        if shape[-1] % numbers:
            place.refuse(f"tensor {name} has rows of {shape[-1]:,}, but its kind has blocks of {numbers}", entry)
        start = place.number("Q", f"the offset of {name}")
        yield entry, GgufTensor(name, shape, kind, start, math.prod(shape) // numbers * length)


def _check_data(place: _Place, metadata: Mapping[str, Any], table: list[tuple[int, GgufTensor]]) -> None:
    """Refuse tensors that lie outside of the file, on each other, or not where the alignment puts them."""
    alignment = metadata.get("general.alignment", 32)
    whole = isinstance(alignment, int) and not isinstance(alignment, bool) and 8 <= alignment <= LARGEST_ALIGNMENT
    if not whole or alignment & (alignment - 1):
        place.refuse(f"general.alignment is {alignment!r:.40}, no power of two from 8 to {LARGEST_ALIGNMENT:,}")
    room = len(place.content) - _aligned(place.at, alignment)
    end = 0
    for entry, tensor in sorted(table, key=lambda pair: pair[1].start):
        if tensor.start % alignment:
            place.refuse(f"tensor {tensor.name} begins at {tensor.start:,}, no multiple of {alignment}", entry)
        if tensor.start < end:
            place.refuse(f"tensor {tensor.name} begins at {tensor.start:,}, inside of another one", entry)
        end = tensor.start + tensor.length
        if end > room:
            place.refuse(f"tensor {tensor.name} ends at {end:,} of the data, which has {max(0, room):,} bytes", entry)


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
