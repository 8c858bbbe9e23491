"""Stage `compare`: judge two or more sets of answers to the same prompts.

Side a is the tuned model, b what it is compared with (what PPO started from). `original` (after an `sft`) is the model
before that stage; `side.NAME` are others. The headline is the verdict of a reward model that PPO never saw, or of the
judge that the recipe names. The verdict of the optimised reward is marked as not independent. Language models and
people may judge too.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent import ranks
from preferent.config import stage_graph
from preferent.config.recipe import Recipe, pick
from preferent.data import datasets, predictions
from preferent.data.formats import row_writer
from preferent.data.judgments import write
from preferent.data.predictions import Answers
from preferent.errors import UsageError
from preferent.evaluation import human_judgments, judge_accuracy, judge_quality
from preferent.evaluation.comparison_summary import verdict
from preferent.evaluation.comparison_types import ComparisonMetrics
from preferent.evaluation.inference import language_model_judges
from preferent.evaluation.inference.reward_model_judges import located, scored
from preferent.evaluation.judge_results import A_B, JudgeResults, by_scores
from preferent.evaluation.verdict_sentence import verdict_sentence
from preferent.files import read_json, write_json, write_jsonl
from preferent.runs import stages
from preferent.runs.directory import ComparisonDirectory, RunDirectory, StageDirectory

SIDES = {"a": "tuned", "b": "base", "original": "original"}
"""The default names of the sides; `side.NAME` is called NAME."""
NO_JUDGE = "no judge, no reward model and no reward.sources given: lengths and ROUGE only, without a win rate"
NOT_INDEPENDENT = "the verdict comes from the reward that PPO optimised, which is not an independent judge"


def main(recipe: Recipe, inputs: dict[str, Path], out: Path, names: Sequence[str] = ()) -> None:
    """Write `judgments.jsonl`, `metrics.json` and `answers.jsonl` to `out`; replies of language models beside it.

    `inputs`: `a` and `b`, prediction files or folders with a `text.jsonl`, and if wanted `original` and `side.NAME`
    like them, `judge` (an independent reward model); and the parts of the optimised reward, as `reward.sources` says:
    `reward`, `reward-2`, … (those that the run trained), `reward.NAME` (those that the recipe names), and `score` (its
    `score.json`; without it raw scores are summed). With `prompts`, the file that was answered, a model whose chat
    template differs from the policy's reads conversations in its own. `people` is a file of people's judgments,
    `model.NAME` the folder of a model of `compare.judges`. `names` are the names of the sides, in that order.
    """
    language_model_judges.check(recipe)
    files = {side: predictions.prediction_file(inputs[side]) for side in sides(inputs)}
    models = located(recipe, {name: inputs[name] for name in inputs if name == "judge" or stage_graph.is_reward(name)})
    models |= language_model_judges.models(recipe, inputs)
    beside: dict[str, Path] = {name: inputs[name] for name in ("score", "prompts", "people") if name in inputs}
    beside |= language_model_judges.templates(recipe) | stage_graph.chat_template(recipe)
    called = _called(list(files), names)
    with stages.locked(out):
        fields = pick(recipe, *stage_graph.FIELDS["compare"]) | ({"names": list(names)} if names else {})
        stage = stages.open_stage("compare", out, fields=fields, inputs=files | models | beside, rerun=True)
        if stage.done:
            return
        if models:
            from preferent.models.world import World

            recipe = World.of(recipe).settled(recipe, stage)
        prompts = datasets.load_prompts(inputs["prompts"]) if "prompts" in inputs else []
        unjoined = {side: predictions.read(path) for side, path in files.items()}
        answers = predictions.join(unjoined, prompts=prompts, names=called)
        if prompts:
            answers["a"] = predictions.with_prompts(answers["a"], prompts)
        judges = _judges(recipe, models | beside, answers, called, RunDirectory(out.parent).calls)
        finish(recipe, stage, answers, judges, called)


@ranks.first_only
def finish(
    recipe: Recipe, stage: stages.Stage, answers: Answers, judges: Sequence[JudgeResults], names: Mapping[str, str]
) -> None:
    """Draw the verdict, write it with what it rests on, and mark the stage done."""
    judgments, metrics = verdict(answers, judges, choose(recipe, judges), names)
    comparison = ComparisonDirectory(stage.folder)
    write(judgments, comparison.judgments)
    write_jsonl(comparison.answers, rows(answers))
    write_json(comparison.metrics, metrics)
    stage.record(**conclusion(metrics))
    stage.finish([path.name for path in (comparison.judgments, comparison.metrics, comparison.answers)])


def sides(inputs: Mapping[str, Path]) -> list[str]:
    """Return the names of sides among `inputs`: a, b, the original, and others in their order."""
    return [side for side in SIDES if side in inputs] + [name for name in inputs if name.startswith("side.")]


def _called(sides: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the name of each side."""
    if not names:
        return {side: SIDES.get(side, side.removeprefix("side.")) for side in sides}
    if len(names) != len(sides) or len(set(names)) < len(names):
        raise UsageError(f"--names {','.join(names)}: {len(sides)} different names are needed, for {', '.join(sides)}")
    return dict(zip(sides, names, strict=True))


