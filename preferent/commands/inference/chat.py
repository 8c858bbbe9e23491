"""The verb `try`: talk to base and tuned model of a run side by side in the terminal."""

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from preferent.config import defaults
from preferent.config.recipe import Recipe
from preferent.data.formats import row_reader
from preferent.data.types import Message, Prompt
from preferent.models import language_models
from preferent.models.language_models import Policy
from preferent.models.world import World
from preferent.pipelines import finished_run
from preferent.pipelines.finished_run import FinishedRun
from preferent.rewards import scoring
from preferent.rewards.normalization import ScoreNormalization
from preferent.rewards.scoring import CombinedReward, RolloutBatch
from preferent.rollouts import sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.sampler import Prompts, Sampler
from preferent.runs.directory import RunDirectory

SHOWN_LETTERS = 80
"""Of a prompt that is shown, the last."""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """An answer of a model: whether it ended, its length in tokens, and its score as PPO saw it."""

    text: str
    ended: bool
    tokens: int
    score: float | None


@dataclass(frozen=True)
class ChatTurn:
    """Base and tuned model of a run, with the settings by which they answer."""

    base: Policy
    tuned: Policy
    samplers: tuple[Sampler, Sampler]
    reward: CombinedReward | None
    recipe: Recipe
    params: Params
    converses: bool

    def prompt(self, line: str) -> Prompt:
        """Return typed text as a prompt of the kind that the run was trained on, or the prompt of a row of data."""
        if (prompt := row_reader.prompt_in(line)) is not None:
            return prompt
        return Prompt(messages=(Message("user", line),)) if self.converses else Prompt(input_text=line)

    def answers(self, line: str, item: int) -> tuple[ChatAnswer, ChatAnswer]:
        """Return the answers of base and tuned model; `item` keys their randomness, which is the same for both."""
        prompt = self.prompt(line)
        base, tuned = self.samplers
        return self._answer(self.base, base, prompt, item), self._answer(self.tuned, tuned, prompt, item)

    def _answer(self, policy: Policy, engine: Sampler, prompt: Prompt, item: int) -> ChatAnswer:
        prompts = Prompts.of([prompt], policy.tokenizer, self.recipe)
        (rollout,) = engine.sample(prompts.ids, [item], "infer", 0, self.params)
        batch = RolloutBatch([rollout], prompts, policy.tokenizer)
        score = None
        if self.reward is not None:
            scored = scoring.score_rollouts(self.reward, batch)
            score = float(scoring.final_scores(scored, self.reward.scale, self.recipe)[0])
        return ChatAnswer(batch.answers[0], rollout.ended, len(rollout.ids), score)


def talk(folder: Path, temperature: float | None, greedy: bool, tokens: int | None, seed: int | None) -> None:
    """Answer each line of stdin with both models; an argument that is None is as in the run's `infer`."""
    finished = finished_run.of(folder)
    changes = {"target_sequence_length": tokens, "seed": seed}
    recipe = finished.recipe.model_copy(update={name: value for name, value in changes.items() if value is not None})
    language_models.check_length(finished.tuned, recipe)
    pair = load(finished, recipe, decoding_params(recipe, temperature, greedy))
    console = Console(highlight=False)
    for item, line in enumerate(lines(console, finished.first_prompt())):
        show(console, line, *pair.answers(line, item))


def decoding_params(recipe: Recipe, temperature: float | None, greedy: bool) -> Params:
    """Return how tokens are chosen: as the arguments say, otherwise as in the recipe's `infer`."""
    settings = recipe.sampler
    as_infer = recipe.infer.sampling_strategy == "greedy" and temperature is None
    params = Params(recipe.target_sequence_length, temperature or settings.temperature, settings.top_p, settings.top_k)
    return replace(params, greedy=greedy or as_infer)


def load(finished: FinishedRun, recipe: Recipe, params: Params) -> ChatTurn:
    """Load both models of a run, and its reward unless a function is part of it.

    With LoRA, base and tuned model share one backbone.
    """
    world, recipe = World.of(recipe), defaults.filled(recipe, defaults.AT_ONCE)[0]
    tuned = language_models.load_policy(finished.tuned, world)
    base = tuned.reference() if tuned.peft is not None else language_models.load_policy(finished.base(), world)
    reward = None
    if finished.rewards and all(part.kind != "function" for part in recipe.reward.parts):
        scale = ScoreNormalization.read(RunDirectory(finished.folder).policy.score)
        inputs = scoring.resolve_models(recipe, finished.rewards)
        reward = CombinedReward.load(recipe, inputs, world, scale, [tuned])
    samplers = sampler.make(recipe, base), sampler.make(recipe, tuned)
    return ChatTurn(base, tuned, samplers, reward, recipe, params, finished.converses())


def lines(console: Console, example: Prompt | None) -> Iterator[str]:
    """Yield the lines of stdin that are not empty; a terminal is prompted for each, and told what prompts end like."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is lost by leaving at once
    console.print("Type a prompt; base and tuned model answer it. Ctrl-D ends.", style="dim")
    if example is not None:
        console.print(Text(f"The run was tuned on prompts like this one: {ending(example)}", style="dim"))
    while True:
        try:
            line = console.input("[bold]> [/bold]")
        except EOFError:
            console.print()
            return
        if line.strip():
            yield line


def ending(prompt: Prompt) -> str:
    """Return the last letters of a prompt in one line, quoted, so that a space at its end is seen."""
    text = readable(prompt.messages[-1].content if prompt.messages else prompt.input_text).replace("\n", "⏎")
    return f"“{text}”" if len(text) <= SHOWN_LETTERS else f"“…{text[1 - SHOWN_LETTERS :]}”"


def show(console: Console, line: str, base: ChatAnswer, tuned: ChatAnswer) -> None:
    """Print both answers beside each other."""
    title = None if sys.stdin.isatty() else Text(readable(line), style="bold")
    table = Table(title=title, title_justify="left", expand=True)
    for name in ("base", "tuned"):
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(Text(readable(answer.text)) for answer in (base, tuned)))
    table.add_row(*(Text(facts(answer), style="dim") for answer in (base, tuned)))
    console.print(table)


def facts(answer: ChatAnswer) -> str:
    """Return the length, whether the answer ended, and the score, in a line."""
    parts = [f"{answer.tokens} token{'' if answer.tokens == 1 else 's'}", *([] if answer.ended else ["did not end"])]
    parts += [] if answer.text.strip() else ["no text: it ended at once"] if answer.ended else ["no text"]
    return ", ".join([*parts, *([] if answer.score is None else [f"score {answer.score:.2f}"])])


def readable(text: str) -> str:
    """Return a text with a replacement sign for each control character, which could command the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
