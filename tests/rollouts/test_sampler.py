"""Sampling: what is drawn, from what, and that company in the batch does not matter."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from transformers import AutoModelForCausalLM

from preferent import randomness
from preferent.models import batching, language_models
from preferent.models.world import World
from preferent.rollouts import decoding, llama_decoder, sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler
from preferent.rollouts.sampler import Sampler
from preferent.rollouts.scripted_sampler import ScriptedSampler

PACKAGE = Path(sampler.__file__).parent


@pytest.fixture(scope="module")
def policy(tiny: Path) -> language_models.Policy:
    return language_models.load_policy(tiny, World.of(quiet_recipe()))


def prompts(policy: language_models.Policy, count: int = 7) -> list[np.ndarray]:
    return [np.array([1, *range(270, 270 + 1 + 3 * i % 11)], np.int32) for i in range(count)]


def numbers(*uniforms: float) -> torch.Tensor:
    return torch.from_numpy(decoding.draws(np.array(uniforms)))


def by_float64(logits: torch.Tensor, uniforms: torch.Tensor, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
    """The same inversion by cumulative sums of floats, which torch has not deterministic on CUDA."""
    if params.top_k:
        threshold = logits.topk(min(params.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= params.top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    log_probs = logits.log_softmax(-1)
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.double)
    target = uniforms[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)
    return chosen, log_probs.gather(-1, chosen[:, None]).squeeze(-1)


CASES = [
    (5, {}),
    (384, {}),
    (384, {"top_k": 7}),
    (384, {"top_p": 0.9}),
    (2049, {"top_k": 300, "top_p": 0.5}),
    (4099, {}),
]


@pytest.mark.parametrize(("size", "filters"), CASES)
def test_integers_give_the_draws_of_float64(size: int, filters: dict[str, Any]) -> None:
    """Bit for bit in ids and log-probs; a sum of doubles rounds too, so that about one draw in 10^10 may differ, and a
    draw of 0 does where the first ids have less than 2^-62."""
    generator, params = torch.Generator().manual_seed(size), Params(1, **filters)
    count = (1 << 18) // size
    for temperature in (0.1, 1.0, 3.0):
        logits = 4 * torch.randn(count, size, generator=generator) / temperature
        logits[torch.rand(count, size, generator=generator) < 0.2] = -torch.inf
        logits[:, 1] = 0.0
        uniforms = randomness.uniforms(size, "test", np.arange(count), 0)
        uniforms[0] = 1 - 2.0**-53
        found = decoding.choose(logits, numbers(*uniforms), params)
        for left, right in zip(found, by_float64(logits, torch.from_numpy(uniforms), params), strict=True):
            assert torch.equal(left, right)


def test_the_product_of_a_total_and_a_draw_is_that_of_whole_numbers() -> None:
    totals = [1, 2**31, 2**62, 2**62 + 12_345_678_901_234, 2**62 + 2**40]
    parts = [0, 1, 2**26 - 1, 2**26, 2**53 - 1, 6_004_799_503_160_661]
    for total in totals:
        for draw in parts:
            product = int(decoding._product(torch.tensor(total), torch.tensor(draw)))
            assert 0 <= (total * draw >> 53) - product <= 2


def test_choose_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(6, 4)
    chosen, log_probs = decoding.choose(logits, numbers(0.0, 0.49, 0.51, 0.79, 0.81, 0.999), Params(1))
    assert chosen.tolist() == [0, 0, 1, 1, 2, 3]
    assert log_probs.exp().tolist() == pytest.approx([0.5, 0.5, 0.3, 0.3, 0.15, 0.05], abs=1e-6)


def test_choose_never_takes_what_is_masked() -> None:
    """Between ids of one block or of several, whole blocks before them and a short one behind."""
    for size, first, second in ((5, 1, 3), (4 * decoding.BLOCK - 1, decoding.BLOCK + 9, 3 * decoding.BLOCK)):
        logits = torch.full((3, size), -torch.inf)
        logits[:, [first, second]] = 0.0
        chosen, _ = decoding.choose(logits, numbers(0.0, 0.5, 1 - 2**-53), Params(1))
        assert chosen.tolist() == [first, second, second]


def test_frequencies_follow_the_distribution() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniforms = randomness.uniforms(0, "test", np.arange(20_000), 0)
    chosen, _ = decoding.choose(p.log().expand(20_000, 4), numbers(*uniforms), Params(1))
    share = torch.bincount(chosen, minlength=4) / 20_000
    assert (share - p).abs().max() < 4 * (0.25 / 20_000) ** 0.5


def test_top_k_and_top_p_and_greedy() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    late = numbers(0.999)
    assert decoding.choose(logits, late, Params(1, top_k=2))[0].item() == 1
    assert decoding.choose(logits, late, Params(1, top_p=0.75))[0].item() == 1
    assert decoding.choose(logits, late, Params(1, top_p=0.85))[0].item() == 2
    chosen, log_prob = decoding.choose(logits, late, Params(1, greedy=True))
    assert chosen.item() == 0 and log_prob.exp().item() == pytest.approx(0.5)


def test_answers_do_not_depend_on_the_batch(policy: language_models.Policy) -> None:
    questions = prompts(policy)
    together = LocalSampler(policy, 0).sample(questions, range(7), "rollout", 0, Params(12))
    for rows in (1, 3):
        apart = LocalSampler(policy, 0, rows=rows).sample(questions, range(7), "rollout", 0, Params(12))
        for left, right in zip(together, apart, strict=True):
            assert left.ids.tolist() == right.ids.tolist() and left.ended == right.ended
            assert np.allclose(left.sampler_log_probs, right.sampler_log_probs, atol=1e-5)
    other = LocalSampler(policy, 1).sample(questions, range(7), "rollout", 0, Params(12))
    assert [r.ids.tolist() for r in other] != [r.ids.tolist() for r in together]


def test_log_probs_of_the_cache_are_those_of_a_full_forward(policy: language_models.Policy, tiny: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for rollout in LocalSampler(policy, 0).sample(prompts(policy), range(7), "rollout", 0, Params(12, temperature=0.7)):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]).astype(np.int64))[None]
        with torch.no_grad():
            logits = plain(ids).logits[0, len(rollout.prompt_ids) - 1 : -1] / 0.7
        logits[:, policy.masked_ids] = -torch.inf
        expected = logits.log_softmax(-1).gather(-1, torch.from_numpy(rollout.ids.astype(np.int64))[:, None])[:, 0]
        assert np.allclose(rollout.sampler_log_probs, expected.numpy(), atol=1e-5)


def test_left_and_right_padding_agree(policy: language_models.Policy) -> None:
    rows = [row.astype(np.int64) for row in prompts(policy)]
    right = torch.from_numpy(batching.pad(rows, policy.tokenizer.pad_id))
    left = torch.from_numpy(batching.pad(rows, policy.tokenizer.pad_id, left=True))
    mask = torch.from_numpy(batching.pad([np.ones_like(row) for row in rows], 0, left=True))
    with torch.no_grad():
        from_right = policy.hidden(right)
        from_left = policy.hidden(left, mask, (mask.cumsum(-1) - 1).clamp_min(0))
    for i, row in enumerate(rows):
        logits, left_logits = policy.logits(from_right[i, : len(row)]), policy.logits(from_left[i, -len(row) :])
        finite = torch.isfinite(logits)
        assert (logits[finite] - left_logits[finite]).abs().max() <= 1e-5


def test_ended_answers_close_with_eos_and_nothing_follows(policy: language_models.Policy) -> None:
    engine, questions = LocalSampler(policy, 0), prompts(policy, 200)
    rollouts = engine.sample(questions, range(200), "rollout", 0, Params(12))
    eos_id = policy.tokenizer.eos_id
    for rollout in rollouts:
        assert (rollout.ids[-1] == eos_id) == rollout.ended and eos_id not in rollout.ids[:-1]
        assert policy.tokenizer.pad_id not in rollout.ids
        assert rollout.ended or len(rollout.ids) == 12
    assert any(rollout.ended for rollout in rollouts)
    through = LocalSampler(policy, 0).sample(
        prompts(policy, 200), range(200), "rollout", 0, Params(12, stop_at_eos=False)
    )
    assert all(len(r.ids) == 12 and not r.ended for r in through)
    for stopped, went_on in zip(rollouts, through, strict=True):
        assert went_on.ids[: len(stopped.ids)].tolist() == stopped.ids.tolist()


def test_engines_are_made_in_one_place(policy: language_models.Policy) -> None:
    made = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"\bLocalSampler\(", path.read_text())}
    assert made == {"sampler.py"}
    recipe = quiet_recipe(seed=3, sampler={"rows": 5})
    assert sampler.make(recipe, policy) == LocalSampler(policy, 3, 5)
    assert sampler.make(recipe, policy, rows=9) == LocalSampler(policy, 3, 9)


def test_a_local_sampler_answers_with_the_weights_as_they_are(tiny: Path) -> None:
    learning = language_models.load_policy(tiny, World.of(quiet_recipe()), lora_dim=0)
    engine: Sampler = sampler.make(quiet_recipe(), learning)
    before = engine.sample(prompts(learning), range(7), "rollout", 0, Params(12))
    with torch.no_grad():
        for parameter in learning.trainable().values():
            parameter.mul_(1.2)
    engine.refresh(learning)
    after = engine.sample(prompts(learning), range(7), "rollout", 0, Params(12))
    assert [r.ids.tolist() for r in before] != [r.ids.tolist() for r in after]
    with pytest.raises(AssertionError, match="the policy that it was made with"):
        engine.refresh(language_models.load_policy(tiny, World.of(quiet_recipe())))


@pytest.mark.parametrize(("rank", "own"), [(0, False), (2, False), (2, True)])
def test_a_checkpointed_policy_samples_with_its_context(
    policy: language_models.Policy, tiny: Path, monkeypatch: pytest.MonkeyPatch, rank: int, own: bool
) -> None:
    """Transformers takes the KV cache from layers that it checkpoints; what is only sampled is not checkpointed."""
    if not own:
        monkeypatch.setattr(llama_decoder, "obstacle", lambda *_: "a test asks for it")
    learning = language_models.load_policy(tiny, World.of(quiet_recipe()), rank, checkpointing=True)
    questions = prompts(learning)
    rollouts = LocalSampler(learning, 0).sample(questions, range(7), "rollout", 0, Params(12))
    expected = LocalSampler(policy, 0).sample(questions, range(7), "rollout", 0, Params(12))
    assert [r.ids.tolist() for r in rollouts] == [r.ids.tolist() for r in expected]
    for rollout in rollouts:
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]).astype(np.int64))[None]
        logits = learning.logits(learning.hidden(ids)[0, len(rollout.prompt_ids) - 1 : -1])
        trained = logits.log_softmax(-1).gather(-1, torch.from_numpy(rollout.ids.astype(np.int64))[:, None])[:, 0]
        assert np.allclose(rollout.sampler_log_probs, trained.detach().numpy(), atol=1e-5)


def test_scripted_answers() -> None:
    scripted = ScriptedSampler(lambda prompt, item: ([5, 6, 2], [-1.0, -1.0, -0.5], True))
    scripted.refresh(None)
    (rollout,) = scripted.sample([np.array([1])], [4], "rollout", 9, Params(12))
    assert (
        rollout.ids.tolist() == [5, 6, 2] and rollout.ended and rollout.policy_step == 9 and rollout.prompt_index == 4
    )
