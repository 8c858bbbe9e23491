"""Every on-policy algorithm and option in the stage: groups, baselines, where the KL stands, what is averaged and
mixed in, and that all of it resumes to the same bits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SENTENCES, quiet_recipe

from preferent import files, randomness
from preferent.config.algorithms import ALGORITHMS, algorithm
from preferent.data.types import Prompt
from preferent.errors import UsageError
from preferent.models import checkpoint, language_models
from preferent.models.world import World
from preferent.rollouts.store import RolloutStore
from preferent.runs import metrics
from preferent.training import ppo
from preferent.training.ppo import update
from preferent.training.sequences import loss_sum, read, target_count
from training.test_ppo import experience, gradients, networks, outcome, recipe_of, stage_inputs, stage_recipe

assert stage_inputs, "the fixture of test_ppo is used here"
EVERY = [{"algorithm": name} for name in ALGORITHMS]
OPTIONS = {
    "everything with a critic": {
        "whiten_rewards": True, "ema_decay": 0.5, "critic_warmup_steps": 2, "entropy_coeff": 0.01, "dual_clip": 3.0,
        "clip_range_high": 0.3, "value_clip_range": None, "samples_per_prompt": 2,
    },
    "the greedy baseline": {"algorithm": "remax", "ema_decay": 0.9},
    "KL in the loss": {"algorithm": "grpo", "samples_per_prompt": 4},
}  # fmt: skip


def text(folder: Path) -> str:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(SENTENCES)}) + "\n" for _ in range(8)))
    return str(path)


@pytest.mark.parametrize("section", EVERY, ids=str)
def test_loss_and_gradient_do_not_depend_on_how_the_batch_is_cut(
    tiny: Path, tmp_path: Path, section: dict[str, Any]
) -> None:
    results = []
    for tokens in (10_000, 40):
        recipe = recipe_of(ppo={"micro_batch_tokens": tokens, "minibatches": 1, "entropy_coeff": 0.1} | section)
        parts = networks(tiny, recipe)
        state, batch = experience(parts, recipe, tmp_path)
        assert update.update(recipe, batch, batch.minibatches[0], parts)["val/ratio"] == 1.0
        state.policy.discard()
        if parts.critic is not None:
            parts.critic.body.zero_grad()
        with torch.no_grad():
            next(iter(parts.policy.trainable().values())).add_(0.02)
        sums = update.update(recipe, batch, batch.minibatches[0], parts)
        results.append((sums, gradients(parts)))
    for name, value in results[0][0].items():
        assert results[1][0][name] == pytest.approx(value, abs=1e-6), name
    assert (results[1][1] - results[0][1]).norm() / results[0][1].norm() <= 1e-5


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_answers_to_a_prompt_stand_together(tiny: Path, tmp_path: Path, name: str) -> None:
    recipe = recipe_of(ppo={"algorithm": name, "samples_per_prompt": 4})
    parts = networks(tiny, recipe)
    _, batch = experience(parts, recipe, tmp_path)
    groups = [batch.rollouts[i : i + 4] for i in range(0, 16, 4)]
    assert all(len({r.prompt_index for r in group}) == 1 for group in groups)
    assert len({group[0].prompt_index for group in groups}) == 4
    assert all([r.sample_index for r in group] == [0, 1, 2, 3] for group in groups)
    assert len({tuple(r.ids) for r in batch.rollouts}) > 12, "each answer is drawn by itself"
    if name in ("rloo", "dr_grpo", "grpo"):
        whole = torch.stack([batch.advantages[i, 0] for i in range(16)]).view(4, 4)
        assert torch.allclose(whole.sum(-1), torch.zeros(4), atol=1e-5)
        assert torch.allclose(batch.advantages[batch.mask], batch.advantages[:, :1].expand_as(batch.mask)[batch.mask])


def test_the_weights_of_grpo_make_every_answer_count_alike(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(ppo={"algorithm": "grpo"})
    parts = networks(tiny, recipe)
    state, batch = experience(parts, recipe, tmp_path)
    cut = [replace(r, ids=r.ids[: 3 + i % 5]) for i, r in enumerate(batch.rollouts)]
    batch = update.assemble(recipe, state, cut, parts)
    each = torch.where(batch.mask, batch.weights, 0.0).sum(-1)
    assert torch.allclose(each, torch.full((16,), float(batch.mask.sum()) / 16))


def test_kl_in_the_loss_is_not_in_the_reward(tiny: Path, tmp_path: Path) -> None:
    by_place = {}
    for place in ("reward", "loss"):
        recipe = recipe_of(kl_coeff=5.0, ppo={"algorithm": "dr_grpo", "kl_in": place})
        parts = networks(tiny, recipe)
        with torch.no_grad():
            next(iter(parts.policy.trainable().values())).add_(0.05)
        _, batch = experience(parts, recipe, tmp_path / place)
        by_place[place] = batch, update.update(recipe, batch, batch.minibatches[0], parts)
    batch, sums = by_place["loss"]
    groups = batch.scores.view(-1, 8)
    assert torch.allclose(batch.advantages[:, 0].view(-1, 8), groups - groups.mean(-1, keepdim=True), atol=1e-6)
    assert "loss/kl" not in by_place["reward"][1]
    rows = torch.cat([micro.batch_rows for micro in batch.minibatches[0]])
    k2 = 0.5 * float(batch.measured.k1[rows.unique()].square().sum()) / len(rows)
    assert sums["loss/kl"] == pytest.approx(k2, rel=1e-5) and k2 > 0
    assert sums["rl_loss"] == pytest.approx(sums["loss/policy"] + 5 * k2, rel=1e-5)


def test_whitened_rewards_keep_their_mean(tiny: Path, tmp_path: Path) -> None:
    """With lambda 1 and a critic of zeros the advantages before whitening are returns: sums of whitened rewards."""
    section = {"whiten_rewards": True, "gae_lambda": 1.0, "whiten_advantages": False}
    batches = []
    for extra in ({}, section):
        recipe = recipe_of(kl_coeff=0.5, ppo={"gae_lambda": 1.0, "whiten_advantages": False} | extra)
        parts = networks(tiny, recipe)
        _, batch = experience(parts, recipe, tmp_path)
        batches.append(batch)
    mask = batches[0].mask
    plain = torch.zeros(mask.shape).scatter(1, mask.sum(-1, keepdim=True) - 1, batches[0].scores[:, None])
    kept = plain[mask]
    whitened = torch.where(mask, (plain - kept.mean()) / kept.std(unbiased=False) + kept.mean(), 0.0)
    assert torch.allclose(batches[1].advantages[:, 0], whitened.sum(-1), atol=1e-3)
    assert torch.allclose(batches[0].advantages[:, 0], batches[0].scores, atol=1e-4)


def test_the_entropy_is_taken_off_the_loss(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(ppo={"algorithm": "dr_grpo", "entropy_coeff": 0.3, "minibatches": 1})
    parts = networks(tiny, recipe)
    _, batch = experience(parts, recipe, tmp_path)
    sums = update.update(recipe, batch, batch.minibatches[0], parts)
    entropy = float(batch.measured.entropy[batch.mask].mean())
    assert entropy > 1 and sums["rl_loss"] == pytest.approx(sums["loss/policy"] - 0.3 * entropy, rel=1e-5)


def test_the_greedy_answer_is_what_remax_holds_an_answer_against(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(ppo={"algorithm": "remax", "samples_per_prompt": 2})
    parts = networks(stage_inputs["model"], recipe)
    prompts = ppo.Prompts(
        [np.array([1, 270 + i], np.int32) for i in range(8)],
        [str(i) for i in range(8)],
        [Prompt(str(i)) for i in range(8)],
    )
    store = RolloutStore(tmp_path / "rollouts")
    rollouts = ppo.sample(recipe, 0, parts, prompts, store)
    greedy = ppo.sample_greedy(recipe, 0, parts, prompts, store, rollouts)
    assert [r.prompt_index for r in greedy] == [r.prompt_index for r in rollouts]
    state = ppo.start(recipe, parts)
    batch = update.assemble(recipe, state, rollouts, parts, greedy)
    expected = [r.scores["reward"] - g.scores["reward"] for r, g in zip(rollouts, greedy, strict=True)]
    assert batch.advantages[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert (tmp_path / "rollouts/greedy-000000.safetensors").exists()


@pytest.mark.parametrize("section", OPTIONS.values(), ids=OPTIONS)
def test_resume_after_every_step_is_exact(
    stage_inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: dict[str, Any]
) -> None:
    section = {"ptx_coeff": 0.1, "ptx_dataset": text(tmp_path), **section}
    recipe = stage_recipe(4, **section)
    ppo.main(recipe, stage_inputs, tmp_path / "whole")
    learn, calls = ppo.learn, 0

    def cut(*arguments: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls in (2, 4):
            raise InterruptedError
        return learn(*arguments)

    monkeypatch.setattr(ppo, "learn", cut)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            ppo.main(recipe, stage_inputs, tmp_path / "cut")
    ppo.main(recipe, stage_inputs, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_while_the_critic_warms_up_the_policy_stays(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    ppo.main(stage_recipe(4, critic_warmup_steps=3), stage_inputs, tmp_path / "out")
    rows = [row for row in metrics.read(tmp_path / "out/metrics.jsonl") if row["step"]]
    assert [row["learning_rate"] > 0 for row in rows] == [False, False, False, True]
    assert [abs(row["objective/kl"]) < 1e-6 for row in rows] == [True] * 4
    assert len({row["loss/value"] for row in rows}) == 4
    assert rows[3]["val/ratio"] != 1.0 and {row["val/ratio"] for row in rows[:3]} == {1.0}


def test_the_moving_average_is_what_is_delivered(stage_inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ppo.main(stage_recipe(3, ema_decay=0.75, validation_every=1), stage_inputs, out)
    saved = [checkpoint.read(out / "checkpoints", step) for step in (2, 3)]
    name = next(key for key in saved[1].tensors if key.startswith("average.")).removeprefix("average.")
    before, after = (restored.tensors[f"average.{name}"] for restored in saved)
    assert torch.allclose(after, 0.75 * before + 0.25 * saved[1].tensors[f"policy.master.{name}"], atol=1e-7)
    best = files.read_json(out / "stage.json")["facts"]["best_step"]
    kept = checkpoint.read(out / "best", best).tensors[f"master.{name}"]
    delivered = dict(language_models.load_policy(out / "model", World.of(quiet_recipe())).body.named_parameters())[name]
    assert torch.equal(delivered, kept)
    if best in (2, 3):
        assert torch.equal(kept, saved[best - 2].tensors[f"average.{name}"])


@pytest.mark.parametrize(("settings", "size"), [({}, 8), ({"ptx_batch_size": 3}, 3)])
def test_text_mixed_in_adds_its_own_gradient(tiny: Path, tmp_path: Path, settings: dict[str, Any], size: int) -> None:
    mixed_in = {"ptx_coeff": 0.5, "ptx_dataset": text(tmp_path), "micro_batch_tokens": 100}
    recipe = recipe_of(ppo=mixed_in | settings)
    parts = networks(tiny, recipe)
    sequences = read(recipe, parts.policy, [recipe.ppo.ptx_dataset], 44)
    parts = ppo.PPONetworks(*(getattr(parts, f) for f in parts.__dataclass_fields__ if f != "pretraining"), sequences)
    loss = update.pretraining_gradients(recipe, parts, 0)
    gradients = {name: p.grad.clone() for name, p in parts.policy.trainable().items() if p.grad is not None}
    parts.policy.body.zero_grad()
    chosen = sequences.part(randomness.rows(recipe.seed, "ptx", 0, size, len(sequences)))
    whole = loss_sum(parts.policy, chosen) / target_count(parts.policy, chosen)
    (0.5 * whole).backward()
    assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
    for name, gradient in gradients.items():
        own = dict(parts.policy.trainable())[name].grad
        assert torch.allclose(gradient, own, rtol=1e-4, atol=1e-6), name


def test_defaults_of_the_algorithms() -> None:
    defaults = {name: algorithm(recipe_of(ppo={"algorithm": name, "batch_size": 64}).ppo) for name in ALGORITHMS}
    assert defaults == ALGORITHMS
    settings = {"algorithm": "grpo", "samples_per_prompt": 4, "epochs": 3, "kl_in": "reward", "whiten_advantages": True}
    ours = algorithm(recipe_of(ppo=settings).ppo)
    assert (ours.samples, ours.epochs, ours.kl_in, ours.whiten) == (4, 3, "reward", True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"algorithm": "rloo", "batch_size": 10}, r"ppo\.batch_size \(10\) is no multiple of the 4 answers"),
        ({"algorithm": "grpo", "samples_per_prompt": 1}, "grpo holds an answer against others"),
        ({"ptx_coeff": 0.1}, "name ppo.ptx_dataset"),
        ({"algorithm": "rlooo"}, "ppo.algorithm"),
    ],
)
def test_what_cannot_be_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_of(ppo=section)
