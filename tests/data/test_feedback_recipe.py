"""A recipe that names an export of feedback: its pairs and thumbs in parts that share no prompt, the rest counted."""

import json
from pathlib import Path

import pytest
from feedback_exports import PERSONAL, answer, chat, question, record, save

from preferent.commands.data_files import check, convert
from preferent.config import recipe
from preferent.data import datasets, prepare
from preferent.data.formats.row_reader import Dropped, RecordsRead, kept
from preferent.data.types import Preference, Thumb
from preferent.errors import DataError

PARTS = ("train", "judge", "validation", "test")


def export(folder, chats=60, good=lambda number: number % 3 > 0, arena=True, name="export.json"):
    """Each second chat has a thumb on its answer, the others an arena vote; and one record in four says nothing."""
    rows = []
    for number in range(chats):
        asked = question("q", f"What is thing {number}?")
        a, b = answer("a", f"A drink {number}.", "q"), answer("b", f"A rock {number}.", "q", "qwen")
        stored = chat(asked, a, b, id=f"{PERSONAL}-chat-{number}")
        is_vote = arena and number % 2 == 0
        rows.append(record(stored, "a", 1 if good(number) else -1, siblings=["qwen"], arena=is_vote))
        if number % 4 == 0:
            rows.append(record(stored, "b", None))
    return save(folder, rows, name)


def prepared(folder, *paths, name="data", **values):
    values = {"data": {"validation_share": 0.2, "test_share": 0.2}} | values
    given = {"large_model_reference": "m", "preference_dataset": list(paths)} | values
    prepare.main(recipe.parse(given)[0], {}, Path(folder) / name, offline=True)
    return Path(folder) / name


def feedback(folder, part):
    return datasets.load_feedback(folder / f"preference/{part}.jsonl")


def test_an_export_is_a_preference_dataset(tmp_path):
    out = prepared(tmp_path, export(tmp_path))
    counts = json.loads((out / "counts.json").read_text())
    read = counts["feedback"]
    assert (read["format"], read["read"], read["kept"]) == ("open-webui", 75, 60)
    assert (read["pairs"], read["thumbs"], read["dropped"]) == (30, 30, {"no rating": 15})
    rows = {part: feedback(out, part) for part in PARTS}
    assert sum(isinstance(row, Preference) for part in rows.values() for row in part) == 30
    assert {part: sum(isinstance(row, Thumb) for row in each) for part, each in rows.items()} == counts["thumbs"]
    prompts = {part: {row.prompt.key for row in each} for part, each in rows.items()}
    assert not prompts["train"] & (prompts["judge"] | prompts["validation"] | prompts["test"])
    asked = [datasets.load_prompts(out / f"prompt/{part}.jsonl") for part in PARTS if part != "judge"]
    assert {prompt.key for part in asked for prompt in part} == set().union(*prompts.values())
    assert datasets.load_preferences(out / "preference/train.jsonl") == [
        row for row in rows["train"] if isinstance(row, Preference)
    ]
    for file in out.rglob("*.jsonl"):
        assert PERSONAL not in file.read_text() or file.name == "dropped.jsonl", file
    assert PERSONAL not in (out / "dropped.jsonl").read_text()


def test_an_export_and_what_it_was_converted_to_give_the_same_rows(tmp_path):
    path = export(tmp_path)
    convert.convert_feedback([path], Path(tmp_path) / "files")
    direct = prepared(tmp_path, path)
    files = [str(Path(tmp_path) / "files" / f"{name}.jsonl") for name in ("preferences", "thumbs")]
    again = prepared(tmp_path, *files, name="again")
    for part in PARTS:
        one, two = ({(row.prompt.key, *row.sides) for row in feedback(folder, part)} for folder in (direct, again))
        assert one == two


def test_data_check_says_what_is_in_an_export(tmp_path):
    summary = check.check_files([export(tmp_path, 8)])
    (file,) = summary.files
    assert (file.kind, file.format, file.read, file.kept) == ("feedback", "open-webui", 10, 8)
    assert summary.ok and file.tally is not None and file.tally.ties == 0
    text = check.render(summary)
    assert "feedback (open-webui), 10 rows, 8 usable" in text
    assert "'What is thing 1?' | up 'A drink 1.'" in text


def test_rows_without_feedback_do_not_count_as_faults():
    rows = [Dropped("f", 1, "no rating: none", is_fault=False), Dropped("f", 2, "malformed JSON: x")]
    reading = RecordsRead([], rows, 10, "open-webui")
    assert kept(reading, 0.1) == []
    with pytest.raises(DataError, match=r"1 of 10 rows cannot be used, .*\n  f:2: malformed JSON"):
        kept(reading, 0.05)


@pytest.mark.parametrize("method", ["kto", "reinforcement_learning"])
def test_one_class_alone_is_refused_in_the_data_stage(tmp_path, method):
    path = export(tmp_path, arena=False, good=lambda number: True)
    with pytest.raises(DataError, match="thumbs up and none down: one class alone says nothing"):
        prepared(tmp_path, path, method=method)


def test_thumbs_alone_are_enough_for_kto_and_for_a_reward_model_but_not_for_dpo(tmp_path):
    path = export(tmp_path, arena=False)
    for method in ("kto", "reinforcement_learning"):
        prepared(tmp_path, path, method=method, name=method)
    with pytest.raises(DataError, match="method: dpo learns from pairs alone; use method: kto"):
        prepared(tmp_path, path, method="dpo")


def test_a_judge_has_its_share_of_the_thumbs(tmp_path):
    out = prepared(tmp_path, export(tmp_path, 120), compare={"judge_share": 0.4})
    judge, train = feedback(out, "judge"), feedback(out, "train")
    assert any(isinstance(row, Thumb) for row in judge) and any(isinstance(row, Preference) for row in judge)
    assert not {row.prompt.key for row in judge} & {row.prompt.key for row in train}
