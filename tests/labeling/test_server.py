"""The label server as a process: who has access, what a response reveals, and what survives."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import uvicorn
from labelling import Person, Server, key, serving

from preferent import files
from preferent.data import judgments
from preferent.data.types import Prompt
from preferent.labeling import access, service
from preferent.labeling import server as server_module
from preferent.labeling.database import Store
from preferent.labeling.questions import Question
from preferent.labeling.server import Visit, Visitors

QUESTION = Question("q", Prompt("Which?"), "yes", "no")
NAMES = ("UNMISTAKABLE-MODEL-ONE", "UNMISTAKABLE-MODEL-TWO")


def write_rows(path, count, **more):
    rows = [
        {
            "input_text": f"prompt {i}",
            "candidate_0": f"zero {i}",
            "candidate_1": f"one {i}",
            "choice": i % 2,
            "id": f"r{i}",
        }
        | {"model_0": NAMES[0], "model_1": NAMES[1]}
        | more
        for i in range(count)
    ]
    files.write_jsonl(path, rows)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server for a team of two, whose votes many tests share."""
    folder = tmp_path_factory.mktemp("UNMISTAKABLE-FOLDER")
    rows = write_rows(folder / "rows.jsonl", 300)
    with serving(folder / "labels", file=rows, seed=1, annotators=["ann", "bob"], overlap=2, strengths=3) as started:
        yield started


def good(server):
    """The headers of a request that is let in."""
    return {"Origin": server.address, "Content_Type": "application/json", "Cookie": server.person("ann").cookie}


def body(server):
    item = server.person("ann").get("/api/queue")["item"]["item"]
    return json.dumps({"key": key(), "item": item, "choice": "left"}).encode()


def test_a_request_with_everything_right_is_let_in(server):
    stranger = server.stranger()
    stranger.send("POST", "/api/vote", body(server), **good(server))
    assert stranger.status == 200


