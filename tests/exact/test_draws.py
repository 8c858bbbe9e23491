"""Every token by its own number: what the sampler draws is the inverse of the cumulative distribution at a keyed
uniform of (seed, purpose, item, position), also after rows that ended are dropped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from scipy import stats
from torch.nn import Parameter

from preferent import randomness
from preferent.models import language_models
from preferent.models.world import World
from preferent.rollouts import decoding
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler

COUNT, LENGTH, TEMPERATURE = 40, 10, 0.8


def test_each_token_is_drawn_by_its_own_uniform(ending: Path) -> None:
    policy = language_models.load_policy(ending, World.of(quiet_recipe()))
    prompts = [np.array([1, *range(270, 272 + i % 4)], np.int32) for i in range(COUNT)]
    items = [3 * i + 5 for i in range(COUNT)]
    rollouts = LocalSampler(policy, 9).sample(prompts, items, "rollout", 0, Params(LENGTH, TEMPERATURE))
    assert len({len(rollout.ids) for rollout in rollouts}) > 4, "rows end at different places"
    for item, rollout in zip(items, rollouts, strict=True):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]).astype(np.int64))
        with torch.no_grad():
            logits = policy.logits(policy.hidden(ids[None])[0, len(rollout.prompt_ids) - 1 : -1], TEMPERATURE)
        cumulative = torch.nn.functional.pad(logits.double().softmax(-1).cumsum(-1), (1, 0))
        uniforms = randomness.uniforms(9, "rollout", item, np.arange(len(rollout.ids)))
        for place, (id, uniform) in enumerate(zip(rollout.ids, uniforms, strict=True)):
            below, above = cumulative[place, id : id + 2].tolist()
            assert below - 1e-5 <= uniform <= above + 1e-5, (item, place)


def test_top_p_keeps_no_token_that_is_not_needed() -> None:
    """Two tokens of probability 1/2 each: the first alone holds 1/2."""
    logits, late = torch.zeros(1, 2), torch.from_numpy(decoding.draws(np.array([0.999])))
    assert decoding.choose(logits, late, Params(1, top_p=0.5))[0].item() == 0
    assert decoding.choose(logits, late, Params(1, top_p=0.51))[0].item() == 1


def test_a_drawn_head_is_normal() -> None:
    """N(0, 1 / sqrt(D + 1)) by Box and Muller: two independent uniforms a number."""
    weight = Parameter(torch.zeros(1, 4096))
    language_models._draw_head(weight, seed=2)
    assert stats.kstest(weight.detach().numpy()[0] * np.sqrt(4097), "norm").pvalue > 0.01


@pytest.mark.parametrize("size", [7, 64])
def test_every_epoch_has_an_order_of_its_own(size: int) -> None:
    epochs = [randomness.rows(4, "data", step, size, size).tolist() for step in range(5)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
