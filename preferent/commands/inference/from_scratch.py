"""A small model of the Llama-2 architecture with random weights, and a tokenizer trained on text files.

The tokenizer is built like Llama 2's `tokenizer.json`: BPE with byte fallback in SentencePiece style, `<unk>`, `<s>`,
`</s>` = 0, 1, 2, then the 256 bytes, "▁" for a space, no pre-tokenizer, no pad token. As SentencePiece does for Llama 2
(Kudo and Richardson 2018; Touvron et al. 2023: "we split all numbers into individual digits"), training never merges
across words, between letters and other characters, between digits, or across a line end. A rare character becomes its
bytes.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from preferent import files
from preferent.data.formats import file_opening, json_rows, row_sources
from preferent.errors import DataError, PlatformError, UsageError
from preferent.runs import stages
from preferent.runs.directory import StageDirectory

SPECIAL = ("<unk>", "<s>", "</s>")
UNK, BOS, EOS = range(3)
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
ASCII = "".join(map(chr, range(33, 127)))
CHARACTER_COVERAGE = 0.9999
LONGEST_PIECE = 16
OUTPUTS = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def make(
    texts: Sequence[Path],
    out: Path,
    vocab_size: int = 4096,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    key_value_heads: int | None = None,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 1024,
    tie_word_embeddings: bool = False,
    initializer_range: float | None = None,
    seed: int = 0,
) -> int:
    """Write a random Llama with its tokenizer to the folder `out`, in the Hugging Face layout.

    Return its number of parameters.

    `texts` are files or globs: plain text, or JSONL (every text in a row counts), either may be `.gz`. `vocab_size` is
    the maximum number of tokens: little text gives fewer. `key_value_heads` defaults to `heads`, `intermediate_size`
    to 8/3 of the hidden size rounded up to a multiple of 32, `initializer_range` (the standard deviation of the
    weights) to 1 / sqrt(hidden_size): with the 0.02 of large models a small one learns several times more slowly. The
    same texts, sizes and seed give the same bits.
    """
    key_value_heads = heads if key_value_heads is None else key_value_heads
    intermediate_size = -(-hidden_size * 8 // 96) * 32 if intermediate_size is None else intermediate_size
    _check_sizes(vocab_size, hidden_size, layers, heads, key_value_heads, intermediate_size, max_position_embeddings)
    sizes = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": tie_word_embeddings,
        "initializer_range": hidden_size**-0.5 if initializer_range is None else initializer_range,
    }
    stage_files = StageDirectory(out)
    files = [Path(file) for file in row_sources.expand([str(path) for path in texts])]
    for file in files:
        if file_opening.is_pipe(str(file)):
            raise UsageError(f"{file}: is a pipe, which can be read only once; write it to a file and name that")
    with stages.locked(out):
        fields = sizes | {"vocab_size": vocab_size, "seed": seed}
        inputs = {f"text {i}": file for i, file in enumerate(files)}
        stage = stages.open_stage("scratch", out, fields, inputs, rerun=not stage_files.done.exists())
        if not stage.done:
            tokenizer = train_tokenizer([text for path in files for text in read(path)], vocab_size)
            stage.record(parameters=_write(tokenizer, sizes, seed, out), tokens=tokenizer.get_vocab_size())
            stage.finish(OUTPUTS)
    return int(stage.facts["parameters"])


def _write(tokenizer: Tokenizer, sizes: dict[str, Any], seed: int, out: Path) -> int:
    """Write the model's files; return its number of parameters (a tied one counts once)."""
    config = LlamaConfig(
        **sizes,
        vocab_size=tokenizer.get_vocab_size(),
        rms_norm_eps=1e-5,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=None,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights: dict[str, torch.Tensor] = dict(LlamaForCausalLM(config).named_parameters())
    generation = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, do_sample=True, temperature=1.0, top_k=0)
    files.write_atomic(out / "model.safetensors", save(weights, metadata={"format": "pt"}))
    files.write_atomic(out / "config.json", config.to_json_string())
    files.write_atomic(out / "generation_config.json", generation.to_json_string())
    files.write_atomic(out / "tokenizer.json", tokenizer.to_str(pretty=True))
    files.write_json(out / "tokenizer_config.json", _tokenizer_config(config.max_position_embeddings))
    return sum(weight.numel() for weight in weights.values())


