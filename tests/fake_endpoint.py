"""A stand-in for an OpenAI-compatible endpoint, on 127.0.0.1: answers as a test scripts it, and counts what it gets.

A script is a function of an `Asked` (the question as the server read it, and how often it came before) to what to do:
an `Answer`, or one of the faults below.
"""

import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RESPONSES = re.compile(r"Response [12]:\n<<< (\w+)\n(.*?)\n\1 >>>", re.S)


@dataclass(frozen=True)
class Asked:
    """A request: its JSON, its headers in lower case, and how many with the same question came before it."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    before: int

    @property
    def text(self) -> str:
        return str(self.body["messages"][-1]["content"])

    @property
    def responses(self) -> tuple[str, str]:
        """The two responses that it shows, first and second."""
        (_, first), (_, second) = RESPONSES.findall(self.text)
        return first, second

    def share(self, purpose: str) -> float:
        """A number in [0, 1) that depends on the two responses, whatever their order."""
        return share(purpose, *self.responses)


def share(purpose: str, *texts: str) -> float:
    raw = hashlib.sha256("\0".join([purpose, *sorted(texts)]).encode()).digest()
    return int.from_bytes(raw[:8], "big") / 2**64


@dataclass(frozen=True)
class Answer:
    """A whole answer: a status, a body (JSON, or text as it is), and headers."""

    body: object = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Silence:
    """No answer until the client hangs up."""


@dataclass(frozen=True)
class Trickle:
    """An answer that goes on for ever, a little at a time: its headers, or its body, in chunks or without a length."""

    headers: bool = False
    chunked: bool = True


class Cut:
    """A body that ends before the length that was announced."""


class Hang:
    """The connection is closed without an answer."""


Deed = Answer | Silence | Trickle | Cut | Hang
Script = Callable[[Asked], Deed]

HTML = Answer("<!doctype html><html><body>Bad gateway</body></html>")
WRONG = Answer({"object": "chat.completion", "choices": []})
GARBAGE = Answer('{"choices": [{"message": {"con')


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None, **more: object) -> Answer:
    """An error as OpenAI's API words it, with `code` or `param`."""
    return Answer({"error": {"message": message, "type": "error"} | more}, status, headers or {})


def completion(text: str, tokens: Sequence[tuple[str, Mapping[str, float]]] | None = None, **more: object) -> Answer:
    """A reply; `tokens` are its tokens with the probabilities of the alternatives at each."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if tokens is not None:
        content = [
            {
                "token": token,
                "logprob": math.log(shares[token]),
                "top_logprobs": [{"token": name, "logprob": math.log(value)} for name, value in shares.items()],
            }
            for token, shares in tokens
        ]
        choice["logprobs"] = {"content": content}
    return Answer({"choices": [choice | more], "usage": {"total_tokens": 10}})


def prefers(asked: Asked, better: Callable[[str, str], bool]) -> str:
    """The label of the better response."""
    first, second = asked.responses
    return "1" if better(first, second) else "2"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Endpoint:
    """A server that runs; `counts` are requests by question, `headers` and `bodies` all that came."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.counts: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[Mapping[str, Any]] = []
        self.paths: list[str] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def asked(self, body: Mapping[str, Any], headers: dict[str, str], path: str) -> Asked:
        with self._lock:
            question = str(body["messages"])
            found = Asked(body, headers, self.counts[question])
            self.counts[question] += 1
            self.headers.append(headers)
            self.bodies.append(body)
            self.paths.append(path)
            return found

    def delivered(self, asked: Asked) -> None:
        with self._lock:
            self.answered[str(asked.body["messages"])] += 1


@contextmanager
def serving(script: Script) -> Iterator[Endpoint]:
    """An endpoint that answers by a script until the end of the block."""
    endpoint = Endpoint(script)
    thread = threading.Thread(target=endpoint._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.closing.set()
        endpoint._server.shutdown()
        endpoint._server.server_close()


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = endpoint.asked(body, {name.lower(): value for name, value in self.headers.items()}, self.path)
            deed = endpoint.script(asked)
            self.close_connection = True
            try:
                self._do(deed)
                if isinstance(deed, Answer):
                    endpoint.delivered(asked)
            except OSError:
                """The client has gone."""

        def _do(self, deed: Deed) -> None:
            if isinstance(deed, Answer):
                text = deed.body if isinstance(deed.body, str) else json.dumps(deed.body)
                self._send(deed.status, deed.headers, text.encode("utf-8", "surrogatepass"))
            elif isinstance(deed, Cut):
                self._send(200, {"Content-Length": "1000"}, b'{"choices": [')
            elif isinstance(deed, Trickle):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                self.wfile.write(b"Transfer-Encoding: chunked\r\n" if deed.chunked else b"")
                self.wfile.write(b"" if deed.headers else b"\r\n")
                more = b"X-More: 1\r\n" if deed.headers else b"1\r\n \r\n" if deed.chunked else b" "
                while not endpoint.closing.wait(0.02):
                    self.wfile.write(more)
            elif isinstance(deed, Silence):
                self.connection.settimeout(0.05)
                while not endpoint.closing.is_set() and not self._gone():
                    time.sleep(0.02)

        def _gone(self) -> bool:
            try:
                return self.connection.recv(1) == b""
            except TimeoutError:
                return False

        def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            given = {"Content-Type": "application/json"} | dict(headers)
            if "Transfer-Encoding" not in given:
                given.setdefault("Content-Length", str(len(body)))
            for name, value in given.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler
