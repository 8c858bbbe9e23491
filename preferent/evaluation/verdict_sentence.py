"""The verdict of a comparison in one sentence."""

from preferent.evaluation.comparison_types import ComparisonMetrics


def verdict_sentence(metrics: ComparisonMetrics) -> str:
    """Return the verdict of a comparison as a sentence."""
    names = [side["name"] for side in metrics["sides"][:2]]
    a, b = ("the tuned model", "the base") if names == ["tuned", "base"] else names
    headline = metrics["headline"]
    if headline is None:
        return f"no judge compared {a} with {b}"
    judge = metrics["judges"][headline]
    low, high = judge["interval"]
    who = {
        "people": "one person prefers" if judge.get("annotators") == 1 else f"{judge.get('annotators')} people prefer",
        "language_model": f"{headline}, a language model, prefers",
        "reward_model": "an independent judge prefers",
    }[judge["kind"]]
    if not judge["independent"]:
        who = "the reward model that was optimised, which is not an independent judge, prefers"
    what = "pairs" if judge["kind"] == "reward_model" else "verdicts"
    divergence = metrics["kl"]
    kl = "" if divergence is None else f"; KL {divergence['mean']:.2f} nats"
    if "best_of" in metrics:
        n, bound = metrics["best_of"]["n"], metrics["best_of"]["kl_bound"]
        kl += f"; keeping the best of {n} answers moves them at most {bound:.2f} nats from the policy"
    return (
        f"{who} {a} to {b} in {judge['win_rate']:.1%} of {judge['n']} {what} "
        f"(95 % interval {low:.1%} to {high:.1%}){kl}"
    )
