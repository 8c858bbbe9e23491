"""How good answers are: reward models and user functions, alone or summed, on the scale that tuning raises."""

import importlib
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from preferent import randomness
from preferent.config import model_reference, stage_graph
from preferent.config.recipe import Recipe
from preferent.config.sections import RewardPart
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import Message, Prompt, Rollout
from preferent.errors import PlatformError, UsageError
from preferent.models import weight_averaging
from preferent.models.language_models import Policy, Scorer, check_length, load_scorer
from preferent.models.world import World
from preferent.rewards.normalization import Raw, ScoreNormalization, overlong
from preferent.rollouts import measurement
from preferent.rollouts.sampler import Prompts, Sampler, rollout_params
from preferent.rollouts.store import RolloutStore

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]

Content = tuple[str, tuple[Message, ...], str | None]
"""What of a prompt is encoded: its text, its turns, its context."""


@dataclass(frozen=True)
class RolloutBatch:
    """Rollouts beside the prompts that they answer, [n] each, and the tokenizer of both."""

    rollouts: Sequence[Rollout]
    prompts: Prompts
    tokenizer: Tokenizer

    @cached_property
    def answers(self) -> list[str]:
        """The answers' texts, without the spaces that the prompts gave them; decoded once, when they are needed."""
        return self.tokenizer.decode_answers(self.prompts.texts, [rollout.ids.tolist() for rollout in self.rollouts])


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model that scores token ids of a policy, or texts in its own tokens and template.

    `encoded` holds the prompts that it read in its own template, each encoded once: their texts and token ids.
    """

    scorer: Scorer
    instruction: str | None
    prompt_tokens: int
    answer_tokens: int
    micro_batch_tokens: int
    encoded: dict[Content, tuple[str, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, folder: Path, recipe: Recipe, world: World) -> "RewardModel":
        return cls.of(load_scorer(folder, world, checkpointing=recipe.gradient_checkpointing), recipe)

    @classmethod
    def of(cls, scorer: Scorer, recipe: Recipe) -> "RewardModel":
        tokens = recipe.prompt_sequence_length, recipe.target_sequence_length
        return cls(scorer, recipe.instruction, *tokens, recipe.reward.micro_batch_tokens)

    def score_ids(self, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> np.ndarray:
        """Raw scores, float32 [n], of answers given as ids of this model's tokenizer."""
        sequences = [np.concatenate([p, a]) for p, a in zip(prompts, answers, strict=True)]
        return measurement.last_scores(self.scorer, sequences, self.micro_batch_tokens)

    def score_texts(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Raw scores, float32 [n], in this model's own tokens; its EOS closes the answers that `ended` (default: all).

        `texts` are prompts with instruction and template already in them. `prompts` are the same before that, where
        they are known: this model reads them in its own template.
        """
        closed = [True] * len(answers) if ended is None else ended
        if prompts is not None:
            return self._score(self._read(prompts), answers, closed)
        plain = [Prompt(input_text=text) for text in texts]
        encoded = self.scorer.tokenizer.encode_prompts(plain, None, self.prompt_tokens)
        return self._score([(prompt.text, np.asarray(prompt.ids, np.int32)) for prompt in encoded], answers, closed)

    def score(self, batch: RolloutBatch) -> np.ndarray:
        """Raw scores, float32 [n], of a policy's rollouts: of the very ids where the tokenizers are the same, else of
        prompts and texts as this model writes them."""
        rollouts = batch.rollouts
        if batch.tokenizer.fingerprint == self.scorer.tokenizer.fingerprint:
            return self.score_ids([r.prompt_ids for r in rollouts], [r.ids for r in rollouts])
        return self._score(self._read(batch.prompts.records), batch.answers, [r.ended for r in rollouts])

    def _read(self, prompts: Sequence[Prompt]) -> list[tuple[str, np.ndarray]]:
        """Texts and token ids of prompts in this model's own template."""
        contents = [(prompt.input_text, prompt.messages, prompt.context) for prompt in prompts]
        new = {content: p for content, p in zip(contents, prompts, strict=True) if content not in self.encoded}
        encoded = self.scorer.tokenizer.encode_prompts(list(new.values()), self.instruction, self.prompt_tokens)
        for content, prompt in zip(new, encoded, strict=True):
            self.encoded[content] = prompt.text, np.asarray(prompt.ids, np.int32)
        return [self.encoded[content] for content in contents]

    def _score(
        self, prompts: Sequence[tuple[str, np.ndarray]], answers: Sequence[str], ended: Sequence[bool]
    ) -> np.ndarray:
        """Raw scores, float32 [n], of answers as texts to prompts that this model has read."""
        encoded = self.scorer.tokenizer.encode_answers([text for text, _ in prompts], answers, self.answer_tokens)
        closed = [ids if whole or cut else ids[:-1] for (ids, cut), whole in zip(encoded, ended, strict=True)]
        return self.score_ids([ids for _, ids in prompts], [np.asarray(ids, np.int32) for ids in closed])


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A Python function named `module:function` that scores (prompts, answers), two lists of text."""

    name: str
    function: RewardFunction
    place: str = "reward.sources"

    @classmethod
    def load(cls, name: str, place: str = "reward.sources") -> "UserFunction":
        """Import the function; the current directory is searched too."""
        module, colon, attribute = name.partition(":")
        if not colon:
            raise UsageError(f"{place}: {name!r} is not of the form module:function")
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return cls(name, getattr(importlib.import_module(module), attribute), place)
        except Exception as error:
            raise UsageError(f"{place}: {name} cannot be imported: {type(error).__name__}: {error}") from error

    def score(self, batch: RolloutBatch) -> np.ndarray:
        """Raw scores, float64 [n], of a policy's rollouts; prompts as the policy read them."""
        return self.score_texts(batch.prompts.texts, batch.answers)

    def score_texts(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """What the function returns, float64 [n], of prompts as texts; refuses a wrong count and numbers that are not
        finite. A text does not show whether it ended."""
        try:
            returned = list(self.function(list(texts), list(answers)))
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise PlatformError(
                f"{self.place}: {self.name} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno}); "
                "mend it, then the same command goes on"
            ) from error
        if len(returned) != len(answers):
            raise PlatformError(f"{self.place}: {self.name} returned {len(returned)} scores for {len(answers)} answers")
        for value, answer in zip(returned, answers, strict=True):
            if not (isinstance(value, SupportsFloat) and math.isfinite(value)):
                raise PlatformError(
                    f"{self.place}: {self.name} returned {value!r} for the answer {answer!r}; "
                    "a score is a finite number"
                )
        return np.array([float(value) for value in returned])


@dataclass(frozen=True)
class CombinedReward:
    """What tuning raises: reward models and functions by the name of their raw scores, and the scale that makes one
    score of these."""

    sources: Mapping[str, RewardModel | UserFunction]
    scale: ScoreNormalization

    @classmethod
    def load(
        cls, recipe: Recipe, inputs: Mapping[str, Path], world: World, scale: ScoreNormalization | None = None
    ) -> "CombinedReward":
        """What the recipe's `reward.sources` names, reward models from `inputs`; without a `scale` it is not fitted."""
        members = [inputs[name] for name in stage_graph.members(inputs)]
        if stage_graph.trains(recipe) and not members:
            raise UsageError("the reward model is missing: give --in reward=FOLDER, or reward.sources: module:function")
        sources: dict[str, RewardModel | UserFunction] = {}
        unfitted = ScoreNormalization.of(recipe, len(members))
        for part, term in zip(recipe.reward.parts, unfitted.terms, strict=True):
            if part.kind == "reward" and recipe.reward.combine == "weights":
                scorer = weight_averaging.load(members, world, recipe.gradient_checkpointing)
                sources[part.name] = RewardModel.of(scorer, recipe)
            elif part.kind == "reward":
                found = (RewardModel.load(folder, recipe, world) for folder in members)
                sources |= dict(zip(term.members, found, strict=True))
            elif part.kind == "function":
                sources[part.name] = UserFunction.load(part.source, part.place)
            else:
                sources[part.name] = _foreign(part, recipe, inputs, world)
        return cls(sources, unfitted if scale is None else scale)

    def raw(self, batch: RolloutBatch) -> Raw:
        """Raw scores [n] of a policy's rollouts, by name."""
        return {name: source.score(batch) for name, source in self.sources.items()}

    def score_texts(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Scores [n], combined and weighted; `texts` are prompts as the policy read them, `prompts` as the data have
        them, where they are known. `ended` says which answers are complete (default: all)."""
        raw = {name: source.score_texts(texts, answers, prompts, ended) for name, source in self.sources.items()}
        return self.scale(raw)

    def critic_name(self, tokenizer: Tokenizer) -> str | None:
        """The first reward model that reads a policy's tokens, from which a critic can start; None where none does."""
        models = {name: source for name, source in self.sources.items() if isinstance(source, RewardModel)}
        same = (n for n, source in models.items() if source.scorer.tokenizer.fingerprint == tokenizer.fingerprint)
        return next(same, None)


def _foreign(part: RewardPart, recipe: Recipe, inputs: Mapping[str, Path], world: World) -> RewardModel:
    """A reward model that the recipe names."""
    name = f"reward.{part.name}"
    if name not in inputs:
        raise UsageError(f"{part.place}: give its folder: --in {name}={part.source}")
    with model_reference.placed(part.place):
        check_length(inputs[name], recipe)
        return RewardModel.load(inputs[name], recipe, world)


def located(recipe: Recipe, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The inputs with the folders of those reward models that the recipe names, downloaded where they are not here."""
    found = dict(inputs)
    for part in recipe.reward.parts:
        if part.kind == "model" and (name := f"reward.{part.name}") in inputs:
            with model_reference.placed(part.place):
                found[name] = model_reference.resolve(str(inputs[name]))
    return found


def fitted(
    recipe: Recipe, policy: Policy, reward: CombinedReward, sampler: Sampler, prompts: Prompts, out: Path
) -> CombinedReward:
    """The reward with its scale set by one answer of the untuned policy to each of some training prompts; the scale is
    kept in `out/score.json`, and read back if it is there."""
    path = out / "score.json"
    if not path.exists():
        rows = randomness.permutation(recipe.seed, "normalize", 0, len(prompts.ids))[: recipe.reward.normalize_prompts]
        some = prompts.part(rows)
        rollouts = sampler.sample(some.ids, rows.tolist(), "normalize", 0, rollout_params(recipe))
        raw = reward.raw(RolloutBatch(rollouts, some, policy.tokenizer))
        reward.scale.fit(raw, recipe.reward.normalize).write(path)
    return replace(reward, scale=ScoreNormalization.read(path))


def validated(
    recipe: Recipe,
    reward: CombinedReward,
    policy: Policy,
    reference: Policy | None,
    sampler: Sampler,
    prompts: Prompts,
    step: int,
    ledger: RolloutStore,
    max_tokens: int,
) -> dict[str, float]:
    """What validation prompts say of the policy at a step: score, KL in nats an answer, score - kl_coeff * KL, length
    and share of answers that ended. The answers are committed, or replayed."""

    def make() -> list[Rollout]:
        items = range(len(prompts.ids))
        sampled = sampler.sample(prompts.ids, items, "eval", step, rollout_params(recipe))
        return scored(reward, RolloutBatch(sampled, prompts, policy.tokenizer))

    rollouts = ledger.recorded(f"validation-{step:06d}", prompts.ids, make)
    divergence, _ = measurement.divergence(policy, reference, rollouts, max_tokens, recipe.sampler.temperature)
    kl, mean = float(divergence.mean()), float(final_scores(rollouts, reward.scale, recipe).mean())
    return {
        "validation/score": mean,
        "validation/kl": kl,
        "validation/objective": mean - recipe.kl_coeff * kl,
        "validation/length": float(np.mean([len(r.ids) for r in rollouts])),
        "validation/ended": float(np.mean([r.ended for r in rollouts])),
    }


def scored(reward: CombinedReward, batch: RolloutBatch) -> list[Rollout]:
    """The rollouts with their raw scores filled in, by name."""
    raw = reward.raw(batch)
    return [
        replace(rollout, scores={name: float(values[row]) for name, values in raw.items()})
        for row, rollout in enumerate(batch.rollouts)
    ]


def final_scores(rollouts: Sequence[Rollout], scale: ScoreNormalization, recipe: Recipe) -> np.ndarray:
    """The score that tuning raises, float32 [n], in this order: raw scores normalised, combined and weighted (`Scale`);
    clipped to +- `reward.clip`; less `reward.overlong_penalty` for what is `overlong`; and, for an answer that did not
    end, `reward.missing_eos_score` instead of all that."""
    section = recipe.reward
    scores = scale(raw_scores(rollouts))
    if section.clip is not None:
        scores = np.clip(scores, -section.clip, section.clip)
    if section.overlong_tokens is not None:
        lengths = np.array([len(r.ids) for r in rollouts])
        over = overlong(lengths, recipe.target_sequence_length, section.overlong_tokens)
        scores = scores - section.overlong_penalty * over
    if section.missing_eos_score is not None:
        scores = np.where([r.ended for r in rollouts], scores, section.missing_eos_score)
    return scores.astype(np.float32)


def raw_scores(rollouts: Sequence[Rollout]) -> Raw:
    """The raw scores [n] that rollouts were given, by name."""
    return {name: np.array([r.scores[name] for r in rollouts]) for name in rollouts[0].scores}


def metrics(rollouts: Sequence[Rollout], scale: ScoreNormalization) -> dict[str, float]:
    """The mean of the raw scores, combined and weighted as they are; and of each normalised reward, where several."""
    raw = raw_scores(rollouts)
    found = {"objective/scores_raw": float(scale.unfitted()(raw).mean())}
    if len(scale.terms) > 1:
        found |= {f"objective/scores/{term.name}": float(term(raw).mean()) for term in scale.terms}
    return found
