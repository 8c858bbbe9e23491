"""Agreement between judges in files of any format: the same verdicts agree wholly, however they are written."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands.test_exports import made

from preferent import files
from preferent.cli import arguments
from preferent.commands import exports
from preferent.errors import DataError, PlatformError, UsageError
from preferent.evaluation import judge_agreement, judgment_files

PROMPTS = [f"p{i}" for i in range(8)]
CHOICES = ["A", "B", "tie", "A", "A", "B", "tie", "B"]
A = [f"the answer {i} of a" for i in range(8)]
B = [f"an answer {i} of b" for i in range(8)]
SWAP = {"A": "B", "B": "A", "tie": "tie"}


def ours(swap: bool = False, **more: Any) -> list[dict[str, Any]]:
    """Judgments in AutoSxS columns; swapped ones have b in the place of a."""
    rows = []
    for i, (prompt, a, b, choice) in enumerate(zip(PROMPTS, A, B, CHOICES, strict=True)):
        first, second = (b, a) if swap else (a, b)
        row = {"id": f"row-{i}", "inference_instruction": "", "inference_context": prompt}
        row |= {"response_a": first, "response_b": second, "choice": SWAP[choice] if swap else choice}
        rows.append(row | {"confidence": 1.0, "explanation": "", "judge": "x"} | more)
    return rows


def preferences() -> list[dict[str, Any]]:
    rows = zip(PROMPTS, A, B, CHOICES, strict=True)
    return [
        {"input_text": p, "candidate_0": b, "candidate_1": a, "choice": {"A": 1, "B": 0, "tie": "tie"}[choice]}
        for p, a, b, choice in rows
    ]


def alpaca() -> list[dict[str, Any]]:
    rows = zip(PROMPTS, A, B, CHOICES, strict=True)
    return [
        {"instruction": p, "output_1": b, "output_2": a, "preference": {"A": 2.0, "B": 1, "tie": 1.5}[choice]}
        for p, a, b, choice in rows
    ]


def arena() -> list[dict[str, Any]]:
    """Arena-Hard: a is the model, b the baseline, which is A in the first game."""
    scores = {"A": ("B>>A", "A>B"), "B": ("A>B", "B>A"), "tie": ("A>B", "A>B")}
    return [
        {"uid": str(i), "judge": "arena", "model": "m", "baseline": "b"}
        | {"games": [{"score": s} for s in scores[choice]]}
        for i, choice in enumerate(CHOICES)
    ]


def mt_bench() -> list[dict[str, Any]]:
    winners = {"A": ("model_2", "model_2"), "B": ("model_1", "model_1"), "tie": ("model_1", "model_2")}
    return [
        {"question_id": i, "model_1": "b", "model_2": "m", "judge": ["gpt-4", "pair-v2"], "turn": 1}
        | dict(zip(("g1_winner", "g2_winner"), winners[choice], strict=True))
        for i, choice in enumerate(CHOICES)
    ]


def wrote(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    if name.endswith(".jsonl"):
        files.write_jsonl(folder / name, rows)
    else:
        files.write_json(folder / name, rows)
    return folder / name


def test_the_same_verdicts_agree_in_every_format_of_answers(tmp_path: Path) -> None:
    files = [
        wrote(tmp_path, "ours.jsonl", ours()),
        wrote(tmp_path, "swapped.jsonl", ours(swap=True, judge="y")),
        wrote(tmp_path, "preferences.jsonl", preferences()),
        wrote(tmp_path, "annotations.json", alpaca()),
    ]
    figures = judge_agreement.between_files(files, people=files[1])
    assert (figures["units"], figures["shared"]) == (8, 8)
    assert [(pair["n"], pair["percent"], pair["kappa"]) for pair in figures["pairs"]] == [(8, 1.0, 1.0)] * 6
    assert figures["krippendorff"]["alpha"] == 1.0
    judged = figures["against_people"]["x"]
    assert (judged["accuracy"], judged["tie_count"], judged["true_positive_count"]) == (1.0, 2, 3)
    assert (judged["model_win_rate"], judged["human_preference_model_win_rate"]) == (0.5, 0.5)
    assert set(figures["against_people"]) == {"x", "preferences", "annotations"}


def test_the_same_verdicts_agree_in_every_format_of_models(tmp_path: Path) -> None:
    files = [wrote(tmp_path, "arena.jsonl", arena()), wrote(tmp_path, "gpt-4_pair.jsonl", mt_bench())]
    figures = judge_agreement.between_files(files)
    assert figures["units"] == 8
    assert [(pair["judges"], pair["n"], pair["percent"]) for pair in figures["pairs"]] == [(["arena", "gpt-4"], 8, 1.0)]
    (tmp_path / "mine.csv").write_text("q,who,said\n" + "".join(f"{i},ann,{c}\n" for i, c in enumerate(CHOICES)))
    with pytest.raises(
        DataError, match=r"mine\.csv:2: the row is not in a known format of judgments[\s\S]*--columns ID,CHOICE"
    ):
        judge_agreement.between_files([tmp_path / "mine.csv"])


@pytest.mark.parametrize(
    ("rows", "expected"), [(arena(), CHOICES), (mt_bench(), CHOICES), (ours(), CHOICES), (preferences(), CHOICES)]
)
def test_a_choice_is_read_as_its_format_means_it(
    tmp_path: Path, rows: list[dict[str, Any]], expected: list[str]
) -> None:
    read = judgment_files.read(wrote(tmp_path, "x.jsonl", rows))
    assert [
        pair.choice_with_a(next(side for side in (A[i], "m") if side in (pair.side_a, pair.side_b)))
        for i, pair in enumerate(read)
    ] == (expected)


def test_columns_of_ones_own_say_a_for_a(tmp_path: Path) -> None:
    (tmp_path / "ann.csv").write_text("q,said\n1,A\n2,model_b\n3,Tie\n4,A\n")
    (tmp_path / "bob.csv").write_text("q,said\n1,A\n2,a\n3,tie\n5,error\n")
    figures = judge_agreement.between_files([tmp_path / "ann.csv", tmp_path / "bob.csv"], columns=("q", "said"))
    assert [(pair["judges"], pair["n"], pair["percent"]) for pair in figures["pairs"]] == [
        (["ann", "bob"], 3, pytest.approx(2 / 3))
    ]
    assert figures["raters"] == {"ann": {"n": 4, "unknown": 0}, "bob": {"n": 3, "unknown": 1}}
    with pytest.raises(DataError, match=r"ann\.csv:2: has no column said2; it has q, said"):
        judge_agreement.between_files([tmp_path / "ann.csv"], columns=("q", "said2"))
    (tmp_path / "bad.csv").write_text("q,said\n1,perhaps\n")
    with pytest.raises(DataError, match=r"bad\.csv:2: .*'perhaps' is not a choice; write A, B or tie"):
        judge_agreement.between_files([tmp_path / "bad.csv"], columns=("q", "said"))


def test_annotators_of_one_file_are_raters_of_their_own(tmp_path: Path) -> None:
    rows = ours(judge="people", annotator="ann") + ours(judge="people", annotator="bob")
    rows[0]["choice"] = "B"
    figures = judge_agreement.between_files([wrote(tmp_path, "labels.jsonl", rows)])
    assert [(pair["judges"], pair["n"], pair["percent"]) for pair in figures["pairs"]] == [(["ann", "bob"], 8, 0.875)]


def test_what_says_nothing_is_counted_and_equal_answers_are_left_out(tmp_path: Path) -> None:
    rows = ours(verdicts=[{"first": "a", "vote": 0, "choice": None, "probability": None}])[:2] + ours()[2:]
    rows[7] |= {"response_a": "same", "response_b": "same"}
    figures = judge_agreement.between_files(
        [wrote(tmp_path, "a.jsonl", rows), wrote(tmp_path, "b.jsonl", ours(judge="y"))]
    )
    assert figures["raters"]["x"] == {"n": 5, "unknown": 2}
    assert figures["pairs"][0]["n"] == 5


def test_what_compare_writes_for_others_agrees_with_itself(tmp_path: Path) -> None:
    exports.write(made(tmp_path, people=False), ["alpaca", "preferences"])
    figures = judge_agreement.between_files([tmp_path / "judgments.jsonl", tmp_path / "annotations.json"])
    same = [
        pair
        for pair in figures["pairs"]
        if {name.rpartition(": ")[2] for name in pair["judges"]} in ({"judge"}, {"gpt"})
    ]
    assert [(pair["n"], pair["percent"]) for pair in same] == [(4, 1.0), (3, 1.0)]
    figures = judge_agreement.between_files([tmp_path / "judgments.jsonl", tmp_path / "preferences.jsonl"])
    same = [pair for pair in figures["pairs"] if {name.rpartition(": ")[2] for name in pair["judges"]} == {"judge"}]
    assert [(pair["n"], pair["percent"]) for pair in same] == [(4, 1.0)]


def test_our_table_says_what_our_judgments_say(tmp_path: Path) -> None:
    exports.write(made(tmp_path), ["csv"])
    judged, tabled = (judgment_files.read(tmp_path / name) for name in ("judgments.jsonl", "judgments.csv"))
    there = {(pair.rater, pair.unit): (pair.side_a, pair.side_b, pair.choice, pair.prompt) for pair in tabled}
    assert {key: there[key] for key in ((pair.rater, pair.unit) for pair in judged)} == {
        (pair.rater, pair.unit): (pair.side_a, pair.side_b, pair.choice, pair.prompt) for pair in judged
    }
    assert there["gpt", "2"][2] is None
    assert there["gpt", "1"][0] == "=1+1"


def test_a_ragged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,choice\n1,A,more\n")
    with pytest.raises(DataError, match=r"x\.csv:2: bad table: the row has more cells"):
        judgment_files.read(tmp_path / "x.csv")


def test_files_about_other_pairs_are_refused(tmp_path: Path) -> None:
    other = [row | {"id": "x", "response_a": "other"} for row in ours()[:1]]
    files = [wrote(tmp_path, "a.jsonl", ours()), wrote(tmp_path, "b.jsonl", other)]
    with pytest.raises(UsageError, match="no pair is in two of them"):
        judge_agreement.between_files(files)
    with pytest.raises(PlatformError, match="no such file"):
        judge_agreement.between_files([tmp_path / "nothing"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no judgments"):
        judge_agreement.between_files([tmp_path / "empty.jsonl"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(wrote(tmp_path, "a.jsonl", ours())), str(wrote(tmp_path, "b.jsonl", ours(judge="y", choice="A")))]
    command = arguments.parser().parse_args(["agree", *files, "--people", files[0]])
    command.do(command)
    text = capsys.readouterr().out
    assert "8 of 8 pairs were seen by two or more" in text
    assert "x and y: 37.5%" in text
    assert "y against people's verdicts, 8 pairs: accuracy 0.500" in text
    command = arguments.parser().parse_args(["agree", *files, "--json"])
    command.do(command)
    assert json.loads(capsys.readouterr().out)["pairs"][0]["percent"] == 0.375


@pytest.mark.parametrize(
    "row",
    [
        {"input_text": "Q", "candidate_0": "a", "candidate_1": "b", "choice": True},
        {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 5},
        {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": -1},
        {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": True},
    ],
)
def test_a_number_that_is_no_choice_is_refused_with_its_place(tmp_path: Path, row: dict[str, Any]) -> None:
    files.write_jsonl(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=r"x\.jsonl:1: the row cannot be read as a judgment"):
        judgment_files.read(tmp_path / "x.jsonl")


def test_the_input_of_an_instruction_tells_prompts_apart(tmp_path: Path) -> None:
    row = {"instruction": "Translate", "output_1": "a", "output_2": "b", "preference": 1}
    files.write_jsonl(tmp_path / "x.jsonl", [row | {"input": "cat"}, row | {"input": "dog"}, row])
    assert [pair.prompt for pair in judgment_files.read(tmp_path / "x.jsonl")] == [
        "Translate\ncat", "Translate\ndog", "Translate",
    ]  # fmt: skip
