"""Open fields of a recipe: what they become, that one place decides, and that a run shows and keeps it."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import quiet_recipe

from preferent import files
from preferent.config import defaults, model_folder, model_reference, recipe
from preferent.config.algorithms import ALGORITHMS
from preferent.config.recipe import Recipe
from preferent.errors import PlatformError, UsageError
from preferent.models import language_models
from preferent.models.world import World
from preferent.runs import stages
from preferent.training import sft

PACKAGE = Path(defaults.__file__).parent
SMALL, LARGE = 200_000_000, 200_000_001
SECTIONS = ("sft", "reward", "ppo", "dpo", "rejection")


def open_recipe(**values: Any) -> Recipe:
    return quiet_recipe(sft={"dataset": "texts.jsonl"} | values.pop("sft", {}), **values)


def test_a_model_above_200_million_parameters_is_tuned_by_an_adapter() -> None:
    small, _ = defaults.resolve(open_recipe(), SMALL, SMALL)
    large, _ = defaults.resolve(open_recipe(), LARGE, LARGE)
    assert [getattr(small, name).lora_dim for name in SECTIONS] == [0, 0, 0, 0, 0]
    assert [getattr(large, name).lora_dim for name in SECTIONS] == [4, 4, 1, 4, 4]
    assert [getattr(small, name).learning_rate for name in SECTIONS] == [1e-5, 1e-5, 1e-6, 1e-6, 1e-5]
    assert [getattr(large, name).learning_rate for name in SECTIONS] == [1e-4] * 5
    assert (small.ppo.critic_learning_rate, large.ppo.critic_learning_rate) == (5e-6, 1e-4)


def test_the_reward_model_goes_by_its_own_size() -> None:
    mixed, _ = defaults.resolve(open_recipe(), SMALL, LARGE)
    assert (mixed.ppo.lora_dim, mixed.reward.lora_dim) == (0, 4)


def test_what_was_asked_for_stays_and_learning_rates_follow_it() -> None:
    wanted = open_recipe(ppo={"lora_dim": 8}, dpo={"learning_rate": 0.5}, reward={"lora_dim": 0})
    resolved, by_default = defaults.resolve(wanted, SMALL, LARGE)
    assert (resolved.ppo.lora_dim, resolved.ppo.learning_rate, resolved.ppo.critic_learning_rate) == (8, 1e-4, 1e-4)
    assert (resolved.dpo.learning_rate, resolved.reward.learning_rate) == (0.5, 1e-5)
    assert not {"ppo.lora_dim", "dpo.learning_rate", "reward.lora_dim"} & set(by_default)
    assert by_default["ppo.learning_rate"] == 1e-4
    assert defaults.resolve(resolved, LARGE, SMALL) == (resolved, {})


def test_where_no_size_is_known_the_rank_stays_open() -> None:
    resolved, by_default = defaults.resolve(open_recipe(ppo={"lora_dim": 0}))
    assert resolved.reward.lora_dim is resolved.reward.learning_rate is None
    assert resolved.ppo.learning_rate == by_default["ppo.learning_rate"] == 1e-6


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms_bring_their_own(name: str) -> None:
    ppo = defaults.resolve(open_recipe(ppo={"algorithm": name, "clip_range": 0.1}))[0].ppo
    how = ALGORITHMS[name]
    assert (ppo.samples_per_prompt, ppo.epochs, ppo.kl_in) == (how.samples, how.epochs, how.kl_in)
    assert (ppo.whiten_advantages, ppo.clip_range_high) == (how.whiten, 0.1)


def test_the_constants_of_the_papers_are_the_defaults() -> None:
    """DESIGN section 4 and the papers that the fields name; a default changes with a measurement, never by accident."""
    values = quiet_recipe().model_dump()
    ppo, reward, dpo = values["ppo"], values["reward"], values["dpo"]
    names = ("batch_size", "minibatches", "clip_range", "value_clip_range", "vf_coeff", "gamma", "gae_lambda")
    assert [ppo[name] for name in names] == [64, 1, 0.2, 0.2, 0.1, 1.0, 0.95]
    names = ("max_grad_norm", "entropy_coeff", "kl_horizon", "critic_warmup_steps", "ptx_coeff", "warmup_steps")
    assert [ppo[name] for name in names] == [1.0, 0.0, 10_000, 0, 0.0, 0]
    off = ("dual_clip", "kl_target", "kl_budget", "ema_decay", "early_stopping_patience")
    assert [ppo[name] for name in off] == [None] * 5 and ppo["whiten_rewards"] is False
    names = ("missing_eos_score", "normalize_prompts", "variance_coeff", "overlong_penalty", "label_smoothing")
    assert [reward[name] for name in names] == [-1.0, 256, 0.1, 1.0, 0.0]
    names = ("batch_size", "max_grad_norm", "weight_decay", "margin", "centering", "members")
    assert [reward[name] for name in names] == [64, 1.0, 0.0, 0.0, 0.0, 1]
    assert (reward["normalize"], reward["combine"], reward["ties"], reward["clip"]) == ("bias", "mean", "drop", None)
    assert [dpo[name] for name in ("batch_size", "desirable_weight", "undesirable_weight")] == [64, 1.0, 1.0]
    most = {"rows": 256, "prefill_tokens": 16384}
    assert values["sampler"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | most
    assert {values[section]["micro_batch_tokens"] for section in ("reward", "ppo", "dpo", "rejection")} == {4096}
    names = ("kl_coeff", "reward_model_learning_rate_multiplier", "reinforcement_learning_rate_multiplier")
    assert [values[name] for name in names] == [0.1, 1.0, 1.0]
    assert values["data"]["validation_share"] == values["data"]["test_share"] == 0.05
    assert values["compare"]["judge_share"] == 0.25


def test_the_rest() -> None:
    resolved, _ = defaults.resolve(open_recipe(seed=6, large_model_reference="llama-2-13b"))
    assert resolved.compare.judge_seed == 7
    assert resolved.sft is not None and resolved.sft.sequence_length == 32 + 12
    assert resolved.reward_model_reference == "llama-2-7b"
    assert defaults.resolve(open_recipe(large_model_reference="llama-2-7b"))[0].reward_model_reference is None


@pytest.mark.parametrize(
    ("stage", "values", "held"),
    [
        ("ppo", {"ppo": {"lora_dim": 0}}, "copy"),
        ("ppo", {"ppo": {"lora_dim": 0}, "kl_coeff": 0}, "none"),
        ("ppo", {"ppo": {"lora_dim": 1}, "kl_coeff": 0}, "shared"),
        ("ppo", {"ppo": {"lora_dim": 1}}, "shared"),
        ("rejection", {"rejection": {"lora_dim": 0}, "ppo": {"lora_dim": 1}, "kl_coeff": 0}, "none"),
        ("rejection", {"rejection": {"lora_dim": 2}, "kl_coeff": 0}, "shared"),
        ("dpo", {"method": "dpo"}, "shared"),
        ("dpo", {"method": "dpo", "dpo": {"loss": "reference_free"}}, "none"),
        ("dpo", {"method": "kto"}, "shared"),
    ],
)
def test_how_the_reference_is_held(stage: str, values: dict[str, Any], held: str) -> None:
    assert defaults.reference(quiet_recipe(**values), stage) == held


def test_parameters_are_counted_without_loading_a_weight(tiny: Path, tmp_path: Path) -> None:
    policy = language_models.load_policy(tiny, World.of(quiet_recipe()), 0)
    count = sum(p.numel() for p in policy.trainable().values())
    assert model_reference.parameters(str(tiny)) == model_folder.counted(tiny) == count
    assert model_reference.parameters("llama-2-7b") == 6_738_415_616
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny)}))
    assert model_reference.parameters(str(tmp_path)) == count
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_bytes((tiny / name).read_bytes())
    config = files.read_json(tiny / "config.json")
    for unknown in (config | {"model_type": "gpt2"}, {"model_type": "llama"}):
        files.write_json(tmp_path / "other/config.json", unknown)
        assert model_reference.parameters(str(tmp_path / "other")) == count
    (tmp_path / "other/model.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(PlatformError, match="the model is damaged"):
        model_reference.parameters(str(tmp_path / "other"))


OPEN = {"lora_dim", "learning_rate", "critic_learning_rate", "samples_per_prompt", "kl_in", "whiten_advantages"}
OPEN |= {"sequence_length", "clip_range_high", "judge_seed"}
VALUES = {200_000_000, 1e-4, 1e-5, 1e-6, 5e-6}


def chooses(node: ast.AST) -> bool:
    """Whether a syntax tree's node puts something in place of an open field, or chooses among default rates."""
    if not isinstance(node, ast.BoolOp | ast.IfExp):
        return False
    first = node.test if isinstance(node, ast.IfExp) else node.values[0]
    if isinstance(first, ast.Compare) and ast.unparse(first.comparators[0]) == "None":
        first = first.left
    values = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, float)]
    return (isinstance(first, ast.Attribute) and first.attr in OPEN) or bool(VALUES & set(values))


