"""Backbones in 4 bits: what is quantized and how far off it is, gradients, saving, and what is refused."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_recipe
from torch import Tensor

from preferent import files
from preferent.config import defaults, recipe
from preferent.errors import PlatformError, UsageError
from preferent.models import language_models, quantization, saving, weight_averaging
from preferent.models.language_models import Network, Policy
from preferent.models.world import World

bitsandbytes = pytest.importorskip("bitsandbytes", reason="pip install 'preferent[bits]'")

IDS = torch.tensor([[1, 270, 280, 290, 300, 310, 320, 330]])


@pytest.fixture(scope="session")
def wide(make_model: Callable[..., Path]) -> Path:
    """A small model whose rows are whole blocks of 64 weights."""
    return make_model(hidden_size=64)


def world(**values: Any) -> World:
    return World.of(quiet_recipe(quantize="nf4", **values))


def quantized(network: Network) -> dict[str, Any]:
    """The 4-bit layers by name."""
    return {
        name: module
        for name, module in network.body.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit) and "lora" not in name
    }


def restored(layer: Any) -> Tensor:
    """What a layer multiplies with."""
    base = getattr(layer, "base_layer", layer)
    return bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("reward", [False, True])
def test_linear_layers_are_nf4_and_nothing_else_is(wide: Path, precision: str, reward: bool) -> None:
    def load(world: World) -> Network:
        return language_models.load_scorer(wide, world, 2, 1) if reward else language_models.load_policy(wide, world, 2)

    network, plain = load(world(precision=precision)), load(World.of(quiet_recipe(precision=precision)))
    layers = quantized(network)
    assert len(layers) == 2 * 7, "four of attention, three of the network, in each of two layers"
    weights = {name.replace(".base_layer", ""): p for name, p in plain.body.named_parameters()}
    for name, layer in layers.items():
        ours = layer.weight.quant_state
        assert (ours.quant_type, ours.blocksize, ours.nested, ours.state2.blocksize) == ("nf4", 64, True, 256)
        exact = weights[name.replace(".base_layer", "") + ".weight"].detach()
        scale = exact.float().flatten().reshape(-1, 64).abs().amax(1).repeat_interleave(64).view_as(exact)
        error = (restored(layer).float() - exact.float()).abs() / scale
        assert 0.08 < (restored(layer).float() - exact.float()).norm() / exact.float().norm() < 0.105, (
            "9.2 % for normal"
        )
        assert error.max() < 0.17, "half the widest gap between two codes of nf4 is 0.152 of a block's largest"
    others = {name: p for name, p in network.body.named_parameters() if p.dtype != torch.uint8}
    assert all(torch.equal(p, dict(plain.body.named_parameters())[name]) for name, p in others.items())
    assert set(network.trainable()) == set(plain.trainable()), "PEFT puts adapters where it puts them on plain layers"


def test_logits_are_those_of_the_restored_weights(wide: Path) -> None:
    policy, plain = (language_models.load_policy(wide, each) for each in (world(), World.of(quiet_recipe())))
    exact, near = plain.logits(plain.hidden(IDS)), policy.logits(policy.hidden(IDS))
    for name, layer in quantized(policy).items():
        plain.body.get_parameter(f"{name}.weight").data = restored(layer)
    same = plain.logits(plain.hidden(IDS))
    finite = same.isfinite()
    assert torch.allclose(near[finite], same[finite], atol=1e-6)
    error = float((near - exact)[finite].norm() / exact[finite].norm())
    assert 0.092 < error < 0.092 * math.sqrt(14), "errors of 14 layers that do not know each other"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_is_that_of_the_restored_weights_after_a_pass_without_one(wide: Path, checkpointing: bool) -> None:
    """On a processor with AVX512-BF16 bitsandbytes would repack the weights in the first pass."""
    policy = language_models.load_policy(wide, world(), 2, checkpointing)
    plain = language_models.load_policy(wide, World.of(quiet_recipe()), 2, checkpointing)
    for name, layer in quantized(policy).items():
        plain.body.get_parameter(f"{name}.weight").data = restored(layer)
    for network in (policy, plain):
        generator = torch.Generator().manual_seed(5)
        for parameter in network.trainable().values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    with torch.no_grad():
        before = policy.hidden(IDS)
    during = policy.hidden(IDS)
    assert torch.equal(before, during), "the first ratio of PPO is exactly 1"
    for network in (policy, plain):
        network.hidden(IDS).square().sum().backward()
    ours, theirs = policy.trainable(), plain.trainable()
    for name, parameter in ours.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
        assert torch.allclose(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-4), name
    with torch.no_grad():
        assert torch.equal(policy.hidden(IDS), before)


def test_no_processor_repacks_the_weights(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bitsandbytes would do is held on a processor that cannot do it, too."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    layers = quantized(language_models.load_policy(wide, world(), lora_dim=2))
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers.values())


def moved(network: Policy) -> Policy:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network


def test_an_adapter_is_merged_into_the_base_as_it_is_stored(wide: Path, tmp_path: Path) -> None:
    """The merged model is that of the same adapter on a plain base, to the last bit."""
    policy = moved(language_models.load_policy(wide, world(), 2))
    plain = moved(language_models.load_policy(wide, World.of(quiet_recipe()), 2))
    for name, network in (("quantized", policy), ("plain", plain)):
        saving.save_merged(network, tmp_path / name, {}, "# test\n")
    merged, expected = (files.sha256(tmp_path / name / "model.safetensors") for name in ("quantized", "plain"))
    assert merged == expected
    assert "quantization_config" not in files.read_json(tmp_path / "quantized/config.json")


def test_a_saved_adapter_says_what_it_was_trained_on_and_opens_on_both(wide: Path, tmp_path: Path) -> None:
    policy = moved(language_models.load_policy(wide, world(), 2))
    saving.save(policy, tmp_path / "model", {}, "# test\n")
    assert "4 bits (nf4" in (tmp_path / "model/README.md").read_text()
    again = language_models.load_policy(tmp_path / "model", world())
    assert torch.equal(again.hidden(IDS), policy.hidden(IDS)), "the same weights are quantized to the same bits"
    whole = language_models.load_policy(tmp_path / "model", World.of(quiet_recipe()))
    assert not quantized(whole) and not torch.equal(whole.hidden(IDS), policy.hidden(IDS))
    assert language_models.has_base(again, wide)


def test_full_reward_models_are_averaged_as_they_are_stored(wide: Path, tmp_path: Path) -> None:
    plain = World.of(quiet_recipe())
    for seed in (1, 2):
        saving.save(language_models.load_scorer(wide, plain, 0, seed), tmp_path / str(seed), {}, "# test\n")
    folders = [tmp_path / "1", tmp_path / "2"]
    mean, exact = weight_averaging.load(folders, world()), weight_averaging.load(folders, plain)
    assert not quantized(mean) and torch.equal(mean.scores(mean.hidden(IDS)), exact.scores(exact.hidden(IDS)))
    with pytest.raises(UsageError, match=r"quantize: nf4 .* a critic .* ppo\.algorithm"):
        language_models.load_scorer(folders[0], world()).critic()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"ppo": {"lora_dim": 0}}, "ppo.lora_dim"),
        ({"reward": {"lora_dim": 0}, "ppo": {"lora_dim": 2}}, "reward.lora_dim"),
        ({"method": "dpo", "dpo": {"lora_dim": 0}, "reward": {"lora_dim": 2}}, "dpo.lora_dim"),
        ({"sft": {"dataset": "s", "lora_dim": 0}, "reward": {"lora_dim": 2}, "ppo": {"lora_dim": 1}}, "sft.lora_dim"),
    ],
)
def test_full_tuning_is_refused(values: dict[str, Any], key: str) -> None:
    asked = quiet_recipe(quantize="nf4", preference_dataset="p", **values)
    with pytest.raises(UsageError, match=f"quantize: nf4 is for frozen weights, but with {key} 0"):
        defaults.resolve(asked)
    defaults.resolve(recipe.parse(asked.model_dump(mode="json") | {"quantize": None})[0])


def test_so_is_the_full_tuning_that_a_small_model_gets_by_itself() -> None:
    asked = quiet_recipe(quantize="nf4", preference_dataset="p")
    with pytest.raises(UsageError, match=r"reward\.lora_dim and ppo\.lora_dim 0 \(the default"):
        defaults.resolve(asked, 10**6, 10**6)
    assert defaults.resolve(asked, 10**9, 10**9)[0].ppo.lora_dim == 1


def test_without_the_package_a_sentence_says_what_to_install(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlatformError, match=r"pip install 'preferent\[bits\]'"):
        language_models.load_policy(wide, world(), 2)


HUB = """
import socket
class Closed(socket.socket):
    def __init__(self, *args, **kwargs): raise SystemExit("a socket was opened")
