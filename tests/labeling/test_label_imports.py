"""Exports of Argilla and Label Studio, in the formats of their own code and documentation."""

import json

import pytest

from preferent.data.formats import answer_names
from preferent.errors import DataError
from preferent.labeling.sources import label_imports, question_sources


def argilla(id="r1", responses=None, **fields):
    """A record as `dataset.records.to_json` writes it."""
    fields = fields or {"prompt": "why?", "response_1": "because", "response_2": "why not"}
    return {
        "id": id,
        "fields": fields,
        "metadata": {},
        "suggestions": {},
        "responses": responses or {},
        "vectors": {},
        "_server_id": "x",
    }


def said(**values):
    return {"preference": [{"value": value, "user_id": user} for user, value in values.items()]}


def task(results, id=1, **more):
    """A task as Label Studio's JSON export has it."""
    annotation = {"id": 9, "completed_by": 10, "lead_time": 4.288, "was_cancelled": False, "result": results}
    annotation |= {"created_at": "2021-03-09T22:16:08.728353Z"} | more
    data = {"prompt": "why?", "text1": "because", "text2": "why not"}
    return {"id": id, "data": data, "annotations": [annotation], "predictions": []}


def pairwise(selected):
    value = {"selected": selected}
    return [{"from_name": "pw", "id": "a", "to_name": "txt-1,txt-2", "type": "pairwise", "value": value}]


def choices(label):
    return [{"from_name": "c", "id": "a", "to_name": "t", "type": "choices", "value": {"choices": [label]}}]


@pytest.fixture
def read(tmp_path):
    def load(rows, columns=None, lines=False):
        path = tmp_path / "export.json"
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
        return label_imports.read(path, columns)

    return load


def test_argilla_records_become_questions_and_votes(read):
    found = read(
        [
            argilla(responses=said(u1="response_1", u2="response_2")),
            argilla("r2", prompt="p", response_1="x", response_2="y"),
        ]
    )
    first, second = found.questions
    assert (first.id, first.prompt.input_text, first.a, first.b) == ("r1", "why?", "because", "why not")
    assert (first.model_a, first.model_b, second.id) == ("response_1", "response_2", "r2")
    assert [(vote.annotator, vote.body["choice"], vote.item) for vote in found.votes] == [
        ("argilla u1", "left", first.key),
        ("argilla u2", "right", first.key),
    ]
    assert {vote.body["first"] for vote in found.votes} == {"a"} and {vote.body["origin"] for vote in found.votes} == {
        "argilla"
    }


@pytest.mark.parametrize(
    "value, choice",
    [
        ("response_1", "left"),
        ("Response 2", "right"),
        ("A", "left"),
        ("b is better", "right"),
        ("1", "left"),
        ("right", "right"),
        ("Tie", "tie"),
        ("both bad", "both_bad"),
        ("skip", "skip"),
        ([{"value": "response_2", "rank": 1}, {"value": "response_1", "rank": 2}], "right"),
        ([{"value": "response_1", "rank": 1}, {"value": "response_2", "rank": 1}], "tie"),
        ("excellent", None),
        (5, None),
        ([{"value": "response_1", "rank": 1}], None),
    ],
    ids=str,
)
def test_what_a_label_means(value, choice):
    assert answer_names.choice_of(value, ("prompt", "response_1", "response_2")) == choice


def test_an_answer_that_is_called_0_or_1_goes_by_its_number():
    columns = ("prompt", "candidate_0", "candidate_1")
    assert [answer_names.choice_of(value, columns) for value in ("0", "1", "candidate_1", "a")] == [
        "left",
        "right",
        "right",
        "left",
    ]


def test_only_the_question_about_the_pair_is_read(read):
    responses = said(u1="response_2", u2="hm") | {"why": [{"value": "it is longer", "user_id": "u1"}]}
    found = read([argilla(responses=responses)])
    assert [vote.body["choice"] for vote in found.votes] == ["right"]
    assert found.unread == {'"hm"': 1}


def test_a_chat_field_is_a_conversation(read):
    chat = [{"role": "user", "content": "hi"}]
    found = read([argilla(chat=chat, response_1="x", response_2="y")])
    assert [(turn.role, turn.content) for turn in found.questions[0].prompt.messages] == [("user", "hi")]


def test_label_studio_tasks_become_questions_and_votes(read):
    rows = [
        task(pairwise("left"), 1),
        task(pairwise("right"), 2, completed_by={"id": 7, "email": "x@y"}),
        task([], 3, was_cancelled=True),
    ]
    found = read(rows)
    assert [question.id for question in found.questions] == ["1", "2", "3"]
    assert [(vote.annotator, vote.body["choice"]) for vote in found.votes] == [
        ("label-studio 10", "left"),
        ("label-studio 7", "right"),
        ("label-studio 10", "skip"),
    ]
    assert found.votes[0].body["seconds"] == 4.288 and found.votes[0].at == pytest.approx(1615328168.728353)


def test_label_studio_choices_may_say_tie(read):
    found = read([task(choices("tie"), 1), task(choices("text2"), 2), task(choices("neither"), 3)], lines=True)
    assert [vote.body["choice"] for vote in found.votes] == ["tie", "right", "both_bad"]


def test_fields_that_do_not_tell_are_named(read):
    rows = [argilla(ask="p", good="x", other="y", responses=said(u1="good"))]
    with pytest.raises(DataError, match=r"there are ask, good, other; .*--columns"):
        read(rows)
    found = read(rows, ("ask", "good", "other"))
    assert (found.questions[0].a, found.votes[0].body["choice"]) == ("x", "left")


