"""A model folder of the shape of Llama, Mistral or Qwen2 as one GGUF file, as llama.cpp and Ollama load it."""

import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from safetensors import safe_open
from torch import Tensor

from preferent.commands import gguf_tokenizer, rotary_stretch
from preferent.config import model_folder
from preferent.config.model_shape import Shape
from preferent.data.tokenizer import Tokenizer
from preferent.errors import PlatformError, UsageError
from preferent.runs import model_card

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""The names in GGUF of the shapes that are written; llama.cpp loads a Mistral as a Llama."""
PRECISIONS = {"bf16": torch.bfloat16, "f16": torch.float16}
"""How matrices are stored; vectors (norms and biases) are in fp32, as llama.cpp wants them."""
OTHERWISE = (
    "write it with --what merged and convert that with llama.cpp: python LLAMA_CPP/convert_hf_to_gguf.py DIR "
    "--outfile model.gguf"
)


def write(folder: Path, path: Path, precision: str | None, name: str) -> list[str]:
    """Write the model in a folder to a GGUF file; return what the user should know.

    `precision` is a key of `PRECISIONS`; None: bf16 for a model stored in bfloat16, else f16. Raise `UsageError` for a
    model that llama.cpp loads but this does not write, `PlatformError` without the package gguf.
    """
    try:
        package = importlib.import_module("gguf")
    except ImportError:
        raise PlatformError("--what gguf needs the package gguf: pip install 'preferent[gguf]'") from None
    config = model_folder.read_object(folder / "config.json")
    architecture, shape = architecture_of(config, folder)
    if precision is None:
        precision = "bf16" if config.get("dtype") == "bfloat16" else "f16"
    writer = package.GGUFWriter(path, architecture)
    _add_sizes(writer, config, shape)
    _add_origin(writer, folder, name)
    writer.add_file_type(int(package.LlamaFileType[f"MOSTLY_{precision.upper()}"]))
    notes = _add_tokenizer(writer, folder, shape.vocab_size)
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    weights = partial(_tensors, package, folder, architecture, config, shape)
    stored = [(tensor_name, tensor.shape, _dtype(tensor, precision)) for tensor_name, tensor in weights()]
    for tensor_name, size, dtype in stored:
        count = torch.Size(size).numel() * dtype.itemsize
        kind = package.GGMLQuantizationType[kinds[dtype]]
        writer.add_tensor_info(tensor_name, tuple(size), np.dtype(np.float32), count, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor_name, tensor in weights():
        writer.write_tensor_data(_bytes(tensor_name, tensor, _dtype(tensor, precision)))
    writer.close()
    return [f"matrices in {precision}", *notes]


def architecture_of(config: Mapping[str, Any], folder: Path) -> tuple[str, Shape]:
    """Return the architecture in GGUF and the sizes of the model that a config.json describes.

    Raise `UsageError` for a shape that is not written here.
    """
    kind = str(next(iter(config.get("architectures") or []), ""))
    rope, shape = config.get("rope_parameters") or config.get("rope_scaling") or {}, Shape.of(config)
    reasons = {
        f"its shape {kind or 'without a name'} is none of {', '.join(ARCHITECTURES)}": kind not in ARCHITECTURES,
        "its config.json leaves out sizes": shape is None,
        "its attention or MLP has biases": bool(config.get("attention_bias") or config.get("mlp_bias")),
        "its activation is not SiLU": config.get("hidden_act", "silu") != "silu",
        "it stretches rotary positions": not _is_written(rope),
        "its rotary positions turn a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "it attends within a sliding window": _window(config),
    }
    if why := next((why for why, holds in reasons.items() if holds), None):
        raise UsageError(f"{folder}: is not written as GGUF here, because {why}; {OTHERWISE}")
    assert shape is not None, "refused above"
    return ARCHITECTURES[kind], shape


def _is_written(rope: Mapping[str, Any]) -> bool:
    """Return whether rotary positions are plain, or stretched as a tensor of factors says."""
    kind = rope.get("rope_type", "default")
    return kind == "default" or (
        kind == "llama3" and any(known.items() <= rope.items() for known in rotary_stretch.KNOWN)
    )


def _window(config: Mapping[str, Any]) -> bool:
    """Return whether attention ends before the longest sequence does; Qwen2 names a window that it does not use."""
    window = config.get("sliding_window")
    return bool(window) and config.get("use_sliding_window", True) and window < config["max_position_embeddings"]


def _add_sizes(writer: Any, config: Mapping[str, Any], shape: Shape) -> None:
    rope = config.get("rope_parameters") or {}
    writer.add_block_count(shape.layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    writer.add_rope_dimension_count(shape.head_size)
    if shape.query != shape.hidden_size:
        writer.add_key_length(shape.head_size)
        writer.add_value_length(shape.head_size)
    writer.add_vocab_size(shape.vocab_size)


def _add_origin(writer: Any, folder: Path, name: str) -> None:
    """Add name, licence and base of the model, as its card tells them."""
    front = model_card.front_matter(folder / "README.md")
    writer.add_type("model")
    writer.add_name(name)
    for key, add in (
        ("license", writer.add_license),
        ("license_name", writer.add_license_name),
        ("license_link", writer.add_license_link),
    ):
        if isinstance(front.get(key), str):
            add(front[key])
    if isinstance(base := front.get("base_model"), str):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.split("/")[-1])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")


# Tokenizer


def _add_tokenizer(writer: Any, folder: Path, rows: int) -> list[str]:
    """Add vocabulary, special tokens and chat template; return what should be known of them."""
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    try:
        vocabulary = gguf_tokenizer.to_vocabulary(model_folder.read_object(folder / "tokenizer.json"), rows)
    except UsageError as error:
        raise UsageError(f"{folder}: is not written as GGUF here, because {error}; {OTHERWISE}") from None
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == "gpt2":
        writer.add_token_merges(list(vocabulary.merges))
    else:
        writer.add_token_scores(list(vocabulary.scores))
    writer.add_add_space_prefix(vocabulary.space_prefix)
    writer.add_string(gguf_tokenizer.WHOLE, text)
    backend, own = tokenizers.Tokenizer.from_str(text), Tokenizer.load(folder)
    named = model_folder.read_object(folder / "tokenizer_config.json")
    ends = [own.eos_id, *sorted(own.end_ids - {own.eos_id})]
    for role in ("bos", "eos", "unk", "pad"):
        id = backend.token_to_id(_content(named.get(f"{role}_token")) or "")
        if id is not None:
            getattr(writer, f"add_{role}_token_id")(id)
    for id, add in zip(ends[1:], (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(id)
    writer.add_add_bos_token(own.bos_id is not None and backend.encode("a").ids[:1] == [own.bos_id])
    if (template := folder / "chat_template.jinja").is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))
    return list(_notes(vocabulary, ends))


def _notes(vocabulary: gguf_tokenizer.GgufVocabulary, ends: list[int]) -> Iterator[str]:
    if vocabulary.more_merges:
        yield (
            f"llama.cpp joins {vocabulary.more_merges:,} pairs of tokens that the tokenizer does not: rare words may "
            "become other tokens there"
        )
    if len(ends) > 3:
        yield f"of {len(ends)} tokens that end an answer a GGUF file names three; name the others to llama.cpp"


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


# Weights


def _tensors(
    package: Any, folder: Path, architecture: str, config: Mapping[str, Any], shape: Shape
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under their names in GGUF, one at a time."""
    kind = next(kind for kind, name in package.MODEL_ARCH_NAMES.items() if name == architecture)
    names = package.get_tensor_name_map(kind, shape.layers)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        yield rotary_stretch.TENSOR, torch.from_numpy(rotary_stretch.factors(rope, rope["rope_theta"], shape.head_size))
    rotated = {"q_proj": shape.heads, "k_proj": shape.key_value_heads} if architecture == "llama" else {}
    for path in model_folder.weights(folder):
        with safe_open(path, framework="pt") as weights:
            for key in sorted(weights.keys()):
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise UsageError(f"{folder}: its weight {key} has no name in GGUF; {OTHERWISE}")
                heads = rotated.get(key.split(".")[-2])
                weight = weights.get_tensor(key)
                yield name, weight if heads is None else turned(weight, heads)


def turned(weight: Tensor, heads: int) -> Tensor:
    """Return queries or keys [heads * width, D] with their rows in llama.cpp's order.

    There the two channels of a rotation are neighbours: of each head the channels i and i + width / 2 become 2i and
    2i + 1. Qwen2 keeps the halves in llama.cpp too.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _dtype(tensor: Tensor, precision: str) -> torch.dtype:
    return torch.float32 if tensor.dim() < 2 else PRECISIONS[precision]


def _bytes(name: str, tensor: Tensor, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    """Return the bytes of a tensor in a precision; raise `UsageError` if it does not hold one of its numbers."""
    stored = tensor.to(dtype).contiguous()
    if not torch.isfinite(stored).all() and torch.isfinite(tensor).all():
        raise UsageError(f"{name} has a number beyond 65,504, the largest in f16; use --precision bf16")
    numbers: np.ndarray[Any, Any] = stored.view(torch.uint8).numpy()
    return numbers