WRONG = {
    "dns rebinding": ({"Host": "evil.example"}, 403),
    "rebinding with our port": ({"Host": "evil.example:8484"}, 403),
    "an address that is not ours": ({"Host": "0.0.0.0"}, 403),
    "another port": ({"Host": "127.0.0.1:1"}, 403),
    "no port": ({"Host": "127.0.0.1"}, 403),
    "a foreign page": ({"Origin": "https://evil.example"}, 403),
    "a page of another port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "an origin that begins as ours": ({"Origin": "http://127.0.0.1.evil.example"}, 403),
    "a sandboxed page": ({"Origin": "null"}, 403),
    "no origin": ({"Origin": ""}, 403),
    "a form": ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    "an upload": ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
    "plain text": ({"Content_Type": "text/plain"}, 415),
    "no type": ({"Content_Type": ""}, 415),
    "no cookie": ({"Cookie": ""}, 401),
    "a wrong cookie": ({"Cookie": "preferent_00000000=x"}, 401),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("path", ["/api/vote", "/api/undo", "/api/flag", "/api/export"])
def test_a_request_with_one_thing_wrong_is_not(server, case, path):
    headers, status = WRONG[case]
    before = server.person("ann").get("/api/queue")
    stranger = server.stranger()
    answer = json.loads(stranger.send("POST", path, body(server), **good(server) | headers))
    assert stranger.status == status and set(answer) == {"error"}
    assert server.person("ann").get("/api/queue") == before


def test_a_wrong_token_opens_nothing(server):
    stranger = server.stranger()
    for token in ("", "x", server.link("ann").partition("#")[2][:-1], 5, None, ["x"], "ä" * 10):
        assert "error" in stranger.post("/api/session", {"token": token})
        assert stranger.status == 401 and stranger.cookie == ""
    token = server.link("ann").partition("#")[2]
    stranger.send("GET", "/api/queue", Cookie=f"preferent_00000000={token}")
    assert stranger.status == 401


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(server):
    person = server.person("ann")
    assert "HttpOnly" in person.headers["set-cookie"] and "SameSite=strict" in person.headers["set-cookie"]
    assert person.session == {"annotator": "ann", "owner": False, "asks": "pairs", "strengths": [1, 2, 3]} | {
        "folder": person.session["folder"]
    }
    assert person.get("/api/session") == person.session
    owner = server.person("")
    assert (owner.session["annotator"], owner.session["owner"]) == (None, True)


@pytest.mark.parametrize("path", ["/api/vote", "/"])
@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"])
def test_other_methods_do_nothing(server, method, path):
    stranger = server.stranger()
    stranger.send(method, path, None, **good(server))
    assert stranger.status == 405


PATHS = ["/api/vote", "/api/undo", "/api/flag", "/api/export", "/api/session", "/api/queue", "/api/overview?reveal=1"]


@pytest.mark.parametrize("path", PATHS)
def test_a_get_changes_nothing(server, path):
    events = count(server)
    server.person("ann").send("GET", f"{path}?key=x&choice=left")
    server.person("").send("GET", path)
    assert count(server) == events


def count(server):
    database = sqlite3.connect(server.folder / "labels.sqlite")
    found = database.execute("select count(*) from event").fetchone()[0]
    database.close()
    return found


@pytest.mark.parametrize("path", ["/", "/owner", "/api/queue", "/nothing", "/static/none.js", "/api/export/votes"])
def test_every_answer_has_the_headers_of_safety(server, path):
    stranger = server.stranger()
    stranger.send("GET", path)
    policy = stranger.headers["content-security-policy"]
    for part in (
        "default-src 'none'",
        "script-src 'self'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        "base-uri 'none'",
    ):
        assert part in policy
    assert "unsafe" not in policy and "*" not in policy
    assert stranger.headers["x-content-type-options"] == "nosniff"
    assert stranger.headers["referrer-policy"] == "no-referrer"
    assert stranger.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in stranger.headers and "server" not in stranger.headers


@pytest.mark.parametrize(
    "name",
    [
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "..%5capp.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        ".",
        "",
        "a/b.js",
        "label.js%00",
    ],
)
def test_no_name_leads_out_of_the_folder_of_the_page(server, name):
    stranger = server.stranger()
    assert b"import" not in stranger.send("GET", f"/static/{name}")
    assert stranger.status == 404


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"5", b"\xff\xfe", b"[" * 60_000, b'{"key": "x"}', b'{"key": 1e999}']
)
def test_what_is_no_json_object_is_refused(server, data):
    stranger = server.stranger()
    answer = json.loads(stranger.send("POST", "/api/vote", data, **good(server)))
    assert stranger.status == 400 and answer["error"]


def test_a_huge_body_is_refused_declared_or_not(server):
    events = count(server)
    bodies = [b" " * ((1 << 16) + 1), b" " * (1 << 24), (b" " * 4096 for _ in range(40))]
    for number, sent in enumerate(bodies):
        stranger = server.stranger()
        try:
            stranger.send("POST", "/api/vote", sent, **good(server))
        except OSError:  # it was answered, and closed, before all was sent
            assert number > 0
        else:
            assert stranger.status == 413
    assert count(server) == events and server.person("ann").get("/api/queue")["item"]


def test_what_is_the_owners_is_not_an_annotators(server):
    person, owner = server.person("bob"), server.person("")
    for path in ("/api/overview", "/api/export/judgments", "/api/overview?reveal=1"):
        assert set(person.get(path)) == {"error"} and person.status == 403
    assert set(person.post("/api/export", {})) == {"error"} and person.status == 403
    assert set(owner.get("/api/queue")) == {"error"} and owner.status == 403
    assert owner.get("/api/overview")["items"] == 300


def test_no_answer_to_an_annotator_names_a_model_a_file_or_a_choice(server):
    """Every kind of answer there is, before and after votes, errors among them."""
    person = server.person("bob")
    texts = [json.dumps(person.session)]
    for choice in ("left", "right", "tie", "both_bad", "skip"):
        queue = person.get("/api/queue")
        texts += [json.dumps(queue), json.dumps(person.vote(queue, choice)), json.dumps(person.vote(queue, choice))]
        texts.append(json.dumps(person.post("/api/flag", {"key": key(), "item": queue["item"]["item"], "note": ""})))
        texts.append(json.dumps(person.post("/api/undo", {"key": key()})))
        texts.append(json.dumps(person.vote(person.get("/api/queue"), choice)))
    wrong = [{}, {"key": key()}, {"key": key(), "item": "r1", "choice": "left"}]
    texts += [json.dumps(person.post(path, sent)) for path in ("/api/vote", "/api/flag") for sent in wrong]
    texts += [
        json.dumps(person.get(path)) for path in ("/api/overview", "/api/export/judgments", "/nowhere", "/api/vote")
    ]
    texts += [person.send("GET", path).decode() for path in ("/", "/static/label.js")]
    found = "\n".join(texts)
    for word in (
        "UNMISTAKABLE",
        "tuned",
        "candidate",
        '"choice": 0',
        "imported",
        "probability",
        "gold",
        str(server.folder),
    ):
        assert word not in found, word
    assert "prompt " in found  # what is shown was looked at


