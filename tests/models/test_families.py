"""Families of decoder-only models: policy, reward model and sampler against transformers itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_SIZES, quiet_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from preferent.models import language_models
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler

GROUPED = {"num_key_value_heads": 2}
FAMILIES = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 16},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "gemma": GROUPED | {"head_dim": 8},
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gpt_neox": {},
    "phi3": GROUPED | {"pad_token_id": 0},
}


@pytest.fixture(params=FAMILIES)
def source(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path) -> Path:
    """A random model of a family with the tokenizer of the others."""
    config = AutoConfig.for_model(request.param, **SMALL_SIZES, **FAMILIES[request.param])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path)
    return tmp_path


def test_samples_have_the_log_probs_that_transformers_gives_them(source: Path) -> None:
    policy = language_models.load_policy(source, World.of(quiet_recipe()), lora_dim=0)
    prompts = [np.array([1, *range(270, 270 + length)], np.int32) for length in (1, 4, 9)]
    rollouts = LocalSampler(policy, 0).sample(prompts, range(3), "rollout", 0, Params(12))
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for rollout in rollouts:
        whole = torch.tensor([[*rollout.prompt_ids.tolist(), *rollout.ids.tolist()]])
        with torch.no_grad():
            logits = plain(whole).logits[0, len(rollout.prompt_ids) - 1 : -1]
        logits[:, policy.masked_ids] = -torch.inf
        wanted = logits.log_softmax(-1)[range(len(rollout.ids)), rollout.ids.tolist()]
        assert rollout.sampler_log_probs == pytest.approx(wanted.numpy(), abs=2e-4)


def test_a_score_does_not_depend_on_company(source: Path) -> None:
    scorer = language_models.load_scorer(source, World.of(quiet_recipe()), 0, 1)
    sequences = [np.array([1, *range(270, 270 + length), 2], np.int32) for length in (2, 7, 20)]
    together = measurement.last_scores(scorer, sequences, 4096)
    alone = [measurement.last_scores(scorer, [ids], 4096)[0] for ids in sequences]
    assert np.ptp(together) > 0
    assert together == pytest.approx(alone, abs=1e-5)
