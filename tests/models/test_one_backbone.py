"""One frozen backbone serves policy, reference, reward models and critic: each computes what it does alone."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from preferent.models import adapters, language_models, saving, weight_averaging
from preferent.models.language_models import Network, Policy, Scorer
from preferent.models.world import World
from preferent.rewards.scoring import CombinedReward, RewardModel
from preferent.training.optimizer import Optimizer, Schedule

IDS = torch.tensor([[1, *range(262, 293)], [1, *range(280, 311)]])


@pytest.fixture(params=["fp32", "bf16"])
def world(request: pytest.FixtureRequest) -> World:
    return World.of(quiet_recipe(precision=request.param))


@pytest.fixture(scope="module")
def rewards(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three reward models with LoRA on one base, the last of another rank."""
    folders = [tmp_path_factory.mktemp("rewards") / f"reward-{seed}" for seed in range(3)]
    plain = World.of(quiet_recipe())
    for seed, folder in enumerate(folders):
        scorer = language_models.load_scorer(tiny, plain, lora_dim=2 + (seed == 2), seed=seed)
        moved(scorer, seed)
        saving.save(scorer, folder, scorer.trainable(), "# test\n")
    return folders


def moved(network: Network, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def outputs(network: Network) -> torch.Tensor:
    hidden = network.hidden(IDS)
    if isinstance(network, Scorer):
        return network.scores(hidden)
    assert isinstance(network, Policy)
    return network.logits(hidden[0])


def gradient(network: Network) -> dict[str, torch.Tensor]:
    """Return what a backward pass leaves in the optimizer's masters."""
    optimizer = Optimizer(network.trainable(), Schedule(1e-3), 1.0)
    finite = outputs(network)
    finite[finite.isfinite()].float().square().mean().backward()
    return {name: master.grad for name, master in optimizer.masters.items() if master.grad is not None}


def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which every load of a whole model is added."""
    made: list[str] = []
    for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        original = kind.from_pretrained

        def counted(*args: Any, original: Any = original, name: str = kind.__name__, **values: Any) -> Any:
            made.append(name)
            return original(*args, **values)

        monkeypatch.setattr(kind, "from_pretrained", counted)
    return made


def test_every_network_computes_what_it_does_alone(tiny: Path, world: World, rewards: list[Path]) -> None:
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    moved(policy)
    reference = policy.reference()
    shared = [language_models.load_scorer(folder, world, beside=[policy]) for folder in rewards]
    critic = shared[0].critic()
    moved(critic, 5)
    alone = language_models.load_policy(tiny, world, lora_dim=2)
    moved(alone)
    scorers = [language_models.load_scorer(folder, world) for folder in rewards]
    other_critic = scorers[0].critic()
    moved(other_critic, 5)
    pairs: list[tuple[Network, Network]] = [*zip(shared, scorers, strict=True), (critic, other_critic)]
    pairs += [(policy, alone), (reference, language_models.load_policy(tiny, world))]
    assert {id(one.body) for one, _ in pairs} == {id(policy.body)}
    with torch.no_grad():
        for _ in range(2):
            for one, other in [*pairs, *pairs[::-1]]:
                assert torch.equal(outputs(one), outputs(other)), one.adapter
    for one, other in ((policy, alone), (critic, other_critic)):
        assert list(one.trainable()) == list(other.trainable())
        ours, theirs = gradient(one), gradient(other)
        assert list(ours) == list(one.trainable()) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(not scorer.trainable() for scorer in shared) and not reference.trainable()


def test_switching_lets_every_adapter_learn_on(tiny: Path, world: World, rewards: list[Path]) -> None:
    """The graphs of policy and critic stand at once, with passes of the others in between."""
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    reward = language_models.load_scorer(rewards[0], world, beside=[policy])
    critic, reference = reward.critic(), policy.reference()
    names = {name for name, p in policy.body.named_parameters() if p.requires_grad}
    assert names == {*policy.trainable(), *critic.trainable()} and not {*policy.trainable()} & {*critic.trainable()}
    states = policy.hidden(IDS)
    value = critic.scores(critic.hidden(IDS)).sum()
    with torch.no_grad():
        outputs(reward), outputs(reference)
    states.float().square().sum().backward()
    value.backward()
    assert all(p.grad is not None for network in (policy, critic) for p in network.trainable().values())
    assert {name for name, p in policy.body.named_parameters() if p.grad is not None} == names


def test_a_critic_from_the_policy_is_that_of_a_model_of_its_own(tiny: Path, world: World) -> None:
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    moved(policy)
    critic = language_models.critic_from_policy(policy)
    own = language_models.load_scorer(tiny, world, lora_dim=2, seed=0)
    torch.nn.init.zeros_(own.trainable()["score.modules_to_save.default.weight"])
    assert critic.body is policy.body and torch.equal(outputs(critic), torch.zeros(IDS.shape))
    theirs = list(own.trainable().values())
    assert all(torch.equal(one, other) for one, other in zip(critic.trainable().values(), theirs, strict=True))
    assert not {*critic.trainable()} & {*policy.trainable()}


@pytest.mark.parametrize("combine", ["mean", "weights"])
def test_an_ensemble_sits_on_the_policys_backbone(
    tiny: Path, world: World, rewards: list[Path], monkeypatch: pytest.MonkeyPatch, combine: str
) -> None:
    members = rewards[:2]
    recipe = quiet_recipe(reward={"members": 2, "combine": combine})
    inputs = dict(zip(("reward", "reward-2"), members, strict=True))
    alone = CombinedReward.load(recipe, inputs, world)
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    made = loads(monkeypatch)
    shared = CombinedReward.load(recipe, inputs, world, beside=[policy])
    assert made == [] and shared.sources.keys() == alone.sources.keys()
    answers = [np.array([261, 262, 263], np.int32), np.array([270], np.int32)]
    asked = [np.array([1, 265], np.int32)] * 2
    for name, source in shared.sources.items():
        other = alone.sources[name]
        assert isinstance(source, RewardModel) and isinstance(other, RewardModel)
        assert source.scorer.body is policy.body
        assert np.array_equal(source.score_ids(asked, answers), other.score_ids(asked, answers))
    with torch.no_grad():
        assert torch.equal(outputs(policy), outputs(language_models.load_policy(tiny, world)))


def test_only_one_base_is_shared(
    make_model: Callable[..., Path], tiny: Path, rewards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with the same content is the same base; another model, a full policy or another precision is not."""
    world = World.of(quiet_recipe())
    copied, other = shutil.copytree(tiny, tmp_path / "copy"), make_model(seed=11)
    policies = {
        "itself": language_models.load_policy(tiny, world, lora_dim=2),
        "copy": language_models.load_policy(copied, world, lora_dim=2),
        "other": language_models.load_policy(other, world, lora_dim=2),
        "full": language_models.load_policy(tiny, world, lora_dim=0),
        "bf16": language_models.load_policy(tiny, dataclasses.replace(world, dtype=torch.bfloat16), lora_dim=2),
    }
    moved(policies["full"])
    made, shared = loads(monkeypatch), set[str]()
    for name, policy in policies.items():
        scorer = language_models.load_scorer(rewards[0], world, beside=[policy])
        shared |= {name} if scorer.body is policy.body else set()
    assert shared == {"itself", "copy"} and len(made) == 3


def test_a_policy_beside_others_is_saved_alone(tiny: Path, world: World, rewards: list[Path], tmp_path: Path) -> None:
    for name in ("alone", "beside"):
        policy = language_models.load_policy(tiny, world, lora_dim=2)
        moved(policy)
        if name == "beside":
            language_models.load_scorer(rewards[0], world, beside=[policy]).critic()
        masters = {key: p.detach().float() for key, p in policy.trainable().items()}
        saving.save(policy, tmp_path / name, masters, "# test\n")
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "beside").iterdir())
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("alone", "beside")]
    assert weights[0] == weights[1]


