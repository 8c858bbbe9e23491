"""The verdict of a comparison in sentences: who judged, how good that judge is, and how many prompts it takes."""

from collections.abc import Mapping
from typing import Any

from preferent.evaluation import judge_quality
from preferent.evaluation.comparison_types import AccuracyFigures, ComparisonMetrics, Interval, JudgeFigures

UNCHANGED = "The policy is the base: no step did better than the start."


def unchanged(facts: Mapping[str, Any]) -> str:
    """Return a sentence if a tuning stage with these facts selected the model that it started from; else nothing."""
    return UNCHANGED if facts.get("best_step") == 0 and facts.get("steps", 0) > 0 else ""


def verdict_sentence(metrics: ComparisonMetrics) -> str:
    """Return the verdict of a comparison as a sentence, the preferred side first."""
    names = [side["name"] for side in metrics["sides"][:2]]
    a, b = ("the tuned model", "the base") if names == ["tuned", "base"] else names
    headline = metrics["headline"]
    if headline is None:
        return f"no judge compared {a} with {b}"
    judge = metrics["judges"][headline]
    rate, (low, high) = judge["win_rate"], judge["interval"]
    if rate < 0.5:
        a, b, rate, low, high = b, a, 1 - rate, 1 - high, 1 - low
    what = "pairs" if judge["kind"] == "reward_model" else "verdicts"
    prompts = judge.get("prompts", judge["n"])
    on = "" if prompts == judge["n"] else f" on {prompts} prompts"
    return (
        f"{_doubt(metrics, headline)}{_who(headline, judge)} {a} to {b} in {rate:.1%} of {judge['n']} {what}{on} "
        f"({_interval((low, high))}){_accuracy(judge)}{_distance(metrics)}"
    )


def _doubt(metrics: ComparisonMetrics, headline: str) -> str:
    """Return the words before the verdict of a judge that was measured and cannot tell."""
    ability = judge_quality.ability(metrics["judges"][headline])
    if ability.tells or not ability.measured:
        return ""
    others = [name for name in judge_quality.able(metrics) if name != headline]
    return f"{no_judge(others)} which is better: "


def no_judge(others: list[str]) -> str:
    """Return who cannot tell: no judge, or the headline judge alone if `others` can."""
    return f"the headline judge cannot tell (but {', '.join(others)} can)" if others else "no judge here can tell"


def _who(headline: str, judge: JudgeFigures) -> str:
    if not judge["independent"]:
        return "the reward model that was optimised, which is not an independent judge, prefers"
    return {
        "people": "one person prefers" if judge.get("annotators") == 1 else f"{judge.get('annotators')} people prefer",
        "language_model": f"{headline}, a language model, prefers",
        "reward_model": "an independent judge prefers",
    }[judge["kind"]]


def _accuracy(judge: JudgeFigures) -> str:
    """Return how often the judge is right; nothing about people."""
    if judge["kind"] == "people":
        return ""
    accuracy = judge.get("accuracy")
    if accuracy is None:
        return ", accuracy not measured"
    ability = judge_quality.can_tell(accuracy)
    return f"{', and' if ability.tells else ', but'} it is right on {right_on(accuracy)}" + (
        f", and {ability.why}" if ability.why else ""
    )


def right_on(accuracy: AccuracyFigures) -> str:
    """Return how often a judge is right and on which pairs."""
    pairs = f"{accuracy['count']} {'held-out pairs' if accuracy['by'] == 'held_out' else 'pairs that people judged'}"
    return f"{accuracy['share']:.1%} of {pairs} ({_interval(accuracy['interval'])})"


def _interval(interval: Interval) -> str:
    return f"95 % interval {_bounds(interval)}"


def _bounds(interval: Interval) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _distance(metrics: ComparisonMetrics) -> str:
    """Return the KL of the tuned answers, and what keeping the best of several adds to it."""
    divergence = metrics["kl"]
    kl = "" if divergence is None else f"; KL {divergence['mean']:.2f} nats"
    if "best_of" in metrics:
        n, bound = metrics["best_of"]["n"], metrics["best_of"]["kl_bound"]
        kl += f"; keeping the best of {n} answers moves them at most {bound:.2f} nats from the policy"
    return kl


def summary(metrics: ComparisonMetrics) -> list[str]:
    """Return the verdict, what people's votes say with the help of a judge, and advice, a line each."""
    return [verdict_sentence(metrics), *_powered(metrics), *advice(metrics)]


def _powered(metrics: ComparisonMetrics) -> list[str]:
    """Return people's votes alone, with the help of the judge that comes first, and that judge alone."""
    for name, figures in metrics.get("prediction_powered", {}).items():
        people, judge = metrics["judges"]["people"], metrics["judges"][name]
        a = metrics["sides"][0]["name"]
        return [
            f"people's votes on {figures['voted']} prompts and {name} on all {figures['prompts']}: {a} wins "
            f"{figures['win_rate']:.1%} ({_interval(figures['interval'])}), which takes about "
            f"{figures['effective']:.0f} prompts from people alone; people alone {people['win_rate']:.1%} "
            f"({_bounds(people['interval'])}), {name} alone {judge['win_rate']:.1%} ({_bounds(judge['interval'])})"
        ]
    return []


def advice(metrics: ComparisonMetrics) -> list[str]:
    """Return what the prompts can show and how many are needed, if the headline's interval contains one half."""
    headline = metrics["headline"]
    if headline is None or not (size := metrics.get("sample_size")):
        return []
    prompts = metrics["judges"][headline]["prompts"]
    if size["detectable"] is None:
        return [f"{prompts} prompts are too few to show any difference; compare on more"]
    needed = f"; to see one of {size['win_rate']:.0%} you need about {size['prompts']}" if size["prompts"] else ""
    return [
        f"the interval contains 50 %: {prompts} prompts show a rate of {size['detectable']:.0%} or more four times in "
        f"five{needed}"
    ]
