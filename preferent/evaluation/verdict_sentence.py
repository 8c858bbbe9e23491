"""The verdict of a comparison in one sentence."""

from collections.abc import Mapping
from typing import Any


def verdict_sentence(metrics: Mapping[str, Any]) -> str:
    """Return what `metrics.json` of a comparison says, in a sentence."""
    names = [side["name"] for side in metrics["sides"][:2]]
    a, b = ("the tuned model", "the base") if names == ["tuned", "base"] else names
    if metrics["headline"] is None:
        return f"no judge compared {a} with {b}"
    judge = metrics["judges"][metrics["headline"]]
    low, high = judge["interval"]
    who = {
        "people": "one person prefers" if judge.get("annotators") == 1 else f"{judge.get('annotators')} people prefer",
        "language_model": f"{metrics['headline']}, a language model, prefers",
        "reward_model": "an independent judge prefers",
    }[judge["kind"]]
    if not judge["independent"]:
        who = "the optimised reward model, not an independent judge, prefers"
    what = "pairs" if judge["kind"] == "reward_model" else "verdicts"
    kl = "" if metrics["kl"] is None else f"; KL {metrics['kl']['mean']:.2f} nats"
    if "best_of" in metrics:
        n, bound = metrics["best_of"]["n"], metrics["best_of"]["kl_bound"]
        kl += f"; keeping the best of {n} answers moves them at most {bound:.2f} nats from the policy"
    return (
        f"{who} {a} to {b} in {judge['win_rate']:.1%} of {judge['n']} {what} "
        f"(95 % interval {low:.1%} to {high:.1%}){kl}"
    )
