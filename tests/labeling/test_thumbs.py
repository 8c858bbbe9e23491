"""Labels on one answer at a time: what is asked, how a thumb is kept and exported, and who learns from it."""

import json

import pytest
from labelling import key, serving

from preferent import files
from preferent.config.recipe import parse
from preferent.data.formats.feedback import feedback_reader
from preferent.data.types import Message, Prompt
from preferent.errors import DataError, PlatformError, UsageError
from preferent.evaluation import judge_agreement
from preferent.labeling import label_exports, overview, thumb_exports
from preferent.labeling.database import Store
from preferent.labeling.events import Event, histories
from preferent.labeling.questions import Question
from preferent.labeling.service import LabelingService, Refused
from preferent.labeling.serving import export, recover, serve
from preferent.labeling.sources import answer_sources, question_sources
from preferent.pipelines import finished_run, next_round

SETTINGS = {"asks": "thumbs", "seed": 3, "annotators": ["ann", "bob"], "overlap": 2, "strengths": 0, "gold_share": 0.1}
EXTRA = {"tags": ["t"], "question": "not the prompt", "answer": "not the answer", "vote": "no", "note": "mine"}


def asked(count, **more):
    return [
        Question(f"r{i}", Prompt(f"prompt {i}", group=f"g{i}"), f"answer {i}", None, "MODEL-ONE", "", **more)
        for i in range(count)
    ]


@pytest.fixture
def place(tmp_path):
    """Return a function that restarts the service over one database."""
    opened = []

    def sit(questions=None):
        while opened:
            opened.pop().close()
        store = Store(tmp_path, asks="thumbs")
        opened.append(store)
        if store.is_new:
            store.create(SETTINGS, asked(10) if questions is None else questions)
        return LabelingService(store)

    yield sit
    for store in opened:
        store.close()


def say(service, queue, choice, name="ann", **more):
    return service.vote(name, {"key": key(), "item": queue["item"]["item"], "choice": choice, **more})


# What is asked


def write(path, rows):
    files.write_jsonl(path, rows)
    return path


def texts(material):
    return [(each.prompt.input_text, each.a, each.imported) for each in material.questions]


def test_answers_are_asked_about_with_the_thumb_that_they_had(tmp_path):
    rows = [
        {"input_text": "p", "output_text": "one", "label": True, "model": "m", "tags": ["t"]},
        {"input_text": "p", "output_text": "two", "label": False},
        {"input_text": "q", "output_text": "one", "label": None},
        {"input_text": "q", "output_text": "two"},
        {"input_text": "p", "output_text": "one", "label": False},
    ]
    found = answer_sources.from_file(write(tmp_path / "rows.jsonl", rows))
    assert texts(found) == [("p", "one", "up"), ("p", "two", "down"), ("q", "one", None), ("q", "two", None)]
    assert found.notes == ["1 answers repeat an earlier one to the same prompt, which is asked once"]
    assert (found.questions[0].model_a, found.questions[0].extra) == ("m", {"model": "m", "tags": ["t"]})
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    found = answer_sources.from_file(write(tmp_path / "talk.jsonl", [{"messages": talk, "label": "up"}]))
    assert found.questions[0].prompt.messages == (Message("user", "hello"),) and found.questions[0].imported == "up"


def test_both_answers_of_a_pair_are_asked_about_and_its_choice_says_nothing_of_them(tmp_path):
    rows = [{"input_text": "p", "candidate_0": "one", "candidate_1": "two", "choice": 1, "model_0": "x"}]
    rows += [{"input_text": "p", "candidate_0": "two", "candidate_1": "three", "choice": 0}]
    found = answer_sources.from_file(write(tmp_path / "pairs.jsonl", rows))
    assert texts(found) == [("p", "one", None), ("p", "two", None), ("p", "three", None)]
    assert [each.model_a for each in found.questions] == ["x", "candidate_1", "candidate_1"]


