"""The comparison: joining, verdict and figures from injected scores; the stage with models replaced by functions."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preferent import files
from preferent.config.comparison_sections import JudgeSection as RecipeJudge
from preferent.config.recipe import parse
from preferent.data import judgments, predictions
from preferent.data.judgment_outcomes import JudgmentOutcomes
from preferent.data.predictions import Answer
from preferent.data.types import Judgment, Message, Prompt
from preferent.errors import DataError, PlatformError, UsageError
from preferent.evaluation import comparison_figures, comparison_summary, human_judgments
from preferent.evaluation.comparison_summary import verdict
from preferent.evaluation.inference import compare, language_model_judges, reward_model_judges
from preferent.evaluation.judge_results import JudgeResults, by_scores, paired
from preferent.evaluation.judges.protocol import Call, Reply, ScriptedJudge
from preferent.evaluation.statistics import length_control

PROMPTS = ["Be brief.\n\n\nWhy?", "Be brief.\n\n\nWho?", "Be brief.\n\n\nWhat?", "Be brief.\n\n\nWhen?"]
TUNED = ["the cat sat", "You.", "Same.", "Soon, very soon."]
BASE = ["a dog ran off", "Me.", "Same.", "Now."]
SCORES = {"a": np.array([1.0, 2.0, 0.5, 1.0]), "b": np.array([0.0, 1.0, 0.4, 3.0])}


def answers(texts: list[str], **more: list[Any]) -> list[Answer]:
    rows = zip(PROMPTS, texts, strict=True)
    return [
        Answer(str(i), prompt, "", text, **{key: values[i] for key, values in more.items()})
        for i, (prompt, text) in enumerate(rows)
    ]


def sides(**more: list[Any]) -> dict[str, list[Answer]]:
    return {"a": answers(TUNED, tokens=[4, 2, 2, 6], **more), "b": answers(BASE, tokens=[5, 2, 2, 2])}


NAMES = compare.SIDES


def judged(
    answers: dict[str, list[Answer]], scores: dict[str, Any], headline: str | None, instruction: str | None = None
) -> Any:
    """Judgments and figures by judges who gave these scores."""
    opinions = [by_scores(name, raw, answers, instruction, NAMES) for name, raw in scores.items()]
    return verdict(answers, opinions, headline, NAMES)


def write(path: Path, texts: list[str], ids: bool = True, references: list[str] | None = None, **more: Any) -> Path:
    rows = []
    for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        row = {
            "inputs": {"inputs_pretokenized": prompt, "targets_pretokenized": references[i] if references else ""},
            "prediction": text,
        }
        rows.append(row | ({"id": f"row-{i}"} if ids else {}) | more)
    files.write_jsonl(path, rows)
    return path


def test_figures_of_one_judge_by_hand() -> None:
    judgments, metrics = judged(sides(), {"judge": SCORES}, "judge", "Be brief.")
    assert [j.choice for j in judgments] == ["A", "A", "tie", "B"]
    judge = metrics["judges"]["judge"]
    assert (judge["win"], judge["tie"], judge["loss"], judge["n"], judge["prompts"]) == (2, 1, 1, 4, 4)
    assert judge["win_rate"] == metrics["autosxs_model_a_win_rate"] == 0.625
    assert metrics["autosxs_model_b_win_rate"] == 0.375
    assert judge["mean_score"] == {"a": 1.125, "b": 1.1}
    assert (judge["kind"], metrics["rates"]) == ("reward_model", [])
    assert judge["independent"] is True
    assert judge["interval"][0] < 0.625 < judge["interval"][1]
    assert metrics["headline"] == "judge"
    assert metrics["identical"] == 1
    assert metrics["agreement"] == []
    assert json.loads(json.dumps(metrics, allow_nan=False))["judges"]["judge"]["method"].startswith("Tango")


def test_the_optimised_reward_stands_beside_marked() -> None:
    reward = {"a": np.array([1.0, 1.0, 1.0, 1.0]), "b": np.zeros(4)}
    judgments, metrics = judged(sides(), {"reward": reward, "judge": SCORES}, "judge", None)
    assert [j.judge for j in judgments] == ["judge"] * 4 + ["reward"] * 4
    assert metrics["judges"]["reward"]["independent"] is False
    assert metrics["judges"]["reward"]["win_rate"] == 0.875
    assert metrics["autosxs_model_a_win_rate"] == 0.625
    assert [(pair["judges"], pair["n"], pair["percent"]) for pair in metrics["agreement"]] == [
        (["judge", "reward"], 3, pytest.approx(2 / 3))  # the pair of equal answers is left out
    ]
    assert list(metrics["judges"]) == ["judge", "reward"]


def test_pairs_tell_instruction_and_context_apart() -> None:
    both = {"a": answers(TUNED), "b": answers(BASE)}
    pairs = paired(both, "a", "b", "Be brief.")
    assert (pairs[0].instruction, pairs[0].context) == ("Be brief.", "Why?")
    whole = paired(both, "a", "b", "Be long.")
    assert (whole[0].instruction, whole[0].context) == ("", PROMPTS[0])


def test_several_answers_to_a_prompt_are_one_cluster() -> None:
    a = [Answer(str(i), "same", "", "x") for i in range(6)]
    b = [Answer(str(i), "same", "", "y") for i in range(6)]
    _, metrics = judged({"a": a, "b": b}, {"judge": {"a": np.ones(6), "b": np.zeros(6)}}, "judge", None)
    assert metrics["prompts"] == 1
    assert metrics["judges"]["judge"]["interval"] == (0.0, 1.0)


def test_kl_lengths_and_ends() -> None:
    more = sides(kl=[1.0, 3.0, None, 2.0], kl_k1=[2.0, 4.0, None, 0.0], ended=[True, True, False, True])
    _, metrics = judged(more, {}, None, None)
    assert metrics["kl"] == {
        "mean": 2.0,
        "standard_error": pytest.approx(1 / math.sqrt(3)),
        "n": 3,
        "k1_mean": 2.0,
    }
    assert metrics["ended"] == {"a": 0.75}
    length = metrics["length"]
    assert (length["unit"], length["mean_a"], length["mean_b"], length["difference"]) == ("tokens", 3.5, 2.75, 0.75)
    assert (length["share_longer"], length["share_shorter"]) == (0.25, 0.25)
    assert metrics["judges"] == {}
    assert "autosxs_model_a_win_rate" not in metrics
    assert metrics["rouge"] is None


def test_lengths_are_words_where_tokens_are_not_said() -> None:
    _, metrics = judged({"a": answers(TUNED), "b": answers(BASE)}, {}, None, None)
    assert (metrics["length"]["unit"], metrics["length"]["mean_a"], metrics["length"]["mean_b"]) == ("words", 2.0, 1.75)
    assert metrics["kl"] is None


def test_length_correlation_is_over_both_sides() -> None:
    longer = {"a": np.array([4.0, 2.0, 2.0, 6.0]), "b": np.array([5.0, 2.0, 2.0, 2.0])}
    _, metrics = judged(sides(), {"judge": longer}, "judge", None)
    assert metrics["judges"]["judge"]["length_correlation"] == pytest.approx(1.0)
    flipped = {side: -values for side, values in longer.items()}
    _, metrics = judged(sides(), {"judge": flipped}, "judge", None)
    assert metrics["judges"]["judge"]["length_correlation"] == pytest.approx(-1.0)


def test_the_original_is_a_third_column() -> None:
    three = sides() | {"original": answers(["Old."] * 4, tokens=[1, 1, 1, 1])}
    scores = SCORES | {"original": np.array([0.5, 0.5, 0.5, 2.0])}
    judgments, metrics = judged(three, {"judge": scores}, "judge", None)
    judge = metrics["judges"]["judge"]
    assert [(rate["a"], rate["b"], rate["judge"], rate["win_rate"]) for rate in metrics["rates"]] == [
        ("a", "original", "judge", 0.625),  # wins 1.0 and 2.0, ties 0.5, loses 1.0
        ("b", "original", "judge", 0.5),  # loses 0.0 and 0.4, wins 1.0 and 3.0
    ]
    assert judge["mean_score"] == {"a": 1.125, "b": 1.1, "original": 0.875}
    assert [(judgment.extra["model_a"], judgment.extra["model_b"]) for judgment in judgments[::4]] == [
        ("tuned", "base"), ("tuned", "original"), ("base", "original"),
    ]  # fmt: skip
    assert metrics["length"]["mean_original"] == 1.0


def test_rouge_where_there_are_references(tmp_path: Path) -> None:
    references = ["the cat sat", "", "", ""]
    a = predictions.read(write(tmp_path / "a.jsonl", TUNED, references=references))
    b = predictions.read(write(tmp_path / "b.jsonl", BASE, references=references))
    _, metrics = judged({"a": a, "b": b}, {}, None, None)
    assert metrics["rouge"]["n"] == 1
    assert metrics["rouge"]["a"] == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert metrics["rouge"]["b"] == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def judges_named(*names: str) -> list[JudgeResults]:
    by_sides = {("a", "b"): judgments.from_scores([judgments.AnswerPair("1", "", "Why?", "x", "y")], [1.0], [0.0], "x")}
    return [JudgeResults(name, "reward_model", by_sides, independent=name != "reward") for name in names]


@pytest.mark.parametrize(
    ("wanted", "there", "headline", "message"),
    [
        ({"judge": "independent"}, ["judge", "reward"], "judge", ""),
        ({"judge": "reward"}, ["judge", "reward"], "reward", "not an independent judge"),
        ({"judge": "independent"}, ["reward"], "reward", "not an independent judge"),
        ({"judge": "independent"}, [], None, "without a win rate"),
        ({"judge": "independent"}, ["people", "reward"], "people", ""),
        ({"headline": "people"}, ["judge", "people"], "people", ""),
        ({"headline": "people"}, ["judge", "reward"], "judge", "people, which gave no verdict"),
        ({"headline": "reward"}, ["judge", "reward"], "reward", "not an independent judge"),
    ],
)
def test_who_gives_the_headline(
    wanted: dict[str, str], there: list[str], headline: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, _ = parse({"large_model_reference": "x", "compare": wanted})
    assert compare.choose(recipe, judges_named(*there)) == headline
    printed = capsys.readouterr().err
    assert message in printed and bool(message) == bool(printed)


def test_the_optimised_reward_cannot_judge_where_there_is_none() -> None:
    recipe, _ = parse({"large_model_reference": "x", "compare": {"judge": "reward"}})
    with pytest.raises(UsageError, match="--in reward=PATH"):
        compare.choose(recipe, judges_named("judge"))


def test_a_model_is_asked_with_the_prompts_of_the_data_where_all_are_known() -> None:
    rows = [Answer("0", "<user>Why?", "", "x"), Answer(Prompt("Who?").key, "Who?", "", "y")]
    prompts = [Prompt(messages=(Message("user", "Why?"),), id="0"), Prompt("Who?")]
    calls: list[Any] = []

    def scorer(*arguments: Any) -> list[float]:
        calls.append(arguments)
        return [0.0, 1.0]

    reward_model_judges.ask(scorer, {"a": predictions.with_prompts(rows, prompts)}, "x")
    reward_model_judges.ask(scorer, {"a": predictions.with_prompts(rows, prompts[:1])}, "x")
    texts = ["<user>Why?", "Who?"], ["x", "y"]
    assert calls == [(*texts, prompts, [True, True]), (*texts, None, [True, True])]


def test_a_cut_answer_is_judged_as_cut(tmp_path: Path) -> None:
    """What our own files say of the end reaches the scorer; a file that says nothing holds complete answers."""
    ours = [predictions.row(Answer(str(i), "Q", "", "A", ended=ended)) for i, ended in enumerate((True, False, None))]
    files.write_jsonl(tmp_path / "ours.jsonl", ours)
    files.write_jsonl(tmp_path / "theirs.jsonl", [{"id": str(i), "prompt": "Q", "answer": "B"} for i in range(3)])
    ended: list[list[bool]] = []

    def scorer(prompts: Any, texts: Any, records: Any, whole: Any) -> list[float]:
        ended.append(list(whole))
        return [0.0] * len(texts)

    reward_model_judges.ask(
        scorer, {"a": predictions.read(tmp_path / "ours.jsonl"), "b": predictions.read(tmp_path / "theirs.jsonl")}, "x"
    )
    assert ended == [[True, False, True], [True, True, True]]


def test_a_reward_of_which_a_part_is_not_there_gives_no_opinion(tmp_path: Path) -> None:
    recipe, inputs, out = stage(tmp_path, {"reward": {"sources": [{"source": "models/other"}]}})
    compare.main(recipe, inputs, out)
    assert files.read_json(out / "metrics.json")["headline"] is None


def test_asking_keeps_order_and_counts() -> None:
    many = {side: [Answer(str(i), str(i), "", side * i) for i in range(600)] for side in ("a", "b")}
    scores = reward_model_judges.ask(
        lambda prompts, texts, *_: [len(t) + int(p) for p, t in zip(prompts, texts, strict=True)], many, "x"
    )
    assert list(scores["a"]) == [2 * i for i in range(600)]
    with pytest.raises(PlatformError, match="returned 1 scores for 256 answers"):
        reward_model_judges.ask(lambda *_: [1.0], many, "x")


def stage(tmp_path: Path, recipe_extra: dict[str, Any] | None = None) -> tuple[Any, dict[str, Path], Path]:
    recipe, _ = parse({"large_model_reference": "x", "instruction": "Be brief.", **(recipe_extra or {})})
    write(tmp_path / "tuned" / "text.jsonl", TUNED, kl=1.5, kl_k1=1.4, tokens=3, ended=True)
    write(tmp_path / "base" / "text.jsonl", BASE, tokens=3, ended=True)
    return recipe, {"a": tmp_path / "tuned", "b": tmp_path / "base"}, tmp_path / "comparison"


def test_the_stage_by_a_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taste_for_length.py").write_text(
        "def score(prompts, answers):\n    return [len(a) for a in answers]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe, inputs, out = stage(tmp_path, {"reward": {"sources": "taste_for_length:score"}})
    compare.main(recipe, inputs, out)
    metrics = files.read_json(out / "metrics.json")
    assert metrics["headline"] == "reward"
    assert metrics["judges"]["reward"]["independent"] is False
    assert metrics["judges"]["reward"]["win"] == 2
    assert metrics["kl"]["mean"] == 1.5
    assert [j.choice for j in judgments.read(out / "judgments.jsonl")] == ["B", "A", "tie", "A"]
    assert (out / "DONE").exists()


def test_the_stage_is_done_once_and_afresh_on_changed_rows(tmp_path: Path) -> None:
    recipe, inputs, out = stage(tmp_path)
    compare.main(recipe, inputs, out)
    first = (out / "metrics.json").stat().st_mtime_ns
    compare.main(recipe, inputs, out)
    assert (out / "metrics.json").stat().st_mtime_ns == first
    write(tmp_path / "base" / "text.jsonl", TUNED, tokens=3, ended=True)
    compare.main(recipe, inputs, out)
    assert files.read_json(out / "metrics.json")["identical"] == 4


def test_comparing_without_a_judge_needs_no_torch(tmp_path: Path) -> None:
    _, inputs, out = stage(tmp_path)
    program = (
        "import sys; from pathlib import Path; from preferent.config.recipe import parse\n"
        "from preferent.evaluation.inference import compare\n"
        "recipe, _ = parse({'large_model_reference': 'x'})\n"
        f"inputs = {{'a': Path({str(inputs['a'])!r}), 'b': Path({str(inputs['b'])!r})}}\n"
        f"compare.main(recipe, inputs, Path({str(out)!r}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'a heavy library was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def vote(number: int, choice: str, annotator: str, **more: Any) -> Judgment:
    """What a person says of the tuned answer to a prompt (a) and the base's (b)."""
    extra = {"model_a": "tuned", "model_b": "base", "annotator": annotator, "first": "a", "probability": 1.0} | more
    texts = ("Be brief.", PROMPTS[number][12:], TUNED[number], BASE[number])
    return Judgment(str(number), *texts, choice, 1.0, "people", "", extra)  # type: ignore[arg-type]


