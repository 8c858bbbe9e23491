"""PPO: the first ratio is exactly 1, the batch may be cut anyhow, resume is exact, stopping rules stop."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import curves
import numpy as np
import pytest
import torch
from conftest import SENTENCES, quiet_recipe

from preferent import files
from preferent.config.algorithms import algorithm
from preferent.config.recipe import Recipe
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt
from preferent.errors import DivergedError, UsageError
from preferent.models import checkpoint, language_models, llama, saving
from preferent.models.world import World
from preferent.rewards.normalization import Normalizer, ScoreNormalization
from preferent.rewards.scoring import CombinedReward, UserFunction
from preferent.rollouts import sampler
from preferent.rollouts.local_sampler import LocalSampler
from preferent.runs import metrics
from preferent.training import ppo
from preferent.training.ppo import update
from preferent.training.ppo import update as ppo_update


def letters(prompts: list[str], answers: list[str]) -> list[float]:
    """A reward with some variety: the share of vowels."""
    return [sum(c in "aeiou" for c in answer) / (1 + len(answer)) for answer in answers]


def broken(prompts: list[str], answers: list[str]) -> list[float]:
    return [float("nan")] * len(answers)


def networks(folder: Path, recipe: Recipe) -> ppo.PPONetworks:
    world = World.of(recipe)
    rank = recipe.ppo.lora_dim or 0
    policy = language_models.load_policy(folder, world, rank, recipe.gradient_checkpointing)
    critic = (
        language_models.critic_from_policy(policy, recipe.gradient_checkpointing)
        if algorithm(recipe.ppo).critic
        else None
    )
    engine = LocalSampler(policy, recipe.seed)
    reward = CombinedReward({"reward": UserFunction("letters", letters)}, ScoreNormalization.of(recipe, 1))
    return ppo.PPONetworks(policy, policy.reference(), critic, reward, Normalizer(), engine)


def recipe_of(**values: Any) -> Recipe:
    section = {"batch_size": 16, "minibatches": 2, "micro_batch_tokens": 120}
    section |= {"learning_rate": 1e-2, "critic_learning_rate": 1e-2, "lora_dim": 0} | values.pop("ppo", {})
    reward = {"sources": "training.test_ppo:letters", "missing_eos_score": None} | values.pop("reward", {})
    return quiet_recipe(ppo=section, reward=reward, **values)


def experience(parts: ppo.PPONetworks, recipe: Recipe, tmp_path: Path) -> tuple[ppo.PPOState, ppo.TrainingBatch]:
    ids = [np.array([1, *range(270, 270 + 2 + i)], np.int32) for i in range(9)]
    prompts = ppo.Prompts(ids, [str(i) for i in range(9)], [Prompt(str(i)) for i in range(9)])
    state = ppo.start(recipe, parts)
    (tmp_path / "rollouts").mkdir(exist_ok=True, parents=True)
    store = ppo.RolloutStore(tmp_path / "rollouts")
    rollouts = ppo.sample(recipe, 0, parts, prompts, store)
    greedy = ppo.sample_greedy(recipe, 0, parts, prompts, store, rollouts)
    return state, ppo.assemble(recipe, state, rollouts, parts, greedy)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rank", [0, 2])
def test_first_ratio_is_exactly_one(tiny: Path, tmp_path: Path, precision: str, rank: int) -> None:
    recipe = recipe_of(precision=precision, ppo={"lora_dim": rank})
    parts = networks(tiny, recipe)
    _, batch = experience(parts, recipe, tmp_path)
    assert len(batch.minibatches) == 2 and sum(len(part) for part in batch.minibatches) >= 4
    assert len({len(r.prompt_ids) + len(r.ids) for r in batch.rollouts}) > 3
    for part in batch.minibatches:
        sums = update.update(recipe, batch, part, parts)
        assert sums["val/ratio"] == 1.0 and sums["policy/approxkl"] == 0.0 and sums["policy/clipfrac"] == 0.0
    nudged = [p for name, p in parts.policy.trainable().items() if rank == 0 or "lora_B" in name]
    with torch.no_grad():
        nudged[0].add_(0.05)
    assert update.update(recipe, batch, batch.minibatches[0], parts)["policy/approxkl"] > 0, (
        "the ratio is not recomputed"
    )


def test_log_probs_are_those_of_the_sampler_up_to_rounding(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(sampler={"temperature": 0.7})
    parts = networks(tiny, recipe)
    _, batch = experience(parts, recipe, tmp_path)
    for row, rollout in enumerate(batch.rollouts):
        ours = batch.measured.log_probs[row, : len(rollout.ids)].numpy()
        assert np.allclose(ours, rollout.sampler_log_probs, atol=1e-5)
    assert batch.measured.kl.abs().max() <= 1e-6 and batch.measured.k1.abs().max() <= 1e-5


def gradients(parts: ppo.PPONetworks) -> torch.Tensor:
    learning_ones = [part for part in (parts.policy, parts.critic) if part is not None]
    flat = [p.grad.flatten() for part in learning_ones for p in part.trainable().values()]
    return torch.cat(flat)


def test_loss_and_gradient_do_not_depend_on_how_the_batch_is_cut(tiny: Path, tmp_path: Path) -> None:
    results = []
    for tokens in (10_000, 120, 40):
        recipe = recipe_of(ppo={"micro_batch_tokens": tokens, "minibatches": 1})
        parts = networks(tiny, recipe)
        _, batch = experience(parts, recipe, tmp_path)
        with torch.no_grad():
            next(iter(parts.policy.trainable().values())).add_(0.02)
        sums = update.update(recipe, batch, batch.minibatches[0], parts)
        results.append((len(batch.minibatches[0]), sums, gradients(parts)))
    assert results[0][0] == 1 and results[2][0] >= 8
    for _, sums, gradient in results[1:]:
        for name, value in results[0][1].items():
            assert sums[name] == pytest.approx(value, abs=1e-6), name
        assert (gradient - results[0][2]).norm() / results[0][2].norm() <= 1e-5


@pytest.mark.parametrize(("rank", "own"), [(0, True), (2, True), (0, False)])
def test_checkpointed_activations_change_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, own: bool
) -> None:
    """The same answers, first ratios of exactly 1 and the same gradients; layers run again in the backward pass only
    where they are checkpointed. So it is in the pass of our own and in that of transformers."""
    if not own:
        monkeypatch.setattr(llama, "applies", lambda decoder: False)
    calls = {}
    made = {}
    for on in (False, True):
        recipe = recipe_of(gradient_checkpointing=on, ppo={"lora_dim": rank, "micro_batch_tokens": 10_000})
        parts = networks(tiny, recipe)
        _, batch = experience(parts, recipe, tmp_path / str(on))
        passes: list[torch.nn.Module] = []
        layer, compute = parts.policy.body.base_model.layers[0], llama._layer

        def computed(module: Any, x: torch.Tensor, layer=layer, passes=passes, compute=compute, **where: Any) -> Any:
            passes += [module] if module is layer else []
            return compute(module, x, **where)

        monkeypatch.setattr(llama, "_layer", computed)
        if not own:
            layer.mlp.register_forward_pre_hook(lambda module, _, passes=passes: passes.append(module))
        figures = [update.update(recipe, batch, part, parts) for part in batch.minibatches]
        assert [values["val/ratio"] for values in figures] == [1.0, 1.0]
        made[on] = batch.measured.log_probs, gradients(parts)
        calls[on] = len(passes)
        for row, rollout in enumerate(batch.rollouts):
            trained = batch.measured.log_probs[row, : len(rollout.ids)].numpy()
            assert np.allclose(trained, rollout.sampler_log_probs, atol=1e-5)
    networks_on_it = 2 if rank else 1  # with LoRA the critic shares the policy's layers
    assert calls == {False: 2 * networks_on_it, True: 4 * networks_on_it}
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(made[False], made[True], strict=True))
    assert made[True][1].norm() > 0


def test_score_goes_to_the_last_token_and_values_beyond_it_are_zero(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of()
    parts = networks(tiny, recipe)
    _, batch = experience(parts, recipe, tmp_path)
    assert (batch.values[~batch.mask] == 0).all() and (batch.advantages[~batch.mask] == 0).all()
    totals = batch.returns[:, 0] - batch.scores
    assert torch.allclose(totals, torch.zeros_like(totals), atol=0.5), (
        "a critic of zeros leaves lambda-returns near the score"
    )
    kept = batch.advantages[batch.mask].double()
    assert kept.mean().abs() < 1e-6 and kept.var(unbiased=False).item() == pytest.approx(1, abs=1e-4)


@pytest.fixture
def stage_inputs(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    for name in ("train", "validation"):
        rows = [json.dumps({"input_text": sentence[:20] + name}) + "\n" for sentence in SENTENCES]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    return {"model": tiny, "train": tmp_path / "train.jsonl", "validation": tmp_path / "validation.jsonl"}


def stage_recipe(steps: int, reward: dict[str, Any] | None = None, **section: Any) -> Recipe:
    section = {"validation_every": 2, "epochs": 2} | section
    return recipe_of(reinforcement_learning_train_steps=steps, checkpoint_every=2, ppo=section, reward=reward or {})


def outcome(out: Path) -> dict[str, str]:
    """Hashes of what must be equal to the last bit."""
    files = [*out.glob("model/*.safetensors"), out / "metrics.jsonl", *sorted(out.glob("rollouts/*"))]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Cut(Exception):
    """Stands for a sudden end."""


def test_resume_after_a_cut_is_exact(
    stage_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stage_recipe(5, kl_target=0.05, kl_horizon=100)
    ppo.main(recipe, stage_inputs, tmp_path / "whole")
    learn, calls = ppo.learn, 0

    def cut(*arguments: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls in (2, 5):
            raise Cut
        return learn(*arguments)

    monkeypatch.setattr(ppo, "learn", cut)
    for _ in range(2):
        with pytest.raises(Cut):
            ppo.main(recipe, stage_inputs, tmp_path / "cut")
    ppo.main(recipe, stage_inputs, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert curves.shown(tmp_path / "cut") == curves.logged(tmp_path / "whole")
    steps = [row for row in metrics.read(tmp_path / "cut/metrics.jsonl") if row["step"]]
    assert len({row["objective/kl_coeff"] for row in steps}) == 5
    assert {row["val/first_ratio"] for row in steps} == {1.0} and 1.0 not in {row["val/ratio"] for row in steps}


@dataclasses.dataclass
class CopyingSampler:
    """An engine with weights of its own, as a server has: it copies the policy's when it is told to."""

    engine: LocalSampler
    weights: str = ""
    purposes: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.refresh(self.engine.policy)

    def sample(self, prompts: Any, items: Any, purpose: str, step: int, params: Any) -> Any:
        assert self.weights == weights_of(self.engine.policy), f"{purpose} of step {step} with weights of before"
        self.purposes.append(purpose)
        return self.engine.sample(prompts, items, purpose, step, params)

    def refresh(self, policy: language_models.Policy) -> None:
        self.weights = weights_of(policy)


