"""GGUF files: what is written comes back as it was, and what others wrote becomes a folder that says what it is."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from conftest import SENTENCES, quiet_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'preferent[gguf]'")
pytest.importorskip("accelerate", reason="pip install 'preferent[gguf]'")

import gguf_models  # noqa: E402

from preferent.cli import main  # noqa: E402
from preferent.commands import gguf_header, gguf_tokenizer, rotary_stretch  # noqa: E402
from preferent.commands.inference import gguf_export, gguf_import  # noqa: E402
from preferent.data.tokenizer import Tokenizer  # noqa: E402
from preferent.errors import PlatformError, UsageError  # noqa: E402
from preferent.models import language_models  # noqa: E402
from preferent.models.world import World  # noqa: E402

SMOLLM2 = Path(__file__).resolve().parents[2] / "models/smollm2"
TEXTS = [*SENTENCES, "12 345  6\n\n\n  x", "naïve — 東京 🙂", "<|turn|>user\nHi<|end|> <think>", " it's  ", ""]
WHOLE = "tokenizer.huggingface.json"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each shape."""
    place = tmp_path_factory.mktemp("gguf")
    return {shape: gguf_models.make(place / shape, shape, split) for shape, split in gguf_models.KINDS.items()}


def written(source: Path, path: Path, precision: str | None = None) -> Path:
    gguf_export.write(source, path, precision, "tuned")
    return path


def rewritten(path: Path, out: Path, drop: tuple[str, ...] = (), **more: object) -> Path:
    """The same file with other metadata, by the package gguf alone."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, more.pop("general.architecture", reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in (*drop, *more, "general.architecture"):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for name, value in more.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("shape", gguf_models.KINDS)
def test_what_is_written_comes_back(sources, tmp_path, shape, whole):
    """Also where the tokenizer must be made of llama.cpp's own keys."""
    path = written(sources[shape], tmp_path / "model.gguf")
    if not whole:
        path = rewritten(path, tmp_path / "bare.gguf", drop=(WHOLE,))
    gguf_import.read(path, tmp_path / "back")
    before, after = weights(sources[shape]), weights(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    one, other = Tokenizer.load(sources[shape]), Tokenizer.load(tmp_path / "back")
    assert [one.encode_text(text) for text in TEXTS] == [other.encode_text(text) for text in TEXTS]
    assert (one.bos_id, one.eos_id, one.pad_id, one.end_ids) == (
        other.bos_id,
        other.eos_id,
        other.pad_id,
        other.end_ids,
    )
    templates = [folder / "chat_template.jinja" for folder in (sources[shape], tmp_path / "back")]
    assert len({file.read_text() if file.exists() else None for file in templates}) == 1
    if whole:
        backends = [
            tokenizers.Tokenizer.from_file(str(f / "tokenizer.json")).to_str()
            for f in (sources[shape], tmp_path / "back")
        ]
        assert backends[0] == backends[1]


@pytest.mark.parametrize("shape", gguf_models.KINDS)
def test_what_comes_back_computes_the_same(sources, tmp_path, shape):
    """In transformers, whose configuration of a Mistral is then that of a Llama."""
    gguf_import.read(written(sources[shape], tmp_path / "model.gguf"), tmp_path / "back")
    ids = torch.tensor([[1, 300, 280, 290, 275]])
    with torch.no_grad():
        one, other = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
            for folder in (sources[shape], tmp_path / "back")
        )
    assert torch.equal(one, other)