def test_a_field_that_is_no_text_is_placed(read):
    with pytest.raises(DataError, match="record 2: response_1 and response_2"):
        read([argilla(), argilla(prompt="p", response_1="x", response_2=None)])


@pytest.mark.parametrize("rows", [[{"a": 1}], [argilla(), task([])], []])
def test_what_is_neither_is_refused(read, rows):
    with pytest.raises(DataError):
        read(rows)


def test_rows_of_preferences_are_not_foreign(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input_text": "p", "candidate_0": "x", "candidate_1": "y", "choice": 0}\n')
    assert not label_imports.is_export(path) and not label_imports.is_export(tmp_path / "none")
    for rows in ([argilla()], [task([])]):
        path.write_text(json.dumps(rows, indent=1))
        assert label_imports.is_export(path)
    path.write_text(json.dumps([{"input_text": "p", "candidate_0": "x", "candidate_1": "y", "choice": 0}], indent=1))
    assert [question.a for question in question_sources.from_file(path).questions] == ["x"]


def test_the_owner_is_told_what_was_taken_over_and_what_was_not(tmp_path):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([argilla(responses=said(u1="response_1", u2="what?")), argilla()]))
    found = question_sources.from_file(path)
    assert len(found.questions) == 1 and len(found.votes) == 1
    assert found.notes == [
        "votes imported: 1 (annotators: 1)",
        '1 answers are not votes and were left out: "what?" (1)',
        "1 rows repeat an earlier pair, which is asked once",
    ]


def named(results, control):
    return [result | {"from_name": control} for result in results]


def test_one_control_is_read_and_what_others_say_is_counted(read):
    found = read([task([*pairwise("left"), *named(choices("text2"), "issues")], i) for i in range(3)])
    assert [vote.body["choice"] for vote in found.votes] == ["left"] * 3
    assert found.unread == {'{"issues": "text2"}': 3}
    often = [task([*choices("text1"), *named(choices("tie" if i else "rude"), "issues")], i) for i in range(3)]
    assert [vote.body["choice"] for vote in read(often).votes] == ["left"] * 3


def test_ratings_are_no_names_of_answers(read):
    """A 5 for the first answer and a 2 for the second are not a vote for the second."""
    ratings = {f"rating_{i}": [{"value": value, "user_id": "u1"}] for i, value in ((1, 5), (2, 2))}
    imported = read([argilla(responses=ratings)])
    assert (imported.votes, imported.unread) == ([], {'{"rating_1": 5}': 1, '{"rating_2": 2}': 1})
    quality = [argilla(str(i), {"quality": [{"value": i, "user_id": "u"}]}) for i in (1, 2, 5)]
    imported = read(quality)
    assert (imported.votes, imported.unread.total()) == ([], 3)
    both = [argilla(responses=said(u1="response_1") | {"rating": [{"value": 2, "user_id": "u1"}] * 3})]
    assert [vote.body["choice"] for vote in read(both).votes] == ["left"]


@pytest.mark.parametrize(
    ("labels", "name"), [("125", "c"), ("12", "quality"), ("12", "rating"), (["1", "2", "0.5"], "c")]
)
def test_numbers_of_a_scale_are_no_names_of_answers(read, labels, name):
    imported = read([task(named(choices(label), name), i) for i, label in enumerate(labels)])
    assert (imported.votes, imported.unread.total()) == ([], len(labels))
    responses = [argilla(str(i), {name: [{"value": label, "user_id": "u"}]}) for i, label in enumerate(labels)]
    imported = read(responses)
    assert (imported.votes, imported.unread.total()) == ([], len(labels))


def test_numbers_that_are_the_answers_own_are_their_names(read):
    imported = read([task(choices(label), i) for i, label in enumerate(["1", "2", "tie"])])
    assert [vote.body["choice"] for vote in imported.votes] == ["left", "right", "tie"]


def test_of_several_votes_of_one_person_the_latest_stands(read):
    later = task(pairwise("right"), created_at="2022-01-01T00:00:00Z")
    for rows in ([task(pairwise("left")), later], [later, task(pairwise("left"))]):
        found = read(rows)
        assert [vote.body["choice"] for vote in found.votes] == ["right"] and found.repeated == 1


def test_where_nobody_is_named_every_vote_is_another_persons(read):
    one = task(pairwise("left"), completed_by=None)
    found = read([one, one, task(pairwise("right"), 2, completed_by=None)])
    assert [vote.annotator for vote in found.votes] == [f"label-studio unnamed {i}" for i in (1, 2, 1)]
    assert found.repeated == 0


def test_the_responses_of_argilla_1_are_read(read):
    given = [
        {"user_id": "u1", "status": "submitted", "values": {"preference": {"value": "response_2"}}},
        {"user_id": "u2", "status": "draft", "values": {"preference": {"value": "response_1"}}},
    ]
    found = read([argilla(responses=given)])
    assert [(vote.annotator, vote.body["choice"]) for vote in found.votes] == [("argilla u1", "right")]
    assert found.unread == {'{"draft": "response_1"}': 1}


@pytest.mark.parametrize(
    "row, says",
    [
        (argilla(responses={"preference": "A"}), "record 1: responses to preference: must be a list of objects"),
        (argilla(responses=["A"]), "record 1: responses"),
        (argilla(prompt=["hi"], response_1="x", response_2="y"), "record 1: prompt"),
        (task("left"), "record 1: result"),
        (task([{"type": "pairwise", "value": "left"}]), "record 1: value: must be an object"),
    ],
)
def test_what_has_another_shape_is_placed(read, row, says):
    with pytest.raises(DataError, match=says):
        read([row])
