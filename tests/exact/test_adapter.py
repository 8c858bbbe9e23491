"""LoRA: nothing at the start, the reference when it is off, the same model merged, and nothing else that learns."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import quiet_recipe

from preferent import files
from preferent.data.types import Rollout
from preferent.evaluation.inference import generate
from preferent.models import language_models, saving
from preferent.models.world import World
from preferent.rollouts import measurement
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler
from preferent.training.optimizer import Optimizer, Schedule

SHAPE = 12, 10


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(quiet_recipe())


def adapted(folder: Path, world: World, moved: bool) -> language_models.Policy:
    policy = language_models.load_policy(folder, world, lora_dim=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            if moved:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def answered(policy: language_models.Policy) -> list[Rollout]:
    asked = [np.array([1, *range(270, 272 + i % 5)], np.int32) for i in range(SHAPE[0])]
    return LocalSampler(policy, 0).sample(asked, range(SHAPE[0]), "rollout", 0, Params(SHAPE[1]))


def micros(policy: language_models.Policy, rollouts: list[Rollout]) -> list[measurement.MicroBatch]:
    return measurement.micro_batches(rollouts, 200, policy.tokenizer.pad_id, policy.world.device)


def test_a_fresh_adapter_is_the_base_to_the_last_bit_and_the_first_kl_is_zero(tiny: Path, world: World) -> None:
    policy, plain = adapted(tiny, world, moved=False), language_models.load_policy(tiny, world)
    rollouts = answered(plain)
    for one, other in zip(answered(policy), rollouts, strict=True):
        assert one.ids.tolist() == other.ids.tolist() and (one.sampler_log_probs == other.sampler_log_probs).all()
    parts = micros(policy, rollouts)
    with_itself = measurement.measure(policy, policy.reference(), parts, SHAPE, 1.0)
    with_base = measurement.measure(policy, plain, parts, SHAPE, 1.0)
    assert (with_itself.k1 == 0).all() and (with_base.k1 == 0).all()
    assert with_itself.kl.abs().max() <= 1e-6
    assert torch.equal(with_itself.log_probs, measurement.measure(plain, None, parts, SHAPE, 1.0).log_probs)


def test_a_moved_adapter_off_is_a_separate_copy_of_the_reference(tiny: Path, world: World) -> None:
    policy, plain = adapted(tiny, world, moved=True), language_models.load_policy(tiny, world)
    parts = micros(policy, answered(policy))
    off, copy = (measurement.measure(policy, other, parts, SHAPE, 1.0) for other in (policy.reference(), plain))
    assert torch.equal(off.k1, copy.k1) and torch.equal(off.kl, copy.kl)
    assert off.kl.mean() > 1e-3
    alone = measurement.measure(policy.reference(), None, parts, SHAPE, 1.0)
    assert torch.equal(alone.log_probs, measurement.measure(plain, None, parts, SHAPE, 1.0).log_probs)


def test_the_merged_model_is_the_adapted_one(tiny: Path, world: World, tmp_path: Path) -> None:
    policy = adapted(tiny, world, moved=True)
    parts = micros(policy, answered(policy))
    before = measurement.measure(policy, policy.reference(), parts, SHAPE, 1.0)
    saving.save_merged(policy, tmp_path / "merged", {}, "# test\n")
    merged, plain = language_models.load_policy(tmp_path / "merged", world), language_models.load_policy(tiny, world)
    after = measurement.measure(merged, plain, parts, SHAPE, 1.0)
    assert merged.peft is None
    assert torch.allclose(before.log_probs, after.log_probs, atol=1e-5)
    assert torch.allclose(before.kl, after.kl, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 5])
def test_an_adapter_adds_twice_b_times_a_at_every_rank(tiny: Path, world: World, tmp_path: Path, rank: int) -> None:
    """alpha is 2 * rank, so that the factor alpha / rank is 2."""
    policy = language_models.load_policy(tiny, world, lora_dim=rank)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    saving.save(policy, tmp_path / "model", {}, "# test\n")
    config = files.read_json(tmp_path / "model/adapter_config.json")
    assert (config["r"], config["lora_alpha"]) == (rank, 2 * rank)
    state = {name: p.detach().clone() for name, p in policy.body.named_parameters()}
    saving.save_merged(policy, tmp_path / "merged", {}, "# test\n")
    merged = language_models.load_policy(tmp_path / "merged", world).body
    names = [name for name in state if ".base_layer." in name]
    assert len(names) == 2 * 7
    for name in names:
        down, up = (state[name.replace("base_layer", f"lora_{side}.default")] for side in "AB")
        weight = merged.get_parameter(name.replace(".base_layer", ""))
        assert down.shape[0] == rank and torch.allclose(weight, state[name] + 2 * up @ down, atol=1e-6), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_saved_adapter_off_is_the_model_that_it_rests_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """`infer` loads one model, and writes what it writes with the reference loaded beside it, byte for byte."""
    recipe = quiet_recipe(precision=precision)
    world = World.of(recipe)
    policy = adapted(tiny, world, moved=True)
    saving.save(policy, tmp_path / "model", {}, "# test\n")
    files.write_jsonl(tmp_path / "p.jsonl", [{"input_text": f"the cat {number}"} for number in range(20)])
    loaded, load = [], language_models.load_policy
    monkeypatch.setattr(
        language_models, "load_policy", lambda source, *rest: loaded.append(source) or load(source, *rest)
    )
    inputs = {"model": tmp_path / "model", "reference": tiny, "prompts": tmp_path / "p.jsonl"}
    generate.main(recipe, inputs, tmp_path / "shared")
    assert loaded == [tmp_path / "model"]
    monkeypatch.setattr(language_models, "has_base", lambda policy, source: False)
    generate.main(recipe, inputs, tmp_path / "beside")
    assert loaded == [tmp_path / "model"] * 2 + [tiny]
    shared, beside = ((tmp_path / name / "text.jsonl").read_bytes() for name in ("shared", "beside"))
    assert shared == beside and files.read_jsonl(tmp_path / "shared/text.jsonl")[0]["kl"] > 1e-3


@pytest.mark.parametrize(
    ("changes", "rests"),
    [({}, True), ({"use_rslora": True}, True), ({"bias": "all"}, False), ({"init_lora_weights": "pissa"}, False)],
)
def test_an_adapter_that_changes_what_it_rests_on_is_not_taken_off(
    tiny: Path, world: World, tmp_path: Path, changes: dict[str, object], rests: bool
) -> None:
    saving.save(adapted(tiny, world, moved=True), tmp_path / "model", {}, "# test\n")
    config = files.read_json(tmp_path / "model/adapter_config.json")
    files.write_json(tmp_path / "model/adapter_config.json", config | changes)
    assert language_models.has_base(language_models.load_policy(tmp_path / "model", world), tiny) == rests


def test_only_the_very_base_is_under_an_adapter(tiny: Path, world: World, tmp_path: Path) -> None:
    policy = adapted(tiny, world, moved=True)
    saving.save(policy, tmp_path / "model", {}, "# test\n")
    loaded = language_models.load_policy(tmp_path / "model", world)
    for name in ("copy", "other"):
        shutil.copytree(tiny, tmp_path / name)
    config = files.read_json(tiny / "config.json")
    files.write_json(tmp_path / "other/config.json", config | {"rms_norm_eps": 1e-3})
    assert language_models.has_base(loaded, tmp_path / "copy")
    assert not language_models.has_base(loaded, tmp_path / "other") and not language_models.has_base(
        loaded, tmp_path / "model"
    )
    assert not language_models.has_base(language_models.load_policy(tiny, world), tiny), "there is nothing to take off"


@pytest.mark.parametrize("kind", ["policy", "scorer"])
def test_only_adapters_and_the_head_learn_and_their_state_is_two_moments(tiny: Path, world: World, kind: str) -> None:
    ids = torch.tensor([[1, 270, 280, 290, 300]])
    network: language_models.Policy | language_models.Scorer
    if kind == "policy":
        network = language_models.load_policy(tiny, world, lora_dim=2)
        loss = network.logits(network.hidden(ids)[0]).log_softmax(-1)[:, 270].sum()
    else:
        network = language_models.load_scorer(tiny, world, lora_dim=2, seed=1)
        loss = network.scores(network.hidden(ids)).sum()
    trainable = network.trainable()
    optimizer = Optimizer(trainable, Schedule(0.1), 1.0)
    before = {name: p.detach().clone() for name, p in network.body.named_parameters()}
    loss.backward()
    assert {name for name, p in network.body.named_parameters() if p.grad is not None} == set(trainable)
    optimizer.step(0)
    moved = {name for name, p in network.body.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in trainable if "lora_A" not in name}, "A has no gradient while B is zero"
    assert all("lora_" in name or name.startswith("score.") for name in trainable)
    assert any(name.startswith("score.") for name in trainable) == (kind == "scorer")
    moments = [tensor for name, tensor in optimizer.tensors().items() if name.startswith("exp_avg")]
    assert sum(t.nbytes for t in moments) == 8 * sum(p.numel() for p in trainable.values())
