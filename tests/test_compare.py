"""The comparison: joining, verdict and figures from injected scores; the stage with models replaced by functions."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preferent import answer, compare, judge, run
from preferent.answer import Answer
from preferent.compare import scoring
from preferent.compare.opinion import Opinion, by_scores, paired
from preferent.compare.tally import verdict
from preferent.error import PlatformError, UsageError
from preferent.recipe import parse
from preferent.record import Message, Prompt

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
    opinions = [by_scores(name, found, answers, instruction, NAMES) for name, found in scores.items()]
    return verdict(answers, opinions, headline, NAMES)


def write(path: Path, texts: list[str], ids: bool = True, references: list[str] | None = None, **more: Any) -> Path:
    rows = []
    for i, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        row = {
            "inputs": {"inputs_pretokenized": prompt, "targets_pretokenized": references[i] if references else ""},
            "prediction": text,
        }
        rows.append(row | ({"id": f"row-{i}"} if ids else {}) | more)
    run.write_jsonl(path, rows)
    return path


def test_figures_of_one_judge_by_hand() -> None:
    judgments, metrics = judged(sides(), {"judge": SCORES}, "judge", "Be brief.")
    assert [j.choice for j in judgments] == ["A", "A", "tie", "B"]
    found = metrics["judges"]["judge"]
    assert (found["win"], found["tie"], found["loss"], found["n"], found["prompts"]) == (2, 1, 1, 4, 4)
    assert found["win_rate"] == metrics["autosxs_model_a_win_rate"] == 0.625
    assert metrics["autosxs_model_b_win_rate"] == 0.375
    assert found["mean_score"] == {"a": 1.125, "b": 1.1}
    assert (found["kind"], metrics["rates"]) == ("reward_model", [])
    assert found["independent"] is True
    assert found["interval"][0] < 0.625 < found["interval"][1]
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
    assert [(one["judges"], one["n"], one["percent"]) for one in metrics["agreement"]] == [
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
    found = metrics["judges"]["judge"]
    assert [(rate["a"], rate["b"], rate["judge"], rate["win_rate"]) for rate in metrics["rates"]] == [
        ("a", "original", "judge", 0.625),  # wins 1.0 and 2.0, ties 0.5, loses 1.0
        ("b", "original", "judge", 0.5),  # loses 0.0 and 0.4, wins 1.0 and 3.0
    ]
    assert found["mean_score"] == {"a": 1.125, "b": 1.1, "original": 0.875}
    assert [(one.extra["model_a"], one.extra["model_b"]) for one in judgments[::4]] == [
        ("tuned", "base"), ("tuned", "original"), ("base", "original"),
    ]  # fmt: skip
    assert metrics["length"]["mean_original"] == 1.0


def test_rouge_where_there_are_references(tmp_path: Path) -> None:
    references = ["the cat sat", "", "", ""]
    a = answer.read(write(tmp_path / "a.jsonl", TUNED, references=references))
    b = answer.read(write(tmp_path / "b.jsonl", BASE, references=references))
    _, metrics = judged({"a": a, "b": b}, {}, None, None)
    assert metrics["rouge"]["n"] == 1
    assert metrics["rouge"]["a"] == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    assert metrics["rouge"]["b"] == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def opinions(*names: str) -> list[Opinion]:
    said = {("a", "b"): judge.from_scores([judge.Pair("1", "", "Why?", "x", "y")], [1.0], [0.0], "x")}
    return [Opinion(name, "reward_model", said, independent=name != "reward") for name in names]


@pytest.mark.parametrize(
    ("wanted", "there", "headline", "told"),
    [
        ({"judge": "independent"}, ["judge", "reward"], "judge", ""),
        ({"judge": "reward"}, ["judge", "reward"], "reward", "no independent judge"),
        ({"judge": "independent"}, ["reward"], "reward", "no independent judge"),
        ({"judge": "independent"}, [], None, "without a win rate"),
        ({"judge": "independent"}, ["people", "reward"], "people", ""),
        ({"headline": "people"}, ["judge", "people"], "people", ""),
        ({"headline": "people"}, ["judge", "reward"], "judge", "people, of whom there is no verdict"),
        ({"headline": "reward"}, ["judge", "reward"], "reward", "no independent judge"),
    ],
)
def test_who_gives_the_headline(
    wanted: dict[str, str], there: list[str], headline: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, _ = parse({"large_model_reference": "x", "compare": wanted})
    assert compare.choose(recipe, opinions(*there)) == headline
    said = capsys.readouterr().err
    assert told in said and bool(told) == bool(said)


def test_the_optimised_reward_cannot_judge_where_there_is_none() -> None:
    recipe, _ = parse({"large_model_reference": "x", "compare": {"judge": "reward"}})
    with pytest.raises(UsageError, match="--in reward=PATH"):
        compare.choose(recipe, opinions("judge"))


def test_a_model_is_asked_with_the_prompts_of_the_data_where_all_are_known() -> None:
    rows = [Answer("0", "<user>Why?", "", "x"), Answer(Prompt("Who?").key, "Who?", "", "y")]
    prompts = [Prompt(messages=(Message("user", "Why?"),), id="0"), Prompt("Who?")]
    given: list[Any] = []

    def scorer(*arguments: Any) -> list[float]:
        given.append(arguments)
        return [0.0, 1.0]

    scoring.ask(scorer, {"a": answer.known(rows, prompts)}, "x")
    scoring.ask(scorer, {"a": answer.known(rows, prompts[:1])}, "x")
    assert given == [(["<user>Why?", "Who?"], ["x", "y"], prompts), (["<user>Why?", "Who?"], ["x", "y"])]


def test_a_reward_of_which_a_part_is_not_there_gives_no_opinion(tmp_path: Path) -> None:
    recipe, inputs, out = stage(tmp_path, {"ppo": {"reward": [{"source": "models/other"}]}})
    compare.main(recipe, inputs, out)
    assert run.read_json(out / "metrics.json")["headline"] is None


def test_asking_keeps_order_and_counts() -> None:
    many = {side: [Answer(str(i), str(i), "", side * i) for i in range(600)] for side in ("a", "b")}
    scores = scoring.ask(
        lambda prompts, texts: [len(t) + int(p) for p, t in zip(prompts, texts, strict=True)], many, "x"
    )
    assert list(scores["a"]) == [2 * i for i in range(600)]
    with pytest.raises(PlatformError, match="returned 1 scores for 256 answers"):
        scoring.ask(lambda _prompts, _texts: [1.0], many, "x")


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
    recipe, inputs, out = stage(tmp_path, {"ppo": {"reward": "taste_for_length:score"}})
    compare.main(recipe, inputs, out)
    metrics = run.read_json(out / "metrics.json")
    assert metrics["headline"] == "reward"
    assert metrics["judges"]["reward"]["independent"] is False
    assert metrics["judges"]["reward"]["win"] == 2
    assert metrics["kl"]["mean"] == 1.5
    assert [j.choice for j in judge.read(out / "judgments.jsonl")] == ["B", "A", "tie", "A"]
    assert (out / "DONE").exists()


def test_the_stage_is_done_once_and_afresh_on_changed_rows(tmp_path: Path) -> None:
    recipe, inputs, out = stage(tmp_path)
    compare.main(recipe, inputs, out)
    first = (out / "metrics.json").stat().st_mtime_ns
    compare.main(recipe, inputs, out)
    assert (out / "metrics.json").stat().st_mtime_ns == first
    write(tmp_path / "base" / "text.jsonl", TUNED, tokens=3, ended=True)
    compare.main(recipe, inputs, out)
    assert run.read_json(out / "metrics.json")["identical"] == 4


def test_comparing_without_a_judge_needs_no_torch(tmp_path: Path) -> None:
    _, inputs, out = stage(tmp_path)
    program = (
        "import sys; from pathlib import Path; from preferent import compare; from preferent.recipe import parse\n"
        "recipe, _ = parse({'large_model_reference': 'x'})\n"
        f"inputs = {{'a': Path({str(inputs['a'])!r}), 'b': Path({str(inputs['b'])!r})}}\n"
        f"compare.main(recipe, inputs, Path({str(out)!r}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'a heavy library was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
