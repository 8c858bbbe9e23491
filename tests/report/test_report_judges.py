"""What the report says of the judges: in words and rows, from the figures of `metrics.json` alone."""

from pathlib import Path
from typing import Any

import compared
import pytest

from preferent import files
from preferent.config.recipe import Recipe, parse
from preferent.data.types import Judgment
from preferent.report import agreement_tables, examples, interval_tables, judge_names, rounds, slices, verdict_section
from preferent.report.page import render
from preferent.report.slices import slices as slice_tables

GAP = "\u00a0"


def make_recipe(**values: Any) -> Recipe:
    return parse({"large_model_reference": "models/tiny"} | values)[0]


def rate(win_rate: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"win_rate": win_rate, "interval": [low, high]} | more


def judge(low: float, high: float, **more: Any) -> dict[str, Any]:
    counts = {"win": 60, "tie": 0, "loss": 40, "n": 100, "prompts": 100, "kind": "reward_model", "independent": True}
    return rate((low + high) / 2, low, high) | counts | more


def metrics(**judges: dict[str, Any]) -> dict[str, Any]:
    return {"headline": next(iter(judges)), "judges": judges, "rows": 100}


def reported(metrics: Any, **values: Any) -> dict[str, judge_names.ReportedJudge]:
    return judge_names.reported_judges(metrics, make_recipe(**values))


def test_every_judge_has_a_name_a_kind_and_a_colour() -> None:
    found = metrics(judge=judge(0.5, 0.6), gpt=judge(0.5, 0.6), other=judge(0.5, 0.6), people=judge(0.5, 0.6))
    compare = {"judges": [{"name": "gpt", "model": "qwen-2.5", "url": "http://localhost:1/v1"}]}
    there = reported(found, compare=compare)
    assert there["judge"].title == "Independent judge" and there["people"].title == "People"
    assert (there["gpt"].title, there["gpt"].description) == ("gpt", "gpt, the language model qwen-2.5")
    assert there["other"].what == "a language model"
    assert len({judge.colour for judge in there.values()}) == len(there)
    assert judge_names.descriptions(there, ["gpt", "gpt", "truth"]) == (
        "gpt: the language model qwen-2.5. The true preference: known, as these preferences are generated."
    )


def test_verdicts_are_counted_as_what_they_are() -> None:
    people = judge(0.5, 0.7, kind="people", annotators=3, n=250)
    model = judge(0.5, 0.7, kind="language_model", n=400)
    assert judge_names.verdict_count(people) == "250 votes of 3 people on 100 prompts"
    assert judge_names.verdict_count(people | {"annotators": 1, "prompts": 250}) == "250 votes of 1 person"
    assert judge_names.verdict_count(model) == "400 verdicts on 100 prompts"
    assert judge_names.verdict_count(judge(0.5, 0.7)) == "100 pairs"
    assert verdict_section.sentence(people).startswith(
        "Of 250 votes of 3 people on 100 test prompts, the tuned model’s"
    )
    assert verdict_section.sentence(model).startswith("Of 400 verdicts on 100 test prompts,")


def test_judges_that_do_not_find_what_the_headline_finds_are_named() -> None:
    better, open_, worse = judge(0.55, 0.7), judge(0.45, 0.6), judge(0.2, 0.4)
    found = metrics(judge=better, reward=worse | {"independent": False}, gpt=open_, people=worse)
    assert verdict_section.doubts(found, reported(found)) == [
        f"gpt does not show a difference: 52.5{GAP}% (45.0–60.0{GAP}%).",
        f"People find the opposite: 30.0{GAP}% (20.0–40.0{GAP}%).",
    ]
    assert verdict_section.doubts(metrics(judge=better, people=better), reported(found)) == []
    assert verdict_section.doubts(metrics(judge=open_, people=better), reported(found)) == []


