"""Tokenizers in GGUF files: the vocabulary under llama.cpp's keys, to and from a tokenizer.json.

Two kinds are known in both directions. `gpt2` is byte-level BPE, where `tokenizer.ggml.pre` names how texts are split
before merging. `llama` is SentencePiece's BPE, which llama.cpp merges by scores instead of a list of merges. Where a
file holds a whole tokenizer.json (`tokenizer.huggingface.json` of the GGUF specification), that is taken.
Source of the patterns and their names: llama.cpp, src/llama-vocab.cpp.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preferent.errors import PlatformError, UsageError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""The types of tokens in `tokenizer.ggml.token_type`."""
NO_TOKEN = (-1, 0xFFFFFFFF)
"""What stands for no special token."""
WHOLE = "tokenizer.huggingface.json"
SPACE = "▁"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class TextSplit:
    """How texts are split for byte-level BPE.

    By a `pattern`, or else as GPT-2 does, if `digits` with each digit alone. With `whole_words` a word that is a token
    is not merged from its parts.
    """

    pattern: str | None = None
    digits: bool = False
    whole_words: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """Return the pre-tokenizer of a tokenizer.json."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": not self.pattern}
        if not self.pattern and not self.digits:
            return level
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
        if self.pattern:
            first = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
        return {"type": "Sequence", "pretokenizers": [first, level]}


SPLITS = {
    "gpt-2": TextSplit(),
    "smollm": TextSplit(digits=True),
    "llama-bpe": TextSplit(LLAMA3, whole_words=True),
    "qwen2": TextSplit(QWEN2),
    "tekken": TextSplit(TEKKEN, whole_words=True),
}
"""By the name in `tokenizer.ggml.pre`."""
SAME_SPLITS = {
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "mellum"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), "qwen2"),
}
"""Further names of the same splits."""
BEGINS_WITH_BOS = ("llama-bpe", "tekken")
"""Splits whose files say no `add_bos_token` and mean that there is one; those of kind `llama` do too."""


# From GGUF


def from_metadata(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the tokenizer.json of a GGUF file; None for a kind that is not known here.

    Raise `PlatformError` if the file's vocabulary contradicts itself.
    """
    tokens, types = vocabulary(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if isinstance(whole := metadata.get(WHOLE), str):
        return _checked(whole, tokens, types)
    if kind == "gpt2" and (name := split_name(metadata)) is not None:
        return _byte_level(metadata, tokens, types, name)
    if kind == "llama":
        return _sentencepiece(metadata, tokens, types)
    return None


def vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Return the tokens by id, and their types; raise `PlatformError` if there are none or their lists differ."""
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise PlatformError("tokenizer.ggml.tokens: there is no list of tokens in it, so no text could be encoded")
    types = [NORMAL] * len(tokens) if types is None else types
    if not isinstance(types, list) or len(types) != len(tokens):
        raise PlatformError("tokenizer.ggml.token_type: has not one type for each token")
    return tokens, types


def split_name(metadata: Mapping[str, Any]) -> str | None:
    """Return our name of the file's split; None for one that is not known here."""
    name = metadata.get("tokenizer.ggml.pre")
    name = SAME_SPLITS.get(name, name) if isinstance(name, str) else None
    return name if name in SPLITS else None


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Return whether texts begin with BOS, as llama.cpp decides where the file does not say it."""
    setting = metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(setting, bool):
        return setting
    return metadata.get("tokenizer.ggml.model") == "llama" or split_name(metadata) in BEGINS_WITH_BOS


def special_id(metadata: Mapping[str, Any], role: str) -> int | None:
    """Return the id of a special token (`bos`, `eos`, `eot`, `eom`, `unknown`, `padding`); None if the file names none.

    Raise `PlatformError` for an id that no token has.
    """
    key, tokens = f"tokenizer.ggml.{role}_token_id", metadata.get("tokenizer.ggml.tokens", [])
    id = metadata.get(key)
    if id in (None, *NO_TOKEN):
        return None
    if not isinstance(id, int) or isinstance(id, bool) or not 0 <= id < len(tokens):
        raise PlatformError(f"{key} is {id!r:.40}, but there are {len(tokens):,} tokens")
    return id


def free_token(metadata: Mapping[str, Any], taken: Collection[int | None]) -> int | None:
    """Return the first control token that is not `taken` and that the chat template does not write; None if none is."""
    tokens, types = vocabulary(metadata)
    template = str(metadata.get("tokenizer.chat_template", ""))
    free = (id for id, token in enumerate(tokens) if types[id] == CONTROL and id not in taken and token not in template)
    return next(free, None)


def ends(metadata: Mapping[str, Any]) -> list[int]:
    """Return the ids that end an answer, EOS first."""
    named = (special_id(metadata, role) for role in ("eos", "eot", "eom"))
    return list(dict.fromkeys(id for id in named if id is not None))


def _checked(whole: str, tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """Return a whole tokenizer.json if its tokens are those of the list."""
    try:
        stored = json.loads(whole)
        by_id = {id: token for token, id in stored["model"]["vocab"].items()}
        by_id |= {token["id"]: token["content"] for token in stored.get("added_tokens") or []}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise PlatformError(f"{WHOLE}: cannot be read: {error}") from None
    own = {id: token for id, token in enumerate(tokens) if types[id] != UNUSED or id in by_id}
    for id, token in own.items():
        if token != by_id.get(id):
            raise PlatformError(f"{WHOLE}: its token {id} is not the one in tokenizer.ggml.tokens")
    if any(id not in own for id in by_id):
        raise PlatformError(f"{WHOLE}: has tokens that are not in tokenizer.ggml.tokens")
    return dict(stored)


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int], name: str) -> dict[str, Any]:
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in merges):
        raise PlatformError("tokenizer.ggml.merges: is not a list of pairs")
    split = SPLITS[name]
    return {
        **_frame(metadata, tokens, types, (CONTROL, USER_DEFINED)),
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": split.pre_tokenizer(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, types, [merge.split(" ") for merge in merges], ignore_merges=split.whole_words),
    }


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    scores, unknown = metadata.get("tokenizer.ggml.scores"), special_id(metadata, "unknown")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise PlatformError("tokenizer.ggml.scores: has not one score for each token")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    decoders = [
        *back,
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    first = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    unk = tokens[unknown] if unknown is not None else None
    return {
        **_frame(metadata, tokens, types, (UNKNOWN, CONTROL, USER_DEFINED)),
        "normalizer": {"type": "Sequence", "normalizers": [*first, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(tokens, types, merges_of(tokens, scores), unk_token=unk, fuse_unk=True, byte_fallback=True),
    }


def _frame(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], added: Sequence[int]
) -> dict[str, Any]:
    """Return what all kinds share: the tokens that are matched whole, and BOS in front."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole = [
        {"id": id, "content": token, **flags, "special": types[id] != USER_DEFINED}
        for id, token in enumerate(tokens)
        if types[id] in added
    ]
    bos, first, special = special_id(metadata, "bos"), [], {}
    if adds_bos(metadata) and bos is not None:
        name = tokens[bos]
        first = [{"SpecialToken": {"id": name, "type_id": 0}}]
        special = {name: {"id": name, "ids": [bos], "tokens": [name]}}
    single = [*first, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": whole,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, *first, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": special,
        },
    }


