"""Whether the stages of a run fit the memory of a device, and which settings make one fit that does not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from preferent.config import defaults, memory_estimate
from preferent.config.memory_estimate import MemoryNeed, ModelFacts
from preferent.config.recipe import Recipe, assign, parse, pick
from preferent.config.stage_graph import Task
from preferent.runs import memory_choice
from preferent.runs.memory_choice import SHARE

PARTS = ("policy", "reference", "reward", "critic", "optimizer", "gradients", "activations", "KV cache")
"""The columns of the memory table; beside them the baseline of any stage, and its peak."""
USABLE = 0.9
"""Share of a device's memory that a peak may take: the formulas are right within a tenth."""


@dataclass(frozen=True)
class StageFit:
    """What a stage needs on a device of `memory` bytes, with the values `at_once` that it would choose there."""

    need: MemoryNeed
    at_once: dict[str, int]
    memory: int
    advice: tuple[tuple[str, ...], int] | None = None
    """Where it does not fit: settings with which it does, and its peak with them; None where none do."""

    @property
    def fits(self) -> bool:
        return self.need.peak <= USABLE * self.memory


def fits(facts: ModelFacts, tasks: Sequence[Task], memory: int) -> list[StageFit]:
    """Return how each stage that holds models fits."""
    return [fit(facts, stage, name, memory) for name, stage in stages(tasks).items()]


def stages(tasks: Sequence[Task]) -> dict[str, str]:
    """Return the stages that hold models, by name; members of an ensemble and answers of several models once."""
    names = {task.stage if task.stage != "reward" else task.name.partition("-")[0]: task.stage for task in tasks}
    return {name: stage for name, stage in names.items() if stage in memory_estimate.NEEDS}


def fit(facts: ModelFacts, stage: str, name: str, memory: int) -> StageFit:
    """Return how a stage, called `name` in the run, fits."""
    at_once = memory_choice.chosen(facts, stage, memory)
    recipe, _ = defaults.filled(facts.recipe, at_once)
    need = replace(memory_estimate.need(replace(facts, recipe=recipe), stage), stage=name)
    found = StageFit(need, pick(recipe, *memory_choice.FIELDS[stage]), memory)
    return found if found.fits else replace(found, advice=advice(facts, stage, memory))


def advice(facts: ModelFacts, stage: str, memory: int) -> tuple[tuple[str, ...], int] | None:
    """Return the cheapest single setting that makes a stage fit, else the first of them that do so together."""
    for limit in (SHARE * memory, USABLE * memory):
        for setting in _settings(facts.recipe, stage):
            if (peak := _peak(facts, stage, (setting,), memory)) <= limit:
                return (setting,), peak
    together: dict[str, str] = {}
    for setting in _settings(facts.recipe, stage):
        before = _peak(facts, stage, tuple(together.values()), memory)
        more = together | {setting.partition("=")[0]: setting}
        if (peak := _peak(facts, stage, tuple(more.values()), memory)) < before:
            together = more
            if peak <= USABLE * memory:
                return tuple(together.values()), peak
    return None


def _settings(recipe: Recipe, stage: str) -> Iterator[str]:
    """Yield settings that need less memory, those that cost least first: less at once, where the recipe says how much;
    activations computed twice; less precise numbers; fewer weights that learn; frozen weights in 4 bits."""
    for key, amount in pick(recipe, *reversed(memory_choice.FIELDS[stage])).items():
        while amount is not None and amount > 1:
            amount //= 2
            yield f"{key}={amount}"
    section = stage if stage in defaults.TUNING else None
    if section is not None and not recipe.gradient_checkpointing:
        yield "gradient_checkpointing=true"
    if recipe.precision == "fp32":
        yield "precision=bf16"
    if section is not None and pick(recipe, f"{section}.lora_dim")[f"{section}.lora_dim"] == 0:
        if recipe.optimizer == "adamw":
            yield "optimizer=adamw8bit"
        yield f"{section}.lora_dim={defaults.TUNING[section].rank}"
    if recipe.quantize is None and recipe.shard != "full" and not defaults.fully_tuned(recipe):
        yield "quantize=nf4"


def _peak(facts: ModelFacts, stage: str, settings: Sequence[str], memory: int) -> int:
    """Return what a stage needs with these settings, and what it chooses beside them."""
    recipe = parse(assign(facts.recipe.model_dump(mode="json"), settings))[0]
    changed = replace(facts, recipe=recipe, bytes=2 if "precision=bf16" in settings else facts.bytes)
    return memory_choice.peak(changed, stage, memory_choice.chosen(changed, stage, memory))


def table(needs: Sequence[MemoryNeed]) -> Iterator[str]:
    """Return one line per stage: its parts, the baseline before any model, and the peak with its phase."""
    yield f"{'':<9}" + "".join(f"{name:>12}" for name in (*PARTS, "baseline", "peak"))
    for need in needs:
        cells = [*(need.most(name) for name in PARTS), memory_estimate.BASELINE, need.peak]
        yield (
            f"{need.stage:<9}" + "".join(f"{size(cell) if cell else '-':>12}" for cell in cells) + f"  in {need.phase}"
        )


def verdict(fits: Sequence[StageFit], device: str) -> Iterator[str]:
    """Return whether the stages fit, a line for each that does not, and how much each computes at once."""
    if all(stage.fits for stage in fits):
        yield f"fits: at most {size(max(stage.need.peak for stage in fits))} of {size(fits[0].memory)} ({device})"
    for stage in fits:
        if not stage.fits:
            yield f"{stage.need.stage}: does not fit in {size(stage.memory)} ({device}): {_way(stage)}"
    for stage in fits:
        values = ", ".join(f"{key} {value}" for key, value in stage.at_once.items())
        yield f"{stage.need.stage:<9}at once: {values}"


def _way(stage: StageFit) -> str:
    if stage.advice is None:
        return "no setting makes it fit; take a smaller model or a larger device"
    settings, peak = stage.advice
    return f"`{' '.join(f'--set {setting}' for setting in settings)}` makes it {size(peak)}"


def size(count: int) -> str:
    """Return a number of bytes as MiB or GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