def test_unparsable_replies_are_loud_above_two_per_cent() -> None:
    order = {"verdicts": 195, "unparsable": 5, "unparsable_share": 0.025, "consistent": 0.8, "first_slot": 0.5}
    ties = {"unparsable_as_ties": rate(0.6, 0.5, 0.7)}
    found = metrics(gpt=judge(0.55, 0.71, kind="language_model", order=order, **ties))
    (doubt,) = verdict_section.doubts(found, reported(found))
    assert doubt == (
        f"gpt: 2.5{GAP}% of its replies (5) contain no verdict. If they count as ties, the win rate is 60.0{GAP}% "
        f"(50.0–70.0{GAP}%) instead of 63.0{GAP}% (55.0–71.0{GAP}%)."
    )
    order["unparsable_share"] = 0.02
    assert verdict_section.doubts(found, reported(found)) == []


@pytest.mark.parametrize(
    ("interval", "tag"),
    [
        ([0.51, 0.6], "prefers the first answer"),
        ([0.3, 0.49], "prefers the second answer"),
        ([0.4, 0.6], ""),
        (None, ""),
    ],
)
def test_a_position_bias_is_marked(interval: list[float] | None, tag: str) -> None:
    order = {"verdicts": 200, "unparsable": 0, "unparsable_share": 0.0, "consistent": 0.75, "first_slot": 0.55}
    seen = order | {"first_slot_interval": interval}
    found = metrics(gpt=judge(0.5, 0.6, kind="language_model", order=seen), judge=judge(0.5, 0.6))
    table = judge_names.order(found, reported(found))
    assert table is not None
    (row,) = table.rows
    assert row.tag == tag
    assert row.cells[0] == f"55.0{GAP}%" and row.cells[2:] == (f"75{GAP}%", "200", f"0 (0.0{GAP}%)")
    assert len(row.cells) == len(table.heads) - 1
    assert judge_names.order(metrics(judge=judge(0.5, 0.6)), reported(found)) is None


def test_agreement_names_every_two_judges_once_and_reads_kappa() -> None:
    found = metrics(judge=judge(0.5, 0.6), gpt=judge(0.5, 0.6), people=judge(0.5, 0.6))
    found["agreement"] = [
        {"judges": ["judge", "gpt"], "n": 90, "percent": 0.7, "kappa": 0.4, "kappa_interval": [0.2, 0.6]},
        {"judges": ["judge", "people"], "n": 80, "percent": 0.6, "kappa": 0.25, "kappa_interval": [0.1, 0.4]},
        {"judges": ["people", "gpt"], "n": 80, "percent": 0.5, "kappa": 0.02, "kappa_interval": [-0.1, 0.14]},
    ]
    table = agreement_tables.matrix(found, reported(found))
    assert table.heads == ["Independent judge", "gpt"]
    assert [(name, [cell.percent for cell in cells]) for name, cells in table.rows] == [
        ("gpt", [f"70{GAP}%"]),
        ("People", [f"60{GAP}%", f"50{GAP}%"]),
    ]
    assert table.rows[0][1][0].kappa == "κ 0.40 (0.20 to 0.60)"
    assert agreement_tables.sentences(found, reported(found)) == [
        f"Independent judge and people give the same verdict on 60{GAP}% of 80 pairs: 25{GAP}% of the way from chance "
        "to full agreement.",
        f"gpt and people give the same verdict on 50{GAP}% of 80 pairs. This is not shown to be more than chance.",
    ]
    assert agreement_tables.matrix(metrics(judge=judge(0.5, 0.6)), reported(found)).rows == []
    del found["agreement"][1:]
    assert len(agreement_tables.sentences(found, reported(found))) == 1, "without people, the judges with each other"


def test_slices_stand_under_all_and_only_clear_ones_are_marked() -> None:
    slices = [
        rate(0.7, 0.6, 0.8, name="topic=law", n=50, prompts=50, p=0.0004, p_holm=0.0012),
        rate(0.3, 0.2, 0.45, name="short", n=50, prompts=50, p=0.02, p_holm=0.04),
        rate(0.6, 0.5, 0.7, name="long", n=50, prompts=50, p=0.049, p_holm=0.049 * 2),
    ]
    found = metrics(judge=judge(0.5, 0.6, slices=slices), reward=judge(0.5, 0.6))
    (table,) = slice_tables(found, reported(found))
    assert [(row.name, row.tag, row.warns) for row in table.rows] == [
        ("all", "", False),
        ("topic=law", "tuned better", False),
        ("short", "tuned worse", True),
        ("long", "", False),
    ]
    assert table.rows[1].cells[-2:] == ("< 0.001", "0.001")
    assert {len(row.cells) for row in table.rows} == {len(table.heads) - 1}