def test_the_folder_serves_us_and_others(sources, tmp_path):
    path = written(sources["llama"], tmp_path / "model.gguf")
    gguf_import.read(path, tmp_path / "back")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert theirs("12 345  6").input_ids == Tokenizer.load(sources["llama"]).encode_text("12 345  6")
    config = json.loads((tmp_path / "back/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "quantization_config" not in json.loads((tmp_path / "back/config.json").read_text())
    language_models.load_policy(tmp_path / "back", World.of(quiet_recipe()), 2)
    assert os.stat(tmp_path / "back/model.safetensors").st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_the_precision_is_the_one_named(sources, tmp_path, precision):
    header = gguf_header.read(written(sources["llama"], tmp_path / "m.gguf", precision), gguf_import._block_sizes())
    kinds = {gguf.GGMLQuantizationType(t.kind).name for t in header.tensors if len(t.shape) == 2}
    assert kinds == {precision.upper()}
    assert {t.kind for t in header.tensors if len(t.shape) == 1} == {int(gguf.GGMLQuantizationType.F32)}


def test_a_number_beyond_f16_is_refused(sources, tmp_path):
    source = shutil.copytree(sources["llama"], tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = 1e5
    model.save_pretrained(source)
    with pytest.raises(UsageError, match=r"65,504.*bf16"):
        written(source, tmp_path / "m.gguf", "f16")
    written(source, tmp_path / "m.gguf", "bf16")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM"),
        ({"attention_bias": True}, "biases"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "stretches"),
        ({"sliding_window": 16}, "sliding window"),
    ],
)
def test_other_shapes_are_refused_with_the_way_out(sources, tmp_path, change, why):
    source = shutil.copytree(sources["llama"], tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UsageError, match=f"{why}.*convert_hf_to_gguf.py"):
        written(source, tmp_path / "m.gguf")


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(sources, tmp_path):
    source = shutil.copytree(sources["llama"], tmp_path / "source")
    backend = json.loads((source / "tokenizer.json").read_text())
    backend["pre_tokenizer"]["pretrokenizers"] = backend["pre_tokenizer"]["pretokenizers"].insert(
        0, {"type": "Whitespace"}
    )
    (source / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(UsageError, match=r"splits texts.*convert_hf_to_gguf.py"):
        written(source, tmp_path / "m.gguf")


def test_pad_never_ends_an_answer(sources, tmp_path):
    """As in SmolLM2, whose file names the end as pad."""
    tokens = Tokenizer.load(sources["llama"])
    path = rewritten(
        written(sources["llama"], tmp_path / "m.gguf"),
        tmp_path / "eos.gguf",
        **{"tokenizer.ggml.padding_token_id": tokens.eos_id},
    )
    lines = gguf_import.read(path, tmp_path / "back")
    loaded = Tokenizer.load(tmp_path / "back")
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert loaded.pad_id not in loaded.end_ids and config["pad_token_id"] == loaded.pad_id
    assert AutoTokenizer.from_pretrained(tmp_path / "back").pad_token == "<|endoftext|>"
    assert any(line.startswith("pad: `<|endoftext|>`") for line in lines)


def test_a_system_text_of_the_template_is_named(sources, tmp_path):
    lines = gguf_import.read(written(sources["llama"], tmp_path / "m.gguf"), tmp_path / "back")
    assert any("'Be kind.'" in line for line in lines)
    assert "Be kind." in (tmp_path / "back/README.md").read_text()
    plain = "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    path = rewritten(tmp_path / "m.gguf", tmp_path / "plain.gguf", **{"tokenizer.chat_template": plain})
    assert not any("chat template" in line for line in gguf_import.read(path, tmp_path / "plain"))


def test_the_card_tells_licence_origin_and_loss(sources, tmp_path):
    named = {
        "general.license": "apache-2.0",
        "general.organization": "The Makers",
        "general.base_model.0.repo_url": "https://huggingface.co/makers/model",
    }
    path = rewritten(written(sources["llama"], tmp_path / "m.gguf"), tmp_path / "n.gguf", **named)
    gguf_import.read(path, tmp_path / "back")
    card = (tmp_path / "back/README.md").read_text()
    for text in ("license: apache-2.0", "base_model: makers/model", "The Makers", "bits a weight", "n.gguf"):
        assert text in card, text
    gguf_export.write(tmp_path / "back", tmp_path / "again.gguf", None, "tuned")
    metadata = gguf_header.read(tmp_path / "again.gguf", gguf_import._block_sizes()).metadata
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/makers/model"


def test_what_quantisation_left_is_said(sources, tmp_path):
    """Q8_0 in place of bf16: 8.5 bits a weight, and bfloat16 cannot hold all of its numbers."""
    path = written(sources["llama"], tmp_path / "m.gguf")
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    kind, wanted = gguf.GGMLQuantizationType.Q8_0, {}
    for tensor in reader.tensors:
        exact = gguf.dequantize(tensor.data, tensor.tensor_type)
        if exact.ndim == 2:
            wanted[tensor.name] = gguf.quantize(exact, kind)
            writer.add_tensor(tensor.name, wanted[tensor.name], raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, np.array(exact))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lines = gguf_import.read(tmp_path / "q.gguf", tmp_path / "back")
    assert any("Q8_0" in line and "8.5" in line and "cannot be undone" in line for line in lines)
    assert any("rounding to bfloat16" in line for line in lines)
    table = torch.from_numpy(gguf.dequantize(wanted["token_embd.weight"], kind)).bfloat16()
    assert torch.equal(weights(tmp_path / "back")["model.embed_tokens.weight"], table)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_keeps_its_stretched_positions(tmp_path, factor):
    """transformers leaves them out of the configuration of a GGUF file."""
    rope = {"rope_theta": 500_000.0, **next(known for known in rotary_stretch.KNOWN if known["factor"] == factor)}
    source = gguf_models.make(
        tmp_path / "source", "llama", "llama-bpe", rope_parameters=rope, max_position_embeddings=1 << 14
    )
    gguf_import.read(written(source, tmp_path / "m.gguf"), tmp_path / "back")
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, tmp_path / "back"))
    assert one.config.rope_parameters == other.config.rope_parameters == rope
    plain = 500_000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = torch.from_numpy(rotary_stretch.factors(rope, 500_000.0, 16)).float()
    assert torch.allclose(plain / other.model.rotary_emb.inv_freq, factors, rtol=1e-5)
    assert factors.max() == factor and factors.min() == 1
    assert rotary_stretch.recognised(factors.numpy() * 1.1, 500_000.0) is None


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "stretches rotary positions"),
        ({"split.count": 3}, "join them first"),
        ({"general.type": "adapter"}, "not a model"),
        ({"llama.block_count": 1_000_000}, "block_count"),
        ({"llama.block_count": 1}, "would compute something else"),
        ({"llama.embedding_length": 1 << 20}, "model.gguf|numbers|weights"),
        ({"llama.feed_forward_length": 95}, "shape"),
        ({"llama.attention.head_count": 0}, "cannot be loaded"),
        ({"llama.rope.freq_base": float("nan")}, "not above 0"),
        ({"tokenizer.ggml.eos_token_id": 1 << 20}, r"m\.gguf: tokenizer.ggml.eos_token_id is 1048576"),
        ({"general.architecture": "nothing"}, "nothing"),
    ],
)
def test_metadata_that_fit_no_model_are_refused(sources, tmp_path, more, why):
    path = rewritten(written(sources["llama"], tmp_path / "model.gguf"), tmp_path / "m.gguf", **more)
    with pytest.raises(PlatformError, match=why):
        gguf_import.read(path, tmp_path / "back")
    assert {file.name for file in tmp_path.iterdir()} == {"model.gguf", "m.gguf"}


