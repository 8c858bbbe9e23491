"""Rewards of answers: reward models and user functions, alone or summed, normalised for tuning."""

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

from preferent import randomness, ranks
from preferent.config import model_reference, stage_graph
from preferent.config.defaults import decided
from preferent.config.recipe import Recipe
from preferent.config.sections import RewardPart
from preferent.data.tokenizer import Tokenizer
from preferent.data.types import EncodedPrompt, Message, Prompt, Rollout
from preferent.errors import PlatformError, UsageError
from preferent.models import weight_averaging
from preferent.models.language_models import Network, Policy, Scorer, check_length, load_scorer
from preferent.models.world import World
from preferent.rewards.normalization import Raw, ScoreNormalization, overlong
from preferent.rollouts import measurement
from preferent.rollouts.sampler import Prompts, Sampler, rollout_params
from preferent.rollouts.store import RolloutStore
from preferent.runs.directory import StageDirectory

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]

Content = tuple[str, tuple[Message, ...], str | None]
"""The parts of a prompt that are encoded: its text, its turns, its context."""


@dataclass(frozen=True)
class RolloutBatch:
    """Rollouts and the prompts that they answer, [n] each, and the tokenizer of both."""

    rollouts: Sequence[Rollout]
    prompts: Prompts
    tokenizer: Tokenizer

    @cached_property
    def answers(self) -> list[str]:
        """Return the answers as text, without the space that joins them to the prompt; decoded once, on first use."""
        return self.tokenizer.decode_answers(self.prompts.texts, [rollout.ids.tolist() for rollout in self.rollouts])


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model that scores a policy's token ids, or texts with its own tokenizer and template.

    `encoded` holds text and token ids of prompts in its own template, so each is encoded once.
    """

    scorer: Scorer
    instruction: str | None
    prompt_tokens: int
    answer_tokens: int
    micro_batch_tokens: int
    encoded: dict[Content, EncodedPrompt] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, folder: Path, recipe: Recipe, world: World, beside: Sequence[Network] = ()) -> "RewardModel":
        """Load a reward model from a folder, on the backbone of a network `beside` if they share one."""
        scorer = load_scorer(folder, world, checkpointing=recipe.gradient_checkpointing, beside=beside)
        return cls.of(scorer, recipe)

    @classmethod
    def of(cls, scorer: Scorer, recipe: Recipe) -> "RewardModel":
        """Return a reward model with the recipe's lengths and instruction."""
        tokens = recipe.prompt_sequence_length, recipe.target_sequence_length
        return cls(scorer, recipe.instruction, *tokens, decided(recipe.reward.micro_batch_tokens))

    def score_ids(self, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> np.ndarray:
        """Return raw scores, float32 [n], of answers as ids of this model's tokenizer."""
        sequences = [np.concatenate([p, a]) for p, a in zip(prompts, answers, strict=True)]
        return measurement.last_scores(self.scorer, sequences, self.micro_batch_tokens)

    def score_texts(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Return raw scores, float32 [n], with this model's tokenizer; EOS is added to answers that `ended` (default:
        all).

        `texts` are prompts with instruction and template applied. `prompts` are the same prompts without them; if
        given, this model applies its own template to them.
        """
        closed = [True] * len(answers) if ended is None else ended
        if prompts is not None:
            return self._score(self._read(prompts), answers, closed)
        plain = [Prompt(input_text=text) for text in texts]
        return self._score(self.scorer.tokenizer.encode_prompts(plain, None, self.prompt_tokens), answers, closed)

    def score(self, batch: RolloutBatch) -> np.ndarray:
        """Return raw scores, float32 [n], of a policy's rollouts.

        They are scored as ids if the tokenizers are the same, else as texts in this model's own template.
        """
        rollouts = batch.rollouts
        if batch.tokenizer.fingerprint == self.scorer.tokenizer.fingerprint:
            return self.score_ids([r.prompt_ids for r in rollouts], [r.ids for r in rollouts])
        return self._score(self._read(batch.prompts.records), batch.answers, [r.ended for r in rollouts])

    def _read(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Return texts and token ids of prompts in this model's own template."""
        contents = [(prompt.input_text, prompt.messages, prompt.context) for prompt in prompts]
        new = {content: p for content, p in zip(contents, prompts, strict=True) if content not in self.encoded}
        encoded = self.scorer.tokenizer.encode_prompts(list(new.values()), self.instruction, self.prompt_tokens)
        for content, prompt in zip(new, encoded, strict=True):
            self.encoded[content] = prompt
        return [self.encoded[content] for content in contents]

    def _score(self, prompts: Sequence[EncodedPrompt], answers: Sequence[str], ended: Sequence[bool]) -> np.ndarray:
        """Return raw scores, float32 [n], of answers as texts to prompts in this model's own template."""
        texts, ends = [prompt.text for prompt in prompts], [prompt.end for prompt in prompts]
        encoded = self.scorer.tokenizer.encode_answers(texts, answers, self.answer_tokens, ends)
        closed = [ids if whole or cut else ids[:-1] for (ids, cut), whole in zip(encoded, ended, strict=True)]
        ids = [np.asarray(prompt.ids, np.int32) for prompt in prompts]
        return self.score_ids(ids, [np.asarray(answer, np.int32) for answer in closed])


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A Python function named `module:function` that scores (prompts, answers), two lists of text."""

    name: str
    function: RewardFunction
    place: str = "reward.sources"

    @classmethod
    def load(cls, name: str, place: str = "reward.sources") -> "UserFunction":
        """Import the function; the current directory is searched first, and after that import last."""
        module, colon, attribute = name.partition(":")
        if not colon:
            raise UsageError(f"{place}: {name!r} is not of the form module:function")
        here = str(Path.cwd())
        known = "" in sys.path or here in sys.path
        if not known:
            sys.path.insert(0, here)
        try:
            return cls(name, getattr(importlib.import_module(module), attribute), place)
        except Exception as error:
            raise UsageError(f"{place}: {name} cannot be imported: {type(error).__name__}: {error}") from error
        finally:
            if not known:  # libraries import parts of themselves later, which files in this folder must not replace
                sys.path[:] = [*(path for path in sys.path if path != here), here]

    def score(self, batch: RolloutBatch) -> np.ndarray:
        """Return raw scores, float64 [n], of a policy's rollouts, with prompts in the policy's template."""
        return self.score_texts(batch.prompts.texts, batch.answers)

    def score_texts(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Return the function's scores, float64 [n]; raise `PlatformError` on a wrong count or a number that is not
        finite.

        The function gets texts only; it does not see `prompts` and `ended`. Of several ranks the first calls it.
        """
        return np.array(ranks.agreed(lambda: self._called(texts, answers)))

    def _called(self, texts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Return what the function returns, checked."""
        try:
            returned = list(self.function(list(texts), list(answers)))
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise PlatformError(
                f"{self.place}: {self.name} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno}); "
                "fix it, then run the same command again"
            ) from error
        if len(returned) != len(answers):
            raise PlatformError(f"{self.place}: {self.name} returned {len(returned)} scores for {len(answers)} answers")
        for score, answer in zip(returned, answers, strict=True):
            if not (isinstance(score, SupportsFloat) and math.isfinite(score)):
                raise PlatformError(
                    f"{self.place}: {self.name} returned {score!r} for the answer {answer!r}; "
                    "a score must be a finite number"
                )
        return [float(score) for score in returned]


@dataclass(frozen=True)
class CombinedReward:
    """The reward that tuning maximises: reward models and functions by the name of their raw scores, and the
    normalisation that combines these into one score."""

    sources: Mapping[str, RewardModel | UserFunction]
    scale: ScoreNormalization

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        inputs: Mapping[str, Path],
        world: World,
        scale: ScoreNormalization | None = None,
        beside: Sequence[Network] = (),
    ) -> "CombinedReward":
        """Load the recipe's `reward.sources`, reward models from `inputs`; without `scale` it is unfitted.

        Reward models share a backbone with each other and with the networks `beside` where they can.
        """
        members = [inputs[name] for name in stage_graph.members(inputs)]
        if stage_graph.trains(recipe) and not members:
            raise UsageError("the reward model is missing: give --in reward=FOLDER, or reward.sources: module:function")
        sources: dict[str, RewardModel | UserFunction] = {}
        unfitted, loaded = ScoreNormalization.of(recipe, len(members)), list(beside)
        for part, term in zip(recipe.reward.parts, unfitted.terms, strict=True):
            if part.kind == "reward" and recipe.reward.combine == "weights":
                scorer = weight_averaging.load(members, world, recipe.gradient_checkpointing, loaded)
                sources[part.name] = RewardModel.of(scorer, recipe)
                loaded.append(scorer)
            elif part.kind == "reward":
                for name, folder in zip(term.members, members, strict=True):
                    sources[name] = model = RewardModel.load(folder, recipe, world, loaded)
                    loaded.append(model.scorer)
            elif part.kind == "function":
                sources[part.name] = UserFunction.load(part.source, part.place)
            else:
                sources[part.name] = model = _load_named(part, recipe, inputs, world, loaded)
                loaded.append(model.scorer)
        return cls(sources, unfitted if scale is None else scale)

    def raw(self, batch: RolloutBatch) -> Raw:
        """Return raw scores [n] of a policy's rollouts by name."""
        return {name: source.score(batch) for name, source in self.sources.items()}

    def score_texts(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        ended: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Return scores [n], combined and weighted.

        `texts` are prompts in the policy's template, `prompts` the same as records of the data. `ended` says which
        answers are complete (default: all).
        """
        raw = {name: source.score_texts(texts, answers, prompts, ended) for name, source in self.sources.items()}
        return self.scale(raw)

    def critic_name(self, tokenizer: Tokenizer) -> str | None:
        """Return the first reward model with a policy's tokenizer, from which a critic can start, or None."""
        models = {name: source for name, source in self.sources.items() if isinstance(source, RewardModel)}
        same = (n for n, source in models.items() if source.scorer.tokenizer.fingerprint == tokenizer.fingerprint)
        return next(same, None)


def _load_named(
    part: RewardPart, recipe: Recipe, inputs: Mapping[str, Path], world: World, beside: Sequence[Network]
) -> RewardModel:
    """Load a reward model that the recipe names; it reads conversations in its own template."""
    name = f"reward.{part.name}"
    if name not in inputs:
        raise UsageError(f"{part.place}: give its folder: --in {name}={part.source}")
    with model_reference.placed(part.place):
        check_length(inputs[name], recipe)
        return RewardModel.load(inputs[name], recipe, world.with_own_templates(), beside)


def resolve_models(recipe: Recipe, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the inputs with reward models that the recipe names resolved to folders, downloaded if necessary."""
    folders = dict(inputs)
    for part in recipe.reward.parts:
        if part.kind == "model" and (name := f"reward.{part.name}") in inputs:
            with model_reference.placed(part.place):
                folders[name] = model_reference.resolve(str(inputs[name]))
    return folders


def fit_scale(
    recipe: Recipe, policy: Policy, reward: CombinedReward, sampler: Sampler, prompts: Prompts, out: Path
) -> CombinedReward:
    """Return the reward with its scale fitted to one answer of the untuned policy to each of some training prompts.

    The scale is kept in `out/score.json`, and read from there if it exists.
    """
    path = StageDirectory(out).score
    if not ranks.agreed(path.exists):
        rows = randomness.permutation(recipe.seed, "normalize", 0, len(prompts.ids))[: recipe.reward.normalize_prompts]
        chosen = prompts.part(rows)
        rollouts = sampler.sample(chosen.ids, rows.tolist(), "normalize", 0, rollout_params(recipe))
        raw = reward.raw(RolloutBatch(rollouts, chosen, policy.tokenizer))
        reward.scale.fit(raw, recipe.reward.normalize).write(path)
    return replace(reward, scale=ScoreNormalization.parse(ranks.agreed(lambda: ScoreNormalization.stored(path))))


def validate(
    recipe: Recipe,
    reward: CombinedReward,
    policy: Policy,
    reference: Policy | None,
    sampler: Sampler,
    prompts: Prompts,
    step: int,
    store: RolloutStore,
    max_tokens: int,
) -> dict[str, float]:
    """Measure the policy on validation prompts; commit the answers, or replay them.

    Return score, KL in nats per answer, score - kl_coeff * KL, length, the share of answers that ended, and the
    sampler's largest gap.
    """

    def make() -> list[Rollout]:
        items = range(len(prompts.ids))
        sampled = sampler.sample(prompts.ids, items, "eval", step, rollout_params(recipe))
        return score_rollouts(reward, RolloutBatch(sampled, prompts, policy.tokenizer))

    rollouts = store.replay_or_make(f"validation-{step:06d}", prompts.ids, make)
    divergence, _, gap = measurement.divergence(policy, reference, rollouts, max_tokens, recipe.sampler.temperature)
    kl, mean = float(divergence.mean()), float(final_scores(rollouts, reward.scale, recipe).mean())
    return {
        "validation/score": mean,
        "validation/kl": kl,
        "validation/objective": mean - recipe.kl_coeff * kl,
        "validation/length": float(np.mean([len(r.ids) for r in rollouts])),
        "validation/ended": float(np.mean([r.ended for r in rollouts])),
        "validation/sampler_gap": float(gap.max()),
    }


def score_rollouts(reward: CombinedReward, batch: RolloutBatch) -> list[Rollout]:
    """Return the rollouts with their raw scores by name, in order, as rollouts that are replayed have them."""
    raw = reward.raw(batch)
    return [
        replace(rollout, scores={name: float(values[row]) for name, values in sorted(raw.items())})
        for row, rollout in enumerate(batch.rollouts)
    ]


def final_scores(rollouts: Sequence[Rollout], scale: ScoreNormalization, recipe: Recipe) -> np.ndarray:
    """Return the score that tuning maximises, float32 [n].

    Raw scores are normalised, combined and weighted (`scale`), then clipped to +- `reward.clip`, then
    `reward.overlong_penalty` times the share `overlong` is subtracted. The score of an answer that did not end is
    `reward.missing_eos_score` instead.
    """
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
    """Return the raw scores [n] of rollouts by name."""
    return {name: np.array([r.scores[name] for r in rollouts]) for name in rollouts[0].scores}


def metrics(rollouts: Sequence[Rollout], scale: ScoreNormalization) -> dict[str, float]:
    """Return the mean of the raw scores, combined and weighted; and of each normalised reward, if there are several."""
    raw = raw_scores(rollouts)
    means = {"objective/scores_raw": float(scale.unfitted()(raw).mean())}
    if len(scale.terms) > 1:
        means |= {f"objective/scores/{term.name}": float(term(raw).mean()) for term in scale.terms}
    return means
