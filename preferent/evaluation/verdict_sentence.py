"""The verdict of a comparison in one sentence."""

from collections.abc import Mapping
from typing import Any


def verdict_sentence(found: Mapping[str, Any]) -> str:
    """What `metrics.json` of a comparison says, in a sentence."""
    names = [each["name"] for each in found["sides"][:2]]
    a, b = ("the tuned model", "the base") if names == ["tuned", "base"] else names
    if found["headline"] is None:
        return f"no judge compared {a} with {b}"
    judge = found["judges"][found["headline"]]
    low, high = judge["interval"]
    who = {
        "people": "one person prefers" if judge.get("annotators") == 1 else f"{judge.get('annotators')} people prefer",
        "language_model": f"{found['headline']}, a language model, prefers",
        "reward_model": "an independent judge prefers",
    }[judge["kind"]]
    if not judge["independent"]:
        who = "the reward model that was optimised, no independent judge, prefers"
    what = "pairs" if judge["kind"] == "reward_model" else "verdicts"
    kl = "" if found["kl"] is None else f"; KL {found['kl']['mean']:.2f} nats"
    if "best_of" in found:
        n, bound = found["best_of"]["n"], found["best_of"]["kl_bound"]
        kl += f"; keeping the best of {n} answers moves them at most {bound:.2f} nats from the policy"
    return (
        f"{who} {a} to {b} in {judge['win_rate']:.1%} of {judge['n']} {what} "
        f"(95 % interval {low:.1%} to {high:.1%}){kl}"
    )
