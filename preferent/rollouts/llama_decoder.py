"""Decoding of models that are built as Llama is, one token of every row at a time, over their own key-value blocks.

A row has its own length, its keys and values begin at the first column, and rows are kept dense: attention, layers and
head are computed for live rows and real tokens only. Projections of one input are one product, over copies of the
weights that are made when decoding starts; linear layers of large models, and those that are not plain (LoRA,
quantised), are called as they are.

Shapes: L live rows, T tokens, D hidden size, H heads and K key-value heads of size E, N columns of the blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from preferent.config.model_shape import COPIED_BYTES
from preferent.models import sharding
from preferent.models.language_models import Policy
from preferent.models.world import has_bf16, to_device

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
BLOCK = 64
"""Key-value blocks grow by this many columns."""

CACHED_TOKENS = 1024
"""Prompt tokens that a CPU reads in one pass at most where a model is small, so that its states stay in the cache."""

ROWS = 64
"""Packed weights are laid out for products of about this many rows."""

Linear = Callable[[Tensor], Tensor]


def obstacle(policy: Policy, length: int) -> str | None:
    """Return why rows of `length` tokens cannot be decoded here with the hidden states of the model itself, or None."""
    config, kind = policy.body.config, policy.body.config.model_type
    if kind not in FAMILIES or sharding.kind(policy.body).__module__ != f"transformers.models.{kind}.modeling_{kind}":
        return f"{sharding.kind(policy.body).__name__} is not built as Llama is"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    rope = config.rope_parameters
    if rope["rope_type"] not in STATIC_ROPE or rope.get("partial_rotary_factor", 1.0) != 1:
        return f"its positions are turned by {rope['rope_type']}"
    window = getattr(config, "sliding_window", None)
    if window and length > window and set(getattr(config, "layer_types", None) or [""]) != {"full_attention"}:
        return f"it attends to a window of {window} tokens, and rows are longer"
    return None


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its norms, joined projections, and how queries are scaled."""

    attention_norm: Linear
    qkv: Linear
    query_norm: Linear | None
    key_norm: Linear | None
    output: Linear
    mlp_norm: Linear
    gate_up: Linear
    down: Linear
    scaling: float

    @classmethod
    def of(cls, layer: Any, copied: bool) -> "Layer":
        """Read a Hugging Face layer."""
        attention, mlp = layer.self_attn, layer.mlp
        query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        return cls(
            _norm(layer.input_layernorm),
            _joined([attention.q_proj, attention.k_proj, attention.v_proj], copied),
            query_norm and _norm(query_norm),
            key_norm and _norm(key_norm),
            _joined([attention.o_proj], copied),
            _norm(layer.post_attention_layernorm),
            _joined([mlp.gate_proj, mlp.up_proj], copied),
            _joined([mlp.down_proj], copied),
            attention.scaling,
        )

    def heads(self, x: Tensor, kv_heads: int, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [T, H, E], keys and values [T, K, E] of hidden states [T, D]."""
        cos, sin = rotation
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, cos.shape[-1]))
        rotated, values = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
        if self.query_norm and self.key_norm:
            queries, keys = rotated[:, :-kv_heads], rotated[:, -kv_heads:]
            rotated = torch.cat([self.query_norm(queries), self.key_norm(keys)], 1)
        rotated = torch.addcmul(rotated * cos, rotated.roll(cos.shape[-1] // 2, -1), sin)
        return rotated[:, :-kv_heads], rotated[:, -kv_heads:], values

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output [T, D] from its input [T, D] and what its heads attended to [T, H * E]."""
        x = x + self.output(attended)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class LlamaDecoder:
    """The live rows of one policy and their keys and values; at most `rows` rows of `length` tokens."""

    refills = True

    def __init__(self, policy: Policy, rows: int, length: int, prefill_tokens: int) -> None:
        self.policy, self.rows, self.length = policy, rows, length
        base: Any = policy.body.base_model
        copied = sum(parameter.nbytes for parameter in policy.body.parameters()) <= COPIED_BYTES
        in_cache = copied and policy.world.device.type == "cpu"
        self.prefill_tokens = min(prefill_tokens, CACHED_TOKENS) if in_cache else prefill_tokens
        self.embed, self.norm = base.embed_tokens, _norm(base.norm)
        self.head = _joined([policy.body.get_output_embeddings()], copied)
        self.layers = [Layer.of(layer, copied) for layer in base.layers]
        self.joined = copied and all(type(layer.self_attn.q_proj) is nn.Linear for layer in base.layers)
        self.device, self.dtype = policy.world.device, base.norm.weight.dtype
        self.kv_heads = int(policy.body.config.num_key_value_heads)
        cos, sin = base.rotary_emb(base.norm.weight, torch.arange(length, device=self.device)[None])
        sign = torch.ones(cos.shape[-1], device=self.device, dtype=self.dtype)
        sign[: len(sign) // 2] = -1
        self.cos, self.sin = cos[0][:, None], (sin[0] * sign)[:, None]
        self.blocks = [self._block(0) for _ in self.layers]
        self.lengths = np.zeros(0, np.int64)

    def admit(self, prompts: Sequence[np.ndarray]) -> Tensor:
        """Read prompts into new rows behind the others; return the hidden states [len(prompts), D] of their ends."""
        self.policy.activate()
        return torch.cat([self._read(part) for part in _parts(prompts, self.prefill_tokens)])

    def step(self, ids: Tensor) -> Tensor:
        """Append one token to every row; return their hidden states [L, D]."""
        self.policy.activate()
        count, kv_heads = len(self.lengths), self.kv_heads
        self._grow(int(self.lengths.max()) + 1)
        places = to_device(self.lengths, self.device)
        self.lengths = self.lengths + 1
        used, bias = int(self.lengths.max()), self._bias(self.lengths)
        first = torch.arange(count * kv_heads, device=self.device) * self.blocks[0].shape[3]
        columns = first + places.repeat_interleave(kv_heads)
        rotation = self.cos[places], self.sin[places]
        x = self.embed(ids)
        for layer, block in zip(self.layers, self.blocks, strict=True):
            queries, keys, values = layer.heads(x, kv_heads, rotation)
            block[0].view(-1, block.shape[-1]).index_copy_(0, columns, keys.reshape(-1, block.shape[-1]))
            block[1].view(-1, block.shape[-1]).index_copy_(0, columns, values.reshape(-1, block.shape[-1]))
            attended = attend(queries, block[0, :count, :, :used], block[1, :count, :, :used], bias, layer.scaling)
            x = layer.after_attention(x, attended)
        return self.norm(x)

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """Return logits [L, V] of hidden states [L, D], as the policy does it."""
        return self.policy.tempered(self.head(hidden), temperature)

    def keep(self, order: np.ndarray) -> None:
        """Keep the rows `order` of the present ones; row i becomes row order[i]. Rows that stay are not copied."""
        moved = np.flatnonzero(order != np.arange(len(order)))
        if len(moved):
            to, source = to_device(moved, self.device), to_device(order[moved], self.device)
            used = int(self.lengths.max())
            for block in self.blocks:
                block[:, to, :, :used] = block[:, source, :, :used]
        self.lengths = self.lengths[order]

    def _read(self, prompts: Sequence[np.ndarray]) -> Tensor:
        """Read prompts in one pass: tokens are packed for the layers, and padded on the right for attention."""
        lengths, first = np.array([len(prompt) for prompt in prompts]), len(self.lengths)
        width, count = int(lengths.max()), len(prompts)
        self._grow(width + 1)
        rows_T = to_device(np.repeat(np.arange(count), lengths), self.device)
        places_T = to_device(np.concatenate([np.arange(length) for length in lengths]), self.device)
        ends = to_device(np.cumsum(lengths) - 1, self.device)
        bias = self._bias(lengths)
        rotation = self.cos[places_T], self.sin[places_T]
        x = self.embed(to_device(np.concatenate(prompts).astype(np.int64), self.device))
        for index, (layer, block) in enumerate(zip(self.layers, self.blocks, strict=True)):
            queries, keys, values = layer.heads(x, self.kv_heads, rotation)
            block[0, first + rows_T, :, places_T], block[1, first + rows_T, :, places_T] = keys, values
            all_keys, all_values = block[:, first : first + count, :, :width]
            if index + 1 == len(self.layers):
                # Behind the last layer only the last token of a prompt is read.
                x = layer.after_attention(x[ends], attend(queries[ends], all_keys, all_values, bias, layer.scaling))
            else:
                padded = queries.new_zeros(count, width, *queries.shape[1:])
                padded[rows_T, places_T] = queries
                gqa = queries.shape[1] != self.kv_heads
                attended = F.scaled_dot_product_attention(
                    padded.transpose(1, 2), all_keys, all_values, is_causal=True, scale=layer.scaling, enable_gqa=gqa
                )
                x = layer.after_attention(x, attended.transpose(1, 2)[rows_T, places_T].flatten(1))
        self.lengths = np.concatenate([self.lengths, lengths])
        return self.norm(x)

    def _bias(self, lengths: np.ndarray) -> Tensor | None:
        """Return 0 at the columns of each row and -inf behind them, [L, N], or None for rows of one length."""
        width = int(lengths.max())
        if lengths.min() == width:
            return None
        kept = torch.arange(width, device=self.device) < to_device(lengths, self.device)[:, None]
        return torch.zeros(kept.shape, dtype=self.dtype, device=self.device).masked_fill_(~kept, -torch.inf)

    def _block(self, columns: int) -> Tensor:
        """Return zeros for keys and values of a layer, [2, rows, K, columns, E]: masked columns are read too."""
        return _zeros((2, self.rows, self.kv_heads, columns, self.cos.shape[-1]), self.dtype, self.device)

    def _grow(self, columns: int) -> None:
        """Make room for `columns` tokens in a row."""
        present = self.blocks[0].shape[3]
        if columns <= present:
            return
        columns = min(-(-columns // BLOCK) * BLOCK, self.length)
        count = len(self.lengths)
        for index, block in enumerate(self.blocks):
            self.blocks[index] = self._block(columns)
            self.blocks[index][:, :count, :, :present] = block[:, :count]


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Return what one query of each row attends to, [L, H * E].

    Queries are [L, H, E], keys and values [L, K, N, E], the bias (0 or -inf) is [L, N]. In fp32 on a CPU two batched
    products are faster than the fused kernel, which in bf16 is faster than they are.
    """
    rows, heads, size = queries.shape
    kv_heads = keys.shape[1]
    if queries.device.type == "cpu" and queries.dtype == torch.float32:
        grouped = (queries * scaling).view(rows * kv_heads, heads // kv_heads, size)
        scores = torch.bmm(grouped, keys.flatten(0, 1).transpose(1, 2))
        if bias is not None:
            scores.view(rows, heads, -1).add_(bias[:, None])
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(rows, heads * size)
    bias = None if bias is None else bias[:, None, None]
    attended = F.scaled_dot_product_attention(
        queries[:, :, None], keys, values, bias, scale=scaling, enable_gqa=heads != kv_heads
    )
    return attended.reshape(rows, heads * size)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros. On a CPU they are numpy's, which asks for large pages: these are filled and read faster."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(shape, f"i{dtype.itemsize}")).view(dtype)


def _norm(module: Any) -> Linear:
    """Return a root mean square norm over the last dimension, in fp32 inside as in transformers."""
    return lambda x: torch.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _joined(linears: Sequence[nn.Module], copied: bool) -> Linear:
    """Return linear layers of one input as one function, whose outputs [T, ...] stand side by side."""
    if not (copied and all(type(linear) is nn.Linear for linear in linears)):
        return linears[0] if len(linears) == 1 else lambda x: torch.cat([linear(x) for linear in linears], -1)
    whole = torch.cat([linear.get_parameter("weight") for linear in linears])
    biases = [linear.bias for linear in linears if isinstance(linear.bias, Tensor)]
    bias = torch.cat(biases) if biases else None
    if whole.dtype == torch.bfloat16 and whole.device.type == "cpu" and has_bf16(whole.device):
        # The layout that the processor's matrix unit reads; a product of a plain matrix makes it every time.
        packed = torch.ops.mkldnn._reorder_linear_weight(whole, ROWS)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    weight = whole.t().contiguous()
    return lambda x: x @ weight if bias is None else torch.addmm(bias, x, weight)


def _parts(prompts: Sequence[np.ndarray], tokens: int) -> list[Sequence[np.ndarray]]:
    """Cut prompts into runs of at most `tokens` padded tokens (one prompt may exceed it)."""
    parts, start, width = [], 0, 0
    for end, prompt in enumerate(prompts):
        width = max(width, len(prompt))
        if end > start and (end + 1 - start) * width > tokens:
            parts.append(prompts[start:end])
            start, width = end, len(prompt)
    return [*parts, prompts[start:]]