def _judges(
    recipe: Recipe, inputs: Mapping[str, Path], answers: Answers, names: Mapping[str, str], calls: Path
) -> list[JudgeResults]:
    """Return what all judges say: the independent reward model, the optimised reward, people, language models."""
    judges = [
        by_scores(name, scores, answers, recipe.instruction, names, _measured(name, recipe, inputs))
        for name, scores in scored(recipe, inputs, answers).items()
    ]
    if "people" in inputs:
        judges.append(human_judgments.read_votes(inputs["people"], answers, names))
    return judges + language_model_judges.judge_pairs(recipe, inputs, answers, names, calls)


def _measured(name: str, recipe: Recipe, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Return the accuracy of a reward model, if the stage that trained it measured that beside the model.

    A sum of rewards and an ensemble were not measured as a whole.
    """
    alone = [part.kind for part in recipe.reward.parts] == ["reward"] and stage_graph.members(inputs) == ["reward"]
    if name == "reward" and not alone:
        return {}
    stage = StageDirectory(inputs[name].resolve().parent)
    if stage.model.name != inputs[name].resolve().name or not stage.quality.exists():
        return {}
    accuracy = judge_accuracy.held_out(read_json(stage.quality))
    return {} if accuracy is None else {"accuracy": accuracy}


def conclusion(metrics: ComparisonMetrics) -> dict[str, Any]:
    """Return the verdict as facts of the stage, which `run.json` repeats: in a sentence, and its figures."""
    name = metrics["headline"]
    if name is None:
        return {"verdict": verdict_sentence(metrics)}
    judge = metrics["judges"][name]
    accuracy = judge.get("accuracy")
    figures = {
        "judge": name,
        "win_rate": judge["win_rate"],
        "interval": judge["interval"],
        "accuracy": accuracy and accuracy["share"],
        "accuracy_interval": accuracy and accuracy["interval"],
        "trusted": judge_quality.trusted(metrics),
    }
    return {"verdict": verdict_sentence(metrics), "headline": figures}


def rows(answers: Answers) -> list[dict[str, Any]]:
    """Return what was compared, one row per prompt, so that the folder can be read by itself."""
    return [
        {
            "id": answer.id,
            "prompt": answer.prompt,
            "asked": None if answer.prompt_record is None else row_writer.row(answer.prompt_record),
            "reference": answer.reference,
            "tags": list(answer.tags),
            "answers": {side: _answer_row(side_answers[place]) for side, side_answers in answers.items()},
        }
        for place, answer in enumerate(answers["a"])
    ]


def _answer_row(answer: predictions.Answer) -> dict[str, Any]:
    return {"text": answer.text, "tokens": answer.tokens, "ended": answer.ended, "kl": answer.kl}


def choose(recipe: Recipe, judges: Sequence[JudgeResults]) -> str | None:
    """Return the judge whose verdict is the headline; print a note where the recipe asks for another."""
    there = {judge.name for judge in judges if judge.judgments.get(A_B)}
    wanted, preferred = recipe.compare.headline, recipe.compare.judge
    if wanted in there:
        if wanted == "reward":
            print(NOT_INDEPENDENT, file=sys.stderr)
        return wanted
    if not there:
        print(NO_JUDGE, file=sys.stderr)
        return None
    if preferred == "reward" and "reward" not in there:
        raise UsageError("compare.judge is reward, but no reward model was given: add --in reward=PATH")
    if wanted is not None:
        print(f"compare.headline is {wanted}, which gave no verdict on these answers", file=sys.stderr)
    if preferred == "independent" and "judge" in there:
        return "judge"
    others = [judge.name for judge in judges if judge.name in there and judge.independent]
    if preferred == "independent" and others:
        return others[0]
    print(NOT_INDEPENDENT, file=sys.stderr)
    return "reward"
