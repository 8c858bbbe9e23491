"""How much a stage computes at once: chosen from its device's memory when it begins, written down, and kept."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from preferent import ranks
from preferent.config import defaults, memory_estimate, model_folder, model_reference, stage_graph
from preferent.config.defaults import AT_ONCE
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import Shape
from preferent.config.recipe import Recipe, pick
from preferent.runs import rank_shares
from preferent.runs.directory import StageDirectory
from preferent.runs.stages import Stage, read_stage

SHARE = 0.75
"""Share of the device's memory that a stage may need for its values to be chosen."""
SAMPLER = ("sampler.rows", "sampler.prefill_tokens")
FIELDS = {
    "sft": ("sft.micro_batch_tokens",),
    "reward": ("reward.micro_batch_tokens", *SAMPLER),
    "ppo": ("ppo.micro_batch_tokens", "reward.micro_batch_tokens", *SAMPLER),
    "dpo": ("dpo.micro_batch_tokens",),
    "rejection": ("rejection.micro_batch_tokens", "reward.micro_batch_tokens", *SAMPLER),
    "infer": ("ppo.micro_batch_tokens", "reward.micro_batch_tokens", *SAMPLER),
    "compare": ("reward.micro_batch_tokens", "compare.micro_batch_tokens", *SAMPLER),
}
"""The fields of how much is computed at once that each stage reads."""
MEANING = {
    "micro_batch_tokens": "tokens computed at once",
    "rows": "answers decoded at once",
    "prefill_tokens": "prompt tokens read in one pass",
}
MANY = dict.fromkeys(("train", "validation", "test"), 1 << 40)
"""More prompts than there are, in each part."""


class Machine(NamedTuple):
    """Where a stage computes: the device's total memory in bytes, the bytes of a number, whether it is a GPU, and the
    number of ranks that shard it."""

    memory: int
    bytes: int
    on_gpu: bool
    ranks: int = 1


def settled(recipe: Recipe, stage: Stage, machine: Machine) -> Recipe:
    """Return the recipe with how much is computed at once filled in, and write that into `stage.json`.

    A stage that goes on takes what it began with from there, whatever memory there is now, so that its bits are the
    same; what the recipe says comes first.
    """
    fields = FIELDS[stage.name]
    began = {key: AT_ONCE[key] for key in fields} if "device" in stage.facts else {}
    recipe, _ = defaults.filled(recipe, began | stage.facts.get("at_once", {}))
    if None in pick(recipe, *fields).values():
        facts = _facts(recipe, stage, machine)
        memory, size = machine.memory, machine.ranks
        values = ranks.agreed(lambda: AT_ONCE if facts is None else chosen(facts, stage.name, memory, size))
        recipe, _ = defaults.filled(recipe, {key: values[key] for key in fields if key in values})
    stage.record(at_once=pick(recipe, *fields))
    return recipe


def chosen(facts: ModelFacts, stage: str, memory: int, size: int = 1) -> dict[str, int]:
    """Return values for the fields that are open: the most, halved until the stage needs `SHARE` of the memory.

    Each time that field is halved which saves most. Where the stage cannot fit, they are as small as helps. They depend
    on the longest prompts that the recipe allows, and not on the rows that there are. `size` ranks shard the stage.
    """
    facts = replace(facts, prompt=facts.recipe.prompt_sequence_length, prompts=MANY, packed=True)
    values = {key: AT_ONCE[key] for key, value in pick(facts.recipe, *FIELDS[stage]).items() if value is None}
    while (now := peak(facts, stage, values, size)) > SHARE * memory:
        steps = [smaller for key in values if (smaller := _halved(facts, stage, values, key, now, size)) is not None]
        if not steps:
            break
        values = min(steps, key=lambda smaller: peak(facts, stage, smaller, size))
    return values


def peak(facts: ModelFacts, stage: str, values: Mapping[str, int], size: int = 1) -> int:
    """Return what a stage needs with these values in fields that are open, on each of the ranks that shard it."""
    recipe = facts.recipe
    for key, value in values.items():
        name, _, field = key.partition(".")
        section = getattr(recipe, name).model_copy(update={field: value})
        recipe = recipe.model_copy(update={name: section})
    facts = replace(facts, recipe=recipe)
    need = memory_estimate.need(facts, stage)
    shards = size > 1 and rank_shares.is_sharded(facts, stage)
    return (rank_shares.shard(facts, need, stage, size) if shards else need).peak


def _halved(
    facts: ModelFacts, stage: str, values: dict[str, int], key: str, now: int, size: int
) -> dict[str, int] | None:
    """Return the values with that under `key` halved until the stage needs less than `now`; None if it never does."""
    smaller = dict(values)
    while smaller[key] > 1:
        smaller[key] //= 2
        if peak(facts, stage, smaller, size) < now:
            return smaller
    return None


def _facts(recipe: Recipe, stage: Stage, machine: Machine) -> ModelFacts | None:
    """Return what the stage's need depends on, at most; None if the shape of one of its models is not known."""
    kept = {name: path for name, path in stage.inputs.items() if name == "model" or name.startswith("model.")}
    rewards = {name: path for name, path in stage.inputs.items() if stage_graph.is_reward(name) or name == "judge"}
    shapes = {name: _shape(path) for name, path in (kept | rewards).items()}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    if not known or len(known) < len(shapes):
        return None
    policies = [known[name] for name in kept]
    trained = [known[name] for name in rewards if not stage_graph.FOREIGN.fullmatch(name)]
    policy, reward = (policies or trained or [*known.values()])[0], (trained or policies or [*known.values()])[0]
    recipe, _ = defaults.resolve(recipe, policy.policy, reward.policy)
    return ModelFacts(
        recipe,
        policy,
        reward,
        machine.bytes,
        recipe.prompt_sequence_length,
        MANY,
        on_gpu=machine.on_gpu,
        others=tuple(known[name] for name in rewards if stage_graph.FOREIGN.fullmatch(name)),
        judges=tuple(known[name] for name in kept if name != "model"),
    )


def _shape(source: Path) -> Shape | None:
    base = model_reference.examine(source)
    return Shape.of(model_folder.read_object(base / "config.json"))


def smaller(stage: str, folder: Path | None) -> str:
    """Return advice for a stage that ran out of memory in a folder: half of what it computed at once there."""
    fields = FIELDS.get(stage, FIELDS["ppo"])
    values = {key: AT_ONCE[key] for key in fields}
    if folder is not None and StageDirectory(folder).description.exists():
        values |= read_stage(folder).get("facts", {}).get("at_once", {})
    lines = [
        f"  --set {key}={value // 2}".ljust(40) + f"{MEANING[key.rpartition('.')[2]]} (now: {value})"
        for key, value in values.items()
        if value > 1
    ]
    section = stage if stage in defaults.TUNING else "ppo"
    lines.append("  --set gradient_checkpointing=true".ljust(40) + "activations computed twice instead of kept")
    return "\n".join(
        [
            "Make it smaller; with these the result is the same, and the same command goes on from here:",
            *lines,
            f"Or start again with fewer trained weights: --set {section}.lora_dim=4",
            "`preferent plan RECIPE` says which of them is enough",
        ]
    )
