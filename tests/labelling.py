"""A label server as a process of its own, and a person's side of its HTTP interface, for tests.

with serving(out, file=rows, seed=1) as server:            # serving.serve(out=out, file=rows, ...)
    person = server.person()                               # or server.person("ann"); server.person("") is the owner
    queue = person.get("/api/queue")
    person.post("/api/vote", {"key": key(), "item": queue["item"]["item"], "choice": "left", "note": ""})
    server.kill()                                          # kill -9
    server.start()                                         # the same command again: same address, same links
    page.goto(server.link())                               # a browser's way in
"""

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CODE = """
import json, sys
from pathlib import Path
from preferent.labeling import serving
from preferent.runs import interruption
FILES = ("folder", "file", "prompts", "gold", "out", "judgments")
given = json.loads(sys.argv[1])
paths = {name: Path(given.pop(name)) for name in FILES if name in given}
if "predictions" in given:
    given["predictions"] = tuple(map(Path, given["predictions"]))
with interruption.stoppable() as wish:
    serving.serve(**paths, **given)
sys.exit(128 + wish.signal_number if wish else 0)
"""


def key() -> str:
    return str(uuid.uuid4())


def free_port() -> int:
    """A port that nobody has, and that nobody is given while a server that was killed is away: tests run side by side,
    and systems give out ports from 32768 on."""
    while True:
        port = random.SystemRandom().randrange(20000, 32768)
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port


class Person:
    """Somebody with a token; every answer is checked to be JSON. `status` is the last answer's."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self.connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
        self.cookie = ""
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.session = self.post("/api/session", {"token": token}) if token is not None else {}

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        """A request as it is; `headers` with _ for -, an empty one is left out."""
        given = {"Cookie": self.cookie, **{name.replace("_", "-"): value for name, value in headers.items()}}
        self.connection.request(method, path, body, {name: value for name, value in given.items() if value})
        answer = self.connection.getresponse()
        self.status, self.headers = answer.status, dict(answer.getheaders())
        if "set-cookie" in self.headers:
            self.cookie = self.headers["set-cookie"].partition(";")[0]
        return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.send("GET", path))

    def post(self, path: str, body: Any) -> Any:
        raw = json.dumps(body).encode()
        return json.loads(self.send("POST", path, raw, Origin=self.address, Content_Type="application/json"))

    def vote(self, queue: Mapping[str, Any], choice: str = "left", **more: Any) -> Any:
        """Vote on what a queue asks; the queue after it."""
        return self.post("/api/vote", {"key": key(), "item": queue["item"]["item"], "choice": choice, **more})


class Server:
    """`serving.serve(out=out, **given)` as a process; `out=None` leaves it out."""

    def __init__(self, out: Path, /, **given: Any) -> None:
        self.folder = out
        self.given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        self.given = {"out": str(out), "port": free_port()} | self.given
        self.given = {name: value for name, value in self.given.items() if value is not None}
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self.output = self.errors = ""

    def start(self) -> "Server":
        """Start it and wait until it listens."""
        command = [sys.executable, "-c", CODE, json.dumps(self.given)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stderr
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if "/owner#" in line:  # the last of the links
                return self
        raise AssertionError(self.process.stderr.read())

    @property
    def address(self) -> str:
        return self.link("").partition("/owner#")[0]

    def link(self, name: str | None = None) -> str:
        """The link of an annotator (of the first one if none is named), or under the empty name of the owner's page."""
        if name == "":
            return self.lines[-1].split()[-1]
        wanted = [line for line in self.lines if "/#" in line and (name is None or line.split()[0] == name)]
        return wanted[0].split()[-1]

    def person(self, name: str | None = None) -> Person:
        return Person(self.address, self.link(name).partition("#")[2])

    def stranger(self) -> Person:
        return Person(self.address, None)

    def kill(self) -> None:
        """kill -9."""
        assert self.process
        self.process.kill()
        self._gone()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to leave; its exit code."""
        assert self.process
        self.process.send_signal(number)
        return self._gone()

    def _gone(self) -> int:
        assert self.process
        self.output, self.errors = self.process.communicate(timeout=20)
        return self.process.returncode


@contextmanager
def serving(out: Path, /, **given: Any) -> Iterator[Server]:
    server = Server(out, **given).start()
    try:
        yield server
    finally:
        if server.process and server.process.poll() is None:
            server.kill()
