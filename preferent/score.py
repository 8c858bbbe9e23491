"""How good answers are: reward models and user functions, and their normalisation."""

import importlib
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import SupportsFloat

import numpy as np

from preferent import draw, experience, graph, run
from preferent.error import PlatformError, UsageError
from preferent.model import Policy, Scorer, load_scorer
from preferent.recipe import Recipe
from preferent.record import Prompt, Rollout
from preferent.sampler import Prompts, Sampler, rollout_params
from preferent.tokenizer import Tokenizer
from preferent.world import World

RewardFunction = Callable[[list[str], list[str]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Normalizer:
    """score = gain * (raw - bias): a preference probability is unchanged where gain is 1."""

    bias: float = 0.0
    gain: float = 1.0

    @classmethod
    def fit(cls, raw: np.ndarray, kind: str) -> "Normalizer":
        """From raw scores [n] of the reference's answers: `bias` takes their mean off, `std` scales their deviation to
        1."""
        if kind == "none":
            return cls()
        deviation = float(raw.std())
        return cls(float(raw.mean()), 1 / deviation if kind == "std" and deviation > 1e-8 else 1.0)

    @classmethod
    def read(cls, path: Path) -> "Normalizer":
        """As a `score.json` keeps it."""
        kept = run.read_sealed(path, "restore it; or remove it, and ppo measures it again")
        return cls(kept["bias"], kept["gain"])

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        return self.gain * (raw - self.bias)


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model that scores token ids of a policy, or texts."""

    scorer: Scorer
    prompt_tokens: int
    answer_tokens: int
    micro_batch_tokens: int

    @classmethod
    def load(cls, folder: Path, recipe: Recipe, world: World) -> "RewardModel":
        return cls.of(load_scorer(folder, world, checkpointing=recipe.gradient_checkpointing), recipe)

    @classmethod
    def of(cls, scorer: Scorer, recipe: Recipe) -> "RewardModel":
        tokens = recipe.prompt_sequence_length, recipe.target_sequence_length
        return cls(scorer, *tokens, recipe.reward.micro_batch_tokens)

    def score_ids(self, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> np.ndarray:
        """Raw scores, float32 [n], of answers given as ids of this model's tokenizer."""
        sequences = [np.concatenate([p, a]) for p, a in zip(prompts, answers, strict=True)]
        return experience.last_scores(self.scorer, sequences, self.micro_batch_tokens)

    def score_texts(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Raw scores, float32 [n]; `texts` are prompts with instruction and template already in them."""
        prompts = [Prompt(input_text=text) for text in texts]
        tokenizer = self.scorer.tokenizer
        ids = [tokenizer.encode_prompt(p, None, self.prompt_tokens)[0] for p in prompts]
        answer_ids = [
            tokenizer.encode_answer(p, None, a, self.answer_tokens)[0] for p, a in zip(prompts, answers, strict=True)
        ]
        return self.score_ids([np.asarray(i) for i in ids], [np.asarray(i) for i in answer_ids])

    def score(self, rollouts: Sequence[Rollout], texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """Raw scores of a policy's rollouts: of the very ids where the tokenizers are the same, else of the texts."""
        if tokenizer.fingerprint == self.scorer.tokenizer.fingerprint:
            return self.score_ids([r.prompt_ids for r in rollouts], [r.ids for r in rollouts])
        return self.score_texts(texts, decoded(rollouts, texts, tokenizer))


@dataclass(frozen=True)
class Ensemble:
    """Reward models whose mean score is the reward; the mean errs less than its members do (Coste et al. 2024)."""

    members: tuple[RewardModel, ...]

    @classmethod
    def load(cls, folders: Sequence[Path], recipe: Recipe, world: World) -> "Ensemble":
        return cls(tuple(RewardModel.load(folder, recipe, world) for folder in folders))

    def score(self, rollouts: Sequence[Rollout], texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """Raw scores, float32 [n], of a policy's rollouts."""
        return np.mean([member.score(rollouts, texts, tokenizer) for member in self.members], axis=0)

    def score_texts(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Raw scores, float32 [n]."""
        return np.mean([member.score_texts(texts, answers) for member in self.members], axis=0)


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A Python function named `module:function` that scores (prompts, answers), two lists of text."""

    name: str
    function: RewardFunction

    @classmethod
    def load(cls, name: str) -> "UserFunction":
        """Import the function; the current directory is searched too."""
        module, colon, attribute = name.partition(":")
        if not colon:
            raise UsageError(f"ppo.reward: {name!r} is not of the form module:function")
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return cls(name, getattr(importlib.import_module(module), attribute))
        except Exception as error:
            raise UsageError(f"ppo.reward: {name} cannot be imported: {type(error).__name__}: {error}") from error

    def score(self, rollouts: Sequence[Rollout], texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
        """Raw scores, float64 [n], of a policy's rollouts."""
        return self.score_texts(texts, decoded(rollouts, texts, tokenizer))

    def score_texts(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """What the function returns, float64 [n]; refuses a wrong count and numbers that are not finite."""
        try:
            returned = list(self.function(list(texts), list(answers)))
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise PlatformError(
                f"ppo.reward: {self.name} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno}); "
                "mend it, then the same command goes on"
            ) from error
        if len(returned) != len(answers):
            raise PlatformError(f"ppo.reward: {self.name} returned {len(returned)} scores for {len(answers)} answers")
        for value, answer in zip(returned, answers, strict=True):
            if not (isinstance(value, SupportsFloat) and math.isfinite(value)):
                raise PlatformError(
                    f"ppo.reward: {self.name} returned {value!r} for the answer {answer!r}; a score is a finite number"
                )
        return np.array([float(value) for value in returned])


def load_reward(recipe: Recipe, inputs: dict[str, Path], world: World) -> Ensemble | UserFunction:
    """What is optimised: the recipe's function, or the mean of the reward models among the inputs."""
    if recipe.ppo.reward is not None:
        return UserFunction.load(recipe.ppo.reward)
    return Ensemble.load([inputs[name] for name in graph.members(inputs)], recipe, world)


def fit_normalizer(
    recipe: Recipe, policy: Policy, reward: Ensemble | UserFunction, sampler: Sampler, prompts: Prompts, out: Path
) -> Normalizer:
    """The normaliser from one answer of the untuned policy to each of some training prompts; read back if it is
    there."""
    path = out / "score.json"
    if path.exists():
        return Normalizer.read(path)
    rows = draw.permutation(recipe.seed, "normalize", 0, len(prompts.ids))[: recipe.ppo.normalize_prompts]
    rollouts = sampler.sample([prompts.ids[i] for i in rows], rows.tolist(), "normalize", 0, rollout_params(recipe))
    raw = reward.score(rollouts, [prompts.texts[i] for i in rows], policy.tokenizer)
    normalizer = Normalizer.fit(np.asarray(raw, np.float64), recipe.reward.normalize)
    run.write_sealed(path, {"bias": normalizer.bias, "gain": normalizer.gain, "prompts": len(rows)})
    return normalizer


def decoded(rollouts: Sequence[Rollout], texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """The answers' texts, without the spaces that the prompts gave them."""
    prompts = [Prompt(input_text=text) for text in texts]
    return [tokenizer.decode_answer(p, None, r.ids.tolist()) for p, r in zip(prompts, rollouts, strict=True)]


def scored(
    source: Ensemble | UserFunction, rollouts: Sequence[Rollout], texts: Sequence[str], tokenizer: Tokenizer
) -> list[Rollout]:
    """Rollouts with their raw score filled in, under the name `reward`."""
    raw = source.score(rollouts, texts, tokenizer)
    return [replace(rollout, scores={"reward": float(value)}) for rollout, value in zip(rollouts, raw, strict=True)]


def final_scores(rollouts: Sequence[Rollout], normalizer: Normalizer, missing_eos_score: float | None) -> np.ndarray:
    """Normalised scores, float32 [n]; `missing_eos_score` replaces that of an answer that did not end."""
    scores = normalizer(np.array([r.scores["reward"] for r in rollouts]))
    if missing_eos_score is not None:
        scores = np.where([r.ended for r in rollouts], scores, missing_eos_score)
    return scores.astype(np.float32)
