"""The small Llama from nothing: its tokenizer is built as Llama 2's is, its weights depend on the seed alone."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from preferent import files
from preferent.commands.inference import from_scratch
from preferent.errors import DataError, PlatformError, UsageError

TEXT = "The cat sat on the mat. The dog, aged 12, didn't.\nThe cat said: naïve cats eat 3 rats!\n"
SMALL = {"vocab_size": 400, "hidden_size": 16, "layers": 2, "heads": 2, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scratch")
    (root / "text.txt").write_text(TEXT * 20)
    from_scratch.make([root / "text.txt"], root / "model", **SMALL)
    return root / "model"


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def automatic(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_tokenizer_is_built_as_llama_2s(folder: Path) -> None:
    built = json.loads((folder / "tokenizer.json").read_text())
    model = built["model"]
    assert [model[key] for key in ("type", "unk_token", "fuse_unk", "byte_fallback")] == ["BPE", "<unk>", True, True]
    assert built["pre_tokenizer"] is None
    assert built["normalizer"] == {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    assert built["decoder"]["decoders"] == [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    assert [model["vocab"][token] for token in ("<unk>", "<s>", "</s>", "<0x00>", "<0x0A>", "<0xFF>")] == [
        0, 1, 2, 3, 13, 258,
    ]  # fmt: skip
    assert sorted(model["vocab"].values()) == list(range(len(model["vocab"])))
    assert "pad_token" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_words_are_pieces_and_never_cross(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("The cat sat 12 rats!").tokens == [
        "<s>", "▁The", "▁cat", "▁sat", "▁1", "2", "▁rats", "!",
    ]  # fmt: skip
    for piece in tokenizer.get_vocab():
        if not piece.startswith("<"):
            word = piece.removeprefix("▁")
            assert "▁" not in word and (not word or word.isalpha() or len(word) == 1 or not any(map(str.isalnum, word)))


@given(st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=60).filter(lambda text: "<" not in text))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@given(st.text(max_size=60))
def test_transformers_gives_the_same_ids(automatic: Any, tokenizer: Tokenizer, text: str) -> None:
    assert automatic(text)["input_ids"] == tokenizer.encode(text).ids


def test_model_loads_with_its_sizes(folder: Path, tokenizer: Tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.vocab_size == tokenizer.get_vocab_size() <= SMALL["vocab_size"]
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, None)
    counted = sum(weight.numel() for weight in model.parameters())
    assert counted == files.read_json(folder / "stage.json")["facts"]["parameters"]
    assert model(torch.tensor([tokenizer.encode(TEXT).ids[:64]])).logits.isfinite().all()


def test_same_seed_same_bits_and_nothing_else_moves(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20)
    before = torch.get_rng_state()
    from_scratch.make([text], tmp_path / "same", **SMALL)
    from_scratch.make([text], tmp_path / "other", **SMALL, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name in from_scratch.OUTPUTS:
        assert files.sha256(tmp_path / "same" / name) == files.sha256(folder / name)
    assert files.sha256(tmp_path / "other/model.safetensors") != files.sha256(folder / "model.safetensors")
    assert files.sha256(tmp_path / "other/tokenizer.json") == files.sha256(folder / "tokenizer.json")


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    untied = from_scratch.make([tmp_path / "text.txt"], tmp_path / "untied", **SMALL)
    tied = from_scratch.make([tmp_path / "text.txt"], tmp_path / "tied", **SMALL, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    assert untied - tied == model.lm_head.weight.numel()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_every_text_of_a_row_is_read(tmp_path: Path) -> None:
    row = {"input_text": "a", "messages": [{"author": "b", "content": "c"}], "choice": 1, "candidate_0": "d"}
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n\n" + b'{"text": "e"}\n'))
    assert list(from_scratch.read(path)) == ["a", "b", "c", "d", "e"]


def test_finished_model_is_kept_and_a_strange_one_not_overwritten(folder: Path, tmp_path: Path) -> None:
    text = folder.parent / "text.txt"
    time = (folder / "model.safetensors").stat().st_mtime_ns
    from_scratch.make([text], folder, **SMALL)
    assert (folder / "model.safetensors").stat().st_mtime_ns == time
    with pytest.raises(UsageError, match=r"num_hidden_layers: was 2, is now 3"):
        from_scratch.make([text], folder, **SMALL | {"layers": 3})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json"):
        from_scratch.make([text], tmp_path, **SMALL)


def test_mistakes_are_told(tmp_path: Path) -> None:
    bad, empty = tmp_path / "bad.jsonl", tmp_path / "empty.txt"
    bad.write_bytes(b'{"text": "x"}\n{"text": \n')
    empty.write_text("")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: malformed JSON"):
        from_scratch.make([bad], tmp_path / "a")
    with pytest.raises(DataError, match="no text"):
        from_scratch.make([empty], tmp_path / "b")
    bad.write_bytes(b"fine\n\xff\n")
    with pytest.raises(DataError, match=r"bad\.jsonl:2: byte 0xff"):
        from_scratch.make([bad], tmp_path / "c")
    bad.write_text('{"text": "mended"}\n')
    from_scratch.make([bad], tmp_path / "c", **SMALL)
    with pytest.raises(PlatformError, match="no such file"):
        from_scratch.make([tmp_path / "none.txt"], tmp_path / "d")
    with pytest.raises(UsageError, match="try hidden_size 60"):
        from_scratch.make([empty], tmp_path / "e", hidden_size=64, heads=6)
    with pytest.raises(UsageError, match="must divide"):
        from_scratch.make([empty], tmp_path / "f", key_value_heads=3)
    with pytest.raises(UsageError, match="at least 512"):
        from_scratch.make([empty], tmp_path / "g", vocab_size=259)
