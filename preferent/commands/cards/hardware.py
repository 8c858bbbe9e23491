"""Graphics cards by their data sheets, and how many of them compute together."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from preferent.config.recipe import Recipe
from preferent.errors import UsageError
from preferent.runs import environment


class Card(NamedTuple):
    """A card: bytes of memory that torch finds, dense bf16 FLOP/s, bytes per second of its memory, and bytes per second
    to another card of its node, in one direction."""

    memory: int
    flops: float
    bandwidth: float
    link: float


CARDS = {
    "a100-40g": Card(39 << 30, 312e12, 1.555e12, 300e9),
    "a100-80g": Card(79 << 30, 312e12, 2.039e12, 300e9),
    "a800-80g": Card(79 << 30, 312e12, 2.039e12, 200e9),
    "h100-80g": Card(79 << 30, 989e12, 3.35e12, 450e9),
    "h200-141g": Card(139 << 30, 989e12, 4.8e12, 450e9),
    "l40s-48g": Card(44 << 30, 362e12, 0.864e12, 32e9),
    "rtx4090-24g": Card(23 << 30, 165e12, 1.008e12, 32e9),
}
"""Data sheets of NVIDIA. A and H: SXM modules on NVLink, whose figure for both directions is halved. The others: PCIe
4.0 with 16 lanes. FLOP/s of bf16 products without sparsity, added up in fp32."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Nodes that compute together, with so many GPUs each, and a rank for each GPU. `link` and `network` are the bytes
    per second between GPUs of a node, and between nodes, in one direction; None: not known. `shared` says whether the
    ranks divide one machine's memory and cores."""

    gpus: int = 1
    nodes: int = 1
    link: float | None = None
    network: float | None = None
    shared: bool = False

    @property
    def ranks(self) -> int:
        return self.gpus * self.nodes

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second of the slowest link that a ring through all ranks has; it leaves each node once."""
        links = [self.link] * (self.gpus > 1) + [self.network] * (self.nodes > 1)
        known = [link for link in links if link is not None]
        return min(known) if len(known) == len(links) and known else None

    @property
    def of_each(self) -> str:
        """Whose memory a plan says."""
        return f" of each of {self.ranks} ranks" if self.ranks > 1 else ""


ONE_GPU = Machines()


def as_run(machines: Machines, recipe: Recipe, elsewhere: bool) -> Machines:
    """Return as many ranks as a run of the recipe has on each node. Those on this machine's processors divide its
    memory and its cores; `elsewhere` each has a GPU."""
    on_gpus = elsewhere or (recipe.device != "cpu" and environment.has_gpu())
    ranks = environment.processes(recipe, "ppo")
    return replace(machines, gpus=ranks, shared=not on_gpus and ranks > 1)


def named(name: str) -> Card:
    """Return a card by its name."""
    if name not in CARDS:
        raise UsageError(f"card {name} is not known; take one of {', '.join(CARDS)}, or give its memory with --memory")
    return CARDS[name]