@pytest.mark.parametrize(
    "line",
    [
        "rate = reward.learning_rate or (1e-4 if scorer.peft is not None else 1e-5)",
        "rank = 4 if recipe.sft.lora_dim is None else recipe.sft.lora_dim",
        "length = section.sequence_length or given.length",
        "rate = 1e-4 if lora else other",
    ],
)
def test_who_decides_is_seen(line: str) -> None:
    assert any(chooses(node) for node in ast.walk(ast.parse(line)))


def test_nobody_else_decides() -> None:
    elsewhere = []
    for path in PACKAGE.rglob("*.py"):
        if path.stem in ("defaults", "algorithm", "algorithms"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if chooses(node) or (isinstance(node, ast.Constant) and node.value == 200_000_000):
                elsewhere.append(f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}")
    assert elsewhere == []


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "The old man walked along the river and sat down. " * 8}) + "\n")
    return path


def tuned(tiny: Path, texts: Path, out: Path, **section: Any) -> dict[str, Any]:
    """The `stage.json` of a stage sft of one step."""
    section |= {"dataset": str(texts), "train_steps": 1, "batch_size": 2}
    sft.main(quiet_recipe(sft=section), {"model": tiny}, out)
    return stages.read_stage(out)


def test_a_stage_shows_its_values_and_which_of_them_nobody_asked_for(tiny: Path, texts: Path, tmp_path: Path) -> None:
    stage = tuned(tiny, texts, tmp_path / "out", lora_dim=2)
    assert (stage["schema"], stage["fields"]["sft.lora_dim"], stage["fields"]["sft.learning_rate"]) == (2, 2, 1e-4)
    assert stage["defaults"] == ["sft.sequence_length", "sft.learning_rate"]


def test_the_default_and_the_same_value_asked_for_are_one(tiny: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tuned(tiny, texts, out)
    before = (out / "stage.json").read_bytes()
    tuned(tiny, texts, out, learning_rate=1e-5, lora_dim=0)
    assert (out / "stage.json").read_bytes() == before
    with pytest.raises(UsageError, match=r"sft\.learning_rate: was 1e-05, is now 2e-05"):
        tuned(tiny, texts, out, learning_rate=2e-5)


def test_a_text_is_a_list_of_one_source() -> None:
    def parts(sources: Any) -> Any:
        return recipe.parse({"large_model_reference": "m", "reward": {"sources": sources}})[0].reward.parts

    for text, kind in (("reward", "reward"), ("m:f", "function"), ("models/rm", "model"), ("owner/rm@main", "model")):
        one, other = parts(text)[0], parts([{"source": text, "name": "reward"}])[0]
        assert (one.name, one.kind, one.source, one.weight) == (other.name, other.kind, other.source, other.weight)
        assert (one.kind, one.source) == (kind, text)
    assert parts(None)[0].kind == "reward"