def voted(path: Path, votes: list[Judgment], answers: dict[str, list[Answer]] | None = None) -> JudgeResults:
    judgments.write(votes, path)
    return human_judgments.read_votes(path, answers or sides(), NAMES)


def test_peoples_votes_by_hand(tmp_path: Path) -> None:
    votes = [
        vote(0, "A", "ann"),
        vote(0, "B", "bob", first="b"),
        vote(1, "A", "ann"),
        vote(3, "tie", "ann", both_bad=True),
    ]
    _, metrics = verdict(sides(), [voted(tmp_path / "p.jsonl", votes)], "people", NAMES)
    judge = metrics["judges"]["people"]
    assert (judge["win"], judge["tie"], judge["loss"], judge["n"], judge["prompts"]) == (2, 1, 1, 4, 3)
    assert judge["win_rate"] == metrics["autosxs_model_a_win_rate"] == 0.625
    assert (judge["kind"], judge["independent"], judge["annotators"], judge["both_bad"]) == ("people", True, 2, 1)
    assert (judge["order"]["verdicts"], judge["order"]["first_slot"]) == (4, 1.0)  # of the three that chose a side


def test_votes_count_by_the_inverse_of_how_likely_they_were_asked_for(tmp_path: Path) -> None:
    votes = [vote(0, "A", "ann", probability=0.25), vote(1, "B", "ann"), vote(3, "B", "ann", probability=0.5)]
    _, metrics = verdict(sides(), [voted(tmp_path / "p.jsonl", votes)], "people", NAMES)
    assert metrics["judges"]["people"]["win_rate"] == pytest.approx(4 / (4 + 1 + 2))


