"""Stage `compare`: two prediction files side by side, judged, with what a reader needs to believe the judgment.

Side a is the tuned model, b what PPO started from, `original` (after an `sft`) what came before. The headline comes
from a reward model that PPO never saw; the one PPO optimised stands beside it, marked as not independent.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from preferent import best_of, dataset, graph, judge, progress, rouge, run, winrate
from preferent.error import DataError, PlatformError, UsageError
from preferent.judge import Pair
from preferent.recipe import Recipe, pick
from preferent.record import Judgment, Prompt, digest
from preferent.scale import Scale

SIDES = ("a", "b", "original")
ROWS_AT_ONCE = 256
OUTCOMES = {"A": 1.0, "tie": 0.5, "B": 0.0}
NO_JUDGE = "no judge, no reward model and no ppo.reward given: lengths and ROUGE only, without a win rate"
NOT_INDEPENDENT = "the verdict comes from the reward that PPO optimised, which is no independent judge"

Scorer = Callable[..., Sequence[float] | np.ndarray]
"""(prompts, answers), two lists of text, and where they are known the prompts as records, to scores."""
Scores = Mapping[str, np.ndarray]
"""The raw scores [n] of one judge, by side."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of a prediction file; what a foreign file does not say is None. `kl` and `kl_k1` are nats an answer;
    `asked` is the prompt as the data have it, where it is known. Where it is the best of several answers, `scores` are
    theirs."""

    id: str
    prompt: str
    reference: str
    text: str
    tokens: int | None = None
    ended: bool | None = None
    kl: float | None = None
    kl_k1: float | None = None
    scores: Sequence[float] | None = None
    asked: Prompt | None = None


Answers = Mapping[str, Sequence[Answer]]
"""Answers to the same prompts in the same order, [n], by side."""


def main(recipe: Recipe, inputs: dict[str, Path], out: Path) -> None:
    """Write `judgments.jsonl` and `metrics.json` to `out`.

    `inputs`: `a` and `b`, prediction files or folders with a `text.jsonl`, and if wanted `original` like them, `judge`
    (an independent reward model); and what was optimised, as `ppo.reward` of the recipe says: `reward`, `reward-2`, …
    (those that the run trained), `reward.NAME` (those that the recipe names), and `score` (its `score.json`; without it
    raw scores are summed). With `prompts`, the file that was answered, a model whose chat template is another than the
    policy's reads conversations in its own.
    """
    files = {side: predictions(inputs[side]) for side in SIDES if side in inputs}
    models = _located(recipe, {name: inputs[name] for name in inputs if name == "judge" or graph.is_reward(name)})
    beside = {name: inputs[name] for name in ("score", "prompts") if name in inputs}
    with run.locked(out):
        fields = pick(recipe, *graph.FIELDS["compare"])
        stage = run.stage("compare", out, fields=fields, inputs=files | models | beside, rerun=True)
        if stage.done:
            return
        answers = join({side: read(path) for side, path in files.items()})
        if "prompts" in inputs:
            answers["a"] = known(answers["a"], dataset.load_prompts(inputs["prompts"]))
        scores = _scored(recipe, models | beside, answers)
        headline = choose(recipe.compare.judge, list(scores))
        judgments, metrics = verdict(answers, scores, headline, recipe.instruction)
        judge.write(judgments, out / "judgments.jsonl")
        run.write_json(out / "metrics.json", metrics)
        stage.finish(["judgments.jsonl", "metrics.json"])


def predictions(path: Path) -> Path:
    """The prediction file that a path means: itself, or the `text.jsonl` in it."""
    file = path / "text.jsonl" if path.is_dir() else path
    if not file.exists():
        raise PlatformError(f"{file}: no such prediction file; `preferent infer` makes one")
    return file


def read(path: Path) -> list[Answer]:
    """The rows of a prediction file; a row without `id` is known by its prompt, as AutoSxS does it."""
    with open(path, encoding="utf-8") as file:
        answers = [_answer(line, f"{path}:{number}") for number, line in enumerate(file, start=1) if line.strip()]
    if not answers:
        raise DataError(f"{path}: holds no predictions")
    seen: set[str] = set()
    for answer in answers:
        if answer.id in seen:
            raise DataError(f"{path}: two rows have the id {answer.id}; give each row an id of its own")
        seen.add(answer.id)
    return answers


def _answer(line: str, place: str) -> Answer:
    try:
        row = json.loads(line)
        prompt, text = row["inputs"]["inputs_pretokenized"], row["prediction"]
        reference = row["inputs"].get("targets_pretokenized", "")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{place}: not a prediction row ({error!r}); it needs inputs.inputs_pretokenized and prediction"
        ) from None
    if not all(isinstance(value, str) for value in (prompt, text, reference)):
        raise DataError(f"{place}: inputs_pretokenized, targets_pretokenized and prediction are texts")
    optional = {name: row.get(name) for name in ("tokens", "ended", "kl", "kl_k1", "scores")}
    return Answer(str(row.get("id") or digest(prompt)), prompt, reference, text, **optional)


def join(sides: Answers) -> dict[str, list[Answer]]:
    """The sides' rows in the order of a; every side must answer the same ids."""
    wanted = {answer.id for answer in sides["a"]}
    found = {side: {answer.id: answer for answer in answers} for side, answers in sides.items()}
    for side, by_id in found.items():
        only_a, only_other = len(wanted - by_id.keys()), len(by_id.keys() - wanted)
        if only_a or only_other:
            raise DataError(
                f"a and {side} do not answer the same prompts: {only_a} of {len(wanted)} ids are only in a, "
                f"{only_other} of {len(by_id)} only in {side}; make both with the same prompts file"
            )
    return {side: [by_id[answer.id] for answer in sides["a"]] for side, by_id in found.items()}