def test_a_tokenizer_that_contradicts_the_tokens_is_refused(sources, tmp_path):
    other = (sources["qwen2"] / "tokenizer.json").read_text()
    path = rewritten(written(sources["llama"], tmp_path / "model.gguf"), tmp_path / "m.gguf", **{WHOLE: other})
    with pytest.raises(PlatformError, match=f"m.gguf: {WHOLE}: its token"):
        gguf_import.read(path, tmp_path / "back")


@pytest.mark.parametrize("id", [0, 1, 2])
def test_every_token_is_held_against_the_list(id):
    whole = json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<end>"}]})
    tokens = ["a", "b", "<end>"]
    assert gguf_tokenizer.from_metadata({"tokenizer.ggml.tokens": tokens, WHOLE: whole}) == json.loads(whole)
    tokens[id] = "other"
    with pytest.raises(PlatformError, match=f"{WHOLE}: its token {id} is not the one"):
        gguf_tokenizer.from_metadata({"tokenizer.ggml.tokens": tokens, WHOLE: whole})


def test_unknown_splits_are_named(sources, tmp_path):
    path = written(sources["llama"], tmp_path / "model.gguf")
    path = rewritten(path, tmp_path / "m.gguf", drop=(WHOLE,), **{"tokenizer.ggml.pre": "poro-chat"})
    lines = gguf_import.read(path, tmp_path / "back")
    assert any("'poro-chat'" in line and "compare tokens" in line for line in lines)


