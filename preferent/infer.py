"""Answer prompts with a model, greedily or sampled, in GCPC's rows; and measure its KL to a reference."""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from preferent import dataset, experience, graph, hub, model, progress, run
from preferent.error import DataError
from preferent.model import Policy
from preferent.recipe import Recipe, pick
from preferent.record import Prompt
from preferent.sampler import Local, Params
from preferent.world import World

ROWS_AT_ONCE = 256


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Stage `infer`: model=, prompts= [, reference=] -> out/text.jsonl."""
    world = World.of(recipe)
    sources = {name: hub.resolve(str(inputs[name])) for name in ("model", "reference") if name in inputs}
    with run.locked(out):
        stage = run.stage("infer", out, pick(recipe, *graph.FIELDS["infer"]), inputs | sources, rerun=True)
        if stage.done:
            return
        stage.place(**world.facts())
        prompts = dataset.load_prompts(inputs["prompts"])[: recipe.infer.max_prompts]
        policy = model.load_policy(sources["model"], world)
        reference = model.load_policy(sources["reference"], world) if "reference" in sources else None
        answer(recipe, policy, reference, prompts, out)
        stage.finish(["text.jsonl"])


def answer(recipe: Recipe, policy: Policy, reference: Policy | None, prompts: list[Prompt], out: Path) -> None:
    """Answer all prompts, a part at a time; a part that is on disk is not answered again."""
    parts = out / "parts"
    size = min(recipe.sampler.rows, ROWS_AT_ONCE)
    rows: list[dict[str, Any]] = []
    with progress.bar(out.name, len(prompts), 0) as bar:
        for start in range(0, len(prompts), size):
            run.stop().check()
            items = range(start, min(start + size, len(prompts)))
            path = parts / f"{items.start:08d}-{items.stop:08d}.json"
            rows += kept(path, partial(answered, recipe, policy, reference, prompts, items))
            bar.update(items.stop)
    run.write_jsonl(out / "text.jsonl", rows)
    for path in parts.glob("*"):
        path.unlink()
    if parts.exists():
        parts.rmdir()


def kept(path: Path, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a part: read where they were written before, else made and written."""
    if path.exists():
        try:
            return list(run.read_sealed(path, "its prompts are answered again")["rows"])
        except DataError as damage:
            print(damage, file=sys.stderr)
    rows = make()
    run.write_sealed(path, {"rows": rows})
    return rows


def answered(
    recipe: Recipe, policy: Policy, reference: Policy | None, prompts: list[Prompt], items: range
) -> list[dict[str, Any]]:
    """The rows of the prompts at `items`."""
    tokenizer, instruction = policy.tokenizer, recipe.instruction
    ids = [tokenizer.encode_prompt(prompts[i], instruction, recipe.prompt_sequence_length)[0] for i in items]
    arrays = [np.asarray(row, np.int32) for row in ids]
    settings = recipe.sampler
    sampled = Params(recipe.target_sequence_length, settings.temperature)
    chosen = dataclasses.replace(
        sampled, top_p=settings.top_p, top_k=settings.top_k, greedy=recipe.infer.sampling_strategy == "greedy"
    )
    sampler = Local(policy, recipe.seed, settings.rows)
    rollouts = sampler.sample(arrays, items, "infer", 0, chosen)
    rows: list[dict[str, Any]] = []
    for item, rollout in zip(items, rollouts, strict=True):
        prompt = prompts[item]
        asked = {
            "inputs_pretokenized": tokenizer.text(prompt, instruction),
            "targets_pretokenized": prompt.reference or "",
        }
        prediction = tokenizer.decode_answer(prompt, instruction, rollout.ids.tolist())
        facts = {"id": prompt.id or prompt.key, "tokens": len(rollout.ids), "ended": rollout.ended}
        rows.append({"inputs": asked, "prediction": prediction} | facts)
    if reference is not None:
        if chosen != sampled:
            rollouts = sampler.sample(arrays, items, "infer", 0, sampled)
        micros = experience.micro_batches(
            rollouts, recipe.ppo.micro_batch_tokens, tokenizer.pad_id, policy.world.device
        )
        mask = experience.answer_mask(rollouts, policy.world.device)
        shape = mask.shape[0], mask.shape[1]
        measured = experience.measure(policy, reference, micros, shape, settings.temperature)
        for row, kl, k1 in zip(rows, measured.kl.sum(-1).tolist(), measured.k1.sum(-1).tolist(), strict=True):
            row |= {"kl": kl, "kl_k1": k1}
    return rows
