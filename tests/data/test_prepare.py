"""The data stage: parts that are disjoint whatever the input, every row accounted for, files checked and converted."""

import json
from collections import Counter
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from preferent.commands.data_files import check, convert
from preferent.commands.data_files.check import render
from preferent.config import recipe
from preferent.data import datasets, splits
from preferent.data.counts import count_preferences
from preferent.data.formats import row_writer
from preferent.data.prepare import main
from preferent.data.types import Preference, Prompt
from preferent.errors import DataError, UsageError

PARTS = ("train", "judge", "validation", "test")


def pair(prompt, first="A", second="B", choice=0, **keys):
    return {"input_text": prompt, "candidate_0": first, "candidate_1": second, "choice": choice, **keys}


def write(folder, name, rows):
    path = Path(folder) / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def prepare(folder, out="data", **values):
    parsed, _ = recipe.parse({"large_model_reference": "m"} | values)
    main(parsed, {}, folder / out)
    return folder / out


def prompts_of(folder, kind, part):
    path = folder / kind / f"{part}.jsonl"
    load = datasets.load_preferences if kind == "preference" else datasets.load_prompts
    return load(path) if path.exists() else []


def counts(folder):
    return json.loads((folder / "counts.json").read_text())


def assert_disjoint(out):
    """No prompt, group, or candidate without a prompt occurs in two parts, of preferences and prompts together.

    The judge's preferences are training data: their prompts may be trained on, their rows not.
    """
    labels = {
        (kind, part): {label for row in prompts_of(out, kind, part) for label in splits.labels(row)}
        for kind in ("preference", "prompt")
        for part in PARTS
    }
    for (kind, part), group_labels in labels.items():
        for (other_kind, other), others in labels.items():
            if part != other and ({part, other} != {"train", "judge"} or kind == other_kind):
                assert not group_labels & others, (kind, part, other_kind, other)


def preferences(count=200, each=2):
    return [pair(f"Q{i % count}", f"A{i}", f"B{i}", i % 2, id=f"row {i}") for i in range(count * each)]


def test_parts_are_disjoint_by_prompt_and_keep_every_row(tmp_path):
    rows = preferences()
    out = prepare(tmp_path, preference_dataset=write(tmp_path, "p.jsonl", rows))
    assert_disjoint(out)
    held = {part: prompts_of(out, "preference", part) for part in PARTS}
    assert sorted(row.id for rows in held.values() for row in rows) == sorted(row["id"] for row in rows)
    assert {part: len(rows) for part, rows in held.items()} == {"train": 270, "judge": 90, "validation": 20, "test": 20}
    prompts = {part: {row.input_text for row in prompts_of(out, "prompt", part)} for part in PARTS if part != "judge"}
    assert {part: len(texts) for part, texts in prompts.items()} == {"train": 180, "validation": 10, "test": 10}
    for part in ("validation", "test"):
        assert prompts[part] == {row.prompt.input_text for row in held[part]}
    numbers = counts(out)
    assert numbers["parts"]["preference"] == {part: len(rows) for part, rows in held.items()}
    assert (numbers["preference"]["read"], numbers["preference"]["kept"], numbers["groups"]["shared"]) == (
        400,
        400,
        200,
    )
    stage = json.loads((out / "stage.json").read_text())
    assert set(stage["inputs"]) == {"preference_dataset.0"}
    assert {"preference/train.jsonl", "prompt/test.jsonl", "counts.json"} <= set(stage["facts"]["outputs"])
    assert (out / "DONE").exists()


def test_the_parts_depend_on_the_seed_and_not_on_the_order_of_the_rows(tmp_path):
    rows = preferences()
    parts = []
    for name, given_rows, seed in (("a", rows, 0), ("b", rows[::-1], 0), ("c", rows, 1)):
        out = prepare(tmp_path, name, preference_dataset=write(tmp_path, f"{name}.jsonl", given_rows), seed=seed)
        parts.append({row.id: part for part in PARTS for row in prompts_of(out, "preference", part)})
    assert parts[0] == parts[1] != parts[2]


