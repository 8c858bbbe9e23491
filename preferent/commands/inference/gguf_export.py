"""A model folder of the shape of Llama, Mistral or Qwen2 as one GGUF file, as llama.cpp and Ollama load it."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from safetensors import safe_open
from torch import Tensor

from preferent.commands import gguf_tokenizer
from preferent.config import model_folder
from preferent.data.tokenizer import Tokenizer
from preferent.errors import PlatformError, UsageError
from preferent.models import model_card

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""The names in GGUF of the shapes that are written; llama.cpp loads a Mistral as a Llama."""
PRECISIONS = {"bf16": torch.bfloat16, "f16": torch.float16}
"""How matrices are stored; vectors (norms and biases) are in fp32, as llama.cpp wants them."""
OTHERWISE = (
    "write it with --what merged and convert that with llama.cpp: python LLAMA_CPP/convert_hf_to_gguf.py DIR "
    "--outfile model.gguf"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model, as its config.json has them."""

    architecture: str
    blocks: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_width: int
    rows: int
    longest: int
    epsilon: float
    theta: float


def write(folder: Path, path: Path, precision: str | None, name: str) -> list[str]:
    """Write the model in a folder to a GGUF file; return what the user should know.

    `precision` is a key of `PRECISIONS`; None: bf16 for a model stored in bfloat16, else f16. Raise `UsageError` for a
    model that llama.cpp loads but this does not write, `PlatformError` without the package gguf.
    """
    try:
        package = importlib.import_module("gguf")
    except ImportError:
        raise PlatformError("--what gguf needs the package gguf: pip install 'preferent[gguf]'") from None
    shape = shape_of(folder)
    if precision is None:
        precision = "bf16" if model_folder.read_object(folder / "config.json").get("dtype") == "bfloat16" else "f16"
    writer = package.GGUFWriter(path, shape.architecture)
    _add_sizes(writer, shape)
    _add_origin(writer, folder, name)
    writer.add_file_type(int(package.LlamaFileType[f"MOSTLY_{precision.upper()}"]))
    notes = _add_tokenizer(writer, folder, shape.rows)
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    stored = [(name, tensor.shape, _dtype(tensor, precision)) for name, tensor in _tensors(package, folder, shape)]
    for tensor_name, size, dtype in stored:
        count = torch.Size(size).numel() * dtype.itemsize
        kind = package.GGMLQuantizationType[kinds[dtype]]
        writer.add_tensor_info(tensor_name, tuple(size), np.dtype(np.float32), count, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor_name, tensor in _tensors(package, folder, shape):
        writer.write_tensor_data(_bytes(tensor_name, tensor, _dtype(tensor, precision)))
    writer.close()
    return [f"matrices in {precision}", *notes]


def shape_of(folder: Path) -> Shape:
    """Return the sizes of the model in a folder; raise `UsageError` for a shape that is not written here."""
    config = model_folder.read_object(folder / "config.json")
    kind = str(next(iter(config.get("architectures") or []), ""))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    reasons = {
        f"its shape {kind or 'without a name'} is none of {', '.join(ARCHITECTURES)}": kind not in ARCHITECTURES,
        "its attention or MLP has biases": bool(config.get("attention_bias") or config.get("mlp_bias")),
        "its activation is not SiLU": config.get("hidden_act", "silu") != "silu",
        "it stretches rotary positions": rope.get("rope_type", "default") != "default",
        "its rotary positions turn a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "it attends within a sliding window": bool(_window(config)),
    }
    if why := next((why for why, holds in reasons.items() if holds), None):
        raise UsageError(f"{folder}: is not written as GGUF here, because {why}; {OTHERWISE}")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return Shape(
        ARCHITECTURES[kind],
        blocks=config["num_hidden_layers"],
        hidden=hidden,
        inner=config["intermediate_size"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or hidden // heads,
        rows=config["vocab_size"],
        longest=config["max_position_embeddings"],
        epsilon=config["rms_norm_eps"],
        theta=rope.get("rope_theta") or config.get("rope_theta") or 10_000.0,
    )


def _window(config: Mapping[str, Any]) -> bool:
    """Return whether attention ends before the longest sequence does; Qwen2 names a window that it does not use."""
    window = config.get("sliding_window")
    return bool(window) and config.get("use_sliding_window", True) and window < config["max_position_embeddings"]


def _add_sizes(writer: Any, shape: Shape) -> None:
    writer.add_block_count(shape.blocks)
    writer.add_context_length(shape.longest)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.theta)
    writer.add_rope_dimension_count(shape.head_width)
    if shape.head_width * shape.heads != shape.hidden:
        writer.add_key_length(shape.head_width)
        writer.add_value_length(shape.head_width)
    writer.add_vocab_size(shape.rows)


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


def _tensors(package: Any, folder: Path, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under their names in GGUF, one at a time."""
    names = package.get_tensor_name_map(_architecture(package, shape), shape.blocks)
    for path in model_folder.weights(folder):
        with safe_open(path, framework="pt") as weights:
            for key in sorted(weights.keys()):
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise UsageError(f"{folder}: its weight {key} has no name in GGUF; {OTHERWISE}")
                yield name, turned(weights.get_tensor(key), key, shape)


def _architecture(package: Any, shape: Shape) -> Any:
    return next(key for key, name in package.MODEL_ARCH_NAMES.items() if name == shape.architecture)


def turned(weight: Tensor, name: str, shape: Shape) -> Tensor:
    """Return a weight with its rows in llama.cpp's order: there, the two channels of a rotation are neighbours.

    Only queries and keys of Llama's kind [heads * width, D]: of each head the channels i and i + width / 2 become 2i
    and 2i + 1. Qwen2 keeps the halves in llama.cpp too.
    """
    heads = {"q_proj": shape.heads, "k_proj": shape.key_value_heads}.get(name.split(".")[-2])
    if shape.architecture != "llama" or heads is None:
        return weight
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