def test_exports_of_feedback_are_asked_about_again(tmp_path):
    rows = [{"question": "p", "reply": "one", "vote": "up"}, {"question": "p", "reply": "two", "vote": "down"}]
    found = answer_sources.from_file(
        write(tmp_path / "votes.jsonl", [*rows, {"question": "q", "reply": "", "vote": ""}])
    )
    assert texts(found) == [("p", "one", "up"), ("p", "two", "down")]
    assert found.notes == ["1 records are left out: no rating"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input_text": "p"}, r"rows.jsonl: holds no answers: the first row has input_text"),
        ({"input_text": "p", "output_text": ""}, r"rows.jsonl:1: empty answer"),
        ({"output_text": "x"}, r"rows.jsonl:1: missing key"),
    ],
)
def test_a_file_without_answers_is_refused_with_its_place(tmp_path, row, says):
    with pytest.raises(DataError, match=says):
        answer_sources.from_file(write(tmp_path / "rows.jsonl", [row]))


def test_an_answer_that_two_models_gave_is_asked_once_and_counts_for_both(tmp_path):
    for side, answers in (("a", ["same", "mine"]), ("b", ["same", "other"])):
        rows = [{"id": f"r{i}", "inputs": {"inputs_pretokenized": "p"}, "prediction": answers[i]} for i in range(2)]
        write(tmp_path / f"{side}.jsonl", rows)
    pairs = question_sources.from_predictions(tmp_path / "a.jsonl", tmp_path / "b.jsonl", models=("tuned", "base"))
    found = answer_sources.of_pairs(pairs).questions
    assert [(each.a, each.model_a, each.model_b) for each in found] == [
        ("same", "tuned", "base"), ("mine", "tuned", ""), ("other", "base", "")
    ]  # fmt: skip
    assert len({each.key for each in found}) == len({each.pair_key for each in found}) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strengths": 3}, "--strengths: is about two answers"),
        ({"select": "informative", "number": 2}, "--select informative: is about two"),
        ({"until_width": 0.2}, "--until-width and --until-decided"),
        ({"judgments": "j.jsonl"}, "--judgments: is about two"),
        ({"columns": ("p", "a", "b")}, "--columns: is about two"),
        ({"gold": "gold"}, "a control question needs a thumb that is known"),
    ],
)
def test_what_is_about_pairs_is_refused(tmp_path, given, says):
    rows = write(tmp_path / "rows.jsonl", [{"input_text": "p", "output_text": "x"}])
    given = given | ({"gold": rows} if "gold" in given else {})
    with pytest.raises((UsageError, DataError), match=says):
        serve(file=rows, out=tmp_path / "labels", thumbs=True, **given)
    assert not (tmp_path / "labels").exists()


# How it is answered


def test_the_page_gets_one_answer_and_no_model(place):
    service = place()
    queue = service.queue("ann")
    assert queue["item"].keys() == {"item", "number", "prompt", "answer", "flagged"}
    assert "MODEL" not in json.dumps(queue) and (queue["done"], queue["total"]) == (0, 10)
    for choice in ("left", "tie", "good", None):
        with pytest.raises(Refused, match="choice must be one of up, down, skip"):
            say(service, queue, choice)
    with pytest.raises(Refused, match="strength"):
        say(service, queue, "up", strength=1)


def test_a_thumb_is_taken_back_and_given_anew_also_after_a_restart(place):
    service = place()
    queue = service.queue("ann")
    first = queue["item"]["item"]
    assert say(service, queue, "up", note="clear")["done"] == 1
    service = place()
    back = service.undo("ann", {"key": key()})
    assert (back["done"], back["item"]["item"], back["previous"]["choice"]) == (0, first, "up")
    assert say(service, back, "down")["done"] == 1
    service = place()
    vote, *others = service.histories["ann"].votes.values()
    assert (vote.choice, vote.verdict, vote.side, others) == ("down", "down", None, [])
    assert service.queue("ann")["done"] == 1 and service.queue("bob")["done"] == 0


def test_control_questions_are_told_right_from_wrong(place):
    service = place(asked(9) + asked(1, gold="down"))
    queue = service.queue("ann")
    while queue["item"]:
        queue = say(service, queue, "up")
    row = service.overview()["annotators"][0]
    assert (row["gold_right"], row["gold_total"], row["up_share"]) == (0, 1, 1.0)
    rows = service.exports().rows
    assert [(row["label"], row["gold"], row["right"]) for row in rows["thumb_gold"]] == [(True, False, False)]
    assert len(rows["thumbs"]) == 9


