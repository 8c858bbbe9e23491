"""The options of `preferent label`: sources, selection, control questions, teams and addresses."""

import json
import socket
from collections import Counter

import pytest
from labelling import Person, serving

from preferent import files
from preferent.data import datasets, judgments
from preferent.data.formats import row_reader, row_writer
from preferent.data.judgments import write
from preferent.data.types import Judgment, digest
from preferent.errors import DataError, PlatformError, UsageError
from preferent.files import write_jsonl
from preferent.labeling import access, events, server
from preferent.labeling.database import Store
from preferent.labeling.serving import serve
from preferent.labeling.sources import question_sources


def pairs(path, count=20, start=0, **more):
    rows = [
        {"input_text": f"p{i}", "candidate_0": f"zero {i}", "candidate_1": f"one {i}", "id": f"r{i}"} | more
        for i in range(start, start + count)
    ]
    files.write_jsonl(path, rows)
    return path


def everything(person, choice="left"):
    """Answer all that somebody is asked; the items, as they were shown."""
    queue, items = person.get("/api/queue"), []
    while queue["item"]:
        items.append(queue["item"])
        queue = person.vote(queue, choice)
    return items


WRONG = [
    ({}, "no folder for the votes"),
    ({"out": "x"}, "exactly one source of questions"),
    ({"out": "x", "file": "rows", "folder": "x"}, "exactly one source of questions"),
    ({"folder": "nowhere"}, "nowhere: is neither a run directory nor a label folder"),
    ({"select": "best"}, "--select best: is unknown; choose random or informative"),
    ({"select": "informative"}, "add --number"),
    ({"select": "informative", "number": 3}, "add --judgments"),
    ({"number": 0}, "--number 0"),
    ({"gold_share": 0.9}, "--gold-share 0.9"),
    ({"overlap": 0}, "--overlap 0"),
    ({"strengths": 1}, "--strengths 1"),
    ({"annotators": ["ann", "ann"]}, "--annotators ann,ann"),
    ({"annotators": ["ann", ""]}, "--annotators"),
    ({"host": "0.0.0.0"}, "name them with --annotators"),
    ({"url": "ftp://x"}, "--url ftp://x"),
    ({"url": "https://x/path"}, "without a path"),
    ({"url": "http://[::1"}, "is not an address"),
    ({"url": "http://x:99999"}, "is not an address"),
    ({"host": "[::1]", "annotators": ["ann"]}, "without brackets: ::1"),
    ({"port": 65536}, "--port 65536"),
    ({"port": -1}, "--port -1"),
    ({"judgments": "j.jsonl"}, "only by --select informative"),
]


@pytest.mark.parametrize("given, says", WRONG, ids=str)
def test_what_makes_no_sense_is_refused_before_anybody_is_asked(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    rows = pairs(tmp_path / "rows", choice=0)
    asked = given if given.keys() <= {"out", "file", "folder"} else {"file": rows, "out": "x"} | given
    asked = {name: tmp_path / value if name in ("out", "file", "folder") else value for name, value in asked.items()}
    with pytest.raises(UsageError, match=says):
        serve(**asked)


def test_a_bad_row_is_placed(tmp_path):
    rows = pairs(tmp_path / "rows.jsonl", 2, choice=7)
    with pytest.raises(DataError, match=r"rows.jsonl:1: bad choice"):
        serve(file=rows, out=tmp_path / "x")


def test_pairs_without_a_choice_can_be_asked(tmp_path):
    found = question_sources.from_file(pairs(tmp_path / "rows.jsonl", 3))
    assert next((each.a, each.b, each.imported) for each in found.questions) == ("zero 0", "one 0", None)
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text((tmp_path / "rows.jsonl").read_text() + json.dumps({"input_text": "p"}) + "\n")
    with pytest.raises(DataError, match=r"mixed.jsonl:4: missing key: candidate_0"):
        question_sources.from_file(mixed)


def test_pairs_without_a_choice_may_be_identical_or_have_been_skipped(tmp_path):
    rows = files.read_jsonl(pairs(tmp_path / "rows.jsonl", 3, choice=None))
    files.write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0] | {"candidate_1": "zero 0", "id": "s"}])
    found = question_sources.from_file(tmp_path / "rows.jsonl")
    assert [each.imported for each in found.questions] == [None] * 3
    assert found.notes == ["1 rows with identical answers were left out"]


def test_a_choice_that_is_there_is_kept_and_not_shown(tmp_path):
    found = question_sources.from_file(pairs(tmp_path / "rows.jsonl", 1, choice="tie"))
    assert found.questions[0].imported == "tie"


@pytest.mark.parametrize("format", ["trl", "openai"])
def test_any_format_of_preferences_can_be_asked(tmp_path, format):
    records = row_reader.kept(datasets.read([str(pairs(tmp_path / "rows.jsonl", 4, choice=0))], "preference"))
    row_writer.write(records, tmp_path / "other.jsonl", format)
    found = question_sources.from_file(tmp_path / "other.jsonl")
    assert sorted(sorted([each.a, each.b]) for each in found.questions) == [[f"one {i}", f"zero {i}"] for i in range(4)]
    assert {"zero" in (each.a if each.imported == "A" else each.b) for each in found.questions} == {True}