def test_a_reward_model_is_trained_on_the_policy_that_answered(tiny: Path, world: World, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, world)
    ours = language_models.load_scorer(tiny, world, lora_dim=2, seed=3, on=policy)
    own = language_models.load_scorer(tiny, world, lora_dim=2, seed=3)
    for name, scorer in (("ours", ours), ("own", own)):
        moved(scorer)
        saving.save(scorer, tmp_path / name, {k: p.detach().float() for k, p in scorer.trainable().items()}, "# test\n")
    assert torch.equal(outputs(ours), outputs(own)) and ours.body is policy.body
    assert list(ours.trainable()) == list(own.trainable())
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "own")]
    assert files[0] == files[1]
    again = language_models.load_scorer(tmp_path / "ours", world)
    assert torch.equal(outputs(again), outputs(own))


def test_an_average_sits_beside_a_policy(tiny: Path, world: World, rewards: list[Path]) -> None:
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    shared, alone = (
        weight_averaging.load(rewards[:2], world, beside=[policy]),
        weight_averaging.load(rewards[:2], world),
    )
    critic, other = shared.critic(), alone.critic()
    assert shared.body is policy.body and torch.equal(outputs(shared), outputs(alone))
    assert torch.equal(outputs(critic), outputs(other)) and not shared.trainable()
    assert adapters.parameters(policy.body, "mean").keys() == adapters.parameters(alone.body, "mean").keys()


@pytest.mark.acceptance
def test_a_7b_run_holds_one_backbone() -> None:
    """Without storage: policy, reference, reward model and critic take the weights of one model, and adapters."""
    width, layers = 4096, 32
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        backbone = [parameter.numel() for parameter in body.parameters()]
        peft = adapters.make_trainable(body, 1, TaskType.CAUSAL_LM)
        adapters.add_head(body)
        reward: Any = peft.peft_config["default"]
        reward = dataclasses.replace(reward, r=4, lora_alpha=8, modules_to_save=[adapters.HEAD])
        adapters.add(peft, "reward", reward)
        adapters.add(peft, "critic", reward, trainable=True)
    a_rank = layers * (4 * 2 * width + 3 * (width + 11008))
    whole = sum(parameter.numel() for parameter in body.parameters())
    assert 2 * sum(backbone) <= 12.6 * 2**30
    assert whole - sum(backbone) == (1 + 4 + 4) * a_rank + 3 * width
    trained = {name for name, p in body.named_parameters() if p.requires_grad}
    assert trained == {*adapters.parameters(body, "default"), *adapters.parameters(body, "critic")}
