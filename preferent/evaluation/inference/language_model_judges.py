"""Language models that judge a against b: the recipe's `compare.judges`, each in both orders."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from preferent import ranks
from preferent.config import model_reference, stage_graph
from preferent.config.comparison_sections import JudgeSection
from preferent.config.recipe import Recipe
from preferent.data import judgment_outcomes
from preferent.data.predictions import Answers
from preferent.errors import DataError, UsageError
from preferent.evaluation.judge_results import A_B, JudgeResults, called, paired
from preferent.evaluation.judges import pairwise
from preferent.evaluation.judges.endpoint import Endpoint
from preferent.evaluation.judges.protocol import Judge


def models(recipe: Recipe, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the folders of the local judges by input name `model.NAME`; download models that are on the hub."""
    here = {f"model.{judge.name}": judge for judge in recipe.compare.judges if judge.url is None}
    for name in inputs:
        if name.startswith("model.") and name not in here:
            raise UsageError(f"--in {name}: compare.judges has no local model of that name")
    return {name: model_reference.resolve(str(inputs.get(name, judge.model))) for name, judge in here.items()}


def check(recipe: Recipe) -> None:
    """Raise for an endpoint that cannot be called, before anything is loaded."""
    for judge in recipe.compare.judges:
        if judge.url is not None:
            Endpoint.of(judge)


def templates(recipe: Recipe) -> dict[str, Path]:
    """Return the template files of the judges by input name."""
    return {f"template {number}": Path(path) for number, path in enumerate(stage_graph.templates(recipe))}


def judge_pairs(
    recipe: Recipe, inputs: Mapping[str, Path], answers: Answers, names: Mapping[str, str], calls: Path
) -> list[JudgeResults]:
    """Return each language model's judgments of a and b; its replies are kept in the folder `calls`.

    Of several ranks the first alone calls the endpoints; a local model is computed by all.
    """
    results: list[JudgeResults | None] = []
    for judge in recipe.compare.judges:
        judged = partial(_judge_pairs, judge, recipe, inputs, answers, names, calls)
        results.append(judged() if judge.url is None else ranks.at_first(judged))
    return [judged for judged in results if judged is not None]


def _judge_pairs(
    judge: JudgeSection,
    recipe: Recipe,
    inputs: Mapping[str, Path],
    answers: Answers,
    names: Mapping[str, str],
    calls: Path,
) -> JudgeResults:
    pairs = paired(answers, *A_B, recipe.instruction)
    model = load_judge(judge, recipe, inputs)
    cache = calls / f"{judge.name}.jsonl"
    judged = pairwise.judge_pairs(judge, pairs, model, cache)
    if not any(judgment_outcomes.parsed(judgment) for judgment in judged.judgments):
        raise DataError(
            f"{judge.name}: none of its {judged.summary.verdicts} verdicts could be parsed; its replies are in "
            f"{cache}. Take another model, or a template that asks for the verdict as the built-in ones do"
        )
    judgments = called(judged.judgments, names["a"], names["b"])
    return JudgeResults(judge.name, "language_model", {A_B: judgments}, facts={"order": judged.summary.order()})


def load_judge(judge: JudgeSection, recipe: Recipe, inputs: Mapping[str, Path]) -> Judge:
    """Return what answers this judge's calls: an endpoint, or a model that is loaded here."""
    if judge.url is not None:
        return Endpoint.of(judge)
    from preferent.evaluation.inference import local_judge
    from preferent.models import world

    folder = inputs[f"model.{judge.name}"]
    return local_judge.LocalModelJudge.load(judge, recipe, folder, world.World.of(recipe))
