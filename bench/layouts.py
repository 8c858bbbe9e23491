"""What cards hold, take and send by `preferent plan`: `python bench/layouts.py` prints two tables of docs/scale.md.

All is computed, nothing is run. Prompts of 512 and answers of 64 tokens, the defaults of a recipe, and more data than
are needed.
"""

from collections.abc import Iterator
from typing import NamedTuple

from preferent.commands.cards import rank_lines, rank_memory, traffic
from preferent.commands.cards.hardware import CARDS, Machines
from preferent.commands.memory_fit import size
from preferent.commands.time_estimate import Work, duration
from preferent.config import recipe, stage_graph
from preferent.config.defaults import resolve
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import LLAMA_2
from preferent.runs import rank_shares

PARTS = {"train": 100_000, "validation": 1000, "test": 1000, "judge": 100_000}
WORK = Work([(512, 64)], {"preference": PARTS, "prompt": PARTS})
BETWEEN = 50e9
"""Bytes per second from a node to others: 400 Gb/s."""


class Layout(NamedTuple):
    """A model, the LoRA ranks of reward model and policy (0: every weight learns), further settings, and cards."""

    model: str
    ranks: tuple[int, int]
    card: str
    gpus: int
    nodes: int = 1
    settings: tuple[tuple[str, object], ...] = ()

    @property
    def machines(self) -> Machines:
        return Machines(self.gpus, self.nodes, CARDS[self.card].link, BETWEEN)

    @property
    def cards(self) -> str:
        several = f"{self.nodes} x {self.gpus}" if self.nodes > 1 else str(self.gpus)
        return f"{several} {self.card}"

    def facts(self, batch: int = 64) -> ModelFacts:
        shape = LLAMA_2[f"meta-llama/Llama-2-{self.model}-hf"]
        values = {"large_model_reference": "m", "preference_dataset": "p", "precision": "bf16", **dict(self.settings)}
        sections = {
            "reward": {"lora_dim": self.ranks[0]},
            "ppo": {"lora_dim": self.ranks[1], "batch_size": batch},
        }
        found, _ = resolve(recipe.parse(values | sections)[0], shape.policy, shape.policy)
        return ModelFacts(found, shape, shape, 2, 512, PARTS, on_gpu=True)


LORA, FULL = (4, 1), (0, 0)
AGAIN = (("gradient_checkpointing", True),)
LAYOUTS = (
    Layout("7b", LORA, "rtx4090-24g", 1),
    Layout("7b", LORA, "rtx4090-24g", 4),
    Layout("7b", LORA, "a100-80g", 1),
    Layout("7b", LORA, "a100-80g", 8),
    Layout("7b", LORA, "h100-80g", 8, 2),
    Layout("13b", LORA, "h100-80g", 8),
    Layout("7b", FULL, "a100-80g", 8, 1, AGAIN),
    Layout("7b", FULL, "h100-80g", 8, 1, AGAIN),
    Layout("13b", FULL, "h100-80g", 8, 1, AGAIN),
    Layout("13b", FULL, "h100-80g", 8, 2, AGAIN),
    Layout("70b", LORA, "h200-141g", 8),
    Layout("70b", LORA, "h200-141g", 8, 1, (("quantize", "nf4"), *AGAIN)),
    Layout("70b", FULL, "h200-141g", 8, 8, AGAIN),
)


def rows(layouts: tuple[Layout, ...]) -> Iterator[list[str]]:
    """Yield the cells of each layout: its largest peak of a rank, and what a step of PPO takes and sends."""
    for layout in layouts:
        facts, machines = layout.facts(), layout.machines
        tasks = stage_graph.build(facts.recipe)
        fits = rank_memory.fits(facts, tasks, CARDS[layout.card].memory, machines.ranks)
        worst = max(fits, key=lambda fit: fit.need.peak)
        fitting = "yes" if all(fit.fits for fit in fits) else "no"
        sends = traffic.traffic(facts, "ppo", WORK, machines.ranks).total
        how = "sharded" if rank_shares.is_sharded(facts, "ppo") else "replicated" if machines.ranks > 1 else "one card"
        quantized = facts.recipe.quantize is not None
        yield [
            layout.model.upper(),
            "every weight" if layout.ranks == FULL else "LoRA, `quantize: nf4`" if quantized else "LoRA",
            layout.cards,
            how,
            f"{size(worst.need.peak)} in `{worst.need.stage}`",
            fitting,
            "not known" if quantized else duration(step(layout)),
            size(round(sends)) if sends else "-",
        ]


def step(layout: Layout, batch: int = 64) -> float:
    """Return the seconds of a step of PPO."""
    facts = layout.facts(batch)
    tasks = [task for task in stage_graph.build(facts.recipe) if task.stage == "ppo"]
    speed = rank_lines.speed(CARDS[layout.card], None, layout.machines)
    assert speed is not None
    (stage,) = rank_lines.times(facts, tasks, WORK, layout.machines, speed)
    return stage.step


def growing(model: str, ranks: tuple[int, int], card: str, batches: tuple[int, ...]) -> Iterator[list[str]]:
    """Yield for 1 to 16 cards the seconds of a step, and times one card's, for each size of batch."""
    for gpus in (1, 2, 4, 8, 16):
        layout = Layout(model, ranks, card, min(gpus, 8), max(1, gpus // 8))
        alone = Layout(model, ranks, card, 1)
        cells = []
        for batch in batches:
            seconds = step(layout, batch)
            cells += [duration(seconds), f"{step(alone, batch) / seconds:.1f}"]
        yield [str(gpus), *cells]


def tables() -> list[str]:
    """Return the lines of both tables."""
    names = ["model", "what learns", "cards", "layout", "largest peak of a rank", "fits", "step of PPO", "sent in it"]
    several = ["GPUs", "64 rollouts a step", "times as fast", "512 rollouts a step", "times as fast as one"]
    growth = growing("7b", LORA, "h100-80g", (64, 512))
    return [*_table(names, rows(LAYOUTS)), "", *_table(several, growth)]


def _table(names: list[str], lines: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for cells in lines:
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(tables()))