def test_the_rate_at_equal_length_stands_beside_the_raw_one() -> None:
    controlled = rate(0.5, 0.4, 0.6, raw=0.7, extreme=True)
    found = metrics(judge=judge(0.6, 0.8, length_controlled=controlled), people=judge(0.6, 0.8, length_controlled=None))
    table = slices.lengths(found, reported(found))
    assert table is not None
    (row,) = table.rows
    assert row.cells == (f"50.0{GAP}%", f"40.0–60.0{GAP}%", f"70.0{GAP}% (60.0–80.0{GAP}%)")
    assert row.tag == "length explains much" and row.warns
    (doubt,) = verdict_section.doubts(found, reported(found))
    assert doubt.startswith("Length explains much of the win rate by independent judge: at equal length it is 50.0")
    controlled["extreme"] = False
    assert verdict_section.doubts(found, reported(found)) == []
    controlled |= {"win_rate": None, "interval": None}
    table = slices.lengths(found, reported(found))
    assert table is not None and table.rows[0].cells[:2] == ("–", "–")


def test_one_answer_to_everything_is_seen_at_once() -> None:
    found = metrics(judge=judge(0.6, 0.8)) | {
        "duplicates": {
            "a": {"rows": 45, "share": 0.45, "most": "I do\nnot know.", "count": 45},
            "b": {"rows": 4, "share": 0.04, "most": "Yes.", "count": 4},
        }
    }
    assert verdict_section.doubts(found, reported(found)) == [
        "The tuned model gives the same answer to 45 of 100 prompts: “I do not know.”."
    ]
    assert verdict_section.measures(found, reported(found)) == [
        ("answers given more than once", [f"45.0{GAP}%", f"4.0{GAP}%"])
    ]
    assert verdict_section.doubts(found | {"duplicates": {}, "identical": 50}, reported(found)) == [
        "Both models give exactly the same answer to 50 of 100 prompts; these pairs count as ties."
    ]
    assert verdict_section.quoted("") == "the empty answer" and len(verdict_section.quoted("x" * 200)) == 84


def test_figures_against_people_have_the_names_of_autosxs() -> None:
    one = {"accuracy": 0.7, "precision": None, "recall": 0.8, "f1_score": 0.75, "cohens_kappa": -0.1}
    counts = [f"{sign}_{kind}_count" for sign in ("true", "false") for kind in ("positive", "negative")]
    one |= {"model_win_rate": 0.6, "human_preference_model_win_rate": 0.5, **dict.fromkeys(counts, 3)}
    found = metrics(gpt=judge(0.5, 0.6)) | {"against_people": {"gpt": one}}
    table = dict(agreement_tables.against_people(found, reported(found)))
    assert table[""] == ["gpt"]
    assert table["accuracy"] == [f"70.0{GAP}%"] and table["cohens_kappa"] == ["−0.10"] and table["precision"] == ["–"]
    assert set(one) == set(table) - {""}


def make_rounds() -> dict[str, Any]:
    sides = [{"key": key, "name": key} for key in ("a", "b", "side.round-2", "side.round-1")]
    found = metrics(judge=judge(0.6, 0.8), people=judge(0.55, 0.75)) | {"sides": sides, "kl": {"mean": 3.0}}
    found["rates"] = [
        {"a": "b", "b": "side.round-1", "judge": "judge"} | rate(0.45, 0.4, 0.55, win=40, loss=50, tie=10),
        {"a": "side.round-2", "b": "b", "judge": "judge"} | rate(0.65, 0.6, 0.7),
        {"a": "a", "b": "side.round-2", "judge": "judge"} | rate(0.52, 0.45, 0.6),
        {"a": "side.round-1", "b": "side.round-2", "judge": "judge"} | rate(0.4, 0.3, 0.5),
    ]
    found["rating"] = {
        "judge": [
            {"side": side["key"], "bradley_terry": 1000.0 + i, "interval": [900, 1100]} for i, side in enumerate(sides)
        ]
    }
    return found


