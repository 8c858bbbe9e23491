"""Hidden states of decoders of Llama's shape for training, with fewer operations and kept tensors than transformers'.

Nothing is computed for padding, and the last layer ends at the states that are asked for. Gradients are written out, so
that few tensors are kept. Projections with an adapter or quantized weights are called as they are; what lies between
them is the same. Other decoders, and windows of attention, take the forward pass of transformers.

Shapes: B rows of T columns, M of their tokens (flat) that count, N states asked for, D hidden size, H heads, K heads of
keys and values, d head size.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import linear, scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint
from transformers import LlamaModel, MistralModel, Qwen2Model

from preferent.models import sharding, vocabulary

WORTH_PACKING = 0.95
"""Share of tokens that count from which the others are computed too, because that takes less than leaving them out."""


def applies(decoder: Any) -> bool:
    """Return whether `states` computes what the decoder's own forward pass does."""
    if type(decoder) not in (LlamaModel, MistralModel, Qwen2Model):
        return False
    config = decoder.config
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    window = config.sliding_window if type(decoder) is MistralModel else None
    return config.hidden_act == "silu" and full and window is None


def states(decoder: Any, tokens: Tensor, rows: Tensor, columns: Tensor, checkpointed: bool = False) -> Tensor:
    """Return the hidden states [N, D] after the last norm at `rows` and `columns` [N] of token ids [B, T].

    No token attends to later ones, so a row ends at the last of its columns. `checkpointed` layers are computed again
    in the backward pass.
    """
    places = _Places.of(tokens, rows, columns)
    x = decoder.embed_tokens(tokens.flatten()[places.counted])
    cosine, sine = decoder.rotary_emb(x[None], torch.arange(places.width, device=tokens.device)[None])
    half = cosine.shape[-1] // 2
    turn = cosine[0, :, :half], sine[0, :, :half]
    whole = decoder.config._attn_implementation == "eager"
    count = decoder.config.num_hidden_layers
    for number, layer in enumerate(decoder.layers[:count]):
        chosen = places.chosen if number + 1 == count else None
        compute = partial(_layer, layer, turn=turn, places=places, chosen=chosen, whole=whole)
        if checkpointed:
            x = checkpoint(sharding.passed, layer, compute, x, use_reentrant=False)
        else:
            x = sharding.passed(layer, compute, x)
    return _Norm.apply(x, decoder.norm.weight, decoder.norm.variance_epsilon)  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Places:
    """Where tokens lie: `counted` [M] in the flat [B * T], `chosen` [N] in the M; `width` is T up to the last state."""

    counted: Tensor
    chosen: Tensor
    shape: tuple[int, int]
    is_padded: bool

    @property
    def width(self) -> int:
        return self.shape[1]

    @classmethod
    def of(cls, tokens: Tensor, rows: Tensor, columns: Tensor) -> "_Places":
        shape = tokens.shape[0], tokens.shape[1]
        ends = torch.zeros_like(tokens).index_put_((rows, columns), columns + 1)
        lengths = ends.amax(-1)
        if int(lengths.sum()) >= WORTH_PACKING * tokens.numel():
            return cls(torch.arange(tokens.numel(), device=tokens.device), rows * shape[1] + columns, shape, False)
        counted = torch.arange(shape[1], device=tokens.device) < lengths[:, None]
        starts = lengths.cumsum(0) - lengths
        return cls(counted.flatten().nonzero().squeeze(-1), starts[rows] + columns, shape, True)


def _layer(
    layer: Any, x: Tensor, turn: tuple[Tensor, Tensor], places: _Places, chosen: Tensor | None, whole: bool
) -> Tensor:
    """Return the states [M, D] after a layer, or those of the `chosen` tokens only [N, D]."""
    attention = layer.self_attn
    q, k, v = _heads(layer, x, turn, places)
    if whole:
        attended = _Attention.apply(q, k, v, attention.scaling)  # type: ignore[no-untyped-call]
    else:
        attended = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=attention.scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    attended = attended.transpose(1, 2).flatten(0, 1).flatten(1)
    if places.is_padded or chosen is not None:
        attended = attended.index_select(0, places.counted if chosen is None else places.counted[chosen])
    if chosen is not None:
        x = x.index_select(0, chosen)
    return _fed_forward(layer, x, attended)


