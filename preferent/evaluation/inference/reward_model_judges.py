"""Scores of every side's answers by reward models: an independent one, and the optimised reward."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from preferent.config import stage_graph
from preferent.config.recipe import Recipe
from preferent.data.predictions import Answers
from preferent.data.types import Prompt
from preferent.errors import PlatformError
from preferent.evaluation.judge_results import Scores
from preferent.rewards.normalization import ScoreNormalization
from preferent.runs import interruption, progress

ROWS_AT_ONCE = 256

Scorer = Callable[[Sequence[str], Sequence[str], Sequence[Prompt] | None, Sequence[bool]], Sequence[float] | np.ndarray]
"""A function from prompts and answers as texts, prompts as records where known, and which answers ended, to scores."""


def located(recipe: Recipe, models: dict[str, Path]) -> dict[str, Path]:
    """Return the reward models' folders; download those that are on the hub."""
    if not any(stage_graph.FOREIGN.fullmatch(name) for name in models):
        return models
    from preferent.rewards import scoring

    return scoring.resolve_models(recipe, models)


def scored(recipe: Recipe, inputs: Mapping[str, Path], answers: Answers) -> dict[str, Scores]:
    """Return the scores of every answer by the judge and by the optimised reward, as far as they are there."""
    there = bool(stage_graph.members(inputs)) or not stage_graph.trains(recipe)
    rewarded = there and all(name in inputs for name in stage_graph.foreign(recipe))
    if "judge" not in inputs and not rewarded:
        return {}
    from preferent.models import world
    from preferent.rewards import scoring

    here = world.World.of(recipe)
    scores: dict[str, Scores] = {}
    loaded = []
    if "judge" in inputs:
        judging = scoring.RewardModel.load(inputs["judge"], recipe, here)
        loaded.append(judging.scorer)
        scores["judge"] = ask(judging.score_texts, answers, "judge")
    if rewarded:
        scale = ScoreNormalization.read(inputs["score"]) if "score" in inputs else None
        optimised = scoring.CombinedReward.load(recipe, inputs, here, scale, loaded)
        scores["reward"] = ask(optimised.score_texts, answers, "reward")
    return scores


def ask(scorer: Scorer, answers: Answers, name: str) -> Scores:
    """Return the raw scores [n] of every side's answers, all to the prompt of side a.

    An answer counts as ended unless its file says that it did not.
    """
    prompts = [answer.prompt for answer in answers["a"]]
    records = [answer.prompt_record for answer in answers["a"] if answer.prompt_record is not None]
    known = records if len(records) == len(prompts) else None
    scores: dict[str, list[float]] = {side: [] for side in answers}
    with progress.bar(f"compare: {name}", total=len(prompts) * len(answers)) as bar:
        for place, side in enumerate(answers):
            texts = [answer.text for answer in answers[side]]
            ended = [answer.ended is not False for answer in answers[side]]
            for start in range(0, len(texts), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                questions = None if known is None else known[rows]
                batch = [float(score) for score in scorer(prompts[rows], texts[rows], questions, ended[rows])]
                if len(batch) != len(texts[rows]):
                    raise PlatformError(f"{name}: returned {len(batch)} scores for {len(texts[rows])} answers")
                scores[side] += batch
                bar.update(place * len(prompts) + len(scores[side]))
                interruption.stop().check()
    return {side: np.asarray(side_scores) for side, side_scores in scores.items()}