socket.socket = Closed
import sys, torch
from collections.abc import Callable
from pathlib import Path
sys.path[:0] = [{tests!r}]
from conftest import quiet_recipe
from preferent.models import language_models
from preferent.models.world import World
policy = language_models.load_policy(Path({model!r}), World.of(quiet_recipe(quantize="nf4")), 2)
policy.hidden(torch.tensor([[1, 270, 280]])).sum().backward()
assert "bitsandbytes" in sys.modules
import kernels
assert kernels.FETCHED == [], kernels.FETCHED
assert "torch._inductor.compile_fx" not in sys.modules
"""


def test_where_kernels_is_installed_nothing_is_fetched(wide: Path, tmp_path: Path) -> None:
    """With AVX512-BF16 bitsandbytes asks the hub for compiled code while it is imported; PEFT imports it always."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text(
        "import socket\nFETCHED = []\ndef get_kernel(*names, **_):\n    FETCHED.append(names)\n    socket.socket()\n"
    )
    root = Path(__file__).resolve().parents[2]
    code = HUB.format(tests=str(root / "tests"), model=str(wide))
    paths = f"{tmp_path}:{root}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""


def test_rows_that_a_processor_would_restore_wrongly_are_refused(tiny: Path) -> None:
    with pytest.raises(
        UsageError, match=r"quantize: nf4: .*q_proj have 32 weights, .* multiple of 64 .* drop quantize"
    ):
        language_models.load_policy(tiny, world())


@pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="restored rightly without AVX-512")
def test_a_processor_restores_such_rows_wrongly() -> None:
    """bitsandbytes 0.50.2 with AVX-512 takes the scales of rows of 32 from wrong places."""
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    codes, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    error = (bitsandbytes.functional.dequantize_4bit(codes, state) - weight).norm() / weight.norm()
    assert error > 0.15, "it is mended: such rows need no refusal any more"