def test_silent_connections_keep_nobody_out(server):
    """Far more than one address may have open; an annotator whose token is known stays connected."""
    person = server.person("ann")
    host, port = server.address.removeprefix("http://").split(":")
    sockets = [socket.create_connection((host, int(port))) for _ in range(300)]
    try:
        assert person.get("/api/queue")["total"] > 0 and person.status == 200
        stranger = server.stranger()
        assert stranger.send("GET", "/") and stranger.status == 200
        assert server.person("bob").get("/api/queue")["total"] > 0
    finally:
        for each in sockets:
            each.close()


def test_a_request_that_does_not_arrive_in_time_is_cut_off():
    async def slow(first: bytes) -> bytes:
        listener = server_module.listen("127.0.0.1", 0, None)
        config = uvicorn.Config(
            access.guard(None, {"http://x"}), http=partial(Visit, visitors=Visitors()), lifespan="off"
        )
        running = uvicorn.Server(config)
        task = asyncio.create_task(running.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), 30)
        running.should_exit = True
        await task
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "SECONDS_TO_ASK", 0.2)
        head = b"POST / HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\nContent-Type: application/json\r\n"
        for first in (b"", head, head + b"Content-Length: 9\r\n\r\n{"):
            assert asyncio.run(slow(first)) == b""


def test_an_annotator_cannot_add_events_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "EVENTS", 3)
    monkeypatch.setattr(service, "EVENTS_PER_QUESTION", 1)
    store = Store(tmp_path)
    store.create({"seed": 1, "annotators": ["ann"], "overlap": 1, "gold_share": 0.0, "strengths": 0}, [QUESTION])
    labeling = service.LabelingService(store)
    item = labeling.queue("ann")["item"]["item"]
    for number in range(4):
        labeling.flag("ann", {"key": f"{number}", "item": item, "note": "again"})
    with pytest.raises(service.Refused, match="4 events of yours are stored, which is the limit"):
        labeling.flag("ann", {"key": "4", "item": item, "note": "again"})
    labeling.flag("ann", {"key": "3", "item": item, "note": "again"})
    assert len(store.events()) == 4


def test_links_are_private_files(server):
    path = server.folder / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tokens = json.loads(path.read_text())
    assert set(tokens) == {"ann", "bob", ""} and len(set(tokens.values())) == 3
    assert all(len(token) >= 32 for token in tokens.values())


def test_a_second_server_on_the_same_folder_is_refused(server):
    second = Server(server.folder, **{name: value for name, value in server.given.items() if name != "out"})
    with pytest.raises(AssertionError, match="another process is working here"):
        second.start()


def test_the_overview_adds_up(server):
    owner = server.person("")
    found = owner.get("/api/overview")
    assert found["votes"] == sum(found["choices"].values()) == sum(each["done"] for each in found["annotators"])
    assert [each["name"] for each in found["annotators"]] == ["ann", "bob"]
    assert "win_rate" not in found and "UNMISTAKABLE" not in json.dumps(found)
    shown = owner.get("/api/overview?reveal=1")["win_rate"]
    assert {(each["model_a"], each["model_b"]) for each in shown} <= {NAMES}


