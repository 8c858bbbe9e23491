"""Answer prompts with a model, greedily, sampled or by the best of several samples, in GCPC's rows; and measure its KL
to a reference."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preferent import files
from preferent.config import model_reference, stage_graph
from preferent.config.defaults import decided
from preferent.config.recipe import Recipe, pick
from preferent.data import datasets
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Prompt, Rollout
from preferent.errors import UsageError
from preferent.evaluation.statistics import best_of
from preferent.models import language_models
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.rewards import scoring
from preferent.rewards.normalization import ScoreNormalization
from preferent.rewards.scoring import CombinedReward, RolloutBatch
from preferent.rollouts import measurement, sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.sampler import Prompts, Sampler, rollout_params
from preferent.runs import interruption, ownership, progress, stages
from preferent.runs.directory import StageDirectory

ROWS_AT_ONCE = 256


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Run stage `infer`: model=, prompts= [, reference=] [, reward= if infer.best_of is above 1] -> out/text.jsonl."""
    world = World.of(recipe)
    several = recipe.infer.best_of > 1
    if any(stage_graph.is_reward(name) for name in inputs) and not several:
        raise UsageError("infer: --in reward chooses among several answers; set infer.best_of above 1")
    sources = {name: model_reference.resolve(str(inputs[name])) for name in ("model", "reference") if name in inputs}
    inputs = scoring.resolve_models(recipe, inputs) | stage_graph.chat_template(recipe)
    with stages.locked(out):
        stage = stages.open_stage(
            "infer", out, pick(recipe, *stage_graph.fields("infer", recipe)), inputs | sources, rerun=True
        )
        if stage.done:
            return
        recipe = world.settled(recipe, stage)
        stage.place(**world.facts())
        prompts = datasets.load_prompts(inputs["prompts"])[: recipe.infer.max_prompts]
        policy = language_models.load_policy(sources["model"], world)
        reference = reference_of(policy, sources["reference"]) if "reference" in sources else None
        scale = ScoreNormalization.read(inputs["score"]) if "score" in inputs else None
        reward = CombinedReward.load(recipe, inputs, world, scale, [policy]) if several else None
        answer(recipe, policy, reference, prompts, out, reward)
        stage.finish([StageDirectory(out).answers.name])


def reference_of(policy: Policy, source: Path) -> Policy:
    """Return the reference of the KL: the policy with its adapter off where that is the model in `source`, otherwise
    that model, loaded beside it."""
    return (
        policy.reference()
        if language_models.has_base(policy, source)
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
    """Answer all prompts, one part at a time; a part that is on disk is not answered again."""
    parts, engine = StageDirectory(out).parts, sampler.make(recipe, policy)
    size = max(1, min(decided(recipe.sampler.rows), ROWS_AT_ONCE) // recipe.infer.best_of)
    rows: list[dict[str, Any]] = []
    with progress.bar(out.name, len(prompts), 0) as bar:
        for start in range(0, len(prompts), size):
            interruption.stop().check()
            items = range(start, min(start + size, len(prompts)))
            path = parts / f"{items.start:08d}-{items.stop:08d}.json"
            rows += files.kept(path, partial(answered, recipe, policy, reference, engine, prompts, items, reward))
            bar.update(items.stop)
    files.write_jsonl(StageDirectory(out).answers, rows)
    ownership.remove(out, [f"{parts.name}/*.json"])


def answered(
    recipe: Recipe,
    policy: Policy,
    reference: Policy | None,
    engine: Sampler,
    prompts: list[Prompt],
    items: range,
    reward: CombinedReward | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of the prompts at `items`.

    The KL is that of the policy at its temperature, before top-p, top-k, greedy decoding and choice.
    """
    settings = recipe.sampler
    plain = rollout_params(recipe)
    params = dataclasses.replace(
        plain, top_p=settings.top_p, top_k=settings.top_k, greedy=recipe.infer.sampling_strategy == "greedy"
    )
    questions = Prompts.of([prompts[item] for item in items], policy.tokenizer, recipe)
    facts: list[dict[str, Any]] = [{} for _ in items]
    if reward is None:
        batch = RolloutBatch(engine.sample(questions.ids, items, "infer", 0, params), questions, policy.tokenizer)
    else:
        batch = sample_several(recipe, engine, questions, items, params, policy.tokenizer)
        batch, facts = favourites(recipe, reward, batch)
    columns = zip(questions.records, questions.texts, batch.rollouts, batch.answers, facts, strict=True)
    rows = [prediction_row(*column) for column in columns]
    if reference is not None:
        rollouts = batch.rollouts
        if params != plain or reward is not None:
            rollouts = engine.sample(questions.ids, items, "infer", 0, plain)
        limit = decided(recipe.ppo.micro_batch_tokens)
        kl, k1, _ = measurement.divergence(policy, reference, rollouts, limit, settings.temperature)
        for row, row_kl, row_k1 in zip(rows, kl.tolist(), k1.tolist(), strict=True):
            row |= {"kl": row_kl, "kl_k1": row_k1}
    return rows


def prediction_row(
    prompt: Prompt, text: str, rollout: Rollout, answer: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an answer as a prediction row."""
    inputs = {"inputs_pretokenized": text, "targets_pretokenized": prompt.reference or ""}
    known = {"id": prompt.id or prompt.key, "tokens": len(rollout.ids), "ended": rollout.ended}
    return {"inputs": inputs, "prediction": answer, **known, **facts}


def sample_several(
    recipe: Recipe, engine: Sampler, prompts: Prompts, items: range, params: Params, tokenizer: Tokenizer
) -> RolloutBatch:
    """Sample infer.best_of answers per prompt, each under its own key; those of one prompt are adjacent."""
    n = recipe.infer.best_of
    questions = prompts.part(np.arange(len(items)).repeat(n))
    keys = [item * n + sample for item in items for sample in range(n)]
    return RolloutBatch(engine.sample(questions.ids, keys, "best of", 0, params), questions, tokenizer)


def favourites(
    recipe: Recipe, reward: CombinedReward, batch: RolloutBatch
) -> tuple[RolloutBatch, list[dict[str, Any]]]:
    """Keep the answer of highest score per prompt, the first among equals; return also n, its score and all scores.

    The score is the one that tuning raises; where no scale is known, it is the weighted sum of the raw scores.
    """
    n = recipe.infer.best_of
    rollouts = scoring.score_rollouts(reward, batch)
    if reward.scale.prompts:
        scores = scoring.final_scores(rollouts, reward.scale, recipe)
    else:
        scores = reward.scale(scoring.raw_scores(rollouts))
    scores = scores.reshape(-1, n)
    best = best_of.best(scores)
    facts = [
        {"best_of": n, "score": float(row[place]), "scores": row.tolist()}
        for row, place in zip(scores, best, strict=True)
    ]
    kept = np.arange(len(best)) * n + best
    return RolloutBatch([rollouts[i] for i in kept], batch.prompts.part(kept), batch.tokenizer), facts
