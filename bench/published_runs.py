"""What `preferent plan` computes for runs of PPO that others published: `python bench/published_runs.py`.

Others' code did the work, so this says whether a plan from data sheets has the right size, and not how fast preferent
is. Facts of DeepSpeed-Chat: the tables and footnote 1 of its release blog (April 2023), its script run_6.7b.sh; of
OpenRLHF: the table of 1,024 prompts and one epoch in its README of May 2024. Prints two tables of docs/scale.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from unittest import mock

from preferent.commands.cards import card_speed, rank_lines
from preferent.commands.cards.hardware import CARDS, Machines
from preferent.commands.time_estimate import Speeds, Work, duration
from preferent.config import recipe, stage_graph
from preferent.config.memory_estimate import ModelFacts
from preferent.config.model_shape import LLAMA_2, Shape

LLAMA = {name.removeprefix("meta-llama/Llama-2-").removesuffix("-hf"): shape for name, shape in LLAMA_2.items()}
CODE_LLAMA_34B = Shape(32000, 8192, 48, 64, 8, 128, 22016)
SHARES = card_speed.TRAINED, 0.45
"""Shares of the cards' FLOP/s: what `plan` takes, and what pretraining reaches."""
NDV4, HDR = 200e9, 100e9
"""Networks of a node: Azure's ND A100 v4, 8 x 200 Gb/s; and 4 x 200 Gb/s, assumed where nothing is said."""


def opt(hidden: int, layers: int, heads: int) -> Shape:
    """Return the shape of an OPT model; two matrices of width 4 D are three of 8/3 D."""
    return Shape(50272, hidden, layers, heads, heads, hidden // heads, 8 * hidden // 3, tied=True)


@dataclass(frozen=True)
class PublishedRun:
    """A run of PPO of every weight, with activations computed twice, one epoch: who, of which model with which reward
    model and critic, on what, of how many prompts, in which batches and minibatches, of how long prompts and answers;
    and the seconds that were published."""

    who: str
    model: str
    shape: Shape
    scorer: Shape
    card: str
    machines: Machines
    prompts: int
    batch: int
    minibatches: int
    length: tuple[int, int]
    seconds: float

    @property
    def recipe(self) -> recipe.Recipe:
        prompt, answer = self.length
        values = {"large_model_reference": "m", "preference_dataset": "p", "gradient_checkpointing": True}
        lengths = {"prompt_sequence_length": prompt, "target_sequence_length": answer, "precision": "bf16"}
        ppo = {"batch_size": self.batch, "minibatches": self.minibatches, "epochs": 1, "lora_dim": 0}
        steps = {"reinforcement_learning_train_steps": -(-self.prompts // self.batch)}
        return recipe.parse(values | lengths | steps | {"ppo": ppo, "reward": {"lora_dim": 0}})[0]


def deepspeed(model: str, shape: Shape, nodes: int, hours: float) -> PublishedRun:
    """131,900 prompts of 256 tokens with answers of 256, at most 1,024 in a batch; reward model and critic OPT-350M."""
    machines = Machines(8, nodes, CARDS["a100-80g"].link, NDV4)
    scorer, length = opt(1024, 24, 16), (256, 256)
    return PublishedRun(
        "DeepSpeed-Chat", model, shape, scorer, "a100-80g", machines, 131900, 1024, 1, length, hours * 3600
    )


def openrlhf(model: str, shape: Shape, nodes: int, seconds: float) -> PublishedRun:
    """1,024 prompts, 128 in a minibatch. Assumed: prompts and answers of 1,024 tokens, the limits in its scripts, and a
    reward model and a critic as large as the policy."""
    machines = Machines(8, nodes, CARDS["a800-80g"].link, HDR)
    return PublishedRun("OpenRLHF", model, shape, shape, "a800-80g", machines, 1024, 1024, 8, (1024, 1024), seconds)


RUNS = (
    deepspeed("OPT 1.3B", opt(2048, 24, 32), 1, 1.4),
    deepspeed("OPT 6.7B", opt(4096, 32, 32), 1, 4.1),
    deepspeed("OPT 13B", opt(5120, 40, 40), 1, 9),
    deepspeed("OPT 30B", opt(7168, 48, 56), 1, 18),
    deepspeed("OPT 66B", opt(9216, 64, 72), 1, 2.1 * 24),
    deepspeed("OPT 13B", opt(5120, 40, 40), 8, 1.25),
    deepspeed("OPT 30B", opt(7168, 48, 56), 8, 4),
    deepspeed("OPT 66B", opt(9216, 64, 72), 8, 7.5),
    openrlhf("Llama 2 7B", LLAMA["7b"], 2, 471.11),
    openrlhf("Llama 2 13B", LLAMA["13b"], 4, 608.93),
    openrlhf("Code Llama 34B", CODE_LLAMA_34B, 4, 1526.4),
    openrlhf("Llama 2 70B", LLAMA["70b"], 4, 4488.53),
)


PHASES = {
    "sample": ("read", "token"),
    "measure": ("measure", "value", "score"),
    "learn": ("learn_policy", "learn_critic", "step_policy", "step_scorer"),
    "send": (),
}
"""The speeds of which each phase of a step is made; the last is what ranks send."""


def phases(run: PublishedRun) -> dict[str, float]:
    """Return the seconds of all steps of PPO, without validations, as `preferent plan` computes them, by phase."""
    found = run.recipe
    prompts = {"train": run.prompts, "validation": 0, "test": 0}
    facts = ModelFacts(found, run.shape, run.scorer, 2, run.length[0], prompts, on_gpu=True)
    tasks = [task for task in stage_graph.build(found) if task.stage == "ppo"]
    work = Work([run.length], {"prompt": prompts})

    def step(machines: Machines, names: Sequence[str]) -> float:
        def speed(facts: ModelFacts, work: Work, stage: str) -> Speeds:
            speeds = card_speed.speeds(CARDS[run.card], facts, work, stage, machines.ranks)
            return Speeds(*(seconds * (name in names) for name, seconds in speeds._asdict().items()))

        (stage,) = rank_lines.times(facts, tasks, work, machines, speed)
        return found.reinforcement_learning_train_steps * stage.step

    silent = replace(run.machines, link=float("inf"), network=float("inf"))
    return {phase: step(silent if names else run.machines, names) for phase, names in PHASES.items()}


def planned(run: PublishedRun) -> float:
    return sum(phases(run).values())


def table(runs: Sequence[PublishedRun], shares: Sequence[float]) -> list[str]:
    """Return the lines of a table: a run with its published time, and for each share of the cards' FLOP/s the planned
    one and planned / published."""
    names = [
        "run",
        "model",
        "GPUs",
        "published",
        *(f"planned at {share:.0%} | planned / published" for share in shares),
    ]
    lines = [f"| {' | '.join(names)} |", "|---" * (len(names) + len(shares)) + "|"]
    for run in runs:
        cells = [run.who, run.model, f"{run.machines.ranks} {run.card}", duration(run.seconds)]
        for share in shares:
            with mock.patch.object(card_speed, "TRAINED", share):
                seconds = planned(run)
            cells += [duration(seconds), f"{seconds / run.seconds:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def phase_table(runs: Sequence[PublishedRun]) -> list[str]:
    """Return the lines of a table: a run with the planned time of each phase."""
    lines = [f"| run | model | {' | '.join(PHASES)} |", "|---" * (2 + len(PHASES)) + "|"]
    for run in runs:
        cells = [run.who, run.model, *(duration(seconds) for seconds in phases(run).values())]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    print("\n".join([*table(RUNS, SHARES), "", *phase_table(RUNS)]))


if __name__ == "__main__":
    main()