def _check_sizes(
    vocab_size: int,
    hidden_size: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    intermediate_size: int,
    max_position_embeddings: int,
) -> None:
    if min(hidden_size, layers, heads, key_value_heads, intermediate_size, max_position_embeddings) < 1:
        raise UsageError("the sizes of a model must be whole numbers above 0")
    if hidden_size % heads or (hidden_size // heads) % 2:
        raise UsageError(
            f"hidden_size {hidden_size} does not fit {heads} heads: each head needs an even number of channels; "
            f"try hidden_size {2 * heads * max(1, hidden_size // (2 * heads))}"
        )
    if heads % key_value_heads:
        raise UsageError(f"key_value_heads {key_value_heads} must divide heads {heads}")
    if vocab_size <= len(SPECIAL) + len(BYTES):
        raise UsageError(
            f"vocab_size {vocab_size} is too small: the special tokens and the 256 bytes are "
            f"{len(SPECIAL) + len(BYTES)} tokens; set at least 512"
        )


def _tokenizer_config(longest: int) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": SPECIAL[BOS],
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[EOS],
        "model_max_length": longest,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[UNK],
    }


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer of at most `vocab_size` tokens that decodes to exactly the text it encoded."""
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    if not counts:
        raise DataError("the files hold no text; a tokenizer is trained on text: give files with some")
    room = vocab_size - len(SPECIAL) - len(BYTES)
    alphabet = _alphabet(counts, room)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *BYTES],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=LONGEST_PIECE,
        min_frequency=2,
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
    learner.normalizer = _normalizer()
    learner.pre_tokenizer = _words()
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [(left, right) for left, right in learned["merges"]]
    return _llama(learned["vocab"], merges)


def _alphabet(counts: Counter[str], room: int) -> list[str]:
    """Return "▁", the characters that make up `CHARACTER_COVERAGE` of the text, and ASCII: at most half of `room`."""
    seen = Counter({c: n for c, n in counts.items() if c.isprintable() and not c.isspace()})
    needed, kept = CHARACTER_COVERAGE * seen.total(), ["▁"]
    for character, count in sorted(seen.items(), key=lambda pair: (-pair[1], pair[0])):
        if needed > 0:
            kept.append(character)
        needed -= count
    return sorted(dict.fromkeys([*kept, *ASCII][: max(1, room // 2)]))


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _words() -> pre_tokenizers.PreTokenizer:
    """Return the units within which training may merge, each with a "▁" before it.

    They are runs of letters, single digits and runs of other characters.
    """
    word = r"▁?\p{L}[\p{L}\p{M}]*|▁?\p{N}|▁?[^\p{L}\p{N}▁\s]+|▁|\s"
    return pre_tokenizers.Split(Regex(word), "isolated")


def _llama(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """Return the tokenizer of Llama 2 with another vocabulary."""
    model = models.BPE(vocabulary, merges, unk_token=SPECIAL[UNK], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def read(path: Path) -> Iterator[str]:
    """Yield the texts in a file: every string of a JSONL row at any depth, or else the whole file. Unpack `.gz`."""
    try:
        encoded = path.read_bytes()
        encoded = gzip.decompress(encoded) if path.suffix == ".gz" else encoded
        content = encoded.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = encoded.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte {error.object[error.start]:#04x} is not UTF-8; convert the file"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}") from None
    except OSError as error:
        raise PlatformError(f"{path}: cannot be read: {error.strerror}") from None
    if path.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        yield from _rows(path, content)
    else:
        yield content


def _rows(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                row = json_rows.value_of(line.encode())
                if reason := json_rows.fault(row):
                    raise json_rows.Unreadable(reason)
            except json_rows.Unreadable as reason:
                raise DataError(f"{path}:{number}: {reason}; a .jsonl file has one object per line") from None
            yield from _strings(row)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _strings(inner)
