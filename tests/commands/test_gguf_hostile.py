"""Cut and hostile GGUF files: each is refused with exit code 3 and its place, within bounds of memory."""

import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from preferent.cli import main
from preferent.commands import gguf_header
from preferent.errors import PlatformError

BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18)}
TEXT, ARRAY, UINT32 = 8, 9, 4


def text(words: str | bytes) -> bytes:
    content = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(content)) + content


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def texts(*words: str) -> bytes:
    return struct.pack("<IQ", TEXT, len(words)) + b"".join(map(text, words))


def tensor(name: str, shape: tuple[int, ...], kind: int, start: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, start)


ENTRIES = (
    entry("general.architecture", TEXT, text("llama")),
    entry("llama.block_count", UINT32, struct.pack("<I", 1)),
    entry("tokenizer.ggml.tokens", ARRAY, texts("a", "b", "é")),
    entry("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ3f", 6, 3, 0.0, -1.0, -2.0)),
)
TENSORS = (tensor("one", (2, 32), 2, 0), tensor("two", (3, 5), 0, 64))


def made(
    entries: tuple[bytes, ...] = ENTRIES,
    tensors: tuple[bytes, ...] = TENSORS,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    length: int = 128,
) -> bytes:
    """The bytes of a GGUF file, with `length` of data."""
    tensor_count, entry_count = counts or (len(tensors), len(entries))
    header = b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(length)


def read(content: bytes, folder: Path) -> gguf_header.GgufHeader:
    (folder / "x.gguf").write_bytes(content)
    return gguf_header.read(folder / "x.gguf", BLOCKS)


def test_a_sound_file_is_read(tmp_path):
    header = read(made(), tmp_path)
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "b", "é"]
    assert header.metadata["tokenizer.ggml.scores"] == [0.0, -1.0, -2.0]
    assert [(t.name, t.shape, t.length) for t in header.tensors] == [("one", (2, 32), 36), ("two", (3, 5), 60)]
    assert [t.start for t in header.tensors] == [len(made()) - 128, len(made()) - 64]


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = made(length=124)
    read(whole, tmp_path)
    for length in range(len(whole)):
        with pytest.raises(PlatformError, match=r"x\.gguf"):
            read(whole[:length], tmp_path)


HUGE = 1 << 62
HOSTILE = {
    "another mark": b"PK\3\4" + made()[4:],
    "version 1": made(version=1),
    "the other byte order": b"GGUF" + struct.pack(">I", 3) + made()[8:],
    "more entries than any": made(counts=(2, HUGE)),
    "more entries than there are": made(counts=(2, 5)),
    "more tensors than any": made(counts=(HUGE, 4)),
    "a key without end": made(entries=(struct.pack("<Q", HUGE) + b"x" * 40,)),
    "a text without end": made(entries=(entry("k", TEXT, struct.pack("<Q", HUGE)),)),
    "a text beyond the file": made(entries=(entry("k", TEXT, struct.pack("<Q", 1 << 20)),)),
    "an array without end": made(entries=(entry("k", ARRAY, struct.pack("<IQ", 4, HUGE)),)),
    "an array beyond the file": made(entries=(entry("k", ARRAY, struct.pack("<IQ", 10, 1 << 20)),)),
    "texts beyond the file": made(entries=(entry("k", ARRAY, struct.pack("<IQ", TEXT, 1 << 20)),)),
    "an array of arrays": made(entries=(entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1)),)),
    "an unknown kind of value": made(entries=(entry("k", 13, b""),)),
    "a key twice": made(entries=(*ENTRIES, ENTRIES[0])),
    "a text that is not UTF-8": made(entries=(entry("k", TEXT, text(b"\xff\xfe")),)),
    "a tensor twice": made(tensors=(TENSORS[0], tensor("one", (1,), 0, 64))),
    "no dimensions": made(tensors=(tensor("one", (), 0, 0),)),
    "five dimensions": made(tensors=(tensor("one", (1, 1, 1, 1, 1), 0, 0),)),
    "dimensions without end": made(tensors=(text("one") + struct.pack("<I", 0xFFFFFFFF),)),
    "an empty dimension": made(tensors=(tensor("one", (0, 4), 0, 0),)),
    "a product that overflows": made(tensors=(tensor("one", (1 << 33, 1 << 33), 0, 0),)),
    "an unknown kind of tensor": made(tensors=(tensor("one", (2, 32), 99, 0),)),
    "half a block": made(tensors=(tensor("one", (2, 31), 2, 0),)),
    "an offset beyond the file": made(tensors=(tensor("one", (2, 32), 2, 1 << 20),)),
    "an offset that overflows": made(tensors=(tensor("one", (2, 32), 2, (1 << 64) - 32),)),
    "a tensor longer than the file": made(tensors=(tensor("one", (64, 32), 0, 0),)),
    "an offset that is not aligned": made(tensors=(tensor("one", (2, 32), 2, 8),)),
    "a tensor on another": made(tensors=(TENSORS[0], tensor("two", (3, 5), 0, 32))),
    "two tensors in one place": made(tensors=(TENSORS[0], tensor("two", (3, 5), 0, 0))),
    "an alignment of 0": made(entries=(entry("general.alignment", UINT32, struct.pack("<I", 0)),)),
    "an alignment of 48": made(entries=(entry("general.alignment", UINT32, struct.pack("<I", 48)),)),
    "an alignment without end": made(entries=(entry("general.alignment", UINT32, struct.pack("<I", 1 << 31)),)),
    "an alignment that is a text": made(entries=(entry("general.alignment", TEXT, text("32")),)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_contradicts_the_file_is_refused_in_little_memory(tmp_path, name):
    tracemalloc.start()
    try:
        with pytest.raises(PlatformError, match=r"x\.gguf.*(is empty|byte [\d,]+: ).*again"):
            read(HOSTILE[name], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_arrays_are_bounded_together(tmp_path):
    """Each element costs the package gguf some hundred bytes, so a file of many short arrays is refused too."""
    array = struct.pack("<IQ", 0, gguf_header.MOST_ELEMENTS // 2) + bytes(gguf_header.MOST_ELEMENTS // 2)
    read(made(entries=(entry("a", ARRAY, array), entry("b", ARRAY, array))), tmp_path)
    with pytest.raises(PlatformError, match=r"the length of c is 1, more than the 0"):
        read(made(entries=(*(entry(key, ARRAY, array) for key in "ab"), entry("c", ARRAY, texts("x")))), tmp_path)


def test_changed_bytes_raise_nothing_else(tmp_path):
    whole, chance = made(), random.Random(0)
    outcomes = set()
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(whole) - 128)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        try:
            read(bytes(changed), tmp_path)
            outcomes.add("read")
        except PlatformError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("name", ["more entries than any", "an offset beyond the file", "nothing"])
def test_the_verb_leaves_with_3_and_no_folder(tmp_path, monkeypatch, capsys, name):
    pytest.importorskip("gguf", reason="pip install 'preferent[gguf]'")
    (tmp_path / "x.gguf").write_bytes(HOSTILE[name])
    monkeypatch.setattr("sys.argv", ["preferent", "import", str(tmp_path / "x.gguf"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 3 and "x.gguf" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]
