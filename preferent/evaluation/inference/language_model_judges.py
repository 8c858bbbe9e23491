"""Language models that judge a against b: the recipe's `compare.judges`, each asked in both orders."""

from collections.abc import Mapping
from pathlib import Path

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
    """The folders of the models that judge here, by input name `model.NAME`; what is on the hub is downloaded."""
    here = {f"model.{judge.name}": judge for judge in recipe.compare.judges if judge.url is None}
    for name in inputs:
        if name.startswith("model.") and name not in here:
            raise UsageError(f"--in {name}: compare.judges has no local model of that name")
    return {name: model_reference.resolve(str(inputs.get(name, judge.model))) for name, judge in here.items()}


def check(recipe: Recipe) -> None:
    """Refuse an endpoint that cannot be asked, before anything is loaded."""
    for judge in recipe.compare.judges:
        if judge.url is not None:
            Endpoint.of(judge)


def templates(recipe: Recipe) -> dict[str, Path]:
    """The rubrics that judges bring along, by input name."""
    return {f"template {number}": Path(path) for number, path in enumerate(stage_graph.templates(recipe))}


def opinions(
    recipe: Recipe, inputs: Mapping[str, Path], answers: Answers, names: Mapping[str, str], calls: Path
) -> list[JudgeResults]:
    """What each language model says of a and b; its replies are kept in the folder `calls`."""
    return [_opinion(judge, recipe, inputs, answers, names, calls) for judge in recipe.compare.judges]


def _opinion(
    judge: JudgeSection,
    recipe: Recipe,
    inputs: Mapping[str, Path],
    answers: Answers,
    names: Mapping[str, str],
    calls: Path,
) -> JudgeResults:
    pairs = paired(answers, *A_B, recipe.instruction)
    juror = juror_of(judge, recipe, inputs)
    ledger = calls / f"{judge.name}.jsonl"
    heard = pairwise.judge_pairs(judge, pairs, juror, ledger)
    if not any(judgment_outcomes.parsed(judgment) for judgment in heard.judgments):
        raise DataError(
            f"{judge.name}: none of its {heard.summary.verdicts} verdicts could be parsed; its replies are in "
            f"{ledger}. Take another model, or a template that asks for the verdict as the built-in ones do"
        )
    judgments = called(heard.judgments, names["a"], names["b"])
    return JudgeResults(judge.name, "language_model", {A_B: judgments}, facts={"order": heard.summary.order()})


def juror_of(judge: JudgeSection, recipe: Recipe, inputs: Mapping[str, Path]) -> Judge:
    """Who answers this judge's calls: an endpoint, or a model that is loaded here."""
    if judge.url is not None:
        return Endpoint.of(judge)
    from preferent.evaluation.inference import local_judge
    from preferent.models import world

    folder = inputs[f"model.{judge.name}"]
    return local_judge.LocalModelJudge.load(judge, recipe, folder, world.World.of(recipe))
