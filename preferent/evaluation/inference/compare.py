"""Stage `compare`: two or more sets of answers side by side, judged, with what a reader needs to believe the judgment.

Side a is the tuned model, b what it is compared with (what PPO started from); `original` (after an `sft`) is what came
before, `side.NAME` are others. The headline comes from a reward model that PPO never saw, or from whom the recipe
names; the one PPO optimised stands beside it, marked as not independent. Language models and people judge besides.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferent.config import stage_graph
from preferent.config.recipe import Recipe, pick
from preferent.data import datasets, predictions
from preferent.data.formats import row_writer
from preferent.data.judgments import write
from preferent.data.predictions import Answers
from preferent.errors import UsageError
from preferent.evaluation import human_judgments
from preferent.evaluation.comparison_summary import verdict
from preferent.evaluation.inference import language_model_judges
from preferent.evaluation.inference.reward_model_judges import located, scored
from preferent.evaluation.judge_results import A_B, JudgeResults, by_scores
from preferent.files import write_json, write_jsonl
from preferent.runs import stages

SIDES = {"a": "tuned", "b": "base", "original": "original"}
"""What the sides are called, unless they are given names; `side.NAME` is called NAME."""
OUTPUTS = ["judgments.jsonl", "metrics.json", "answers.jsonl"]
NO_JUDGE = "no judge, no reward model and no reward.sources given: lengths and ROUGE only, without a win rate"
NOT_INDEPENDENT = "the verdict comes from the reward that PPO optimised, which is no independent judge"


def main(recipe: Recipe, inputs: dict[str, Path], out: Path, names: Sequence[str] = ()) -> None:
    """Write `judgments.jsonl`, `metrics.json` and `answers.jsonl` to `out`; replies of language models beside it.

    `inputs`: `a` and `b`, prediction files or folders with a `text.jsonl`, and if wanted `original` and `side.NAME`
    like them, `judge` (an independent reward model); and what was optimised, as `reward.sources` of the recipe says:
    `reward`, `reward-2`, … (those that the run trained), `reward.NAME` (those that the recipe names), and `score` (its
    `score.json`; without it raw scores are summed). With `prompts`, the file that was answered, a model whose chat
    template is another than the policy's reads conversations in its own. `people` is a file of their judgments,
    `model.NAME` the folder of a model of `compare.judges`. `names` are what the sides are called,
    in that order.
    """
    language_model_judges.check(recipe)
    files = {side: predictions.prediction_file(inputs[side]) for side in sides(inputs)}
    models = located(recipe, {name: inputs[name] for name in inputs if name == "judge" or stage_graph.is_reward(name)})
    models |= language_model_judges.models(recipe, inputs)
    beside: dict[str, Path] = {name: inputs[name] for name in ("score", "prompts", "people") if name in inputs}
    beside |= language_model_judges.templates(recipe)
    called = _called(list(files), names)
    with stages.locked(out):
        fields = pick(recipe, *stage_graph.FIELDS["compare"]) | ({"names": list(names)} if names else {})
        stage = stages.open_stage("compare", out, fields=fields, inputs=files | models | beside, rerun=True)
        if stage.done:
            return
        prompts = datasets.load_prompts(inputs["prompts"]) if "prompts" in inputs else []
        answers = predictions.join({side: predictions.read(path) for side, path in files.items()}, prompts=prompts)
        if prompts:
            answers["a"] = predictions.with_prompts(answers["a"], prompts)
        opinions = _opinions(recipe, models | beside, answers, called, out.parent / "calls")
        judgments, metrics = verdict(answers, opinions, choose(recipe, opinions), called)
        write(judgments, out / "judgments.jsonl")
        write_jsonl(out / "answers.jsonl", rows(answers))
        write_json(out / "metrics.json", metrics)
        stage.finish(OUTPUTS)


def sides(inputs: Mapping[str, Path]) -> list[str]:
    """The names among `inputs` of sides: a, b, the original, and others in the order in which they are given."""
    return [side for side in SIDES if side in inputs] + [name for name in inputs if name.startswith("side.")]


def _called(sides: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What each side is called."""
    if not names:
        return {side: SIDES.get(side, side.removeprefix("side.")) for side in sides}
    if len(names) != len(sides) or len(set(names)) < len(names):
        raise UsageError(f"--names {','.join(names)}: wants {len(sides)} different names, of {', '.join(sides)}")
    return dict(zip(sides, names, strict=True))


def _opinions(
    recipe: Recipe, inputs: Mapping[str, Path], answers: Answers, names: Mapping[str, str], calls: Path
) -> list[JudgeResults]:
    """Of everybody who judges: the independent reward model, the optimised reward, people, language models."""
    found = [
        by_scores(name, scores, answers, recipe.instruction, names)
        for name, scores in scored(recipe, inputs, answers).items()
    ]
    if "people" in inputs:
        found.append(human_judgments.opinion(inputs["people"], answers, names))
    return found + language_model_judges.opinions(recipe, inputs, answers, names, calls)


def rows(answers: Answers) -> list[dict[str, Any]]:
    """What was compared, a row a prompt, so that the folder can be read by itself."""
    return [
        {
            "id": asked.id,
            "prompt": asked.prompt,
            "asked": None if asked.prompt_record is None else row_writer.row(asked.prompt_record),
            "reference": asked.reference,
            "tags": list(asked.tags),
            "answers": {side: _told(given[place]) for side, given in answers.items()},
        }
        for place, asked in enumerate(answers["a"])
    ]


def _told(given: predictions.Answer) -> dict[str, Any]:
    return {"text": given.text, "tokens": given.tokens, "ended": given.ended, "kl": given.kl}


def choose(recipe: Recipe, opinions: Sequence[JudgeResults]) -> str | None:
    """Whose verdict is the headline, of the judges there are; says so where it is not the one that was asked for."""
    there = {one.name for one in opinions if one.said.get(A_B)}
    wanted, asked = recipe.compare.headline, recipe.compare.judge
    if wanted in there:
        if wanted == "reward":
            print(NOT_INDEPENDENT, file=sys.stderr)
        return wanted
    if not there:
        print(NO_JUDGE, file=sys.stderr)
        return None
    if asked == "reward" and "reward" not in there:
        raise UsageError("compare.judge is reward, but no reward model was given: add --in reward=PATH")
    if wanted is not None:
        print(f"compare.headline is {wanted}, of whom there is no verdict on these answers", file=sys.stderr)
    if asked == "independent" and "judge" in there:
        return "judge"
    others = [one.name for one in opinions if one.name in there and one.independent]
    if asked == "independent" and others:
        return others[0]
    print(NOT_INDEPENDENT, file=sys.stderr)
    return "reward"
