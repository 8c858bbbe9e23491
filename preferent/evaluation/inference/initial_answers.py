"""What a reward model's start answers before any training, and how the trained model scores these answers.

The answers are sampled once a stage and kept in a file, so that a resumed stage compares the same ones.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferent import files, randomness
from preferent.config import defaults
from preferent.config.recipe import Recipe
from preferent.data.types import Preference
from preferent.evaluation import reward_quality
from preferent.evaluation.reward_quality import Scored
from preferent.models import language_models
from preferent.models.language_models import Policy, Scorer
from preferent.models.world import World
from preferent.rollouts import measurement, sampler
from preferent.rollouts.decoding import Params
from preferent.rollouts.sampler import Prompts

SAMPLES = 64
"""Number of validation prompts that the model from which the reward model starts answers, for comparison."""


def writes(recipe: Recipe, source: Path) -> bool:
    """Return whether the model from which the reward model starts can generate text."""
    architectures = language_models.read_config(source, recipe.trust_remote_code).architectures or ()
    return "SequenceClassification" not in " ".join(architectures)


@torch.no_grad()
def sampled(
    recipe: Recipe, world: World, source: Path, preferences: Sequence[Preference], policy: Policy | None = None
) -> list[tuple[int, np.ndarray]]:
    """Sample answers of the untrained model, which is `policy` where it is loaded, at temperature 1 to prompts of
    `preferences`.

    Return row numbers, each with prompt and answer as token ids; none if the model cannot generate text.
    """
    with_prompt = [i for i, preference in enumerate(preferences) if not preference.prompt.is_empty]
    if not with_prompt or not writes(recipe, source):
        return []
    policy = policy or language_models.load_policy(source, world)
    rows = [with_prompt[i] for i in randomness.permutation(recipe.seed, "samples", 0, len(with_prompt))[:SAMPLES]]
    prompts = Prompts.of([preferences[i].prompt for i in rows], policy.tokenizer, recipe)
    engine, params = sampler.make(recipe, policy), Params(recipe.target_sequence_length)
    rollouts = engine.sample(prompts.ids, range(len(rows)), "samples", 0, params)
    return [(i, np.concatenate([r.prompt_ids, r.ids])) for i, r in zip(rows, rollouts, strict=True)]


def sample_once(path: Path, sample: Callable[[], list[tuple[int, np.ndarray]]]) -> list[tuple[int, np.ndarray]]:
    """Return what `sample` returned the first time; it is kept in a file for resumes."""
    rows = files.kept(path, lambda: [{"pair": i, "ids": ids.tolist()} for i, ids in sample()])
    return [(row["pair"], np.asarray(row["ids"], np.int32)) for row in rows]


def compare_samples(
    recipe: Recipe, scorer: Scorer, pairs: Scored | None, answers: Sequence[tuple[int, np.ndarray]]
) -> dict[str, Any]:
    """Return how the sampled answers score compared with the two of the preference."""
    if pairs is None or not answers:
        return {}
    rows = [i for i, _ in answers]
    scores = measurement.last_scores(
        scorer, [ids for _, ids in answers], defaults.decided(recipe.reward.micro_batch_tokens)
    )
    return {"samples": reward_quality.beside(scores.astype(np.float64), pairs.chosen[rows], pairs.rejected[rows])}
