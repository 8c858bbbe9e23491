"""The figures of validation and of `infer` by their definitions, for two policies of three letters."""

from pathlib import Path
from typing import Any

import enumerable
import numpy as np
import pytest
import torch
from conftest import quiet_recipe
from enumerable import EOS, IDS, LETTERS, PAD
from transformers import AutoModelForCausalLM

from preferent import files
from preferent.data.types import Prompt
from preferent.evaluation.inference import generate
from preferent.models import language_models
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.normalization import Normalizer, ScoreNormalization, Term
from preferent.rewards.scoring import CombinedReward, UserFunction
from preferent.rollouts.decoding import Params
from preferent.rollouts.local_sampler import LocalSampler
from preferent.rollouts.sampler import Prompts
from preferent.rollouts.store import RolloutStore

TEMPERATURE = 0.7
ASKED = "vwxyzvwx"


def recipe_of(**values: Any) -> Any:
    values = {"sampler": {"temperature": TEMPERATURE}, "reward": {"sources": "m:f", "missing_eos_score": None}} | values
    return quiet_recipe(prompt_sequence_length=4, target_sequence_length=3, kl_coeff=0.25, **values)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tuned policy and its reference, which differ in every weight."""
    folder = tmp_path_factory.mktemp("figures")
    for seed, name in enumerate(("reference", "tuned")):
        enumerable.make(folder / name, tuple(enumerable.PROMPTS), max_tokens=3, temperature=TEMPERATURE, seed=seed)
    files.write_jsonl(folder / "asked.jsonl", [{"input_text": letter} for letter in ASKED])
    return folder / "tuned", folder / "reference"


@torch.no_grad()
def log_probs(folder: Path, prompt: str, answer: list[int]) -> torch.Tensor:
    """log pi of every token at each place of an answer, float64 [A, V]; 0 at the pad, which has no probability."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = model(torch.tensor([[IDS[prompt], *answer]])).logits[0, :-1].double() / TEMPERATURE
    logits[:, PAD] = -torch.inf
    return logits.log_softmax(-1).nan_to_num(neginf=0.0)


def divergences(folders: tuple[Path, Path], prompt: str, answer: list[int]) -> tuple[float, float, float]:
    """KL(pi || ref), KL(ref || pi) and k1 of an answer in nats, summed over its tokens."""
    ours, theirs = (log_probs(folder, prompt, answer) for folder in folders)
    probability = [torch.where(x == 0, 0.0, x.exp()) for x in (ours, theirs)]
    k1 = (ours - theirs)[torch.arange(len(answer)), answer].sum()
    return (
        float((probability[0] * (ours - theirs)).sum()),
        float((probability[1] * (theirs - ours)).sum()),
        float(k1),
    )


def rows_of(folders: tuple[Path, Path], out: Path, **infer: Any) -> list[dict[str, Any]]:
    tuned, reference = folders
    inputs = {"model": tuned, "reference": reference, "prompts": tuned.parent / "asked.jsonl"}
    generate.main(recipe_of(infer=infer), inputs, out)
    return files.read_jsonl(out / "text.jsonl")


def test_the_kl_of_infer_is_that_of_the_policy_to_its_reference(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Nats per answer, at the sampling temperature, over the whole vocabulary; k1 is of the sampled tokens."""
    rows = rows_of(folders, tmp_path / "sampled", sampling_strategy="temperature_sampling")
    others = []
    for prompt, row in zip(ASKED, rows, strict=True):
        answer = [LETTERS.index(letter) for letter in row["prediction"]] + [EOS] * row["ended"]
        kl, other, k1 = divergences(folders, prompt, answer)
        assert (row["kl"], row["kl_k1"]) == pytest.approx((kl, k1), abs=1e-4)
        others.append(abs(kl - other))
    assert len({row["tokens"] for row in rows}) > 1 and max(others) > 0.05


def test_the_kl_of_infer_is_that_of_samples_however_it_answers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    sampled = rows_of(folders, tmp_path / "sampled", sampling_strategy="temperature_sampling")
    greedy = rows_of(folders, tmp_path / "greedy", sampling_strategy="greedy")
    assert [row["prediction"] for row in sampled] != [row["prediction"] for row in greedy]
    assert [row["kl"] for row in sampled] == [row["kl"] for row in greedy]


def test_the_figures_of_validation_are_their_definitions(folders: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, store = recipe_of(), RolloutStore(tmp_path)
    policy, reference = (language_models.load_policy(folder, World.of(recipe)) for folder in folders)
    scale = ScoreNormalization((Term("reward", 1.0, {"reward": Normalizer(1.5, 2.0)}),), prompts=1)
    function = UserFunction("m:f", lambda prompts, answers: [float(len(answer)) for answer in answers])
    reward, prompts = (
        CombinedReward({"reward": function}, scale),
        Prompts.of([Prompt(letter) for letter in ASKED], policy.tokenizer, recipe),
    )
    engine = LocalSampler(policy, recipe.seed)
    found = scoring.validate(recipe, reward, policy, reference, engine, prompts, 7, store, 20)
    rollouts = engine.sample(prompts.ids, range(len(ASKED)), "eval", 7, Params(3, TEMPERATURE))
    kept = store.replay("validation-000007", prompts.ids)
    assert kept is not None and [r.ids.tolist() for r in kept] == [r.ids.tolist() for r in rollouts]
    kl = np.mean([divergences(folders, p, r.ids.tolist())[0] for p, r in zip(ASKED, rollouts, strict=True)])
    score = np.mean([2 * (len(r.ids) - r.ended - 1.5) for r in rollouts])
    assert found["validation/kl"] == pytest.approx(kl, abs=1e-4)
    assert found["validation/score"] == pytest.approx(score, abs=1e-6)
    assert found["validation/objective"] == pytest.approx(score - 0.25 * kl, abs=1e-4)
    assert found["validation/length"] == np.mean([len(r.ids) for r in rollouts]) != 3
    gaps = [
        abs(float(log_probs(folders[0], p, r.ids.tolist())[t, id]) - float(r.sampler_log_probs[t]))
        for p, r in zip(ASKED, rollouts, strict=True)
        for t, id in enumerate(r.ids)
    ]
    assert 0 < found["validation/sampler_gap"] <= 1e-5 and max(gaps) <= 1e-5


def test_a_sampler_with_other_weights_has_a_gap(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The reference samples, the policy is measured: the gap is the largest difference of a token that was drawn."""
    recipe = recipe_of()
    policy, other = (language_models.load_policy(folder, World.of(recipe)) for folder in folders)
    reward = CombinedReward(
        {"reward": UserFunction("m:f", lambda prompts, answers: [0.0] * len(answers))}, ScoreNormalization.of(recipe, 0)
    )
    prompts = Prompts.of([Prompt(letter) for letter in ASKED], policy.tokenizer, recipe)
    engine = LocalSampler(other, recipe.seed)
    found = scoring.validate(recipe, reward, policy, other, engine, prompts, 0, RolloutStore(tmp_path), 20)
    gaps = []
    rollouts = engine.sample(prompts.ids, range(len(ASKED)), "eval", 0, Params(3, TEMPERATURE))
    for prompt, rollout in zip(ASKED, rollouts, strict=True):
        ours, theirs = (log_probs(folder, prompt, rollout.ids.tolist()) for folder in folders)
        gaps.append(float((ours - theirs)[torch.arange(len(rollout.ids)), rollout.ids.tolist()].abs().max()))
    assert found["validation/sampler_gap"] == pytest.approx(max(gaps), abs=1e-4) and max(gaps) > 0.1