def test_rows_that_repeat_or_are_identical_are_counted(tmp_path):
    rows = files.read_jsonl(pairs(tmp_path / "rows.jsonl", 3, choice=0))
    turned = {"input_text": "p0", "candidate_0": "one 0", "candidate_1": "zero 0", "choice": 1}
    same = {"input_text": "p0", "candidate_0": "x", "candidate_1": "x", "choice": 1}
    files.write_jsonl(tmp_path / "rows.jsonl", [*rows, turned, same])
    found = question_sources.from_file(tmp_path / "rows.jsonl")
    assert len(found.questions) == 3
    assert found.notes == [
        "1 rows with identical answers were left out",
        "1 rows repeat an earlier pair, which is asked once",
    ]


def test_two_files_of_answers_are_joined_by_id(tmp_path):
    for side, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
        rows = [{"id": f"r{i}", "inputs": {"inputs_pretokenized": f"p{i}"}, "prediction": f"{side}{i}"} for i in order]
        write_jsonl(tmp_path / f"{side}.jsonl", rows)
    prompts = [{"messages": [{"role": "user", "content": f"p{i}"}], "id": f"r{i}", "tags": ["t"]} for i in range(3)]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    files = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    found = question_sources.from_predictions(*files, tmp_path / "prompts.jsonl", ("one", "two")).questions
    assert [(each.id, each.a, each.b, each.model_b) for each in found] == [
        (f"r{i}", f"a{i}", f"b{i}", "two") for i in range(3)
    ]
    assert (
        found[0].prompt.messages[0].content == "p0" and found[0].context == "p0" and found[0].extra == {"tags": ["t"]}
    )
    plain = question_sources.from_predictions(*files).questions
    assert plain[0].prompt.input_text == "p0"