def test_prompts_of_their_own_share_the_groups_of_the_preferences(tmp_path):
    mine = [{"input_text": f"Q{i}"} for i in range(100, 400)]
    out = prepare(
        tmp_path,
        preference_dataset=write(tmp_path, "p.jsonl", preferences()),
        prompt_dataset=write(tmp_path, "q.jsonl", mine),
    )
    assert_disjoint(out)
    numbers = counts(out)
    assert sum(numbers["parts"]["prompt"].values()) == 300
    assert (numbers["groups"]["shared"], numbers["groups"]["all"]) == (100, 400)
    assert numbers["parts"]["prompt"]["validation"] >= 10


def test_rows_without_a_prompt_that_share_a_candidate_stay_together(tmp_path):
    chains = [pair("", f"text {i}", f"text {i + 1}", 0) for i in range(300) if i % 3 != 2]
    out = prepare(
        tmp_path,
        preference_dataset=write(tmp_path, "p.jsonl", chains),
        prompt_dataset=write(tmp_path, "q.jsonl", [{"input_text": f"Q{i}"} for i in range(50)]),
    )
    assert_disjoint(out)
    assert counts(out)["groups"]["all"] == 150
    assert all(len(prompts_of(out, "preference", part)) % 2 == 0 for part in PARTS)


def test_rows_of_a_named_group_stay_together(tmp_path):
    rows = [pair(f"Q{i}", group=f"g{i // 4}") for i in range(400)]
    out = prepare(tmp_path, preference_dataset=write(tmp_path, "p.jsonl", rows))
    assert_disjoint(out)
    assert counts(out)["groups"]["all"] == 100


def test_a_giant_group_stays_in_training(tmp_path):
    rows = [pair("giant", f"A{i}", f"B{i}") for i in range(500)] + [pair(f"Q{i}") for i in range(100)]
    for seed in range(6):
        path = write(tmp_path, "p.jsonl", rows)
        out = prepare(tmp_path, f"{seed}", preference_dataset=path, seed=seed, compare={"judge": "reward"})
        assert counts(out)["parts"]["preference"] == {"validation": 5, "test": 5, "train": 590}


def test_eval_rows_serve_validation_and_test_and_their_groups_leave_training(tmp_path):
    held = [pair(f"Q{i}", "C", "D") for i in range(40)]
    out = prepare(
        tmp_path,
        preference_dataset=write(tmp_path, "p.jsonl", preferences()),
        eval_dataset=write(tmp_path, "e.jsonl", held),
    )
    assert_disjoint(out)
    numbers = counts(out)
    assert numbers["parts"]["preference"] == {"validation": 20, "test": 20, "train": 240, "judge": 80}
    assert numbers["parts"]["prompt"] == {"validation": 20, "test": 20, "train": 160}
    assert numbers["taken_out"] == {"preference": 80, "prompt": 40}
    assert {row.candidate_0 for row in prompts_of(out, "preference", "test")} == {"C"}


def test_eval_prompts_leave_the_preferences_to_be_split(tmp_path):
    held = [{"input_text": f"Q{i}", "reference": "R"} for i in range(40)]
    out = prepare(
        tmp_path,
        preference_dataset=write(tmp_path, "p.jsonl", preferences()),
        eval_dataset=write(tmp_path, "e.jsonl", held),
    )
    assert_disjoint(out)
    numbers = counts(out)
    assert numbers["parts"]["preference"] == {"validation": 16, "test": 16, "train": 216, "judge": 72}
    assert numbers["parts"]["prompt"] == {"validation": 20, "test": 20, "train": 144}
    assert numbers["taken_out"] == {"preference": 80, "prompt": 56}
    assert {row.reference for row in prompts_of(out, "prompt", "test")} == {"R"}


def test_a_reward_function_needs_no_preferences(tmp_path):
    mine = write(tmp_path, "q.jsonl", [{"prompt": f"Q{i}"} for i in range(200)])
    out = prepare(tmp_path, prompt_dataset=mine, reward={"sources": "mine:score"})
    assert not (out / "preference").exists()
    assert counts(out)["parts"] == {"prompt": {"validation": 10, "test": 10, "train": 180}}
    with pytest.raises(UsageError, match=r"or give reward.sources"):
        prepare(tmp_path, "other", prompt_dataset=mine)
    with pytest.raises(UsageError, match="preference_dataset is missing"):
        prepare(tmp_path, "other", reward={"sources": "mine:score"})


