"""The own pass over decoders of Llama's shape gives transformers' states and gradients, and nothing for padding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from preferent.models import llama

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 64}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "grouped and tied": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, head_dim=6, rope_theta=500.0)
    ),
    "biased": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=2)),
}
ROWS, COLUMNS = torch.tensor([0, 0, 1, 2, 3, 4, 4, 4]), torch.tensor([3, 4, 11, 6, 7, 0, 1, 2])


def made(name: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(3)
    model = MODELS[name]()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape) + ("norm" in key))
    return model


def gradients(model: Any, states: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a sum over the states, with weights of all sizes."""
    model.zero_grad()
    (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def theirs(model: Any, tokens: Tensor) -> Tensor:
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[ROWS, COLUMNS]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_and_gradients_are_those_of_transformers(name: str, attention: str) -> None:
    model = made(name, attention)
    assert llama.applies(model.base_model)
    tokens = torch.randint(97, (5, 12))
    ours = llama.states(model.base_model, tokens, ROWS, COLUMNS)
    assert torch.allclose(ours, theirs(model, tokens), atol=1e-5)
    expected, found = gradients(model, theirs(model, tokens)), gradients(model, ours)
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, key
    again = llama.states(model.base_model, tokens, ROWS, COLUMNS, checkpointed=True)
    assert torch.equal(again, ours)
    assert all(torch.equal(gradient, found[key]) for key, gradient in gradients(model, again).items())


def test_an_adapter_is_computed_and_off_it_changes_no_bit() -> None:
    model, plain = made("qwen2"), made("qwen2")
    peft = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    tokens = torch.randint(97, (5, 12))
    ours = llama.states(model.base_model, tokens, ROWS, COLUMNS)
    assert torch.allclose(ours, theirs(model, tokens), atol=1e-5)
    expected, found = gradients(model, theirs(model, tokens)), gradients(model, ours)
    assert len(found) == 3 * 7 * 2
    assert all((found[key] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 for key, gradient in expected.items())
    with peft.disable_adapter():
        off = llama.states(model.base_model, tokens, ROWS, COLUMNS)
    assert torch.equal(off, llama.states(plain.base_model, tokens, ROWS, COLUMNS)) and not torch.allclose(off, ours)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bf16_gradients_are_as_near_to_exact_ones_as_those_of_transformers(attention: str) -> None:
    exact, model = made("llama", attention), made("llama", attention).bfloat16()
    with torch.no_grad():
        for one, other in zip(exact.parameters(), model.parameters(), strict=True):
            one.copy_(other)
    tokens = torch.randint(97, (5, 12))
    expected = gradients(exact, theirs(exact, tokens))
    both = [
        gradients(model, found)
        for found in (llama.states(model.base_model, tokens, ROWS, COLUMNS), theirs(model, tokens))
    ]
    own, other = (sum(float((g[key].float() - e).norm() / e.norm()) for key, e in expected.items()) for g in both)
    assert 0 < own <= 1.3 * other


def test_what_lies_behind_the_last_state_of_a_row_changes_nothing() -> None:
    model = made("llama")
    tokens = torch.randint(97, (5, 12))
    ours = llama.states(model.base_model, tokens, ROWS, COLUMNS)
    tokens[0, 5:], tokens[3, 8:], tokens[4, 3:] = 1, 2, 3
    assert torch.equal(ours, llama.states(model.base_model, tokens, ROWS, COLUMNS))


def test_other_decoders_and_windows_are_left_to_transformers() -> None:
    assert not llama.applies(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)).base_model)
    windowed = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not llama.applies(Qwen2ForCausalLM(windowed).base_model)
    assert not llama.applies(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="relu")).base_model)
