"""The sizes of a model of Llama's architecture, and what its passes hold, as formulas over them; symbols as in
`preferent.config.memory_estimate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preferent.config.recipe import Recipe

CHUNK_ELEMENTS = 1 << 25
"""Logits kept at once for the backward pass; more are computed again."""
COPIED_BYTES = 1 << 30
"""Models up to this size are copied for decoding, so that projections of one input are computed together."""
HEAP_BELOW = 8 << 20
"""Bytes below which a stage's allocator takes a tensor from its heap; larger ones it takes from the system one by
one."""
CACHED_ELEMENTS = 1 << 17
"""Logits that are taken through a softmax at once, whole rows of them."""
SIZES = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
"""What a config.json must say of a model."""
WHOLE_ATTENTION_TOKENS = 256
"""Longest sequence whose attention weights are kept whole, where that is faster."""


def keeps_attention(recipe: Recipe, on_cpu: bool, bf16: bool) -> bool:
    """Return whether attention weights are kept whole: the fused bf16 attention of a CPU is slower than plain matrix
    products, whose memory grows with the square of the length."""
    return on_cpu and bf16 and recipe.prompt_sequence_length + recipe.target_sequence_length <= WHOLE_ATTENTION_TOKENS


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder-only model of Llama's architecture; `stored` is the bytes of a number in its files, and
    `own_pass` says whether `preferent.models.llama` trains it, which keeps less than transformers."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate_size: int
    tied: bool = False
    stored: int = 2
    own_pass: bool = True

    @classmethod
    def of(cls, config: Any) -> "Shape | None":
        """From the contents of a config.json; None where it is not of an architecture whose sizes are known here, or
        leaves one of them out."""
        if not isinstance(config, Mapping) or not config.keys() >= SIZES:
            return None
        if config.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3"):
            return None
        if not all(isinstance(config[name], int) and config[name] > 0 for name in SIZES):
            return None
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=hidden,
            layers=config["num_hidden_layers"],
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or hidden // heads,
            intermediate_size=config["intermediate_size"],
            tied=bool(config.get("tie_word_embeddings")),
            stored=4 if dtype == "float32" else 2,
            own_pass=_own_pass(config),
        )

    @property
    def query(self) -> int:
        """Q"""
        return self.heads * self.head_size

    @property
    def key_value(self) -> int:
        """K"""
        return self.key_value_heads * self.head_size

    @property
    def backbone(self) -> int:
        """Parameters without output head: V D + L (2 D Q + 2 D K + 3 D I + 2 D) + D."""
        norms = (2 * self.layers + 1) * self.hidden_size
        return self.vocab_size * self.hidden_size + self.linear + norms

    @property
    def linear(self) -> int:
        """Weights of the linear layers: L (2 D Q + 2 D K + 3 D I)."""
        return self.layers * self.hidden_size * (2 * self.query + 2 * self.key_value + 3 * self.intermediate_size)

    @property
    def policy(self) -> int:
        """Parameters of a causal language model: the backbone and, unless tied, V D."""
        return self.backbone + (0 if self.tied else self.vocab_size * self.hidden_size)

    @property
    def scorer(self) -> int:
        """Parameters of a sequence classifier with one label: the backbone and D."""
        return self.backbone + self.hidden_size

    def lora(self, rank: int) -> int:
        """Parameters of an adapter on all linear layers: rank times the sum of their inputs and outputs."""
        attention = 2 * (self.hidden_size + self.query) + 2 * (self.hidden_size + self.key_value)
        return rank * self.layers * (attention + 3 * (self.hidden_size + self.intermediate_size))

    def adapter(self, rank: int) -> int:
        """Parameters of a reward model's or critic's adapter, its head included."""
        return self.lora(rank) + self.hidden_size


def _own_pass(config: Mapping[str, Any]) -> bool:
    """Return whether the decoder of a config.json has the shape that `preferent.models.llama` computes; what the file
    leaves out is as in transformers."""
    windows = "use_sliding_window", "sliding_window"
    windowed = {"llama": False, "mistral": config.get(windows[1], 4096), "qwen2": config.get(windows[0])}
    kind = config.get("model_type")
    return kind in windowed and not windowed[kind] and config.get("hidden_act", "silu") == "silu"


LLAMA_2 = {
    "meta-llama/Llama-2-7b-hf": Shape(32000, 4096, 32, 32, 32, 128, 11008),
    "meta-llama/Llama-2-13b-hf": Shape(32000, 5120, 40, 40, 40, 128, 13824),
    "meta-llama/Llama-2-7b-chat-hf": Shape(32000, 4096, 32, 32, 32, 128, 11008),
    "meta-llama/Llama-2-13b-chat-hf": Shape(32000, 5120, 40, 40, 40, 128, 13824),
    "meta-llama/Llama-2-70b-hf": Shape(32000, 8192, 80, 64, 8, 128, 28672),
    "meta-llama/Llama-2-70b-chat-hf": Shape(32000, 8192, 80, 64, 8, 128, 28672),
}
"""The shapes of the models that have a name of their own."""


def kept_activations(
    shape: Shape, tokens: int, states: int, b: int, lora: bool = False, checkpointing: bool = False, whole: int = 0
) -> int:
    """Return what the backward pass of `tokens` holds at most, from whose last layer `states` are asked for.

    Per token and layer b (2 D + 3 Q + 2 K + 3 I): two norms; queries, keys, values, and what was attended to, by heads
    and by token; the MLP. The last layer keeps the second norm and the MLP of the states only. Under LoRA the inputs of
    linear layers come on top, b (2 D + I), and where attention weights are kept whole, over sequences of `whole`
    tokens, b T a head. With checkpointing there is one layer of these and b D of every layer. Beside the other layers
    one layer's backward holds b (3 I + 5 D) a token and the gradients of its MLP and output, b D (3 I + Q); under LoRA
    2 b I a token.
    """
    if not shape.own_pass:
        return _kept_by_transformers(shape, tokens, b, lora, checkpointing, whole)
    hidden, query, inner = shape.hidden_size, shape.query, shape.intermediate_size
    attention = (1 + lora) * hidden + 2 * query + 2 * shape.key_value + whole * shape.heads
    after = (1 + lora) * hidden + query + (3 + lora) * inner
    backward = 2 * tokens * inner if lora else tokens * (3 * inner + 5 * hidden) + hidden * (3 * inner + query)
    if checkpointing:
        return b * (tokens * (shape.layers * hidden + attention + after) + backward)
    last = tokens * (attention + 3 * hidden) + states * after
    return b * ((shape.layers - 1) * tokens * (attention + after) + max(last, backward))


def _kept_by_transformers(shape: Shape, tokens: int, b: int, lora: bool, checkpointing: bool, whole: int) -> int:
    """Return what the backward pass holds of a decoder that `models.llama` leaves to transformers.

    Per token and layer: 2 (4 + 2 b) D for the norms, less b D each under LoRA; b 4 Q for attention, whose keys and
    values are repeated for every head; b 4 I for the MLP; (4 + b) T a head for whole attention weights, in fp32 and
    rounded. On top what one MLP's backward holds: b (3 I + 2 D).
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    layer = 2 * (4 + 2 * b) * hidden + b * (4 * shape.query + 4 * inner)
    if lora:
        layer -= 2 * b * hidden
    layer += (4 + b) * whole * shape.heads
    layers = layer + shape.layers * b * hidden if checkpointing else shape.layers * layer
    return tokens * (layers + b * (3 * inner + 2 * hidden))