def test_an_export_by_the_owner_is_on_the_disk_and_in_the_download(server):
    owner = server.person("")
    said = owner.post("/api/export", {})
    assert owner.status == 200 and set(said["files"]) == {"judgments", "preferences", "ties", "skips", "gold", "flags"}
    for name, rows in said["files"].items():
        downloaded = owner.send("GET", f"/api/export/{name}")
        assert downloaded == (server.folder / f"{name}.jsonl").read_bytes()
        assert len([line for line in downloaded.split(b"\n") if line]) == rows
        assert "attachment" in owner.headers["content-disposition"]
    assert len(judgments.read(server.folder / "judgments.jsonl")) == said["files"]["judgments"]


def test_one_alone_is_annotator_and_owner(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 5)
    with serving(tmp_path / "labels", file=rows) as alone:
        person = alone.person()
        assert (person.session["annotator"], person.session["owner"], person.session["strengths"]) == ("me", True, None)
        person.vote(person.get("/api/queue"))
        assert person.get("/api/overview")["votes"] == 1
        assert alone.link("").partition("#")[2] == alone.link().partition("#")[2]
        address, link = alone.address, alone.link()
        assert alone.stop(signal.SIGINT) == 0
        assert "1 votes: 1 preferences" in alone.output
        assert len(files.read_jsonl(tmp_path / "labels/preferences.jsonl")) == 1
        alone.given.pop("port")  # the folder remembers it
        alone.start()
        assert (alone.address, alone.link()) == (address, link)
        assert person_again(alone, person).get("/api/queue")["done"] == 1
        assert alone.stop(signal.SIGTERM) == 0


def person_again(server, person):
    """The same person's browser, after a restart: the cookie it has is enough."""
    again = server.stranger()
    again.cookie = person.cookie
    return again


@pytest.mark.acceptance
def test_another_question_in_the_same_folder_is_refused(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 5)
    with serving(tmp_path / "labels", file=rows) as first:
        first.stop()
    write_rows(rows, 6)
    with pytest.raises(AssertionError, match="has other questions or settings:\n  questions: was"):
        Server(tmp_path / "labels", file=rows).start()
    with serving(tmp_path / "elsewhere", folder=tmp_path / "labels", out=None) as again:  # what was asked is kept there
        assert again.person().get("/api/queue")["total"] == 5


def test_questions_with_a_run_come_from_its_predictions(tmp_path):
    folder = tmp_path / "run"
    (folder / "data/prompt").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("large_model_reference: x\npreference_dataset: y\ninstruction: Be short.\n")
    files.write_jsonl(
        folder / "data/prompt/test.jsonl", [{"input_text": f"p{i}", "id": f"r{i}", "group": "g"} for i in range(3)]
    )
    for side in ("base", "tuned"):
        rows = [
            {
                "id": f"r{i}",
                "inputs": {"inputs_pretokenized": f"Be short.\n\n\np{i}"},
                "prediction": f"{side} {i}" if i else "same",
            }
            for i in range(3)
        ]
        (folder / "predictions" / side).mkdir(parents=True)
        files.write_jsonl(folder / "predictions" / side / "text.jsonl", rows)
    with serving(folder / "labels", folder=folder, out=None) as server:
        person = server.person()
        queue = person.get("/api/queue")
        assert queue["total"] == 2 and queue["item"]["prompt"][0] == {"role": "instruction", "text": "Be short."}
        assert queue["item"]["prompt"][1]["text"] in ("p1", "p2")
        while queue["item"]:
            queue = person.vote(queue, "left" if queue["item"]["left"].startswith("tuned") else "right")
        server.stop()
    found = judgments.read(folder / "labels/judgments.jsonl")
    assert [(each.id, each.choice, each.response_a) for each in found] == [
        ("r0", "tie", "same"), ("r1", "A", "tuned 1"), ("r2", "A", "tuned 2"),
    ]  # fmt: skip
    assert {(each.inference_instruction, each.extra["model_a"], each.extra["model_b"]) for each in found} == {
        ("Be short.", "tuned", "base")
    }
    assert {each.inference_context for each in found} == {"p0", "p1", "p2"}
    assert {row["group"] for row in files.read_jsonl(folder / "labels/preferences.jsonl")} == {"g"}


def test_missing_packages_are_named(tmp_path):
    code = """
import sys
sys.modules["uvicorn"] = None
from pathlib import Path
from preferent.errors import PlatformError
from preferent.labeling import serving
try:
    serving.serve(file=Path(sys.argv[1]), out=Path(sys.argv[2]))
except PlatformError as error:
    print(error)
"""
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    said = subprocess.check_output([sys.executable, "-c", code, rows, tmp_path / "labels"], text=True)
    assert "pip install starlette uvicorn" in said