def test_a_pair_that_occurs_again_in_a_run_is_asked_once(tmp_path):
    """Also with its answers in the other order; the folder is recognised by all rows."""
    texts = [("p", "x", "y"), ("p", "x", "y"), ("p", "y", "x"), ("p", "x", "z"), ("q", "x", "y"), ("p", "s", "s")]
    for place, side in enumerate("ab", start=1):
        answers = [
            {"id": f"r{i}", "inputs": {"inputs_pretokenized": each[0]}, "prediction": each[place]}
            for i, each in enumerate(texts)
        ]
        write_jsonl(tmp_path / f"{side}.jsonl", answers)
    material = question_sources.from_predictions(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [each.id for each in material.questions] == ["r0", "r3", "r4", "r5"]
    assert material.notes == ["2 rows repeat an earlier pair, which is asked once"]
    assert material.fingerprint == digest(*(each.key for each in material.source)) and len(material.source) == 6


def test_votes_of_another_tool_on_a_pair_that_occurs_again_are_votes_on_the_first(tmp_path):
    pairs_and_votes = [("x", "y", "response_1", "u"), ("y", "x", "response_1", "u"), ("y", "x", "response_1", "v")]
    records = [
        {
            "id": f"r{i}",
            "fields": {"prompt": "p", "response_1": a, "response_2": b},
            "responses": {"q": [{"value": choice, "user_id": who}]},
        }
        for i, (a, b, choice, who) in enumerate(pairs_and_votes)
    ]
    (tmp_path / "export.json").write_text(json.dumps(records))
    material = question_sources.from_file(tmp_path / "export.json")
    assert [each.id for each in material.questions] == ["r0"]
    votes = events.histories(material.votes)
    assert {name: history.votes[material.questions[0].key].verdict for name, history in votes.items()} == {
        "argilla u": "B", "argilla v": "B",
    }  # fmt: skip
    assert "1 earlier votes of the same person on the same pair were left out" in material.notes


def test_an_informative_selection_is_asked_and_its_probabilities_kept(tmp_path):
    rows = pairs(tmp_path / "rows.jsonl", 200, choice=0)
    judgments = [
        Judgment(
            f"r{i}", "", f"p{i}", f"zero {i}", f"one {i}", "A", 0.6, "judge", extra={"score_a": i / 20, "score_b": 0.0}
        )
        for i in range(200)
    ]
    write(judgments, tmp_path / "judgments.jsonl")
    given = {"select": "informative", "number": 40, "judgments": tmp_path / "judgments.jsonl", "seed": 1}
    with serving(tmp_path / "labels", file=rows, **given) as started:
        assert len(everything(started.person())) == 40
        started.stop()
        again = started.start().person()  # the same words again go on
        assert again.get("/api/queue")["done"] == 40
        started.stop()
    found = files.read_jsonl(tmp_path / "labels/preferences.jsonl")
    probability = {int(row["id"][1:]): row["probability"] for row in found}
    assert len(probability) == 40 and 0 < min(probability.values()) < max(probability.values()) <= 1
    assert sum(1 / p for p in probability.values()) == pytest.approx(200, rel=0.25)
    unsure = [p for i, p in probability.items() if i < 20]
    assert unsure and min(unsure) > max(p for i, p in probability.items() if i > 100)


def test_control_questions_are_mixed_in_and_counted_apart(tmp_path):
    rows = pairs(tmp_path / "rows.jsonl", 18, choice=0)
    gold = pairs(tmp_path / "gold.jsonl", 10, start=100, choice=0)
    with serving(
        tmp_path / "labels", file=rows, gold=gold, gold_share=0.25, seed=4, annotators=["ann", "bob"], overlap=2
    ) as started:
        items = everything(started.person("ann"))
        everything(started.person("bob"), "skip")
        assert len(items) == 24 and len({frozenset(item) for item in items}) == 1
        ann, bob = started.person("").get("/api/overview")["annotators"]
        assert (ann["gold_total"], bob["gold_total"], bob["skips"]) == (6, 0, 24)
        shown = [item for item in items if item["prompt"][0]["text"] in {f"p{i}" for i in range(100, 110)}]
        assert len(shown) == 6 and ann["gold_right"] == sum(item["left"].startswith("zero") for item in shown)
        started.stop()
        assert "12 on control questions" in started.output
    found = files.read_jsonl(tmp_path / "labels/gold.jsonl")
    assert Counter(row["right"] for row in found if row["annotator"] == "bob") == {None: 6}
    assert len(files.read_jsonl(tmp_path / "labels/skips.jsonl")) == 18


def test_votes_of_another_tool_are_taken_over(tmp_path):
    fields = [{"prompt": f"p{i}", "response_1": f"x{i}", "response_2": f"y{i}"} for i in range(4)]
    said = [[{"value": "response_2", "user_id": "u"}], [{"value": "tie", "user_id": "u"}], [], []]
    records = [
        {"id": f"r{i}", "fields": each, "responses": {"preference": votes}, "suggestions": {}}
        for i, (each, votes) in enumerate(zip(fields, said, strict=True))
    ]
    (tmp_path / "export.json").write_text(json.dumps(records))
    with serving(tmp_path / "labels", file=tmp_path / "export.json", seed=1) as started:
        person = started.person()
        assert person.get("/api/queue")["total"] == 2  # the other two have their answer
        everything(person)
        started.stop()
        assert "votes imported: 2 (annotators: 1)" in started.errors
    found = judgments.read(tmp_path / "labels/judgments.jsonl")
    assert [(each.id, each.choice, each.extra["annotator"]) for each in found][:2] == [
        ("r0", "B", "argilla u"), ("r1", "tie", "argilla u"),
    ]  # fmt: skip
    assert [each.extra.get("origin") for each in found] == ["argilla", "argilla", None, None]


def test_the_addresses_of_a_server():
    assert server.origins("127.0.0.1", 8484, None) == ["http://127.0.0.1:8484", "http://localhost:8484"]
    assert server.origins("192.168.1.5", 80, None) == ["http://192.168.1.5"]
    assert server.origins("::1", 8484, None) == ["http://[::1]:8484"]
    assert server.origins("Lab.example", 8484, None) == ["http://lab.example:8484"]
    behind = server.origins("127.0.0.1", 8484, "https://Label.example:443")
    assert behind == ["https://label.example", "http://127.0.0.1:8484", "http://localhost:8484"]
    anywhere = server.origins("0.0.0.0", 8484, None)
    assert anywhere == [f"http://{socket.gethostname().lower()}:8484", "http://127.0.0.1:8484", "http://localhost:8484"]


def test_behind_a_proxy_the_cookie_is_for_https_alone(tmp_path):
    rows = pairs(tmp_path / "rows.jsonl", 3, choice=0)
    with serving(tmp_path / "labels", file=rows, url="https://label.example", annotators=["ann"]) as started:
        assert started.link("ann").startswith("https://label.example/#")
        settings = Store(tmp_path / "labels").settings()
        person = Person(f"http://127.0.0.1:{settings['port']}", None)
        token = started.link("ann").partition("#")[2]
        sent = json.dumps({"token": token}).encode()
        headers = {"Host": "label.example", "Origin": "https://label.example", "Content_Type": "application/json"}
        person.send("POST", "/api/session", sent, **headers)
        assert person.status == 200 and "Secure" in person.headers["set-cookie"]


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PlatformError, match=rf"127.0.0.1:{port}: .*--port"):
            server.listen("127.0.0.1", port, None)
        with pytest.raises(PlatformError, match=rf"127.0.0.1:{port}"):
            server.listen("127.0.0.1", None, port)
    with pytest.raises(PlatformError, match="--host"):
        server.listen("203.0.113.7", 0, None)


def test_tokens_stay_and_new_people_get_new_ones(tmp_path):
    first = access.tokens(tmp_path, ["ann", ""])
    more = access.tokens(tmp_path, ["ann", "bob", ""])
    assert {name: more[name] for name in first} == first and len(set(more.values())) == 3
    assert access.tokens(tmp_path, ["bob"]) == {"bob": more["bob"]}
    assert access.holder(more["bob"], more) == "bob" and access.holder(more["bob"], first) is None
    assert access.holder("", more) is None
