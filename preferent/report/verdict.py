"""The verdict in words: who judged, how often the tuned model won, and what that does and does not show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from preferent.report import chart

WHO = {
    "judge": ("independent judge", "a reward model that learned from other preferences"),
    "reward": ("the optimised reward", "what the policy was tuned to raise"),
    "truth": ("the true preference", "known, as these preferences are generated"),
}
COLOURS = {"judge": 1, "reward": 4, "truth": 3}


@dataclass(frozen=True, slots=True)
class Opinion:
    """One row of the table of win rates."""

    against: str
    who: str
    independent: bool
    rate: str
    interval: str
    counts: str
    picture: Markup


def percent(share: float, digits: int = 0) -> str:
    """A share as people write it, with a space that does not break; only all of them are 100 %, only none 0 %."""
    text = f"{100 * share:.{digits}f}"
    if digits == 0 and text in ("0", "100") and share not in (0, 1):
        text = f"{100 * share:.1f}"
    return f"{text}\u00a0%"


def span(interval: Sequence[float]) -> str:
    """An interval of shares."""
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}\u00a0%"


def opinions(metrics: Mapping[str, Any], gold: Mapping[str, Any] | None) -> list[Opinion]:
    """Every win rate that the files hold: tuned against base by each judge, the headline first, then the original."""
    found_by = metrics.get("judges", {})
    rows = [_opinion("Tuned against base", name, found["independent"], found) for name, found in found_by.items()]
    if gold is not None and "win_rate" in gold:
        rows.append(_opinion("Tuned against base", "truth", True, gold))
    for name, found in found_by.items():
        for side, model in (("a", "Tuned"), ("b", "Base")):
            if side in found.get("against_original", {}):
                rate = found["against_original"][side]
                rows.append(_opinion(f"{model} against original", name, found["independent"], rate))
    return rows


def _opinion(against: str, name: str, independent: bool, found: Mapping[str, Any]) -> Opinion:
    counted = "win" in found
    counts = "–".join(str(found[key]) for key in ("win", "tie", "loss")) if counted else f"n = {found.get('n', '?')}"
    low, high = found.get("interval") or (found["win_rate"],) * 2
    picture = chart.interval(found["win_rate"], low, high, COLOURS[name])
    rate = percent(found["win_rate"], 1)
    return Opinion(against, WHO[name][0], independent, rate, span((low, high)), counts, picture)


def judges(opinions: Sequence[Opinion]) -> str:
    """Who the judges of these opinions are, each once."""
    there = {opinion.who for opinion in opinions}
    told = [f"{who}: {what}" for who, what in WHO.values() if who in there]
    return "; ".join(told)[:1].upper() + "; ".join(told)[1:] + "." if told else ""


def sentence(found: Mapping[str, Any]) -> str:
    """What the headline judge's figures say, in one or two plain sentences."""
    low, high = found["interval"]
    single = found["n"] == found["prompts"]
    among = f"{found['n']} test prompts" if single else f"{found['n']} answers to {found['prompts']} test prompts"
    ties = {0: "", 1: ", with one tie"}.get(found["tie"], f", with {found['tie']} ties")
    counted = (
        f"Of {among}, the tuned model’s answer was preferred on {found['win']}, the base model’s on "
        f"{found['loss']}{ties}."
    )
    if low > 0.5:
        meaning = "The whole interval lies above one half: by this judge the tuned model is better."
    elif high < 0.5:
        meaning = "The whole interval lies below one half: by this judge the tuned model is worse."
    else:
        meaning = "The interval holds one half: this comparison does not show that either model is better."
    return f"{counted} {meaning}"


def caution(found: Mapping[str, Any]) -> str:
    """What a reader must know before believing the headline; empty for an independent judge."""
    if found["independent"]:
        return ""
    return (
        "Not independent: this is the reward that the policy was tuned to raise, so a high rate is expected and says "
        "little about what people would prefer."
    )


def measures(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of the table that sets tuned, base and original side by side: a name and a text for each."""
    sides = ["a", "b"] + (["original"] if "mean_original" in metrics.get("length", {}) else [])
    rows: list[tuple[str, list[str]]] = []
    length = metrics.get("length", {})
    if length:
        rows.append((f"mean length, {length['unit']}", [f"{length[f'mean_{side}']:.1f}" for side in sides]))
    ended = metrics.get("ended", {})
    if ended:
        rows.append(("ended by itself", [percent(ended[side], 1) if side in ended else "" for side in sides]))
    for name, found in metrics.get("judges", {}).items():
        means = [found.get(f"mean_score_{side}") for side in sides]
        shown = [f"{mean:.3f}".replace("-", "−") if mean is not None else "" for mean in means]
        rows.append((f"mean score, {WHO[name][0]}", shown))
    rouge = metrics.get("rouge") or {}
    for key, name in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
        if rouge:
            shown = [f"{rouge[side][key]:.3f}" for side in sides]
            rows.append((f"{name} F1 ({rouge['n']} references)", shown))
    return rows


def _selection(found: Mapping[str, Any]) -> tuple[str, str]:
    """What keeping the best of several answers did, and how far it can have gone."""
    scores = ", ".join(f"{score:.3f} of {n}" for n, score in found["score"].items()).replace("-", "−")
    return (
        f"tuned answers are the best of {found['n']}",
        f"by the reward; keeping them moves the answers at most {found['kl_bound']:.2f} nats from the policy, a bound, "
        f"which is not in the KL above; mean score of the best: {scores}",
    )


def notes(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else bears on the verdict: a name and a text each."""
    rows = []
    length = metrics.get("length", {})
    if length:
        longer, shorter = percent(length["share_longer"]), percent(length["share_shorter"])
        gap = f"{length['difference']:+.1f} {length['unit']}".replace("-", "−")
        rows.append(("tuned answers are", f"{gap} on average; longer on {longer}, shorter on {shorter} of prompts"))
    if "best_of" in metrics:
        rows.append(_selection(metrics["best_of"]))
    for name, found in metrics.get("judges", {}).items():
        who = WHO[name][0]
        correlation = f"{found['length_correlation']:+.2f}".replace("-", "−")
        rows.append((f"score and length, {who}", f"rank correlation {correlation}"))
    if "agreement" in metrics:
        rows.append(("the two judges agree", f"on {percent(metrics['agreement'])} of prompts"))
    rows.append(("identical answers", f"{metrics.get('identical', 0)} of {metrics.get('rows', 0)}"))
    return rows