def test_rounds_stand_one_a_row_all_against_the_base(tmp_path: Path) -> None:
    earlier = metrics(people=judge(0.4, 0.6, kind="people")) | {"kl": {"mean": 1.5}}
    files.write_json(tmp_path / "one" / "comparison" / "metrics.json", earlier)
    found = make_rounds()
    shown = rounds.section(found, [str(tmp_path / "one"), str(tmp_path / "gone")], reported(found))
    assert shown is not None
    assert shown.heads == ["Independent judge", "People", "KL", "Rating, independent judge"]
    assert [row[0] for row in shown.rows] == ["Round 0, the base model", "Round 1", "Round 2", "Round 3, this run"]
    by_judge, by_people, kl, rating = zip(*(row[1:] for row in shown.rows), strict=True)
    assert by_judge[1:] == (
        f"55.0{GAP}% (45.0–60.0{GAP}%)",
        f"65.0{GAP}% (60.0–70.0{GAP}%)",
        f"70.0{GAP}% (60.0–80.0{GAP}%)",
    )
    assert by_people == ("", f"50.0{GAP}% (40.0–60.0{GAP}%)", "", f"65.0{GAP}% (55.0–75.0{GAP}%)")
    assert kl == ("0", "1.50", "", "3.00")
    assert rating == tuple(f"{found} (900–1100)" for found in (1001, 1003, 1002, 1000))
    assert verdict_section.ratings(found, reported(found)) == [
        ("Judge", ["A", "B", "Side.round-2", "Side.round-1"]),
        ("Independent judge", [f"{found} (900–1100)" for found in (1000, 1001, 1002, 1003)]),
    ]
    assert [(row.name, row.cells[0]) for row in shown.steps.rows] == [
        ("Round 2 against round 1", f"60.0{GAP}%"),
        ("Round 3 against round 2", f"52.0{GAP}%"),
    ]
    assert [len(one.points) for one in shown.charts[0].series[:2]] == [4, 3]
    assert verdict_section.other_pairs(found, reported(found)).rows == []
    powered = {"prediction_powered": {"judge": rate(0.6, 0.5, 0.7)}}
    files.write_json(tmp_path / "one" / "comparison" / "metrics.json", earlier | powered)
    shown = rounds.section(found | powered, [str(tmp_path / "one"), str(tmp_path / "gone")], reported(found))
    assert shown is not None and shown.heads[2] == "People with independent judge"
    assert [row[3] for row in shown.rows] == ["", f"60.0{GAP}% (50.0–70.0{GAP}%)", "", f"60.0{GAP}% (50.0–70.0{GAP}%)"]
    del found["judges"]["people"]
    shown = rounds.section(found, [str(tmp_path / "one"), str(tmp_path / "gone")], reported(found))
    assert shown is not None and shown.rows[1][2] == by_people[1], "of round 1 they said it, of this one not yet"
    assert rounds.section(metrics(judge=judge(0.5, 0.6)), [], reported(found)) is None


def test_a_rate_seen_from_the_other_side() -> None:
    found = rate(0.6, 0.5, 0.8, win=5, tie=2, loss=3)
    assert rounds.swapped(found) == rate(0.4, pytest.approx(0.2), 0.5, win=3, tie=2, loss=5)
    assert interval_tables.rate_text(found["win_rate"], found["interval"]) == f"60.0{GAP}% (50.0–80.0{GAP}%)"


def judgment(id: str, by: str, choice: Any, confidence: float = 1.0, **extra: Any) -> Judgment:
    return Judgment(id, "", "p", "x", "y", choice, confidence, by, extra.pop("explanation", ""), extra)