SPLIT = {
    "gpt-2": ["Ġ", "Ġ12345", "Ġx", "'", "S"],
    "smollm": ["ĠĠ", "1", "2", "3", "4", "5", "Ġx", "'", "S"],
    "llama-bpe": ["Ġ", "Ġ", "123", "45", "Ġx", "'S"],
    "qwen2": ["Ġ", "Ġ", "1", "2", "3", "4", "5", "Ġx", "'S"],
    "tekken": ["Ġ", "Ġ", "1", "2", "3", "4", "5", "Ġx", "'S"],
}
"""What llama.cpp's patterns make of a text: by hand."""


@pytest.mark.parametrize("name", gguf_tokenizer.SPLITS)
def test_splits_are_those_of_llama_cpp(name):
    backend = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    backend["pre_tokenizer"] = gguf_tokenizer.SPLITS[name].pre_tokenizer()
    split = tokenizers.Tokenizer.from_str(json.dumps(backend)).pre_tokenizer
    assert [part for part, _ in split.pre_tokenize_str("  12345 x'S")] == SPLIT[name]


def test_ends_are_all_that_the_file_names():
    named = {"tokenizer.ggml.tokens": list("abcd")}
    named |= {f"tokenizer.ggml.{role}_token_id": id for role, id in (("eot", 1), ("eos", 3), ("eom", 1), ("bos", 0))}
    assert gguf_tokenizer.ends(named) == [3, 1]
    with pytest.raises(PlatformError, match=r"eom_token_id is 4, but there are 4 tokens"):
        gguf_tokenizer.ends(named | {"tokenizer.ggml.eom_token_id": 4})


def test_scores_say_how_sentencepiece_merges():
    """By hand: "abc" is made of ab + c or a + bc, and the better score goes first."""
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    assert gguf_tokenizer.merges_of(tokens, [0, 0, 0, -2.0, -1.0, -3.0]) == [
        ("b", "c"),
        ("a", "b"),
        ("a", "bc"),
        ("ab", "c"),
    ]


def test_rows_of_a_head_are_turned_into_pairs():
    rows = torch.arange(8)[:, None].expand(8, 8)
    turned = gguf_export.turned(rows, heads=2)
    assert turned[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_verbs(sources, tmp_path, monkeypatch, capsys):
    path = written(sources["qwen2"], tmp_path / "a model.gguf")
    out = tmp_path / "new/model"
    monkeypatch.setattr("sys.argv", ["preferent", "import", str(path), "--out", str(out)])
    main.main()
    said = capsys.readouterr()
    assert str(out) in said.out and "bits a weight" in said.out and "it/s" not in said.err
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2 and "exists already" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["preferent", "import", str(tmp_path / "none.gguf"), "--out", str(tmp_path / "x")])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 3


def test_without_the_package_the_way_out_is_named(sources, tmp_path, monkeypatch):
    path = written(sources["llama"], tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    for call in (
        lambda: gguf_import.read(path, tmp_path / "x"),
        lambda: written(sources["llama"], tmp_path / "n.gguf"),
    ):
        with pytest.raises(PlatformError, match=r"gguf.*pip install 'preferent\[gguf\]'"):
            call()


@pytest.mark.skipif(not SMOLLM2.exists(), reason="make smollm2")
def test_smollm2_splits_digits_and_pads_with_no_end():
    tokenizer = Tokenizer.load(SMOLLM2)
    assert tokenizer.encode_text("  12") == [256, 33, 34], "llama.cpp gives these too; transformers alone does not"
    assert tokenizer.pad_id not in tokenizer.end_ids


@pytest.mark.acceptance
@pytest.mark.skipif(not SMOLLM2.exists(), reason="make smollm2")
def test_smollm2_comes_back(tmp_path):
    gguf_import.read(written(SMOLLM2, tmp_path / "m.gguf"), tmp_path / "back")
    before, after = weights(SMOLLM2), weights(tmp_path / "back")
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (SMOLLM2 / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
