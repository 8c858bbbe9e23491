"""Decoding over own key-value blocks against the whole forward pass of transformers, row by row and token by token."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL_SIZES, quiet_recipe
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from preferent.data.types import Rollout
from preferent.models import language_models
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.rollouts import llama_decoder, local_sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.llama_decoder import LlamaDecoder
from preferent.rollouts.local_sampler import LocalSampler

SIZES = SMALL_SIZES | {"num_key_value_heads": 2, "eos_token_id": [2, *range(3, 384, 9)], "initializer_range": 0.2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "grouped and tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "scaled positions": ("llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral in its window": ("mistral", {"sliding_window": 40}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}
PROMPTS = [np.array([1, *range(270, 270 + length)], np.int32) for length in (1, 9, 4, 20, 4, 4, 13, 2, 17, 6, 5)]
ITEMS = [7 * i + 2 for i in range(len(PROMPTS))]


def made(folder: Path, tiny: Path, family: str, given: dict[str, Any]) -> Path:
    """Write a random model of a family, biases and norms too, with the tokenizer of the others."""
    config = AutoConfig.for_model(family, **(SIZES | given))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    return folder


def sampled(policy: Policy, max_tokens: int = 14, **settings: int) -> list[Rollout]:
    params = Params(max_tokens, temperature=0.8)
    return LocalSampler(policy, 3, **settings).sample(PROMPTS, ITEMS, "rollout", 0, params)


def error(policy: Policy, rollouts: list[Rollout]) -> float:
    """Return the largest difference to the log-probs of whole forward passes, one for each row."""
    largest = 0.0
    for rollout in rollouts:
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]).astype(np.int64))
        with torch.no_grad():
            logits = policy.logits(policy.hidden(ids[None])[0, len(rollout.prompt_ids) - 1 : -1], 0.8)
        wanted = logits.log_softmax(-1).gather(-1, ids[len(rollout.prompt_ids) :, None])[:, 0]
        largest = max(largest, float((wanted - torch.from_numpy(rollout.sampler_log_probs)).abs().max()))
    return largest


@pytest.mark.parametrize("shape", SHAPES)
def test_a_family_decodes_as_its_own_forward_pass(shape: str, tiny: Path, tmp_path: Path) -> None:
    policy = language_models.load_policy(made(tmp_path, tiny, *SHAPES[shape]), World.of(quiet_recipe()), lora_dim=0)
    assert llama_decoder.obstacle(policy, 35) is None
    together, refilled = sampled(policy), sampled(policy, rows=4, prefill_tokens=30)
    assert len({len(rollout.ids) for rollout in together}) > 3 and any(rollout.ended for rollout in together)
    assert error(policy, together) <= 1e-5 and error(policy, refilled) <= 1e-5
    for left, right in zip(together, refilled, strict=True):
        assert left.ids.tolist() == right.ids.tolist() and left.ended == right.ended


OBSTACLES = {
    "Gemma": ("gemma", {"head_dim": 8}),
    "window of 16": ("mistral", {"sliding_window": 16}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_other_models_are_decoded_by_themselves_and_it_is_said_once(
    reason: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local_sampler._say.cache_clear()
    policy = language_models.load_policy(made(tmp_path, tiny, *OBSTACLES[reason]), World.of(quiet_recipe()))
    assert error(policy, sampled(policy)) <= 2e-5
    assert error(policy, sampled(policy, rows=4, prefill_tokens=30)) <= 2e-5
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and reason in line and "transformers' own forward pass" in line


def test_adapters_are_in_what_is_sampled(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local_sampler._say.cache_clear()
    source = made(tmp_path, tiny, "llama", {})
    policy = language_models.load_policy(source, World.of(quiet_recipe()), lora_dim=2)
    assert error(policy, sampled(policy)) <= 1e-5
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted, plain = sampled(policy), sampled(policy.reference())
    assert [r.ids.tolist() for r in adapted] != [r.ids.tolist() for r in plain]
    assert error(policy, adapted) <= 1e-5 and error(policy.reference(), plain) <= 1e-5
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_large_model_is_not_copied(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = language_models.load_policy(made(tmp_path, tiny, "llama", {}), World.of(quiet_recipe()))
    copied = sampled(policy)
    monkeypatch.setattr(llama_decoder, "COPIED_BYTES", 0)
    assert not LlamaDecoder(policy, 1, 8, 8).joined
    assert [r.ids.tolist() for r in sampled(policy)] == [r.ids.tolist() for r in copied]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_layers_are_the_layers_side_by_side(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(48, size, bias=bias, dtype=dtype) for size in (32, 16, 80)]
    with torch.no_grad():
        for rows in (1, 7, 200):
            x = torch.randn(rows, 48, dtype=dtype)
            wanted = torch.cat([layer(x) for layer in layers], -1)
            torch.testing.assert_close(llama_decoder._joined(layers, True)(x), wanted)


def test_prompts_are_read_in_passes_of_limited_size(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = language_models.load_policy(made(tmp_path, tiny, "llama", {}), World.of(quiet_recipe()))
    sizes: list[int] = []
    read = LlamaDecoder._read

    def counted(decoder: LlamaDecoder, prompts: list[np.ndarray]) -> torch.Tensor:
        sizes.append(len(prompts) * max(map(len, prompts)))
        return read(decoder, prompts)

    monkeypatch.setattr(LlamaDecoder, "_read", counted)
    sampled(policy, prefill_tokens=40)
    assert max(sizes) <= 40 and len(sizes) > 3
    monkeypatch.setattr(llama_decoder, "obstacle", lambda policy, length: "a test says so")
    widths: list[int] = []
    hidden = Policy.hidden

    def observed(policy: Policy, ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        widths.append(ids.numel())
        return hidden(policy, ids, *arguments)

    monkeypatch.setattr(Policy, "hidden", observed)
    by_itself = sampled(policy, prefill_tokens=40)
    monkeypatch.undo()
    assert max(widths) <= 40 and error(policy, by_itself) <= 1e-5


def test_blocks_hold_the_rows_and_columns_that_are_needed(tiny: Path, tmp_path: Path) -> None:
    policy = language_models.load_policy(made(tmp_path, tiny, "llama", {}), World.of(quiet_recipe()))
    decoder = local_sampler.LocalSampler(policy, 0, rows=4).decoder(PROMPTS, Params(100))
    assert isinstance(decoder, LlamaDecoder) and decoder.blocks[0].numel() == 0
    with torch.no_grad():
        decoder.admit(PROMPTS[:3])
        assert decoder.blocks[0].shape == (2, 4, 2, 64, 8)
        for _ in range(60):
            decoder.step(torch.full((3,), 9))
    assert decoder.blocks[0].shape == (2, 4, 2, 121, 8), "no longer than the longest prompt and its answer"
    other = local_sampler.LocalSampler(policy, 0, rows=400).decoder(PROMPTS, Params(100))
    assert isinstance(other, LlamaDecoder) and other.rows == len(PROMPTS)


def test_blocks_grow_with_what_they_hold(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = language_models.load_policy(made(tmp_path, tiny, "llama", {}), World.of(quiet_recipe()))
    monkeypatch.setattr(llama_decoder, "BLOCK", 4)
    assert error(policy, sampled(policy, rows=4)) <= 1e-5


def test_the_last_rows_move_to_the_places_of_those_that_ended() -> None:
    goes_on = np.array([True, False, True, False, True, True])
    assert local_sampler._dense(goes_on).tolist() == [0, 4, 2, 5]
    assert local_sampler._dense(np.array([False, False])).tolist() == []