def test_a_vote_is_about_its_answers_whoever_stood_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = vote(0, "A", "ann", first="b")
    turned = human_judgments.swapped(straight)
    assert (turned.choice, turned.response_a, turned.extra["first"]) == ("B", BASE[0], "a")
    turned = dataclasses.replace(turned, extra=turned.extra | {"model_a": "x", "model_b": "y"})  # renamed since
    other = dataclasses.replace(vote(1, "A", "ann"), response_a="an answer of before")
    gone = dataclasses.replace(vote(1, "A", "ann"), id="99")
    people = voted(tmp_path / "p.jsonl", [straight, turned, other, gone])
    assert [
        (judgment.choice, judgment.extra["model_a"], judgment.extra["first"]) for judgment in people.judgments["a", "b"]
    ] == [("A", "tuned", "b")] * 2
    assert (people.facts or {})["elsewhere"] == 2
    assert "2 votes are about answers that are not compared here" in capsys.readouterr().err


def test_a_vote_that_does_not_say_which_stood_first_is_turned() -> None:
    turned = human_judgments.swapped(vote(0, "A", "ann", first=None))
    assert (turned.choice, turned.extra["first"]) == ("B", None)


def test_votes_may_be_about_other_sides(tmp_path: Path) -> None:
    three = sides() | {"original": answers(["Old."] * 4, tokens=[1] * 4)}
    old = dataclasses.replace(vote(0, "B", "ann"), response_b="Old.")
    old = dataclasses.replace(old, extra=old.extra | {"model_b": "original"})
    _, metrics = verdict(three, [voted(tmp_path / "p.jsonl", [vote(0, "A", "ann"), old], three)], "people", NAMES)
    assert [(rate["a"], rate["b"], rate["judge"], rate["win_rate"]) for rate in metrics["rates"]] == [
        ("a", "original", "people", 0.0)
    ]
    assert metrics["rating"] == {}  # b and the original never met