def test_without_an_independent_judge_all_training_preferences_train(tmp_path):
    path = write(tmp_path, "p.jsonl", preferences())
    out = prepare(tmp_path, preference_dataset=path, compare={"judge": "reward"})
    assert counts(out)["parts"]["preference"] == {"validation": 20, "test": 20, "train": 360}
    with pytest.raises(UsageError, match="judge_share"):
        prepare(tmp_path, "other", preference_dataset=path, compare={"judge_share": 0})


def test_bad_rows_are_warned_of_listed_and_above_their_share_refused(tmp_path, capsys):
    rows = [*preferences(100, 1), "{", pair("Q", choice=7), pair("Q", "A", "A")]
    path = write(tmp_path, "p.jsonl", rows)
    out = prepare(tmp_path, preference_dataset=path, data={"max_dropped": 0.03})
    assert f"{path}:101: malformed JSON" in capsys.readouterr().err
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [(row["dataset"], row["file"], row["line"]) for row in dropped] == [
        ("preference", path, 101 + i) for i in range(3)
    ]
    numbers = counts(out)["preference"]
    assert numbers["read"] == numbers["kept"] + sum(numbers["dropped"].values()) == 103
    assert numbers["dropped"] == {"malformed JSON": 1, "bad choice": 1, "equal candidates": 1}
    with pytest.raises(DataError, match=r"3 of 103 rows cannot be used") as error:
        prepare(tmp_path, "other", preference_dataset=path)
    assert error.value.exit_code == 4
    assert f"{path}:102: bad choice" in str(error.value)
    assert not (tmp_path / "other" / "DONE").exists()


def test_a_small_part_is_warned_of(tmp_path, capsys):
    prepare(tmp_path, preference_dataset=write(tmp_path, "p.jsonl", preferences(40, 1)))
    assert "preference/validation.jsonl holds only 2 rows" in capsys.readouterr().err


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no prompt is left to train on"):
        prepare(
            tmp_path, preference_dataset=write(tmp_path, "p.jsonl", [pair("", f"A{i}", f"B{i}") for i in range(50)])
        )
    ties = [pair(f"Q{i}", choice="tie") for i in range(50)]
    with pytest.raises(DataError, match="no preference is left for the part 'train'"):
        prepare(tmp_path, preference_dataset=write(tmp_path, "p.jsonl", ties))


def test_ties_and_repetitions_are_kept_and_counted(tmp_path):
    rows = [*preferences(100, 1), pair("Q0", "A", "B", "tie"), pair("Q1", "A", "B", 0), pair("Q1", "B", "A", 1)]
    rows += [pair("Q1", "A", "B", 1)]
    out = prepare(tmp_path, preference_dataset=write(tmp_path, "p.jsonl", rows))
    numbers = counts(out)["preference"]
    assert (numbers["ties"], numbers["duplicates"], numbers["contradictory"], numbers["kept"]) == (1, 1, 1, 104)
    assert sum(counts(out)["parts"]["preference"].values()) == 104


def test_every_row_gets_an_id_of_its_own(tmp_path):
    mine = [{"input_text": f"Q{i % 50}", **({"id": "same"} if i % 2 else {})} for i in range(200)]
    out = prepare(
        tmp_path,
        preference_dataset=write(tmp_path, "p.jsonl", [pair(f"P{i}") for i in range(50)] * 2),
        prompt_dataset=write(tmp_path, "q.jsonl", mine),
    )
    for kind in ("preference", "prompt"):
        ids = [row.id for part in PARTS for row in prompts_of(out, kind, part)]
        assert len(set(ids)) == len(ids)
        assert all(ids)
    assert "same-2" in {row.id for part in PARTS for row in prompts_of(out, "prompt", part)}