def known(answers: Sequence[Answer], prompts: Sequence[Prompt]) -> list[Answer]:
    """The answers with what was asked, by the ids that `infer` gives them."""
    asked = {prompt.id or prompt.key: prompt for prompt in prompts}
    return [replace(answer, asked=asked.get(answer.id)) for answer in answers]


def choose(wanted: str, judges: Sequence[str]) -> str | None:
    """Whose verdict is the headline, of those there are (`judge`, `reward`); says so where it is not independent."""
    if not judges:
        print(NO_JUDGE, file=sys.stderr)
        return None
    if wanted == "reward" and "reward" not in judges:
        raise UsageError("compare.judge is reward, but no reward model was given: add --in reward=PATH")
    if wanted == "independent" and "judge" in judges:
        return "judge"
    print(NOT_INDEPENDENT, file=sys.stderr)
    return "reward"


def _located(recipe: Recipe, models: dict[str, Path]) -> dict[str, Path]:
    """The models' folders; what is on the hub is downloaded."""
    if not any(graph.FOREIGN.fullmatch(name) for name in models):
        return models
    from preferent import score

    return score.located(recipe, models)


def _scored(recipe: Recipe, inputs: Mapping[str, Path], answers: Answers) -> dict[str, Scores]:
    """What the judge, and the reward that was optimised, think of every answer."""
    there = bool(graph.members(inputs)) or not graph.trains(recipe)
    rewarded = there and all(name in inputs for name in graph.foreign(recipe))
    if "judge" not in inputs and not rewarded:
        return {}
    from preferent import score, world

    here = world.World.of(recipe)
    scores: dict[str, Scores] = {}
    if "judge" in inputs:
        judging = score.RewardModel.load(inputs["judge"], recipe, here)
        scores["judge"] = ask(judging.score_texts, answers, "judge")
    if rewarded:
        found = Scale.read(inputs["score"]) if "score" in inputs else None
        optimised = score.Reward.load(recipe, inputs, here, found)
        scores["reward"] = ask(optimised.score_texts, answers, "reward")
    return scores