def lm(name: str = "gpt", **more: Any) -> RecipeJudge:
    return RecipeJudge(name=name, model="m", url="http://127.0.0.1:1/v1", **more)


def heard(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, judges: list[RecipeJudge]
) -> list[JudgeResults]:
    recipe, _ = parse({"large_model_reference": "x", "compare": {"judges": [judge.model_dump() for judge in judges]}})
    monkeypatch.setattr(language_model_judges, "load_judge", lambda *_: ScriptedJudge(script))
    return language_model_judges.judge_pairs(recipe, {}, sides(), NAMES, tmp_path / "calls")


def test_a_language_model_in_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that always takes the answer it is shown first: every pair is a tie, and the figures say why."""
    judges = heard(tmp_path, lambda _call: Reply("So it is.\nVerdict: 1"), monkeypatch, [lm()])
    judgments, metrics = verdict(sides(), judges, "gpt", NAMES)
    judged = metrics["judges"]["gpt"]
    assert [judgment.choice for judgment in judgments] == ["tie"] * 4
    assert (judged["win"], judged["tie"], judged["loss"], judged["n"]) == (3, 2, 3, 8)  # a verdict for each order
    assert (judged["kind"], judged["independent"], judged["order"]["consistent"]) == ("language_model", True, 0.0)
    assert (judged["order"]["first_slot"], judged["order"]["calls"]) == (1.0, 6)  # equal answers need none
    assert (tmp_path / "calls/gpt.jsonl").exists()


def test_unparsable_verdicts_are_counted_and_taken_as_ties_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(call: Call) -> Reply:
        text = " ".join(str(message) for message in call.messages)
        if "You." in text:
            return Reply("I cannot say.")
        return Reply("Verdict: 1" if text.index(TUNED[0 if "cat" in text else 3]) < text.index(
            BASE[0 if "cat" in text else 3]) else "Verdict: 2")  # fmt: skip

    judges = heard(tmp_path, script, monkeypatch, [lm()])
    _, metrics = verdict(sides(), judges, "gpt", NAMES)
    judged = metrics["judges"]["gpt"]
    assert (judged["win"], judged["tie"], judged["loss"]) == (4, 2, 0)
    assert (judged["order"]["unparsable"], judged["order"]["verdicts"]) == (2, 8)
    assert judged["unparsable_as_ties"]["win_rate"] == pytest.approx((4 + 4 / 2) / 8)
    with pytest.raises(DataError, match=r"gpt: none of its 6 verdicts|gpt: none of its 8 verdicts"):
        same = {side: [row for row in rows if row.id != "2"] for side, rows in sides().items()}
        monkeypatch.setattr(language_model_judges, "load_judge", lambda *_: ScriptedJudge(lambda _call: Reply("Hm.")))
        recipe, _ = parse({"large_model_reference": "x", "compare": {"judges": [lm().model_dump()]}})
        language_model_judges.judge_pairs(recipe, {}, same, NAMES, tmp_path / "other")


def test_judges_against_people_and_each_other(tmp_path: Path) -> None:
    reward = {"a": np.array([0.0, 1.0, 1.0, 1.0]), "b": np.array([1.0, 0.0, 0.0, 0.0])}
    opinions = [by_scores(name, raw, sides(), None, NAMES) for name, raw in {"judge": SCORES, "reward": reward}.items()]
    opinions.append(voted(tmp_path / "p.jsonl", [vote(0, "A", "ann"), vote(1, "A", "ann"), vote(3, "B", "ann")]))
    _, metrics = verdict(sides(), opinions, "judge", NAMES)
    assert {tuple(pair["judges"]): pair["percent"] for pair in metrics["agreement"]} == {
        ("judge", "reward"): pytest.approx(1 / 3),
        ("judge", "people"): 1.0,
        ("reward", "people"): pytest.approx(1 / 3),
    }
    against = metrics["against_people"]
    assert (against["judge"]["accuracy"], against["reward"]["accuracy"]) == (1.0, pytest.approx(1 / 3))
    assert against["reward"]["true_positive_count"] == against["reward"]["false_negative_count"] == 1
    assert against["reward"]["false_positive_count"] == 1


def test_slices_duplicates_and_change() -> None:
    tagged = sides(tags=[("law",), ("law", "hard"), ("hard",), ()])
    tagged["a"] = [
        dataclasses.replace(answer, text="Same.") if i < 2 else answer for i, answer in enumerate(tagged["a"])
    ]
    _, metrics = judged(tagged, {"judge": SCORES}, "judge")
    slices = {part["name"]: (part["n"], part["win_rate"]) for part in metrics["judges"]["judge"]["slices"]}
    assert slices == {"law": (2, 1.0), "hard": (2, 0.75)}
    assert metrics["duplicates"]["a"] == {"rows": 3, "share": 0.75, "most": "Same.", "count": 3}
    assert metrics["duplicates"]["b"] == {"rows": 0, "share": 0.0, "most": None, "count": 0}
    changed = metrics["changed"]
    assert (changed["identical"], changed["different"]) == (1, 3)
    assert (changed["better"], changed["worse"], changed["even"]) == (2, 1, 1)


def test_many_prompts_are_sliced_by_their_length_too() -> None:
    rows = [Answer(str(i), "w " * (i + 1), "", str(i)) for i in range(80)]
    both = {"a": rows, "b": [dataclasses.replace(answer, text="x") for answer in rows]}
    scores = {"a": np.arange(80.0), "b": np.full(80, 39.5)}
    _, metrics = judged(both, {"judge": scores}, "judge")
    slices = metrics["judges"]["judge"]["slices"]
    assert [(part["name"], part["n"], part["win_rate"]) for part in slices] == [
        ("prompt length to 20", 20, 0.0),
        ("prompt length over 20 to 40", 20, 0.0),
        ("prompt length over 40 to 60", 20, 1.0),
        ("prompt length over 60 to 80", 20, 1.0),
    ]


def test_three_sides_on_one_scale() -> None:
    many = {
        side: [Answer(str(i), f"p{i}", "", f"{side} {i}", tokens=3) for i in range(60)]
        for side in ("a", "b", "side.old")
    }
    scores = {side: np.array([(i * (3 + place)) % 7 + place for i in range(60)]) for place, side in enumerate(many)}
    names = {"a": "new", "b": "base", "side.old": "old"}
    opinions = [by_scores("judge", scores, many, None, names)]
    _, metrics = verdict(many, opinions, "judge", names)
    rated = {rated_side["side"]: rated_side["bradley_terry"] for rated_side in metrics["rating"]["judge"]}
    assert rated["side.old"] > rated["b"] > rated["a"]
    assert np.mean(list(rated.values())) == pytest.approx(1000)
    assert [side["name"] for side in metrics["sides"]] == ["new", "base", "old"]
    assert [(rate["a"], rate["b"]) for rate in metrics["rates"]] == [("a", "side.old"), ("b", "side.old")]


def test_the_stage_with_people_names_and_further_sides(tmp_path: Path) -> None:
    recipe, inputs, out = stage(tmp_path, {"compare": {"headline": "people"}})
    write(tmp_path / "old.jsonl", ["Old."] * 4, tokens=1)
    votes = [dataclasses.replace(vote(i, "A", "ann"), id=f"row-{i}") for i in range(4)]
    judgments.write(votes, tmp_path / "people.jsonl")
    inputs |= {"people": tmp_path / "people.jsonl", "side.old": tmp_path / "old.jsonl"}
    compare.main(recipe, inputs, out, names=("mine", "theirs", "older"))
    metrics = files.read_json(out / "metrics.json")
    assert (metrics["headline"], metrics["judges"]["people"]["win"]) == ("people", 4)
    assert [side["name"] for side in metrics["sides"]] == ["mine", "theirs", "older"]
    rows = files.read_jsonl(out / "answers.jsonl")
    assert [rows[0]["answers"][side]["text"] for side in ("a", "b", "side.old")] == [TUNED[0], BASE[0], "Old."]
    before = (out / "metrics.json").stat().st_mtime_ns
    compare.main(recipe, inputs, out, names=("mine", "theirs", "older"))
    assert (out / "metrics.json").stat().st_mtime_ns == before
    judgments.write(votes[:3], tmp_path / "people.jsonl")
    compare.main(recipe, inputs, out, names=("mine", "theirs", "older"))
    assert files.read_json(out / "metrics.json")["judges"]["people"]["win"] == 3
    with pytest.raises(UsageError, match=r"3 different names are needed, for a, b, side\.old"):
        compare.main(recipe, inputs, out, names=("mine", "theirs"))


def test_a_changed_rubric_is_a_changed_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rubric.txt").write_text("Which is funnier?")
    described = lm(template=str(tmp_path / "rubric.txt")).model_dump()
    recipe, inputs, out = stage(tmp_path, {"compare": {"judges": [described]}})
    assert set(language_model_judges.templates(recipe)) == {"template 0"}
    with pytest.raises(UsageError, match=r"--in model\.other: compare\.judges has no local model"):
        compare.main(recipe, inputs | {"model.other": tmp_path}, out)


def test_known_difficulties_make_the_length_control_alpaca_evals() -> None:
    """The regression is on pairs: a judge heard twice on each says the same as one heard once."""
    rng = np.random.default_rng(5)
    n = 60
    hard, lengths = rng.normal(size=n), rng.integers(3, 40, size=(2, n))
    outcomes = (rng.random(n) < 1 / (1 + np.exp(-hard - 0.05 * (lengths[0] - lengths[1])))).astype(float)
    ids = [str(i) for i in range(n)]
    texts = {"a": lengths[0], "b": lengths[1]}
    answers = {
        side: [
            Answer(
                id, f"prompt {id}", "", "x", tokens=int(tokens),
                prompt_record=Prompt(f"prompt {id}", extra={"instruction_difficulty": float(value)}),
            )
            for id, tokens, value in zip(ids, texts[side], hard, strict=True)
        ]
        for side in ("a", "b")
    }  # fmt: skip
    known = comparison_figures.difficulty(answers["a"])
    assert known == dict(zip(ids, hard.tolist(), strict=True))
    prompts = {id: f"prompt {id}" for id in ids}
    weights = [1.0] * n
    once = comparison_summary.controlled(JudgmentOutcomes(outcomes, ids, weights), *lengths, prompts, known)
    wanted = length_control.alpaca(outcomes, *lengths, hard)
    order = np.argsort(ids)
    assert once is not None and once["form"] == "alpaca"
    assert once["win_rate"] == length_control.alpaca(outcomes[order], *lengths[:, order], hard[order]).win_rate
    assert once["win_rate"] == pytest.approx(wanted.win_rate, abs=0.02)
    twice = JudgmentOutcomes(np.repeat(outcomes, 2), np.repeat(ids, 2).tolist(), weights * 2)
    assert comparison_summary.controlled(twice, *np.repeat(lengths, 2, axis=1), prompts, known) == once
    some = [*answers["a"][:-1], dataclasses.replace(answers["a"][-1], prompt_record=Prompt("prompt"))]
    assert comparison_figures.difficulty(some) is None
    minimal = comparison_summary.controlled(JudgmentOutcomes(outcomes, ids, weights), *lengths, prompts, None)
    assert minimal is not None and minimal["form"] == "minimal" and minimal["win_rate"] != once["win_rate"]
