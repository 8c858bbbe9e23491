"""How long the stages of a run take, from how fast this machine computes what they do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from preferent.config import stage_graph
from preferent.config.algorithms import algorithm
from preferent.config.defaults import reference
from preferent.config.memory_estimate import REWARD_SAMPLES
from preferent.config.recipe import Recipe
from preferent.config.stage_graph import Task


class Speeds(NamedTuple):
    """Seconds of one sequence: gradients of policy, critic and reward model, log-probabilities under policy and
    reference, values, and a score; of reading a prompt and of one token of an answer; of an optimizer's step; and until
    a process has loaded its libraries."""

    learn_policy: float
    learn_critic: float
    learn_reward: float
    measure: float
    value: float
    score: float
    read: float
    token: float
    step_policy: float
    step_scorer: float
    start: float


@dataclass(frozen=True)
class Work:
    """What there is to do: the tokens of some prompts, each with those of an answer, and the rows of each kind in each
    part of the data."""

    lengths: Sequence[tuple[int, int]]
    rows: Mapping[str, Mapping[str, int]]

    @property
    def prompt(self) -> int:
        """The mean tokens of a prompt."""
        return round(sum(prompt for prompt, _ in self.lengths) / len(self.lengths))

    @property
    def answer(self) -> int:
        """The mean tokens of an answer."""
        return round(sum(answer for _, answer in self.lengths) / len(self.lengths))


class StageTime(NamedTuple):
    """Seconds of a stage: of one of its steps (0: it has none), and of all that it does."""

    stage: str
    step: float
    total: float


def times(recipe: Recipe, tasks: Sequence[Task], work: Work, speeds: Speeds) -> Iterator[StageTime]:
    """Yield the time of each stage that computes, without reading and writing its models."""
    answer = speeds.read + work.answer * speeds.token
    for task in tasks:
        if task.stage == "reward":
            found = _reward(recipe, work, speeds, answer)
        elif task.stage == "ppo":
            found = _ppo(recipe, work, speeds, answer)
        elif task.stage == "infer":
            found = _infer(recipe, work, speeds, answer, measured="reference" in {*task.inputs, *task.outside})
        elif task.stage == "compare":
            judges = stage_graph.judged(recipe) + len(stage_graph.rewards(recipe))
            found = 0.0, 2 * _prompts(recipe, work) * judges * speeds.score
        elif task.stage == "sft":
            found = _sft(recipe, work, speeds)
        elif task.stage == "dpo":
            found = _dpo(recipe, work, speeds)
        elif task.stage == "rejection":
            found = _rejection(recipe, work, speeds, answer)
        else:
            continue
        step, total = found
        yield StageTime(task.name, step, speeds.start + total)


def _validations(steps: int, every: int) -> int:
    return -(-steps // every)


def _prompts(recipe: Recipe, work: Work) -> int:
    """Return how many prompts the comparison has."""
    return min(recipe.infer.max_prompts or work.rows["prompt"]["test"], work.rows["prompt"]["test"])


def _sft(recipe: Recipe, work: Work, speeds: Speeds) -> tuple[float, float]:
    section = recipe.sft
    assert section is not None
    step = section.batch_size * speeds.learn_policy + speeds.step_policy
    return step, section.train_steps * step


def _reward(recipe: Recipe, work: Work, speeds: Speeds, answer: float) -> tuple[float, float]:
    """Answers of the model before training; steps; scores of held-out pairs at each validation and at the end."""
    section, steps, pairs = recipe.reward, recipe.reward_model_train_steps, work.rows["preference"]
    step = 2 * section.batch_size * speeds.learn_reward + speeds.step_scorer
    validated = 1 + _validations(steps, section.validation_every)
    scored = 2 * (validated * pairs["validation"] + pairs["test"]) + REWARD_SAMPLES
    return step, REWARD_SAMPLES * answer + steps * step + scored * speeds.score


def _ppo(recipe: Recipe, work: Work, speeds: Speeds, answer: float) -> tuple[float, float]:
    """The scale of the score; steps of sampling, measuring and passes over the rollouts; validations."""
    section, steps, how = recipe.ppo, recipe.reinforcement_learning_train_steps, algorithm(recipe.ppo)
    scored = recipe.reward.members * speeds.score
    sampled = answer * (1 + (how.name == "remax")) + scored + speeds.measure + how.critic * speeds.value
    learnt = speeds.learn_policy + how.critic * speeds.learn_critic
    updated = speeds.step_policy + how.critic * speeds.step_scorer
    step = section.batch_size * (sampled + how.epochs * learnt) + how.epochs * section.minibatches * updated
    held_out = min(section.validation_prompts, work.rows["prompt"]["validation"])
    validated = 1 + _validations(steps, section.validation_every)
    scaled = min(recipe.reward.normalize_prompts, work.rows["prompt"]["train"]) * (answer + scored)
    return step, scaled + steps * step + validated * held_out * (answer + speeds.measure + scored)


def _dpo(recipe: Recipe, work: Work, speeds: Speeds) -> tuple[float, float]:
    """Log-probabilities under the reference, where there is one; steps; those of held-out pairs at each validation.

    KTO has the answer to another prompt beside each pair, from which it does not learn.
    """
    section, pairs = recipe.dpo, work.rows["preference"]
    others, once = int(recipe.method == "kto"), speeds.measure / 2
    step = section.batch_size * (2 * speeds.learn_policy + others * once) + speeds.step_policy
    held_out = _validations(section.train_steps, section.validation_every) * pairs["validation"] + pairs["test"]
    before = pairs["train"] + pairs["validation"] + pairs["test"] if reference(recipe, "dpo") != "none" else 0
    return step, section.train_steps * step + (2 + others) * (before + held_out) * once


def _rejection(recipe: Recipe, work: Work, speeds: Speeds, answer: float) -> tuple[float, float]:
    """In each round, answers and their scores, steps on the best, and a validation."""
    section = recipe.rejection
    step = section.batch_size * speeds.learn_policy + speeds.step_policy
    prompts = min(section.prompts, work.rows["prompt"]["train"])
    held_out = min(recipe.ppo.validation_prompts, work.rows["prompt"]["validation"])
    sampled = section.samples * prompts * (answer + speeds.score)
    validated = held_out * (answer + speeds.measure + speeds.score)
    return step, section.rounds * (sampled + section.train_steps * step + validated)


def _infer(recipe: Recipe, work: Work, speeds: Speeds, answer: float, measured: bool) -> tuple[float, float]:
    """Answers, and the KL where there is a reference: of other answers, unless these are sampled as in training."""
    each = recipe.infer.best_of * answer
    if measured:
        other = recipe.infer.sampling_strategy == "greedy" or recipe.infer.best_of > 1
        each += other * answer + speeds.measure
    return 0.0, _prompts(recipe, work) * each


def lines(found: Sequence[StageTime]) -> Iterator[str]:
    """Yield a line for each stage, and one for all of them."""
    for stage in found:
        step = f", {duration(stage.step)} a step" if stage.step else ""
        yield f"{stage.stage:<15}{duration(stage.total)}{step}"
    yield f"{'all':<15}{duration(sum(stage.total for stage in found))}"


def duration(seconds: float) -> str:
    """Return seconds as a text in the unit that suits them."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} seconds" if seconds < 1 else f"{seconds:.{int(seconds < 10)}f} seconds"