VOTER = """
import json, random, sys, time
sys.path.insert(0, sys.argv[1])
from labelling import Person, key
address, token, out, name = sys.argv[2:6]
log = open(out, "a", buffering=1)
rng = random.Random(name)
person, queue = None, None
while True:
    try:
        if person is None:
            person = Person(address, token)
            queue = person.get("/api/queue")
        if queue["item"] is None:
            break
        choice = rng.choice(["left", "right", "tie", "both_bad", "skip"])
        sent = {"key": key(), "item": queue["item"]["item"], "choice": choice}
        while True:  # the same vote until somebody says that it is kept
            try:
                answer = person.post("/api/vote", sent)
                break
            except (OSError, ValueError, __import__("http.client").client.HTTPException):
                time.sleep(0.05)
                person.connection.close()
        assert person.status in (200, 409), (person.status, answer)
        if person.status == 200:
            log.write(json.dumps(sent) + "\\n")
        queue = answer if person.status == 200 else answer["queue"]
    except (OSError, ValueError, __import__("http.client").client.HTTPException):
        time.sleep(0.05)
        person = None
"""


def acknowledged(folder, people):
    return sum((folder / name).read_bytes().count(b"\n") for name in people if (folder / name).exists())


def wait_until(condition):
    while not condition():
        time.sleep(0.005)


@pytest.mark.acceptance
def test_four_people_vote_while_the_server_is_killed_ten_times(tmp_path):
    """Every vote that was acknowledged is there, once; nothing else is."""
    people = ["ann", "bob", "cyd", "dan"]
    rows = write_rows(tmp_path / "rows.jsonl", 500)
    rng = random.Random(0)
    with serving(tmp_path / "labels", file=rows, seed=1, annotators=people, overlap=4) as server:
        tests = os.path.dirname(os.path.dirname(__file__))
        voters = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    VOTER,
                    tests,
                    server.address,
                    server.link(name).partition("#")[2],
                    tmp_path / name,
                    name,
                ]
            )
            for name in people
        ]
        for kill in range(10):
            wait_until(lambda: acknowledged(tmp_path, people) >= 150 * (kill + 1) + rng.randrange(100))  # noqa: B023
            server.kill()
            server.start()
        assert any(voter.poll() is None for voter in voters), "all were killed while people voted"
        for voter in voters:
            assert voter.wait(timeout=120) == 0
        owner = server.person("")
        overview = owner.get("/api/overview")
        server.stop()
    database = sqlite3.connect(tmp_path / "labels/labels.sqlite")
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    kept = {}
    for name, sent, item, said in database.execute("select annotator, key, item, body from event"):
        assert (name, item) not in kept, "two votes on one question"
        kept[name, item] = sent, json.loads(said)["choice"]
    assert len(kept) == 4 * 500 == overview["votes"]
    for name in people:
        sent = {vote["key"]: vote["choice"] for vote in files.read_jsonl(tmp_path / name)}
        assert len(sent) == acknowledged(tmp_path, [name]) == 500
        assert sent == dict(kept[each, item] for each, item in kept if each == name)
    count = sum(len(files.read_jsonl(tmp_path / f"labels/{name}.jsonl")) for name in ("preferences", "ties", "skips"))
    assert count == 2000


def test_several_people_at_once_do_not_disturb_each_other(tmp_path):
    people = [f"p{i}" for i in range(8)]
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    with serving(tmp_path / "labels", file=rows, annotators=people, overlap=8) as server:
        wrong = []

        def work(name):
            person = server.person(name)
            queue = person.get("/api/queue")
            for choice in itertools.islice(itertools.cycle(["left", "right", "skip"]), 30):
                queue = person.vote(queue, choice)
                if person.status != 200:
                    wrong.append((name, person.status))

        threads = [threading.Thread(target=work, args=(name,)) for name in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert [each["done"] for each in server.person("").get("/api/overview")["annotators"]] == [30] * 8
        assert isinstance(server.person("p0"), Person)