def _heads(layer: Any, x: Tensor, turn: tuple[Tensor, Tensor], places: "_Places") -> tuple[Tensor, ...]:
    """Return queries [B, H, T, d], keys and values [B, K, T, d] of states [M, D]."""
    attention, norm = layer.self_attn, layer.input_layernorm
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    if all(type(projection) is Linear for projection in projections):
        parameters = [p for projection in projections for p in (projection.weight, projection.bias)]
        fused: tuple[Tensor, ...] = _Heads.apply(  # type: ignore[no-untyped-call]
            x, norm.weight, norm.variance_epsilon, *parameters, *turn, places, attention.head_dim
        )
        return fused
    entered = _Norm.apply(x, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    flat = [_spread(projection(entered), places) for projection in projections]
    q, k, v = (part.view(*places.shape, -1, attention.head_dim).transpose(1, 2) for part in flat)
    return _Rotation.apply(q, *turn), _Rotation.apply(k, *turn), v  # type: ignore[no-untyped-call]


def _fed_forward(layer: Any, x: Tensor, attended: Tensor) -> Tensor:
    """Return the states [n, D] after a layer, for those before it and the output of its attention."""
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    projections = layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    out, gate, up, down = projections
    if all(type(projection) is Linear and projection.bias is None for projection in projections):
        weights = out.weight, norm.weight, gate.weight, up.weight, down.weight
        fused: Tensor = _FeedForward.apply(x, attended, norm.variance_epsilon, *weights)  # type: ignore[no-untyped-call]
        return fused
    x = x + out(attended)
    entered = _Norm.apply(x, norm.weight, norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return x + down(silu(gate(entered)) * up(entered))  # type: ignore[no-any-return]


def _normed(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x / rms(x) [n, D] in its own dtype, and 1 / rms(x) [n, 1] in fp32 at least (Zhang and Sennrich 2019)."""
    wide = vocabulary.wide(x)  # once: operations on two dtypes convert element by element
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (wide * scale).to(x.dtype), scale


def _norm_gradients(gradient: Tensor, normed: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x [n, D] and of the norm's weight [D] for that of `normed * weight`."""
    product = gradient * normed
    mean = (product @ weight).div_(weight.shape[0])[:, None]
    slope = gradient.mul_(weight).addcmul_(normed, mean, value=-1).mul_(scale.to(gradient.dtype))
    return slope, product.sum(0)


class _Norm(torch.autograd.Function):
    """Root mean square norm of states [n, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed, scale = _normed(x, epsilon)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *_norm_gradients(gradient.clone(), *ctx.saved_tensors), None


class _Heads(torch.autograd.Function):
    """Queries [B, H, T, d], keys and values [B, K, T, d] of states [M, D]: norm, projections, rotation by position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, epsilon: float, *rest: Any) -> tuple[Tensor, ...]:
        *parameters, cosine, sine, places, size = rest
        normed, scale = _normed(x, epsilon)
        weights, biases = parameters[::2], parameters[1::2]
        ctx.save_for_backward(normed, scale, norm, cosine, sine, *weights)
        ctx.places, ctx.biased = places, [bias is not None for bias in biases]
        entered = normed * norm
        flat = [linear(entered, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        q, k, v = (_spread(part, places).view(*places.shape, -1, size).transpose(1, 2) for part in flat)
        return _rotated(q, cosine, sine), _rotated(k, cosine, sine), v.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, norm, cosine, sine, *weights = ctx.saved_tensors
        q, k, v = (gradient.transpose(1, 2) for gradient in gradients)
        turn = cosine[:, None], -sine[:, None]
        flat = [part.flatten(0, 1).flatten(1) for part in (_rotated(q, *turn), _rotated(k, *turn), v)]
        if ctx.places.is_padded:
            flat = [part.index_select(0, ctx.places.counted) for part in flat]
        entered = normed * norm
        parameters: list[Tensor | None] = []
        for part, biased in zip(flat, ctx.biased, strict=True):
            parameters += [part.T @ entered, part.sum(0) if biased else None]
        back = flat[0] @ weights[0]
        for part, weight in zip(flat[1:], weights[1:], strict=True):
            back.addmm_(part, weight)
        return *_norm_gradients(back, normed, scale, norm), None, *parameters, None, None, None, None


def _spread(flat: Tensor, places: _Places) -> Tensor:
    """Return [M, C] as [B * T, C], zero where no token counts."""
    if not places.is_padded:
        return flat
    return flat.new_zeros(places.shape[0] * places.shape[1], flat.shape[1]).index_copy(0, places.counted, flat)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x [..., d] with the pairs (i, i + d / 2) turned by angles of cosine and sine [..., d / 2], contiguous."""
    turned = x.new_empty(x.shape)
    (first, second), (left, right) = x.chunk(2, -1), turned.chunk(2, -1)
    torch.mul(first, cosine, out=left).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=right).addcmul_(first, sine)
    return turned


class _Rotation(torch.autograd.Function):
    """Rotation of [B, H, T, d] by position (Su et al. 2021); the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(gradient, cosine, -sine), None, None


class _Attention(torch.autograd.Function):
    """Causal attention [B, H, T, d] with its weights kept whole [B * K, H / K * T, T]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        width, size = q.shape[-2:]
        queries, keys, values = q.reshape(k.shape[0] * k.shape[1], -1, size), k.flatten(0, 1), v.flatten(0, 1)
        later = torch.full((width, width), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
        later = later.repeat(queries.shape[1] // width, 1)
        weights = torch.baddbmm(later, queries, keys.transpose(1, 2), alpha=scaling).softmax(-1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.scaling = scaling
        return torch.bmm(weights, values).view(q.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights = ctx.saved_tensors
        incoming = gradient.reshape(queries.shape)
        slopes = torch.bmm(incoming, values.transpose(1, 2))
        slopes = torch._softmax_backward_data(slopes, weights, -1, weights.dtype)
        q, k = torch.bmm(slopes, keys).mul_(ctx.scaling), torch.bmm(slopes.transpose(1, 2), queries).mul_(ctx.scaling)
        v = torch.bmm(weights.transpose(1, 2), incoming)
        shape = gradient.shape[0], -1, *gradient.shape[2:]
        return q.view(gradient.shape), k.view(shape), v.view(shape), None


class _FeedForward(torch.autograd.Function):
    """States [n, D] after a layer: output of attention added, then norm and SwiGLU (Shazeer 2020) added."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, attended: Tensor, epsilon: float, out: Tensor, norm: Tensor, *weights: Tensor
    ) -> Tensor:
        gate_weight, up_weight, down_weight = weights
        x = x + linear(attended, out)
        normed, scale = _normed(x, epsilon)
        entered = normed * norm
        gate, up = linear(entered, gate_weight), linear(entered, up_weight)
        opened = silu(gate)
        ctx.save_for_backward(attended, normed, scale, gate, up, opened, out, norm, *weights)
        return linear(opened * up, down_weight).add_(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        attended, normed, scale, gate, up, opened, out, norm, gate_weight, up_weight, down_weight = ctx.saved_tensors
        entered = normed * norm
        inner = gradient @ down_weight
        down = gradient.T @ (opened * up)
        up_slope = inner * opened
        gate_slope = torch.ops.aten.silu_backward(inner.mul_(up), gate)
        back = (gate_slope @ gate_weight).addmm_(up_slope, up_weight)
        slope, norm_slope = _norm_gradients(back, normed, scale, norm)
        slope += gradient
        matrices = gate_slope.T @ entered, up_slope.T @ entered, down
        return slope, slope @ out, None, slope.T @ attended, norm_slope, *matrices