def test_a_finished_stage_is_left_alone_and_changed_data_refused(tmp_path):
    path = write(tmp_path, "p.jsonl", preferences())
    out = prepare(tmp_path, preference_dataset=path)
    before = (out / "counts.json").stat().st_mtime_ns
    prepare(tmp_path, preference_dataset=path)
    assert (out / "counts.json").stat().st_mtime_ns == before
    write(tmp_path, "p.jsonl", preferences()[1:])
    with pytest.raises(UsageError, match=r"preference_dataset.0: its content changed"):
        prepare(tmp_path, preference_dataset=path)


def test_each_different_prompt_is_tested_once_and_trained_on_as_often_as_it_is_there(tmp_path):
    mine = [{"input_text": f"Q{i % 40}", "id": f"{i}"} for i in range(200)]
    values = {"prompt_dataset": write(tmp_path, "q.jsonl", mine), "reward": {"sources": "mine:score"}}
    out = prepare(tmp_path, data={"validation_share": 0.2, "test_share": 0.2}, **values)
    assert_disjoint(out)
    tested = [row.input_text for row in prompts_of(out, "prompt", "test")]
    assert len(tested) == len(set(tested)) == 8
    assert [row.id for row in prompts_of(out, "prompt", "test")] == [text[1:] for text in tested], "the first of each"
    for part, different in (("train", 24), ("validation", 8)):
        rows = prompts_of(out, "prompt", part)
        assert (len(rows), len({row.key for row in rows})) == (5 * different, different)
        assert [int(row.id) for row in rows] == sorted(int(row.id) for row in rows), "in the order of the file"
    numbers = counts(out)
    assert sum(numbers["parts"]["prompt"].values()) + numbers["repeated"]["test"] == numbers["prompt"]["kept"] == 200


@pytest.mark.parametrize("count", [1, 2])
def test_a_test_set_without_rows_is_refused_with_its_setting(tmp_path, count):
    path = write(tmp_path, "p.jsonl", preferences(count, 1))
    with pytest.raises(
        DataError, match=rf"test set.* {count} different prompts, and data.test_share is 0.05; raise"
    ) as no:
        prepare(tmp_path, preference_dataset=path, compare={"judge": "reward"})
    assert no.value.exit_code == 4
    assert not (tmp_path / "data" / "DONE").exists()


def test_a_share_of_nothing_is_refused_too_and_eval_rows_serve(tmp_path):
    path = write(tmp_path, "p.jsonl", preferences(40, 1))
    with pytest.raises(DataError, match=r"data.test_share is 0;"):
        prepare(tmp_path, preference_dataset=path, data={"test_share": 0})
    held = write(tmp_path, "e.jsonl", [{"input_text": f"E{i}"} for i in range(4)])
    prepare(tmp_path, preference_dataset=path, data={"test_share": 0}, eval_dataset=held)


