"""Models in and out: heads, adapters, critics, pad, and files that plain libraries read."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import quiet_recipe

from preferent.errors import PlatformError, UsageError
from preferent.models import language_models, saving
from preferent.models.world import World

IDS = torch.tensor([[1, 270, 280, 290, 300], [1, 271, 2, 0, 0]])


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(quiet_recipe())


def nudge(parameters: dict[str, torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def run_plain(code: str) -> object:
    """Run code in a process of its own, which must not import preferent; returns the JSON that it prints."""
    guard = "\nimport sys; assert not any(name.startswith('preferent') for name in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + guard], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_logits_are_the_models_own(tiny: Path, world: World) -> None:
    policy = language_models.load_policy(tiny, world)
    with torch.no_grad():
        ours, own = policy.logits(policy.hidden(IDS)[0]), policy.body(IDS).logits[0]
    masked = policy.masked_ids.tolist()
    assert policy.tokenizer.pad_id in masked and torch.isinf(ours[:, masked]).all()
    ours[:, masked] = own[:, masked]
    assert torch.equal(ours, own)


def test_pad_is_unk_where_there_is_none(tiny: Path, world: World) -> None:
    policy = language_models.load_policy(tiny, world)
    assert policy.tokenizer.pad_id == 0 and policy.tokenizer.eos_id == 2


def test_adapter_off_is_the_reference(tiny: Path, world: World) -> None:
    policy, plain = language_models.load_policy(tiny, world, lora_dim=2), language_models.load_policy(tiny, world)
    reference = policy.reference()
    with torch.no_grad():
        assert torch.equal(policy.hidden(IDS), plain.hidden(IDS))
        nudge(policy.trainable())
        assert not torch.allclose(policy.hidden(IDS), plain.hidden(IDS), atol=1e-3)
        assert torch.equal(reference.hidden(IDS), plain.hidden(IDS))
    assert all("lora_" in name for name in policy.trainable())
    linear = [
        name for name, part in plain.body.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"
    ]
    assert len(policy.trainable()) == 2 * len(linear)


def test_critic_starts_as_the_reward_model(tiny: Path, world: World, tmp_path: Path) -> None:
    for rank in (0, 2):
        scorer = language_models.load_scorer(tiny, world, lora_dim=rank, seed=3)
        nudge(scorer.trainable())
        saving.save(scorer, tmp_path / f"reward-{rank}", scorer.trainable(), "# test\n")
        frozen = language_models.load_scorer(tmp_path / f"reward-{rank}", world)
        critic = frozen.critic()
        with torch.no_grad():
            expected = scorer.scores(scorer.hidden(IDS))
            assert torch.allclose(critic.scores(critic.hidden(IDS)), expected, atol=1e-6)
            nudge(critic.trainable())
            assert not torch.allclose(critic.scores(critic.hidden(IDS)), expected, atol=1e-3)
            assert torch.allclose(frozen.scores(frozen.hidden(IDS)), expected, atol=1e-6)
        assert rank == 0 or all(f".{language_models.CRITIC}." in name for name in critic.trainable())


def test_critic_learns_while_the_reward_stays(tiny: Path, world: World, tmp_path: Path) -> None:
    scorer = language_models.load_scorer(tiny, world, lora_dim=2, seed=3)
    saving.save(scorer, tmp_path / "reward", scorer.trainable(), "# test\n")
    frozen = language_models.load_scorer(tmp_path / "reward", world)
    critic = frozen.critic()
    with torch.no_grad():
        frozen.scores(frozen.hidden(IDS))
    critic.scores(critic.hidden(IDS)).sum().backward()
    assert all(p.grad is not None for name, p in critic.trainable().items())
    assert not any(
        p.grad is not None for name, p in critic.body.named_parameters() if f".{language_models.REWARD}." in name
    )


def test_head_is_drawn_from_the_seed(tiny: Path, world: World) -> None:
    first, again, other = (language_models.load_scorer(tiny, world, 0, seed).body.score.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std().item() == pytest.approx(33**-0.5, rel=0.4)


@pytest.mark.acceptance
def test_full_policy_loads_without_us(tiny: Path, world: World, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, world, lora_dim=0)
    nudge(policy.trainable())
    saving.save(policy, tmp_path / "policy", policy.trainable(), "# test\n")
    with torch.no_grad():
        expected = policy.body(IDS).logits[0, -1]
    plain = run_plain(
        f"""
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = {str(tmp_path / "policy")!r}
policy, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
assert tokenizer.pad_token_id == 0 and policy.config.pad_token_id == 0
print(json.dumps(policy(torch.tensor({IDS.tolist()})).logits[0, -1].tolist()))"""
    )
    assert torch.allclose(torch.tensor(plain), expected, atol=1e-5)


@pytest.mark.acceptance
def test_adapter_and_merged_load_without_us(tiny: Path, world: World, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, world, lora_dim=2)
    nudge(policy.trainable())
    saving.save(policy, tmp_path / "adapter", policy.trainable(), "# test\n")
    with torch.no_grad():
        expected = policy.logits(policy.hidden(IDS)[0, -1:])[0]
    again = language_models.load_policy(tmp_path / "adapter", world)
    with torch.no_grad():
        assert torch.allclose(again.logits(again.hidden(IDS)[0, -1:])[0], expected, atol=1e-5)
    saving.save_merged(again, tmp_path / "merged", {}, "# test\n")
    keep = torch.isfinite(expected)
    for lines in (
        f"from peft import PeftModel\nbase = AutoModelForCausalLM.from_pretrained({str(tiny)!r})\n"
        f"policy = PeftModel.from_pretrained(base, {str(tmp_path / 'adapter')!r})",
        f"policy = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'merged')!r})",
    ):
        plain = run_plain(
            f"import json, torch\nfrom transformers import AutoModelForCausalLM\n{lines}\n"
            f"print(json.dumps(policy(torch.tensor({IDS.tolist()})).logits[0, -1].tolist()))"
        )
        assert torch.allclose(torch.tensor(plain)[keep], expected[keep], atol=1e-5)


@pytest.mark.acceptance
@pytest.mark.parametrize("rank", [0, 2])
def test_reward_model_loads_without_us(tiny: Path, world: World, tmp_path: Path, rank: int) -> None:
    scorer = language_models.load_scorer(tiny, world, lora_dim=rank, seed=3)
    nudge(scorer.trainable())
    saving.save(scorer, tmp_path / "reward", scorer.trainable(), "# test\n")
    with torch.no_grad():
        hidden = scorer.hidden(IDS)
        expected = torch.stack([scorer.scores(hidden[0, 4]), scorer.scores(hidden[1, 2])])
    load = (
        f"reward = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / 'reward')!r}, num_labels=1)"
        if rank == 0
        else f"base = AutoModelForSequenceClassification.from_pretrained({str(tiny)!r}, num_labels=1, pad_token_id=0)\n"
        f"reward = PeftModel.from_pretrained(base, {str(tmp_path / 'reward')!r})"
    )
    plain = run_plain(
        f"import json, torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForSequenceClassification\n"
        f"{load}\nprint(json.dumps(reward(torch.tensor({IDS.tolist()})).logits[:, 0].tolist()))"
    )
    assert torch.allclose(torch.tensor(plain), expected, atol=1e-5)


def test_stored_dtype_is_the_sources(tiny: Path, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, World.of(quiet_recipe(precision="bf16")), lora_dim=0)
    masters = {name: parameter.detach().float() + 1e-4 for name, parameter in policy.trainable().items()}
    saving.save(policy, tmp_path / "policy", masters, "# test\n")
    again = language_models.load_policy(tmp_path / "policy", World.of(quiet_recipe()))
    assert all(torch.equal(p, masters[name]) for name, p in again.body.named_parameters())


def test_what_is_no_policy_is_refused(
    make_model: Callable[..., Path], tiny: Path, world: World, tmp_path: Path
) -> None:
    with pytest.raises(PlatformError, match=r"config\.json"):
        language_models.load_policy(tmp_path, world)
    saving.save(language_models.load_scorer(tiny, world, 0, 1), tmp_path / "reward", {}, "# test\n")
    with pytest.raises(UsageError, match="not a causal language model"):
        language_models.load_policy(tmp_path / "reward", world)
    with pytest.raises(UsageError, match="is not a reward model"):
        language_models.load_scorer(tiny, world)
    pickled = make_model(seed=9)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(PlatformError, match="pickled"):
        language_models.load_policy(pickled, world)


def test_licences_travel(make_model: Callable[..., Path], world: World, tmp_path: Path) -> None:
    source = make_model(seed=8)
    (source / "LICENSE.txt").write_text("terms")
    saving.save(language_models.load_policy(source, world, 0), tmp_path / "policy", {}, "# test\n")
    assert (tmp_path / "policy" / "LICENSE.txt").read_text() == "terms"
    assert "LICENSE.txt" in (tmp_path / "policy" / "README.md").read_text()


def test_too_long_for_the_model(tiny: Path) -> None:
    with pytest.raises(UsageError, match="128"):
        language_models.check_length(tiny, quiet_recipe(prompt_sequence_length=120, target_sequence_length=9))
