"""Language models that judge a against b: the recipe's `compare.judges`, each asked in both orders."""

from collections.abc import Mapping
from pathlib import Path

from preferent import graph, hub
from preferent.answer import Answers
from preferent.compare.opinion import A_B, Opinion, called, paired
from preferent.error import DataError, UsageError
from preferent.judge import panel, vote
from preferent.judge.endpoint import Endpoint
from preferent.judge.juror import Juror
from preferent.recipe import Judge, Recipe


def models(recipe: Recipe, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The folders of the models that judge here, by input name `model.NAME`; what is on the hub is downloaded."""
    here = {f"model.{judge.name}": judge for judge in recipe.compare.judges if judge.url is None}
    for name in inputs:
        if name.startswith("model.") and name not in here:
            raise UsageError(f"--in {name}: compare.judges has no local model of that name")
    return {name: hub.resolve(str(inputs.get(name, judge.model))) for name, judge in here.items()}


def check(recipe: Recipe) -> None:
    """Refuse an endpoint that cannot be asked, before anything is loaded."""
    for judge in recipe.compare.judges:
        if judge.url is not None:
            Endpoint.of(judge)


def templates(recipe: Recipe) -> dict[str, Path]:
    """The rubrics that judges bring along, by input name."""
    return {f"template {number}": Path(path) for number, path in enumerate(graph.templates(recipe))}


def opinions(
    recipe: Recipe, inputs: Mapping[str, Path], answers: Answers, names: Mapping[str, str], calls: Path
) -> list[Opinion]:
    """What each language model says of a and b; its replies are kept in the folder `calls`."""
    return [_opinion(judge, recipe, inputs, answers, names, calls) for judge in recipe.compare.judges]


def _opinion(
    judge: Judge, recipe: Recipe, inputs: Mapping[str, Path], answers: Answers, names: Mapping[str, str], calls: Path
) -> Opinion:
    pairs = paired(answers, *A_B, recipe.instruction)
    juror = juror_of(judge, recipe, inputs)
    ledger = calls / f"{judge.name}.jsonl"
    heard = panel.hear(judge, pairs, juror, ledger)
    if not any(vote.parsed(judgment) for judgment in heard.judgments):
        raise DataError(
            f"{judge.name}: none of its {heard.summary.verdicts} verdicts could be parsed; its replies are in "
            f"{ledger}. Take another model, or a template that asks for the verdict as the built-in ones do"
        )
    judgments = called(heard.judgments, names["a"], names["b"])
    return Opinion(judge.name, "language_model", {A_B: judgments}, facts={"order": heard.summary.order()})


def juror_of(judge: Judge, recipe: Recipe, inputs: Mapping[str, Path]) -> Juror:
    """Who answers this judge's calls: an endpoint, or a model that is loaded here."""
    if judge.url is not None:
        return Endpoint.of(judge)
    from preferent import adjudicator, world

    folder = inputs[f"model.{judge.name}"]
    return adjudicator.Local.load(judge, recipe, folder, world.World.of(recipe))
