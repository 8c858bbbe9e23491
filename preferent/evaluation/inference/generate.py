"""Answer prompts with a model, greedily, sampled or by the best of several samples, in GCPC's rows; and measure its KL
to a reference."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files
from preferent.config import model_reference, stage_graph
from preferent.config.recipe import Recipe, pick
from preferent.data import datasets
from preferent.data.types import Prompt, Rollout
from preferent.errors import UsageError
from preferent.evaluation.statistics import best_of
from preferent.models import language_models
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.normalization import ScoreNormalization
from preferent.rewards.scoring import CombinedReward
from preferent.rollouts import measurement
from preferent.rollouts.local_sampler import LocalSampler
from preferent.rollouts.sampler import Params, rollout_params
from preferent.runs import interruption, progress, stages

ROWS_AT_ONCE = 256


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Stage `infer`: model=, prompts= [, reference=] [, reward= where infer.best_of is above 1] -> out/text.jsonl."""
    world = World.of(recipe)
    several = recipe.infer.best_of > 1
    if any(stage_graph.is_reward(name) for name in inputs) and not several:
        raise UsageError("infer: --in reward chooses among several answers; set infer.best_of above 1")
    sources = {name: model_reference.resolve(str(inputs[name])) for name in ("model", "reference") if name in inputs}
    inputs = scoring.located(recipe, inputs)
    with stages.locked(out):
        stage = stages.open_stage(
            "infer", out, pick(recipe, *stage_graph.FIELDS["infer"]), inputs | sources, rerun=True
        )
        if stage.done:
            return
        stage.place(**world.facts())
        prompts = datasets.load_prompts(inputs["prompts"])[: recipe.infer.max_prompts]
        policy = language_models.load_policy(sources["model"], world)
        reference = reference_of(policy, sources["reference"]) if "reference" in sources else None
        scale = ScoreNormalization.read(inputs["score"]) if "score" in inputs else None
        reward = CombinedReward.load(recipe, inputs, world, scale) if several else None
        answer(recipe, policy, reference, prompts, out, reward)
        stage.finish(["text.jsonl"])


def reference_of(policy: Policy, source: Path) -> Policy:
    """What the KL is measured from: the policy with its adapter off where that is the model in `source`, else that
    model, loaded beside it."""
    return (
        policy.reference()
        if language_models.rests_on(policy, source)
        else language_models.load_policy(source, policy.world)
    )


def answer(
    recipe: Recipe,
    policy: Policy,
    reference: Policy | None,
    prompts: list[Prompt],
    out: Path,
    reward: CombinedReward | None = None,
) -> None:
    """Answer all prompts, a part at a time; a part that is on disk is not answered again."""
    parts = out / "parts"
    size = max(1, min(recipe.sampler.rows, ROWS_AT_ONCE) // recipe.infer.best_of)
    rows: list[dict[str, Any]] = []
    with progress.bar(out.name, len(prompts), 0) as bar:
        for start in range(0, len(prompts), size):
            interruption.stop().check()
            items = range(start, min(start + size, len(prompts)))
            path = parts / f"{items.start:08d}-{items.stop:08d}.json"
            rows += files.kept(path, partial(answered, recipe, policy, reference, prompts, items, reward))
            bar.update(items.stop)
    files.write_jsonl(out / "text.jsonl", rows)
    for path in parts.glob("*"):
        path.unlink()
    if parts.exists():
        parts.rmdir()


def answered(
    recipe: Recipe,
    policy: Policy,
    reference: Policy | None,
    prompts: list[Prompt],
    items: range,
    reward: CombinedReward | None = None,
) -> list[dict[str, Any]]:
    """The rows of the prompts at `items`.

    The KL is that of the policy: of an answer as it is drawn at the temperature, before top-p, top-k, greed and choice.
    """
    tokenizer, instruction = policy.tokenizer, recipe.instruction
    ids = [tokenizer.encode_prompt(prompts[i], instruction, recipe.prompt_sequence_length)[0] for i in items]
    arrays = [np.asarray(row, np.int32) for row in ids]
    settings = recipe.sampler
    sampled = rollout_params(recipe)
    chosen = dataclasses.replace(
        sampled, top_p=settings.top_p, top_k=settings.top_k, greedy=recipe.infer.sampling_strategy == "greedy"
    )
    sampler = LocalSampler(policy, recipe.seed, settings.rows)
    texts = [tokenizer.text(prompts[item], instruction) for item in items]
    facts: list[dict[str, Any]] = [{} for _ in items]
    if reward is None:
        rollouts = sampler.sample(arrays, items, "infer", 0, chosen)
    else:
        rollouts, facts = favourites(recipe, sampler, reward, arrays, [prompts[i] for i in items], items, chosen)
    rows: list[dict[str, Any]] = []
    for item, text, rollout, fact in zip(items, texts, rollouts, facts, strict=True):
        prompt = prompts[item]
        asked = {"inputs_pretokenized": text, "targets_pretokenized": prompt.reference or ""}
        prediction = tokenizer.decode_answer(prompt, instruction, rollout.ids.tolist())
        known = {"id": prompt.id or prompt.key, "tokens": len(rollout.ids), "ended": rollout.ended}
        rows.append({"inputs": asked, "prediction": prediction} | known | fact)
    if reference is not None:
        if chosen != sampled or reward is not None:
            rollouts = sampler.sample(arrays, items, "infer", 0, sampled)
        limit = recipe.ppo.micro_batch_tokens
        kl, k1 = measurement.divergence(policy, reference, rollouts, limit, settings.temperature)
        for row, one, other in zip(rows, kl.tolist(), k1.tolist(), strict=True):
            row |= {"kl": one, "kl_k1": other}
    return rows


def favourites(
    recipe: Recipe,
    sampler: LocalSampler,
    reward: CombinedReward,
    ids: list[np.ndarray],
    prompts: list[Prompt],
    items: range,
    params: Params,
) -> tuple[list[Rollout], list[dict[str, Any]]]:
    """Of infer.best_of answers to each prompt, each with a key of its own, the one of highest score, of equals the
    first; and the rows' facts: of how many, its score, and all scores."""
    n = recipe.infer.best_of
    keys = [item * n + sample for item in items for sample in range(n)]
    sampled = sampler.sample([one for one in ids for _ in range(n)], keys, "best of", 0, params)
    raw = reward.raw(sampled, [prompt for prompt in prompts for _ in range(n)], sampler.policy.tokenizer)
    scores = reward.scale(raw).reshape(-1, n)
    best = best_of.best(scores)
    facts = [
        {"best_of": n, "score": float(row[place]), "scores": row.tolist()}
        for row, place in zip(scores, best, strict=True)
    ]
    return [sampled[number * n + place] for number, place in enumerate(best)], facts
