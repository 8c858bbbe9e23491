"""Adapters compute in the backbone's precision and learn in fp32."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import quiet_recipe
from safetensors.torch import load_file
from torch import Tensor

from preferent.models import adapters, language_models, saving, vocabulary, weight_averaging
from preferent.models.language_models import Network, Policy, Scorer
from preferent.models.world import World
from preferent.training.optimizer import Optimizer, Schedule

IDS = torch.tensor([[1, *range(262, 293)], [1, *range(280, 311)]])


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(quiet_recipe())


@pytest.fixture(scope="module")
def bf16() -> World:
    return World.of(quiet_recipe(precision="bf16"))


def moved(network: Network, scale: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def loss(network: Network) -> Tensor:
    """Return the mean log-probability of the tokens, or the mean score."""
    hidden = network.hidden(IDS)
    if isinstance(network, Scorer):
        return network.scores(hidden).mean()
    assert isinstance(network, Policy)
    states, ids = hidden[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
    return vocabulary.chunked_log_probs(states, ids, network.head(1.0), network.vocab_size).mean()


def measured(network: Network) -> tuple[float, Tensor]:
    """Return the loss, and its gradient in the trained weights."""
    parameters = network.trainable()
    value = loss(network)
    gradients = torch.autograd.grad(value, list(parameters.values()))
    return float(value.detach()), torch.cat([g.double().flatten() for g in gradients])


def kept_bytes(network: Network) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights apart."""
    weights, kept = {p.data_ptr() for p in network.body.parameters()}, list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(network)
    storages = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for place, size in storages.items() if place not in weights)


def pair(folder: Path, world: World, kind: str) -> tuple[Network, Network]:
    """Return a network with LoRA, moved, and the same with fp32 adapters."""
    both: list[Network] = []
    for _ in range(2):
        one: Network = (
            language_models.load_policy(folder, world, lora_dim=2)
            if kind == "policy"
            else language_models.load_scorer(folder, world, lora_dim=2, seed=1)
        )
        moved(one)
        both.append(one)
    for parameter in both[1].trainable().values():
        parameter.data = parameter.data.float()
    return both[0], both[1]


@pytest.mark.parametrize("kind", ["policy", "scorer"])
def test_bf16_adapters_are_as_near_the_truth_as_fp32_ones(tiny: Path, bf16: World, kind: str) -> None:
    ours, wide = pair(tiny, bf16, kind)
    truth = pair(tiny, dataclasses.replace(bf16, dtype=torch.float64), kind)[0]
    exact, state = dict(truth.body.named_parameters()), ours.body.state_dict()
    for name, parameter in exact.items():
        parameter.data = state[name].double()
    if isinstance(truth, Scorer):
        truth.body.get_submodule("score").float()
    (our_loss, ours_g), (wide_loss, wide_g), (loss, gradient) = (measured(one) for one in (ours, wide, truth))
    size = float(gradient.norm())
    errors = [float((g - gradient).norm()) / size for g in (ours_g, wide_g)]
    assert 0 < errors[0] <= 1.5 * errors[1] and errors[0] < 0.05
    assert abs(our_loss - loss) <= 2 * abs(wide_loss - loss) + 2e-3


@pytest.mark.parametrize("kind", ["policy", "scorer"])
def test_bf16_adapters_keep_fewer_activations(tiny: Path, bf16: World, kind: str) -> None:
    ours, wide = pair(tiny, bf16, kind)
    assert kept_bytes(ours) < 0.85 * kept_bytes(wide)


def test_masters_are_fp32_and_so_is_what_is_saved(tiny: Path, bf16: World, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, bf16, lora_dim=2)
    optimizer = Optimizer(policy.trainable(), Schedule(1e-3), 1.0)
    loss(policy).backward()
    optimizer.step(0)
    masters = optimizer.masters
    assert {p.dtype for p in policy.trainable().values()} == {torch.bfloat16}
    assert {m.dtype for m in masters.values()} == {torch.float32}
    saving.save(policy, tmp_path / "policy", masters, "# test\n")
    written = load_file(tmp_path / "policy" / "adapter_model.safetensors")
    assert len(written) == len(masters)
    for name, master in masters.items():
        assert torch.equal(written[adapters.PREFIX + name.replace(".default.", ".")], master.detach())
    assert any(not torch.equal(m, m.bfloat16().float()) for m in masters.values())
    again = language_models.load_policy(tmp_path / "policy", bf16)
    assert torch.equal(again.hidden(IDS), policy.hidden(IDS))


def test_every_adapter_is_in_the_precision_and_every_head_in_fp32(tiny: Path, bf16: World, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        scorer = language_models.load_scorer(tiny, bf16, lora_dim=2, seed=seed)
        saving.save(scorer, folder, scorer.trainable(), "# test\n")
    networks = [language_models.load_scorer(folders[0], bf16), weight_averaging.load(folders, bf16)]
    networks += [networks[0].critic(), networks[1].critic(), scorer]
    for network in networks:
        for name, parameter in network.body.named_parameters():
            assert parameter.dtype == (torch.float32 if name.startswith("score.") else torch.bfloat16), name


def test_fp32_adapters_are_fp32(tiny: Path, world: World) -> None:
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}


def test_a_merged_model_is_made_of_the_masters(tiny: Path, bf16: World, world: World, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, bf16, lora_dim=2)
    moved(policy)
    masters = {name: p.detach().float() * 1.0009 for name, p in policy.trainable().items()}
    base = {name: p.detach().clone() for name, p in policy.body.named_parameters()}
    saving.save_merged(policy, tmp_path / "merged", masters, "# test\n")
    merged = language_models.load_policy(tmp_path / "merged", world).body.state_dict()
    for name, master in masters.items():
        if ".lora_A." in name:
            stem = name.split(".lora_A.")[0]
            delta = masters[name.replace(".lora_A.", ".lora_B.")] @ master * 2
            expected = base[f"{stem}.base_layer.weight"].clone()
            expected += delta
            assert torch.equal(merged[f"{stem}.weight"], expected.float()), stem