# What is exported


def answered(service, choices, name="ann"):
    queue = service.queue(name)
    for choice in choices:
        queue = say(service, queue, choice, name)
    return queue


def test_thumbs_are_read_by_a_recipe_as_they_were_given(place, tmp_path):
    """Also where the data have keys that mean something in a row of feedback."""
    service = place(asked(6, extra=EXTRA))
    service.flag("ann", {"key": key(), "item": service.queue("ann")["item"]["item"], "note": "odd"})
    answered(service, ("up", "down", "skip", "up", "down", "up"))
    answered(service, ("down", "up"), "bob")
    exports = service.save(tmp_path)
    assert str(exports) == "8 votes: 4 thumbs up, 3 down, 1 skips, 0 on control questions; 1 flags"
    given = {
        (service.questions[item].a, name): vote.choice
        for name, history in service.histories.items()
        for item, vote in history.votes.items()
    }
    rows = files.read_jsonl(tmp_path / "thumbs.jsonl")
    assert {(row["output_text"], row["annotator"]): row["label"] for row in rows} == {
        place: choice == "up" for place, choice in given.items() if choice != "skip"
    }
    assert all(row["models"] == ["MODEL-ONE"] and row["tags"] == ["t"] and row["source.vote"] == "no" for row in rows)
    reading = feedback_reader.read_feedback([str(tmp_path / "thumbs.jsonl")])
    assert reading.layouts == ("thumbs",) and not reading.as_rows.dropped
    assert [(t.prompt.input_text, t.output_text, t.is_good, t.prompt.group) for t in reading.thumbs] == [
        (row["input_text"], row["output_text"], row["label"], row["group"]) for row in rows
    ]
    assert (tmp_path / "thumbs.jsonl").stat().st_mode & 0o077 == 0


def test_what_was_skipped_can_be_asked_again(place, tmp_path):
    service = place()
    answered(service, ("skip", "up", "skip"))
    service.save(tmp_path)
    again = answer_sources.from_file(tmp_path / "thumb_skips.jsonl").questions
    assert [(each.id, each.a, each.imported, each.model_a, each.prompt.group) for each in again] == [
        (each.id, each.a, None, "MODEL-ONE", each.prompt.group)
        for each in service.questions.values()
        if any(vote.item == each.key and vote.choice == "skip" for vote in service.histories["ann"].votes.values())
    ]


def test_the_owner_sees_agreement_and_on_request_the_share_of_each_model(place):
    questions = [Question(f"r{i}", Prompt(f"p{i}"), "x", None, "one", "two" if i == 0 else "") for i in range(4)]
    service = place(questions)
    by_key = {each.key: place for place, each in enumerate(questions)}

    def vote_all(name, choices):
        queue = service.queue(name)
        while queue["item"]:
            queue = say(service, queue, choices[by_key[service._keys[queue["item"]["item"]]]], name)

    vote_all("ann", ["up", "up", "down", "down"])
    vote_all("bob", ["up", "down", "down", "skip"])
    figures = service.overview()
    assert figures["choices"] == {"up": 3, "down": 4, "skip": 1} and "thumb_rates" not in figures
    assert figures["agreement"]["percent"] == pytest.approx(2 / 3) and figures["agreement"]["pairs"] == 3
    assert figures["agreement"]["cohen"] == {"ann|bob": pytest.approx(0.4)}
    rates = {row["model"]: row for row in service.overview(reveal=True)["thumb_rates"]}
    assert [(rates[name]["up"], rates[name]["down"]) for name in ("one", "two")] == [(3, 4), (2, 0)]
    assert rates["one"]["up_share"] == pytest.approx(3 / 7)
    low, high = rates["one"]["interval"]
    assert 0 < low < 3 / 7 < high < 1