def ask(scorer: Scorer, answers: Answers, name: str) -> Scores:
    """The raw scores [n] of every side's answers, all to the prompt as side a was given it."""
    prompts = [answer.prompt for answer in answers["a"]]
    records = [answer.asked for answer in answers["a"]]
    scores: dict[str, list[float]] = {side: [] for side in answers}
    with progress.bar(f"compare: {name}", total=len(prompts) * len(answers)) as bar:
        for place, side in enumerate(answers):
            texts = [answer.text for answer in answers[side]]
            for start in range(0, len(texts), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                asked = [] if None in records else [records[rows]]
                values = [float(value) for value in scorer(prompts[rows], texts[rows], *asked)]
                if len(values) != len(texts[rows]):
                    raise PlatformError(f"{name}: returned {len(values)} scores for {len(texts[rows])} answers")
                scores[side] += values
                bar.update(place * len(prompts) + len(scores[side]))
                run.stop().check()
    return {side: np.asarray(values) for side, values in scores.items()}


def verdict(
    answers: Answers, scores: Mapping[str, Scores], headline: str | None, instruction: str | None
) -> tuple[list[Judgment], dict[str, Any]]:
    """All judgments (the headline judge's first) and the figures of `metrics.json`, from answers and scores alone."""
    prompts = [answer.prompt for answer in answers["a"]]
    pairs = paired(answers["a"], answers["b"], instruction)
    order = sorted(scores, key=lambda name: name != headline)
    judged = {name: judge.from_scores(pairs, scores[name]["a"], scores[name]["b"], name) for name in order}
    metrics: dict[str, Any] = {"rows": len(prompts), "prompts": len(set(prompts)), "headline": headline}
    judges = {name: _opinion(name, answers, scores[name], judged[name]) for name in order}
    if headline is not None:
        rate = judges[headline]["win_rate"]
        metrics |= {"autosxs_model_a_win_rate": rate, "autosxs_model_b_win_rate": 1 - rate}
    metrics["judges"] = judges
    if len(judged) == 2:
        choices = [[judgment.choice for judgment in judged[name]] for name in order]
        metrics["agreement"] = winrate.agreement(*choices)
    metrics |= {"kl": _divergence(answers["a"]), "length": _lengths(answers), "ended": _ended(answers)}
    if selection := _selection(answers["a"]):
        metrics["best_of"] = selection
    metrics["identical"] = sum(pair.response_a == pair.response_b for pair in pairs)
    metrics["rouge"] = _rouge(answers)
    return [judgment for name in order for judgment in judged[name]], metrics


def paired(a: Sequence[Answer], b: Sequence[Answer], instruction: str | None) -> list[Pair]:
    """Pairs as a judge sees them; an instruction that opens the prompt is told apart from its context."""
    opening = f"{instruction}\n\n\n" if instruction else ""
    pairs = []
    for one, other in zip(a, b, strict=True):
        split = bool(opening) and one.prompt.startswith(opening)
        context = one.prompt.removeprefix(opening) if split else one.prompt
        pairs.append(Pair(one.id, instruction or "" if split else "", context, one.text, other.text))
    return pairs


def _opinion(name: str, answers: Answers, scores: Scores, judgments: Sequence[Judgment]) -> dict[str, Any]:
    """What one judge makes of a against b, and of both against the original where there is one."""
    prompts = [answer.prompt for answer in answers["a"]]
    rate = winrate.win_rate([OUTCOMES[judgment.choice] for judgment in judgments], prompts)
    lengths, _unit = _measured(answers)
    every_score = np.concatenate([scores[side] for side in ("a", "b")])
    found = asdict(rate) | {
        "independent": name != "reward",
        "mean_score_a": float(scores["a"].mean()),
        "mean_score_b": float(scores["b"].mean()),
        "length_correlation": winrate.rank_correlation(every_score, [*lengths["a"], *lengths["b"]]),
    }
    if "original" in answers:
        found["mean_score_original"] = float(scores["original"].mean())
        found["against_original"] = {side: asdict(_against(answers, scores, side, name)) for side in ("a", "b")}
    return found


def _against(answers: Answers, scores: Scores, side: str, name: str) -> winrate.WinRate:
    """How often one side beats the original."""
    pairs = paired(answers[side], answers["original"], None)
    judgments = judge.from_scores(pairs, scores[side], scores["original"], name)
    outcomes = [OUTCOMES[judgment.choice] for judgment in judgments]
    return winrate.win_rate(outcomes, [answer.prompt for answer in answers["a"]])


def _divergence(answers: Sequence[Answer]) -> dict[str, Any] | None:
    """KL to the reference in nats an answer: mean over prompts, standard error, rows; and the k1 estimate's mean."""
    rows = [(answer.prompt, answer.kl, answer.kl_k1) for answer in answers if answer.kl is not None]
    if not rows:
        return None
    found = asdict(winrate.mean([kl for _, kl, _ in rows if kl is not None], [prompt for prompt, _, _ in rows]))
    k1 = [(prompt, value) for prompt, _, value in rows if value is not None]
    if k1:
        found["k1_mean"] = winrate.mean([value for _, value in k1], [prompt for prompt, _ in k1]).mean
    return found


def _selection(answers: Sequence[Answer]) -> dict[str, Any] | None:
    """Where each answer is the best of n: n, how far keeping the best moves them from the policy at the most, and what
    the best of 1, 2, 4, … scores, estimated from all n."""
    rows = [answer.scores for answer in answers if answer.scores is not None]
    n = min((len(scores) for scores in rows), default=1)
    if n == 1 or len(rows) < len(answers):
        return None
    counts = [*(2**power for power in range(n.bit_length()) if 2**power < n), n]
    score = {str(k): float(np.mean([best_of.expected(scores, scores, k) for scores in rows])) for k in counts}
    return {"n": n, "kl_bound": best_of.kl_bound(n), "score": score}


def _measured(answers: Answers) -> tuple[dict[str, list[int]], str]:
    """Every side's answer lengths, in tokens, or in words where some row does not say its tokens."""
    tokens = {side: [answer.tokens for answer in rows if answer.tokens is not None] for side, rows in answers.items()}
    if all(len(tokens[side]) == len(rows) for side, rows in answers.items()):
        return tokens, "tokens"
    return {side: [len(answer.text.split()) for answer in rows] for side, rows in answers.items()}, "words"


def _lengths(answers: Answers) -> dict[str, Any]:
    prompts = [answer.prompt for answer in answers["a"]]
    measured, unit = _measured(answers)
    found: dict[str, Any] = {"unit": unit} | asdict(winrate.lengths(measured["a"], measured["b"], prompts))
    if "original" in measured:
        found["mean_original"] = winrate.mean(measured["original"], prompts).mean
    return found


def _ended(answers: Answers) -> dict[str, float]:
    """The share of answers that ended by themselves, of each side that says it."""
    said = {side: [answer.ended for answer in rows if answer.ended is not None] for side, rows in answers.items()}
    return {side: float(np.mean(values)) for side, values in said.items() if values}


def _rouge(answers: Answers) -> dict[str, Any] | None:
    """Mean ROUGE of each side over the rows that have a reference; None where none has."""
    rows = [index for index, answer in enumerate(answers["a"]) if answer.reference]
    if not rows:
        return None
    found: dict[str, Any] = {"n": len(rows)}
    for side, given in answers.items():
        scores = [rouge.scores(answers["a"][index].reference, given[index].text) for index in rows]
        found[side] = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    return found