def weights_of(policy: language_models.Policy) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in policy.trainable().values())).hexdigest()


def test_the_sampler_is_told_of_every_change_of_the_weights(
    stage_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a run resumes, and around the moving average that is validated."""
    engines: list[CopyingSampler] = []

    def make(recipe: Recipe, policy: language_models.Policy) -> CopyingSampler:
        engines.append(CopyingSampler(LocalSampler(policy, recipe.seed)))
        return engines[-1]

    ppo.main(stage_recipe(6, ema_decay=0.5), stage_inputs, tmp_path / "straight")
    monkeypatch.setattr(sampler, "make", make)
    for steps in (4, 6):
        ppo.main(stage_recipe(steps, ema_decay=0.5), stage_inputs, tmp_path / "out")
    assert [set(engine.purposes) for engine in engines] == [{"normalize", "eval", "rollout"}, {"eval", "rollout"}]
    assert outcome(tmp_path / "out") == outcome(tmp_path / "straight")


def test_a_prompt_is_rendered_once_a_stage_and_an_answer_decoded_once(
    stage_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although a function reads all texts, the samples are written down, and each prompt is used several times."""
    text, decode, encode = Tokenizer.text, Tokenizer.decode, Tokenizer.encode_prompts
    rendered, decoded, calls = Counter[str](), [], []

    def rendering(self: Tokenizer, prompt: Prompt, instruction: str | None) -> str:
        rendered[prompt.input_text] += 1
        return text(self, prompt, instruction)

    def encoding(self: Tokenizer, prompts: list[Prompt], *limits: Any) -> Any:
        calls.append(len(prompts))
        return encode(self, prompts, *limits)

    monkeypatch.setattr(Tokenizer, "text", rendering)
    monkeypatch.setattr(Tokenizer, "encode_prompts", encoding)
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decoded.append(ids) or decode(self, ids))
    ppo.main(stage_recipe(4, algorithm="rloo", samples_per_prompt=4, epochs=1), stage_inputs, tmp_path / "out")
    assert len(rendered) == 2 * len(SENTENCES) and set(rendered.values()) == {1}
    assert calls == [len(SENTENCES)] * 2, "each file is encoded by one call"
    sampled = 4 * 16 + 3 * len(SENTENCES) + len(SENTENCES)
    assert len(decoded) == sampled, "rollouts, three validations, and the answers that set the scale"