def passing_activations(shape: Shape, tokens: int, b: int, lora: bool = False) -> int:
    """Return what a forward pass without gradients holds at its widest, inside one MLP: b (4 I + 5 D + 2 Q + 2 K) a
    token; two D less with adapters beside the linear layers."""
    outside = (3 if lora else 5) * shape.hidden_size + 2 * shape.query + 2 * shape.key_value
    return tokens * b * (4 * shape.intermediate_size + outside)


def logits(shape: Shape, tokens: int, b: int) -> int:
    """Logits of `tokens` and their gradient, at most `CHUNK_ELEMENTS` at once: 2 b min(tokens V, 2^25); and those that
    are taken through a softmax at once, two fp32 numbers each."""
    return 2 * b * min(tokens * shape.vocab_size, CHUNK_ELEMENTS) + 2 * 4 * max(CACHED_ELEMENTS, shape.vocab_size)


def head_gradient(shape: Shape, b: int, lora: bool) -> int:
    """Return the output head's gradient of one micro-batch, before it is added to that of the others while all
    activations are still there: b V D. Under LoRA the head does not learn."""
    return 0 if lora else b * shape.vocab_size * shape.hidden_size


def measuring(shape: Shape, answers: int, b: int) -> int:
    """Return what log-probabilities and KL under policy and reference take once the states are there: both logits of
    the `answers`, and of those that are taken through a softmax at once four fp32 numbers each."""
    return 2 * b * min(answers * shape.vocab_size, CHUNK_ELEMENTS) + 4 * 4 * max(CACHED_ELEMENTS, shape.vocab_size)


def kv_cache(shape: Shape, rows: int, tokens: int, b: int) -> int:
    """Keys and values of `rows` sequences of `tokens`, allocated once: 2 b L K rows tokens."""
    return 2 * b * shape.layers * shape.key_value * rows * tokens


def sampling(shape: Shape, rows: int, tokens: int, b: int) -> int:
    """Return what decoding needs besides the cache: the widest place of a layer over the `tokens` of prompts that are
    read at once, b (4 I + 4 D + 4 Q + 3 K) a token, or, once a token is chosen, 20 V a row (fp32 logits, log-probs
    and probabilities, and these as int64)."""
    inside = 4 * shape.intermediate_size + 4 * shape.hidden_size + 4 * shape.query + 3 * shape.key_value
    return max(b * tokens * inside, 20 * rows * shape.vocab_size)


def copied_weights(shape: Shape, b: int, lora: bool) -> int:
    """Return what is copied of a small model while it decodes: its head and, without adapters, its linear layers."""
    head = shape.vocab_size * shape.hidden_size
    return 0 if b * shape.policy > COPIED_BYTES else b * (head if lora else head + shape.linear)