def test_disagreement_with_people_comes_before_that_among_judges() -> None:
    pairs = [
        {"judge": [judgment("0", "judge", "A")], "people": [judgment("0", "people", "B")] * 2},
        {"judge": [judgment("1", "judge", "A")], "people": [judgment("1", "people", c) for c in ("B", "tie")]},
        {"judge": [judgment("2", "judge", "A")], "people": [judgment("2", "people", "tie")]},
        {"judge": [judgment("3", "judge", "A")], "gpt": [judgment("3", "gpt", "B")]},
    ]
    assert examples.disagreement(pairs, "judge") == ("judge against people", [2.0, 1.5, 0.0, 0.0])
    assert examples.disagreement(pairs, "people") == ("judge against people", [2.0, 1.5, 0.0, 0.0])
    assert examples.disagreement(pairs[3:], "judge") == ("judges disagree", [2.0])


def test_leads_are_scores_or_mean_verdicts() -> None:
    assert examples.lead([judgment("0", "judge", "A", score_a=1.0, score_b=3.0)]) == -2.0
    votes = [judgment("0", "people", choice) for choice in ("A", "A", "B", "tie")]
    assert examples.lead(votes) == 0.25
    assert examples.lead([judgment("0", "gpt", "B", confidence=0.8)]) == -0.8
    assert examples.lead([]) is None


def test_only_judgments_of_tuned_against_base_are_examples() -> None:
    rows = [
        judgment("0", "judge", "A", model_a="tuned", model_b="base"),
        judgment("0", "judge", "B", model_a="base", model_b="round-1"),
        judgment("0", "people", "B", model_a="tuned", model_b="base"),
    ]
    assert examples.grouped(rows, "tuned", "base") == {"0": {"judge": [rows[0]], "people": [rows[2]]}}


def test_a_verdict_is_shown_without_what_is_unknown() -> None:
    verdicts = [{"first": "a", "vote": 0, "choice": "A"}, {"first": "b", "vote": 0, "choice": None}]
    row = examples.verdict_row(judgment("0", "gpt", "A", 0.75, explanation="It is true.", verdicts=verdicts))
    assert row == {
        "judge": "gpt",
        "choice": "tuned",
        "confidence": 0.75,
        "orders": [["tuned", "tuned"], ["base", "no verdict"]],
        "words": "It is true.",
    }
    vote = judgment("0", "people", "tie", 0.5, annotator="ann", both_bad=True, note="Both lie.", flagged=True)
    assert examples.verdict_row(vote) == {
        "judge": "people",
        "choice": "both bad",
        "annotator": "ann",
        "note": "Both lie.",
        "flagged": True,
    }


def test_pairs_are_left_out_in_turn_where_they_do_not_fit() -> None:
    rows = [{"group": group, "size": size} for group, size in (("x", 3), ("x", 3), ("x", 3), ("y", 3), ("y", 9))]
    assert examples.fit(rows, 9, lambda row: row["size"]) == [rows[0], rows[1], rows[3]]
    assert examples.fit(rows, 100, lambda row: row["size"]) == rows


def test_parts_that_are_not_there_are_not_shown(tmp_path: Path) -> None:
    compared.make(tmp_path, judges=("judge",))
    page = render(make_recipe(), tmp_path)
    for title in ("Agreement of the judges", "Against people", "Order:", "Rounds", "Before you believe it"):
        assert title not in page
    compared.make(tmp_path)
    page = render(make_recipe(), tmp_path)
    assert "Agreement of the judges" in page and "People" in page


def test_what_changed_on_balance_is_told_with_its_test() -> None:
    found = metrics(judge=judge(0.6, 0.8)) | {"changed": {"better": 9, "worse": 1, "even": 3, "p_exact": 0.0215}}
    assert (
        "prompt by prompt",
        "tuned is better on 9, worse on 1, equal on 3 prompts; sign test: p = 0.021",
    ) in verdict_section.notes(found, reported(found))


def test_small_probabilities_and_counts() -> None:
    assert [interval_tables.probability(p) for p in (0.0004, 0.001, 0.5)] == ["< 0.001", "0.001", "0.500"]
    assert (
        interval_tables.counted(1, "person", "people") == "1 person" and interval_tables.counted(2, "vote") == "2 votes"
    )