def test_more_steps_extend_and_equal_a_straight_run(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    ppo.main(stage_recipe(6), stage_inputs, tmp_path / "straight")
    ppo.main(stage_recipe(4), stage_inputs, tmp_path / "extended")
    ppo.main(stage_recipe(6), stage_inputs, tmp_path / "extended")
    assert outcome(tmp_path / "extended") == outcome(tmp_path / "straight")


def test_another_field_is_refused_by_name(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    ppo.main(stage_recipe(2), stage_inputs, tmp_path / "out")
    with pytest.raises(UsageError, match=r"ppo\.clip_range: was 0\.2, is now 0\.3"):
        ppo.main(stage_recipe(2, clip_range=0.3), stage_inputs, tmp_path / "out")


@pytest.mark.parametrize(("combine", "rank"), [("weights", 2), ("worst", 0)])
def test_an_ensemble_extends_exactly(stage_inputs: dict[str, Path], tmp_path: Path, combine: str, rank: int) -> None:
    world = World.of(quiet_recipe())
    for number, name in enumerate(("reward", "reward-2")):
        member = language_models.load_scorer(stage_inputs["model"], world, rank, seed=number)
        saving.save(member, tmp_path / name, dict(member.trainable()), "# test\n")
        stage_inputs[name] = tmp_path / name
    recipe = stage_recipe(4, {"sources": None, "combine": combine, "members": 2})
    ppo.main(recipe, stage_inputs, tmp_path / "whole")
    ppo.main(recipe.model_copy(update={"reinforcement_learning_train_steps": 2}), stage_inputs, tmp_path / "cut")
    ppo.main(recipe, stage_inputs, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    kept = ScoreNormalization.read(tmp_path / "whole/score.json").terms[0].members
    assert list(kept) == (["reward"] if combine == "weights" else ["reward", "reward-2"])


def test_model_is_the_best_validated_policy(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    ppo.main(stage_recipe(6), stage_inputs, tmp_path / "out")
    rows = [row for row in metrics.read(tmp_path / "out/metrics.jsonl") if "validation/objective" in row]
    best = max(rows, key=lambda row: row["validation/objective"])
    facts = files.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["best_step"] == best["step"] and facts["best_objective"] == best["validation/objective"]
    kept = checkpoint.latest(tmp_path / "out/best")
    assert kept is not None and kept.step == best["step"]
    assert all(name.startswith("master.") for name in kept.tensors), "weights alone"
    saved = language_models.load_policy(tmp_path / "out/model", World.of(quiet_recipe()))
    for name, parameter in saved.body.named_parameters():
        assert torch.equal(parameter, kept.tensors[f"master.{name}"])


def test_budget_stops_and_selects_within(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    ppo.main(stage_recipe(8, kl_budget=1e-4), stage_inputs, tmp_path / "out")
    facts = files.read_json(tmp_path / "out/stage.json")["facts"]
    assert facts["steps"] == 2 and "budget" in facts["stopped"] and facts["best_step"] == 0


def test_no_reference_without_a_penalty(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    world = World.of(quiet_recipe())
    recipe = recipe_of(kl_coeff=0)
    (tmp_path / "out").mkdir()
    parts, _ = ppo.load(recipe, stage_inputs["model"], stage_inputs, tmp_path / "out", world)
    assert parts.reference is None
    with pytest.raises(UsageError, match="kl_budget"):
        ppo.load(recipe_of(kl_coeff=0, ppo={"kl_budget": 1.0}), stage_inputs["model"], stage_inputs, tmp_path, world)


def test_reward_that_is_not_finite_is_told(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = stage_recipe(2, {"sources": "training.test_ppo:broken"})
    with pytest.raises(Exception, match="returned nan for the answer"):
        ppo.main(recipe, stage_inputs, tmp_path / "out")


def test_loss_that_is_not_finite_keeps_the_batch(
    stage_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update: Callable[..., dict[str, float]] = ppo_update.update
    monkeypatch.setattr(ppo_update, "update", lambda *a: update(*a) | {"rl_loss": float("nan")})
    with pytest.raises(DivergedError, match=r"rollouts/000000\.safetensors"):
        ppo.main(stage_recipe(2), stage_inputs, tmp_path / "out")
    assert (tmp_path / "out/rollouts/000000.safetensors").exists()