def test_what_a_later_stage_would_refuse_is_refused_here(tmp_path):
    path = write(tmp_path, "p.jsonl", preferences())
    with pytest.raises(DataError, match=r"reward.margin is set, but no pair of the part 'train' has a strength"):
        prepare(tmp_path, preference_dataset=path, reward={"margin": 1.0})
    signed = write(tmp_path, "s.jsonl", [row | {"strength": i - 3} for i, row in enumerate(preferences())])
    with pytest.raises(DataError, match=r"s.jsonl:1: strength is -3, but a margin \(reward.margin\) is at least 0"):
        prepare(tmp_path, preference_dataset=signed, reward={"margin": 1.0})
    prepare(tmp_path, "unweighted", preference_dataset=signed)
    with pytest.raises(DataError, match=r"sft.dataset: .*holds preference rows"):
        prepare(tmp_path, preference_dataset=path, sft={"dataset": path})
    shown = write(tmp_path, "d.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}])
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used[\s\S]*d.jsonl:2: empty answer"):
        prepare(tmp_path, preference_dataset=path, ppo={"ptx_coeff": 1.0, "ptx_dataset": shown})
    few = write(tmp_path, "k.jsonl", preferences(8, 8))
    with pytest.raises(DataError, match=r"the part 'validation' have the same prompt, and method: kto needs"):
        shares = {"validation_share": 0.1, "test_share": 0.2}
        prepare(tmp_path, preference_dataset=few, method="kto", data=shares)


ALTERNATE = """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }} {% endfor %}"""


@pytest.fixture
def strict(words):
    """A model's folder whose template takes no two user messages in a row."""
    (words / "chat_template.jinja").write_text(ALTERNATE)
    (words / "config.json").write_text("{}")
    return words


def test_a_conversation_that_the_template_refuses_is_an_unusable_row(tmp_path, strict, capsys):
    user = {"role": "user", "content": "one"}
    good = [{"prompt": [{"role": "user", "content": f"one {i}"}], "chosen": [], "rejected": []} for i in range(60)]
    for row in good:
        row |= {"chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}]}
    bad = good[0] | {"prompt": [user, user]}
    path = write(tmp_path, "p.jsonl", [*good[:30], bad, *good[30:]])
    values = {"preference_dataset": path, "large_model_reference": str(strict)}
    with pytest.raises(
        DataError, match=r"1 of 61 rows cannot be used[\s\S]*p.jsonl:31: refused conversation: the chat"
    ):
        prepare(tmp_path, data={"max_dropped": 0.01}, **values)
    out = prepare(tmp_path, data={"max_dropped": 0.02}, **values)
    assert counts(out)["preference"]["dropped"] == {"refused conversation": 1}
    assert (
        f"{path}:31: refused conversation: the chat template refuses the conversation: roles" in capsys.readouterr().err
    )
    assert json.loads((out / "dropped.jsonl").read_text())["line"] == 31
    checked = check.check_files([path], tokenizer=strict)
    assert [row.line for row in checked.files[0].dropped] == [31]
    assert check.check_files([path]).ok


def test_a_template_out_of_reach_is_named_and_met_later(tmp_path, capsys):
    user = [{"role": "user", "content": "one"}]
    path = write(tmp_path, "q.jsonl", [{"messages": user, "id": str(i)} for i in range(50)] + [{"input_text": "Q"}] * 9)
    values = {"prompt_dataset": path, "reward": {"sources": "mine:score"}, "data": {"test_share": 0.5}}
    prepare(tmp_path, **values)
    assert "m: conversations are not tried with its chat template yet: m: no such folder" in capsys.readouterr().err


def test_other_formats_and_shapes_are_prepared_too(tmp_path):
    rows = [{"prompt": f"Q{i}", "chosen": "A", "rejected": "B", "score": i} for i in range(200)]
    out = prepare(
        tmp_path,
        preference_dataset=write(tmp_path, "p.jsonl", rows),
        prompt_dataset=write(tmp_path, "q.jsonl", [pair(f"R{i}", f"A{i}") for i in range(100)]),
    )
    held = [row for part in PARTS for row in prompts_of(out, "preference", part)]
    assert len(held) == 200
    assert all(row.chosen == "A" and "score" in row.extra for row in held)
    assert sum(counts(out)["parts"]["prompt"].values()) == 100


LABELS = st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=1, max_size=15)


@given(LABELS)
def test_groups_are_the_connected_components(rows):
    names = splits.components(rows)
    reach = {label: {label} for row in rows for label in row}
    for _ in range(len(rows) + 1):
        for row in rows:
            union = set().union(*(reach[label] for label in row))
            reach |= dict.fromkeys(union, union)
    assert names == [min(reach[row[0]]) for row in rows]
    assert dict(zip(map(tuple, rows[::-1]), splits.components(rows[::-1]), strict=True)) == dict(
        zip(map(tuple, rows), names, strict=True)
    )


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_is_given_the_parts_are_disjoint_and_complete(tmp_path_factory, data):
    texts = st.sampled_from([f"t{i}" for i in range(12)])
    questions = st.sampled_from(["", *(f"Q{i}" for i in range(8))])
    groups = st.sampled_from(["", "", "g", "h"])
    pairs = st.builds(pair, questions, texts, texts.map(str.upper), st.sampled_from([0, 1, "tie"]), group=groups)
    mine = st.builds(lambda text, name: {"input_text": text, "group": name}, questions.filter(bool), groups)
    folder = tmp_path_factory.mktemp("any")
    rows = data.draw(st.lists(pairs, min_size=5, max_size=30))
    values = {"preference_dataset": write(folder, "p.jsonl", rows)}
    prompts = data.draw(st.none() | st.lists(mine, min_size=1, max_size=10))
    held = data.draw(st.none() | st.lists(mine, min_size=1, max_size=6) | st.lists(pairs, min_size=1, max_size=6))
    if prompts is not None:
        values["prompt_dataset"] = write(folder, "q.jsonl", prompts)
    if held is not None:
        values["eval_dataset"] = write(folder, "e.jsonl", held)
    shares = {"validation_share": 0.2, "test_share": 0.2}
    try:
        out = prepare(folder, data=shares, compare={"judge_share": 0.3}, **values)
    except DataError as error:
        assert "is left" in str(error)
        return
    assert_disjoint(out)
    numbers = counts(out)
    kept = sum(numbers["parts"]["preference"].values())
    pairs_held = len(held) if held and "choice" in held[0] else 0
    assert kept + numbers["taken_out"]["preference"] == len(rows) + pairs_held


# Counting, checking, converting


def test_a_tally_does_not_mind_which_candidate_stood_first():
    question = Prompt("Q")
    rows = [Preference(question, "A", "B", 0), Preference(question, "B", "A", 1), Preference(question, "A", "B", "tie")]
    tally = count_preferences(rows)
    assert (tally.ties, tally.duplicates, tally.contradictory) == (1, 1, 0)
    tally = count_preferences([*rows, Preference(question, "A", "B", 1), Preference(Prompt("R"), "A", "B", 1)])
    assert (tally.ties, tally.duplicates, tally.contradictory) == (1, 1, 1)


@pytest.fixture
def words(tmp_path):
    """A tokenizer of which every word is a token."""
    folder = tmp_path / "words"
    folder.mkdir()
    vocabulary = {word: id for id, word in enumerate(["<unk>", "</s>", "<pad>", "one", "two", "three", "\n"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    return folder


def test_a_check_says_what_is_in_files_and_what_is_wrong(tmp_path, words):
    rows = [
        pair("one two", "one", "two three one two"),
        pair("one two", "two three one two", "one"),
        pair("", "a", "b", "tie"),
    ]
    first = write(tmp_path, "1.jsonl", [*rows, pair("x", choice=9)])
    second = write(tmp_path, "2.jsonl", [{"input_text": "one two"}, {"input_text": "one two"}, {"input_text": "three"}])
    result = check.check_files([first, second], tokenizer=words, prompt_tokens=2, target_tokens=4, instruction="three")
    assert not result.ok
    pairs, prompts = result.files
    assert (pairs.kind, pairs.format, pairs.read, pairs.kept, len(pairs.dropped)) == ("preference", "gcpc", 4, 3, 1)
    assert (pairs.tally.ties, pairs.tally.duplicates, pairs.tally.contradictory, pairs.without_prompt) == (1, 0, 1, 1)
    assert (prompts.kind, prompts.repeated_prompts, prompts.tally) == ("prompt", 1, None)
    assert result.shared == {(first, second): 1}
    answers = pairs.answer_lengths
    assert (answers.texts, answers.cut, answers.longest, answers.histogram) == (6, 2, 5, {2: 4, 8: 2})
    lengths = pairs.prompt_lengths
    assert (lengths.texts, lengths.cut, lengths.longest, lengths.histogram) == (3, 2, 3, {1: 1, 4: 2})
    text = render(result)
    for line in (
        "4 rows, 3 usable",
        "1 ties, 0 duplicates, 1 contradictory pairs",
        f"{first}:4: bad choice",
        "share 1 prompts; a run that reads both keeps each prompt in one part",
    ):
        assert line in text
    assert "≤ 8        2 ███" in text
    assert "2 (33.3%) are cut at 4" in text


def test_a_check_of_clean_files_is_ok_and_one_of_rubbish_names_its_lines(tmp_path):
    assert check.check_files([write(tmp_path, "1.jsonl", [pair("Q")])]).ok
    rubbish = check.check_files([write(tmp_path, "2.jsonl", ["{", "rubbish"])])
    assert not rubbish.ok
    assert [row.line for row in rubbish.files[0].dropped] == [1, 2]
    kinds = check.check_files(
        [write(tmp_path, "3.jsonl", [{"text": "a"}]), write(tmp_path, "4.jsonl", [{"prompt": "a", "completion": "b"}])]
    )
    assert [each.kind for each in kinds.files] == ["text", "demonstration"]
    assert "text, 1 rows" in render(kinds)


def test_a_check_shows_rows_and_how_many_prompts_differ(tmp_path):
    rows = [
        pair(f"Question {i % 17} " + "on and on " * 20, f"A{i}\n" + "a" * 99, "B", (0, 1, "tie")[i % 3])
        for i in range(600)
    ]
    checked = check.check_files([write(tmp_path, "1.jsonl", rows)])
    text = render(checked)
    assert "17 different prompts, 583 repeated prompts" in text
    assert "has about 1 of the 17; more rows on the same prompts do not change that" in text
    shown = [line for line in text.splitlines() if " | " in line]
    assert len(shown) == 3 and all(len(line) < 220 for line in shown)
    assert "| chosen 'A0 aaa" in shown[0] and "| rejected 'A1 aaa" in shown[1] and "| tie 'A2 aaa" in shown[2]
    assert shown[0].lstrip().startswith("'…")
    many = render(check.check_files([write(tmp_path, "2.jsonl", [pair(f"Q{i}") for i in range(300)])]))
    assert "300 different prompts, 0 repeated prompts" in many and "few prompts" not in many


DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data beside the repository")
def test_real_rows_on_few_prompts_are_called_so():
    (file,) = check.check_files([str(DATA / "preference/ukp_convarg/train.jsonl.gz")]).files
    assert (file.read, file.different_prompts) == (6471, 18)


def test_bad_rows_are_shown_once_for_each_reason_with_their_lines(tmp_path):
    rows = [pair("Q"), *[pair("Q", choice=5)] * 50, pair("Q"), pair("Q", choice=5), pair("Q", choice=6)]
    text = render(check.check_files([write(tmp_path, "1.jsonl", rows)]))
    assert text.count("bad choice") == 2
    assert "1.jsonl:2: bad choice" in text and "; the same in 50 more: lines 3 to 51, 53\n" in text
    assert "1.jsonl:54: bad choice: 6; it is" in text


def test_a_long_list_of_bad_rows_is_shown_in_part_and_counted_whole(tmp_path):
    rows = [pair("Q"), *[pair("Q", choice=5 + number) for number in range(50)]]
    text = render(check.check_files([write(tmp_path, "1.jsonl", rows)]))
    assert text.count("bad choice") == 20
    assert "and 30 more bad rows" in text


def test_rows_that_look_alike_are_shown_once(tmp_path):
    text = render(check.check_files([write(tmp_path, "1.jsonl", [*[pair("Q")] * 3, pair("R"), pair("S")])]))
    assert [line.split()[0] for line in text.splitlines() if " | " in line] == ["'Q'", "'R'", "'S'"]


def test_a_converted_prompt_stays_a_prompt_whatever_keys_stand_beside_it(tmp_path):
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    rows = [{"input_text": "one", "topic": "x"}, {"prompt": "two", "chosen": "a", "rejected": "b"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert convert.convert_files([str(source)], out).written == 2
    read = check.check_files([str(out)]).files[0]
    assert (read.kind, read.kept) == ("prompt", 2)
    assert json.loads(out.read_text().splitlines()[0]) == {"input_text": "one", "topic": "x"}


def test_converting_accounts_for_every_row(tmp_path):
    source = write(tmp_path, "p.jsonl", [pair("Q"), pair("Q", choice="tie"), pair("", "C"), pair("Q", choice=3), "{"])
    for to in row_writer.FORMATS:
        out = tmp_path / f"{to}.jsonl"
        done = convert.convert_files([source], out, to)
        assert done.read == done.written + done.ties + done.without_prompt + len(done.dropped) == 5
        assert len(datasets.read([str(out)], "preference").records) == done.written
    assert Counter(done.dropped[i].line for i in range(2)) == {4: 1, 5: 1}
    with pytest.raises(UsageError, match="is one of the files to read"):
        convert.convert_files([source], Path(source))
    with pytest.raises(UsageError, match="the formats are"):
        convert.convert_files([source], tmp_path / "x", "parquet")


@pytest.fixture
def rounds(tmp_path):
    """Two rounds: the second has new preferences on old prompts, on prompts of no preferences before, and new ones."""
    old = write(tmp_path, "old.jsonl", preferences())
    prompts = write(tmp_path, "prompts.jsonl", [{"input_text": f"P{i}"} for i in range(200)])
    first = prepare(tmp_path, "one/data", preference_dataset=old, prompt_dataset=prompts)
    texts = [f"Q{i}" for i in range(40)] + [f"P{i}" for i in range(40)] + [f"N{i}" for i in range(80)]
    labels = write(tmp_path, "labels.jsonl", [pair(text, "tuned", "base", i % 2) for i, text in enumerate(texts)])
    values = {"preference_dataset": [old, labels], "prompt_dataset": prompts, "continues": [str(tmp_path / "one")]}
    return first, prepare(tmp_path, "two/data", **values), values


def test_the_next_round_holds_out_what_the_last_one_held_out(rounds):
    first, second, _ = rounds
    assert_disjoint(second)
    for kind in ("preference", "prompt"):
        for part in PARTS if kind == "preference" else ("train", "validation", "test"):
            before = {row.key if kind == "prompt" else row.prompt.key for row in prompts_of(first, kind, part)}
            after = {row.key if kind == "prompt" else row.prompt.key for row in prompts_of(second, kind, part)}
            assert before and before <= after, (kind, part)
    assert sum(counts(second)["parts"]["preference"].values()) == 400 + 160


def test_prompts_that_got_their_first_preferences_may_teach_the_judge(rounds):
    first, second, _ = rounds
    learnt = {part: {row.prompt.input_text for row in prompts_of(second, "preference", part)} for part in PARTS}
    held = {row.input_text for part in ("validation", "test") for row in prompts_of(first, "prompt", part)}
    assert any(text.startswith("P") for text in learnt["judge"] - held)
    assert any(text.startswith("P") for text in learnt["train"] - held)
    assert any(text.startswith("N") for part in ("validation", "test") for text in learnt[part])


def test_a_group_of_several_parts_is_held_out(tmp_path, rounds):
    """A row that joins a trained prompt with a held-out one moves to where nobody trains on it."""
    first, _, values = rounds
    trained, held = (prompts_of(first, "preference", part)[0].prompt.input_text for part in ("train", "test"))
    joined = [pair(text, "x", "y", 0, group="one") for text in (trained, held)]
    more = write(tmp_path, "joined.jsonl", joined)
    second = prepare(tmp_path, "three/data", **values | {"preference_dataset": [*values["preference_dataset"], more]})
    assert_disjoint(second)
    assert trained in {row.prompt.input_text for row in prompts_of(second, "preference", "test")}


def test_eval_rows_that_an_earlier_round_learnt_from_judge_nothing(tmp_path, rounds):
    first, _, values = rounds
    learnt = [row.prompt.input_text for row in prompts_of(first, "preference", "train")][:4]
    fresh = [f"E{i}" for i in range(20)]
    held = write(tmp_path, "eval.jsonl", [pair(text, "x", "y", 0) for text in (*learnt, *fresh)])
    out = prepare(tmp_path, "four/data", **values | {"eval_dataset": held})
    assert_disjoint(out)
    evaluated = {
        row.prompt.input_text for part in ("validation", "test") for row in prompts_of(out, "preference", part)
    }
    assert evaluated.isdisjoint(learnt) and evaluated >= set(fresh)
    trained = {row.prompt.input_text for part in ("train", "judge") for row in prompts_of(out, "preference", part)}
    assert trained >= set(learnt)
    numbers = counts(out)
    assert sum(numbers["parts"]["preference"].values()) + numbers["taken_out"]["preference"] == 400 + 160 + 24
