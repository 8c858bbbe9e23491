"""The words follow the numbers: each bound, seen from both sides."""

import copy
from typing import Any

import pytest

from preferent.evaluation import reward_findings


def share(value: float, count: int = 400, half: float = 0.04) -> dict[str, Any]:
    return {"share": value, "interval": [value - half, value + half], "count": count}


def quality() -> dict[str, Any]:
    """A model with nothing to complain about."""
    rule = {"lead": 0.15, "lead_interval": [0.1, 0.2]}
    return copy.deepcopy(
        {
            "test": {"length_correlation": 0.1, "longer_accuracy": 0.55, "ece": 0.04},
            "reported": "test",
            "accuracy": share(0.75),
            "mean_confidence": 0.73,
            "rules": {"longer": share(0.55) | rule, "first": share(0.5) | rule, "words": share(0.6) | rule},
            "length": {"longer_preferred": share(0.53)},
            "position": {"first_chosen": share(0.51), "first_preferred": share(0.5)},
            "by_strength": [{"low": 1.0} | share(0.6), {"low": 3.0} | share(0.8), {"low": None} | share(0.1)],
            "samples": {
                "sampled": {"mean": -0.5, "sd": 0.8},
                "chosen": {"mean": 1.0, "sd": 1.0},
                "rejected": {"mean": 0.0, "sd": 1.0},
                "chosen_above": share(0.7, 64, 0.1),
            },
        }
    )


def sentence(about: str, **changed: Any) -> tuple[bool, str]:
    """The remark about something where dotted figures (`__` for a dot) have other values."""
    figures = quality()
    for name, value in changed.items():
        *path, last = name.split("__")
        place = figures
        for key in path:
            place = place[key]
        place[last] = value
    (remark,) = [remark for remark in reward_findings.remarks(figures) if remark.about == about]
    return remark.warns, remark.says.replace("\u00a0", " ")


def test_a_good_model_has_a_sentence_of_each_kind_and_no_warning() -> None:
    remarks = reward_findings.remarks(quality())
    about = ["accuracy", "rules", "length", "position", "calibration", "strength", "samples"]
    assert [remark.about for remark in remarks] == about
    assert not any(remark.warns for remark in remarks)
    assert reward_findings.remarks({"reliability": [], "best_step": 3}) == []


def test_accuracy_and_chance() -> None:
    assert sentence("accuracy") == (
        False,
        "On 400 test pairs the model prefers what people chose in 75 % (95 % interval 71–79 %).",
    )
    warns, says = sentence("accuracy", accuracy=share(0.53))
    assert warns and says.endswith("(95 % interval 49–57 %): that may be chance.")


@pytest.mark.parametrize(
    ("interval", "warns", "words"),
    [
        ([0.01, 0.2], False, "the model is better (+15 points, interval +1 to +20)."),
        ([-0.01, 0.2], True, "the model cannot be distinguished from it (+15 points, interval −1 to +20)."),
        ([-0.2, -0.001], True, "the model is worse (+15 points, interval −20 to −0.1)."),
    ],
)
def test_the_best_rule(interval: list[float], warns: bool, words: str) -> None:
    start = "Of the rules that need no model, “bag of words” is best, right in 60 %: "
    assert sentence("rules", rules__words__lead_interval=interval) == (warns, start + words)
    assert "“the longer wins” is best, right in 84 %" in sentence("rules", rules__longer__share=0.84)[1]


@pytest.mark.parametrize(
    ("correlation", "longer", "preferred", "warns", "words"),
    [
        (0.71, 0.84, 0.9, True, "Longer wins would be right in 84 % of these pairs, and scores depend on length "
         "(Spearman 0.71; the longer answer scores higher in 90 %): this reward will make answers longer."),
        (0.5, 0.59, 0.7, True, "Longer wins would be right in 59 % of these pairs, yet scores depend on length "
         "(Spearman 0.50; the longer answer scores higher in 70 %): this reward will make answers longer."),
        (0.49, 0.6, 0.7, False, "Longer wins would be right in 60 % of these pairs, and scores somewhat depend on "
         "length (Spearman 0.49; the longer answer scores higher in 70 %): this reward may make answers longer."),
        (-0.6, 0.3, 0.2, True, "Shorter wins would be right in 70 % of these pairs, and scores depend on "
         "length (Spearman −0.60; the shorter answer scores higher in 80 %): this reward will make answers shorter."),
        (0.29, 0.84, 0.7, False, "Longer wins would be right in 84 % of these pairs, but scores hardly depend on "
         "length (Spearman 0.29): no length bias of the model is seen."),
        (0.0, 0.5, 0.5, False, "Longer wins would be right in 50 % of these pairs, and scores hardly depend on length "
         "(Spearman 0.00): no length bias of the model is seen."),
    ],
)  # fmt: skip
def test_length(correlation: float, longer: float, preferred: float, warns: bool, words: str) -> None:
    changed = {
        "test__length_correlation": correlation,
        "test__longer_accuracy": longer,
        "length__longer_preferred": share(preferred),
    }
    assert sentence("length", **changed) == (warns, words)


def test_equal_lengths_say_nothing() -> None:
    figures = quality()
    figures["length"]["longer_preferred"] = None
    assert "length" not in [remark.about for remark in reward_findings.remarks(figures)]


@pytest.mark.parametrize(
    ("chosen", "warns", "words"),
    [
        (share(0.53), False, "People chose the first candidate in 53 % (49–57 %): no position bias is seen."),
        (
            share(0.57),
            False,
            "People chose the first candidate in 57 % (53–61 %), the model 50 %: the labels depend on",
        ),
        (share(0.4), True, "People chose the second candidate in 60 % (56–64 %), the model 50 %: the labels depend on"),
        (share(1), False, "Candidate 0 is always the chosen one: the order that people saw was not kept, so it cannot"),
        (share(0), False, "Candidate 1 is always the chosen one: the order that people saw was not kept, so it cannot"),
    ],
)
def test_position(chosen: dict[str, Any], warns: bool, words: str) -> None:
    warned, text = sentence("position", position__first_chosen=chosen)
    assert warned == warns and text.startswith(words)


@pytest.mark.parametrize(
    ("confidence", "ece", "warns", "words"),
    [
        (0.86, 0.12, True, "it is over-confident"),
        (0.84, 0.09, False, "its confidence can be trusted"),
        (0.64, 0.12, False, "it is under-confident"),
        (0.75, 0.11, False, "right on the whole, but not at every confidence"),
    ],
)
def test_calibration(confidence: float, ece: float, warns: bool, words: str) -> None:
    warned, text = sentence("calibration", mean_confidence=confidence, test__ece=ece)
    assert warned == warns and words in text


def test_strength() -> None:
    faint = {"low": 1.0} | share(0.6)
    for clear, warns, words in (
        (0.69, False, "the model is better where"),
        (0.67, False, "no clear"),
        (0.5, True, "other way"),
    ):
        warned, text = sentence("strength", by_strength=[faint, {"low": 2.0} | share(clear)])
        assert warned == warns and words in text
    for others in ([], [{"low": 2.0} | share(0.9, 29)]):
        alone = quality() | {"by_strength": [faint, *others]}
        assert "strength" not in [remark.about for remark in reward_findings.remarks(alone)]


def test_samples() -> None:
    for above, warns, words in ((0.65, False, "room"), (0.55, False, "neither"), (0.35, True, "already writes")):
        warned, text = sentence("samples", samples__chosen_above=share(above, 64, 0.1))
        assert warned == warns and words in text
    assert "mean 1.00 against −0.50, sd 0.80" in sentence("samples")[1]