def _bpe(tokens: Sequence[str], types: Sequence[int], merges: Sequence[Sequence[str]], **more: Any) -> dict[str, Any]:
    vocab = {token: id for id, token in enumerate(tokens) if types[id] != UNUSED}
    settings = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    nothing = dict.fromkeys(("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    return {"type": "BPE", **nothing, **settings, **more, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def merges_of(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return every pair of tokens that makes a token, the highest score first: how SentencePiece merges."""
    ids = {token: id for id, token in enumerate(tokens)}
    pairs = [
        (-scores[id], ids[token[:cut]], ids[token[cut:]])
        for token, id in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(tokens[left], tokens[right]) for _, left, right in sorted(pairs)]


# To GGUF


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """A tokenizer as llama.cpp keeps it: `kind` is `gpt2` (with `split` and `merges`) or `llama` (with `scores`)."""

    kind: str
    tokens: list[str]
    types: list[int]
    split: str = "default"
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space_prefix: bool = False
    more_merges: int = 0
    """Pairs that llama.cpp merges besides those that the tokenizer lists."""


def to_vocabulary(tokenizer: Mapping[str, Any], rows: int) -> GgufVocabulary:
    """Return a tokenizer.json as llama.cpp keeps it, for embeddings of `rows`.

    Raise `UsageError` if llama.cpp has no such tokenizer.
    """
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE" or model.get("dropout"):
        raise UsageError(f"its tokenizer is of the kind {model.get('type')}; BPE is written here")
    added = {token["id"]: token for token in tokenizer.get("added_tokens") or []}
    names = {id: token for token, id in model["vocab"].items()} | {id: token["content"] for id, token in added.items()}
    tokens = [names.get(id, f"[PAD{id}]") for id in range(rows)]
    types = [UNUSED if id not in names else NORMAL for id in range(rows)]
    for id, token in added.items():
        types[id] = CONTROL if token.get("special") else USER_DEFINED
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        return _scored(tokenizer, tokens, types, merges)
    split = TextSplit(*_pattern(tokenizer.get("pre_tokenizer") or {}), bool(model.get("ignore_merges")))
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    name = next((name for name, known in SPLITS.items() if known == split), None)
    if name is None or normalizer not in (None, "NFC") or (normalizer and name != "qwen2"):
        raise UsageError("its tokenizer splits or changes texts in a way that is none of " + ", ".join(SPLITS))
    return GgufVocabulary("gpt2", tokens, types, name, tuple(" ".join(pair) for pair in merges))


def _pattern(pre_tokenizer: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the pattern by which texts are split, and whether each digit stands alone."""
    parts = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    *before, last = parts or [{}]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise UsageError("its tokenizer is neither byte-level BPE without a space in front nor SentencePiece's BPE")
    if not before:
        return None, False
    first = before[0]
    if len(before) == 1 and first.get("type") == "Digits" and first.get("individual_digits") and last.get("use_regex"):
        return None, True
    regex = first.get("pattern", {}).get("Regex") if first.get("type") == "Split" else None
    if len(before) > 1 or regex is None or first.get("behavior") != "Isolated" or last.get("use_regex"):
        raise UsageError("its tokenizer splits texts in more steps than llama.cpp does")
    return regex, False


def _scored(
    tokenizer: Mapping[str, Any], tokens: list[str], types: list[int], merges: Sequence[tuple[str, ...]]
) -> GgufVocabulary:
    """Return a SentencePiece BPE: a token's score is the higher the earlier it is merged."""
    unknown = tokenizer["model"].get("unk_token")
    for id, token in enumerate(tokens):
        if token == unknown:
            types[id] = UNKNOWN
        elif types[id] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[id] = BYTE
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    scores = [-float(ranks.get(token, len(merges))) for token in tokens]
    more = len(set(merges_of(tokens, scores)) - set(merges))
    return GgufVocabulary(
        "llama", tokens, types, scores=tuple(scores), space_prefix=_space_prefix(tokenizer), more_merges=more
    )


def _space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether a space is put before a text. Raise `UsageError` for spaces that are not SentencePiece's."""
    normalizer, pre_tokenizer = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer")
    if normalizer == {} and pre_tokenizer and pre_tokenizer.get("type") == "Metaspace":
        if pre_tokenizer.get("replacement") == SPACE and not pre_tokenizer.get("split", True):
            return bool(pre_tokenizer.get("prepend_scheme", "always") != "never")
    elif pre_tokenizer is None and normalizer:
        parts = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
        kinds = [part.get("type") for part in parts or []]
        if kinds in (["Prepend", "Replace"], ["Replace"]):
            return bool(kinds[0] == "Prepend")
    raise UsageError("its tokenizer treats spaces in a way that is not SentencePiece's")