def test_a_share_weighs_by_the_probability_of_being_asked():
    rare = Question("r", Prompt("p"), "x", None, "m", "", probability=0.25)
    often = Question("s", Prompt("q"), "y", None, "m", "", probability=0.5)
    body = {"first": "a", "strength": None, "note": "", "seconds": None}
    votes = [Event("ann", "1", "vote", rare.key, body | {"choice": "up"})]
    votes += [Event("ann", "2", "vote", often.key, body | {"choice": "down"})]
    (rate,) = overview.thumb_rates({each.key: each for each in (rare, often)}, histories(votes))
    assert rate["up_share"] == pytest.approx(4 / 6)


def test_agree_takes_the_thumbs_of_several_people(tmp_path):
    thumbs = {"ann": "uudd", "bob": "uddd"}
    rows = [
        {"input_text": f"p{i}", "output_text": "x", "id": f"r{i}", "annotator": name, "label": given == "u"}
        for name, each in thumbs.items()
        for i, given in enumerate(each)
    ]
    figures = judge_agreement.between_files([write(tmp_path / "thumbs.jsonl", rows)])
    (pair,) = figures["pairs"]
    assert (pair["judges"], pair["n"], pair["percent"], pair["kappa"]) == (["ann", "bob"], 4, 0.75, 0.5)


# Who learns from it


def test_the_next_round_learns_from_thumbs_on_training_prompts(tmp_path, monkeypatch):
    recipe = parse({"large_model_reference": "m", "preference_dataset": "pairs.jsonl"})[0]
    monkeypatch.setattr(finished_run, "of", lambda _: type("Run", (), {"recipe": recipe}))
    with pytest.raises(PlatformError, match=r"no preferences to learn from, and no thumbs; .*with --thumbs or without"):
        next_round.with_labels(recipe, tmp_path)
    thumbs = write(tmp_path / "labels/train/thumbs.jsonl", [{"input_text": "p", "output_text": "x", "label": True}])
    write(tmp_path / "labels/thumbs.jsonl", [{"input_text": "test", "output_text": "x", "label": True}])
    assert next_round.with_labels(recipe, tmp_path).preference_dataset == ["pairs.jsonl", str(thumbs)]


# The server


def test_thumbs_lie_beside_pairs_and_survive_a_kill(tmp_path):
    rows = [{"input_text": f"p{i}", "candidate_0": f"a{i}", "candidate_1": f"b{i}", "id": f"r{i}"} for i in range(4)]
    file, folder = write(tmp_path / "rows.jsonl", rows), tmp_path / "labels"
    with serving(folder, file=file, seed=1) as server:
        person = server.person()
        person.vote(person.get("/api/queue"), "left")
        server.stop()
    with serving(folder, file=file, seed=1, thumbs=True) as server:
        person = server.person()
        assert person.session["asks"] == "thumbs"
        queue = person.vote(person.get("/api/queue"), "up")
        server.kill()
        server.start()
        person = server.person()
        assert person.get("/api/queue") == queue and queue["done"] == 1
        person.vote(queue, "down")
        assert person.status == 200
        served = person.send("GET", "/api/export/thumbs").splitlines()
        assert len(served) == 2
        person.send("GET", "/api/export/preferences")
        assert person.status == 404
        assert server.stop() == 0
        assert "2 votes: 1 thumbs up, 1 down" in server.output
    assert [len(files.read_jsonl(folder / f"{name}.jsonl")) for name in ("preferences", "thumbs")] == [1, 2]
    assert export(folder, "thumbs").startswith(f"{folder}: 2 votes: 1 thumbs up")
    assert "8 questions and 2 events" in recover(folder, "thumbs")
    assert len(files.read_jsonl(folder / "recovered/thumbs.jsonl")) == 2
    (folder / "labels.sqlite").unlink()
    with pytest.raises(UsageError, match="or add --thumbs"):
        export(folder)
    with pytest.raises(UsageError, match="has other questions"):
        serve(file=write(tmp_path / "rows.jsonl", rows[:3]), out=folder, seed=1, thumbs=True)


def test_the_files_of_pairs_are_those_of_pairs():
    pairs = {name: cell for name, cell in SETTINGS.items() if name != "asks"}
    assert label_exports.of(pairs, [], {}).rows.keys() == set(label_exports.NAMES)
    assert label_exports.of(SETTINGS, [], {}).rows.keys() == set(thumb_exports.NAMES)
