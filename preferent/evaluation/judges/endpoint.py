"""A judge at an OpenAI-compatible endpoint. Calls run concurrently, are retried where that may help, and are never
redirected.

`http_client` makes the exchanges. The key comes from the environment and is sent in one header only.
"""

import contextlib
import dataclasses
import email.utils
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from preferent.config.comparison_sections import JudgeSection
from preferent.errors import PlatformError, UsageError
from preferent.evaluation.judges import chat_completion
from preferent.evaluation.judges.http_client import Address, Connection, Response, TransportError
from preferent.evaluation.judges.protocol import Call, Failure, Reply
from preferent.runs import interruption

PATH = "/chat/completions"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
LONGEST_WAIT = 120.0
"""Maximum of a server's Retry-After in seconds."""
LOOK_EVERY = 0.1
MAY_PASS = (408, 409, 425, 429)
"""Client errors that are worth a retry, as all errors from 500 on are."""


class Endpoint:
    """An endpoint that the recipe describes; `pause` waits a number of seconds and is replaced in tests."""

    def __init__(self, judge: JudgeSection, key: str | None, pause: Callable[[float], object] | None = None) -> None:
        assert judge.url is not None
        self.judge, self._key = judge, key
        self._address = Address.of(judge.url, PATH)
        self._transport = self._address.transport()
        self._leaving = threading.Event()
        self._pause = pause or self._leaving.wait
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._refused: set[str] = set()
        self._printed: set[str] = set()
        if key and not self._address.secure and not self._address.local:
            self._print_once("plain", f"the key of {judge.name} goes to {judge.url} unencrypted; use https to hide it")

    @classmethod
    def of(cls, judge: JudgeSection, pause: Callable[[float], object] | None = None) -> "Endpoint":
        """Return the endpoint with its key from the environment."""
        return cls(judge, None if judge.key_variable is None else _key(judge.name, judge.key_variable), pause)

    @property
    def identity(self) -> Mapping[str, Any]:
        judge = self.judge
        return {"url": judge.url, "model": judge.model} | chat_completion.parameters(judge)

    def ask(self, calls: Sequence[Call]) -> Generator[tuple[Call, Reply | Failure], None, None]:
        """Yield every call with its reply or failure.

        At most `concurrency` calls are running or not yet yielded, so a kill loses at most those.
        """
        waiting, running = iter(calls), dict[Future[Reply | Failure], Call]()
        pool = ThreadPoolExecutor(self.judge.concurrency, "judge")
        self._leaving.clear()
        try:
            while True:
                interruption.stop().check()
                for call in itertools.islice(waiting, self.judge.concurrency - len(running)):
                    running[pool.submit(self._answer, call)] = call
                if not running:
                    return
                self._hang_up(lambda connection: connection.overdue)
                done = wait(running, LOOK_EVERY, FIRST_COMPLETED).done
                replies_first = sorted(done, key=lambda future: future.exception() is not None)
                for future in replies_first:
                    yield running.pop(future), future.result()
        finally:
            self._leaving.set()
            self._hang_up(lambda connection: True)
            pool.shutdown(wait=False, cancel_futures=True)

    def _hang_up(self, which: Callable[[Connection], bool]) -> None:
        with self._lock:
            for connection in filter(which, self._connections):
                connection.hang_up()

    def _answer(self, call: Call) -> Reply | Failure:
        """Return the reply to a call, with as many retries as the recipe allows; a reply that stays empty has no
        verdict."""
        faults: list[TransportError] = []
        while True:
            if self._leaving.is_set():
                return Failure(tuple(fault.kind for fault in faults), "left")
            began = time.monotonic()
            try:
                reply = self._try(call)
                kinds = tuple(fault.kind for fault in faults)
                return dataclasses.replace(reply, seconds=time.monotonic() - began, faults=kinds)
            except TransportError as fault:
                faults.append(fault)
            if len(faults) > self.judge.retries:
                *before, last = (fault.kind for fault in faults)
                if last == chat_completion.EMPTY:
                    return Reply("", seconds=time.monotonic() - began, faults=tuple(before))
                return Failure((*before, last), faults[-1].detail)
            self._rest(faults[-1], pause_before(len(faults), faults[-1].wait))

    def _rest(self, fault: TransportError, seconds: float) -> None:
        if self._leaving.is_set():
            return
        where = f"{self.judge.name}: {self.judge.url}: {fault.kind}: {fault.detail}"
        self._print_once(fault.kind, f"{where}; retrying after {seconds:g} s, later faults of this kind silently")
        self._pause(seconds)

    def _try(self, call: Call) -> Reply:
        """Return one reply; leave out a parameter that the endpoint refuses from then on, for all calls."""
        while True:
            with self._lock:
                refused = frozenset(self._refused)
            response = self._post(chat_completion.body(self.judge, call, refused))
            if 200 <= response.status < 300:
                return chat_completion.reply(response.body)
            complaint = chat_completion.complaint(response.body)
            if response.status in MAY_PASS or response.status >= 500:
                raise TransportError(str(response.status), complaint, response.headers.get("Retry-After"))
            if chat_completion.filtered(response.body):
                return Reply(f"(The endpoint did not let the question pass: {complaint})")
            if chat_completion.too_long(response.status, response.body):
                remark = "refuses a question of this length; it stays without a verdict, as will later ones silently"
                self._print_once("long", f"{self.judge.name}: {self.judge.url} {remark}: {complaint}")
                return Reply(f"(The question is too long for the endpoint: {complaint})")
            named = chat_completion.refused(self.judge, refused, response.status, response.body)
            if named is None:
                raise self._stopped(response, complaint)
            with self._lock:
                self._refused.add(named)
            remark = f"refuses {named}, which is left out from now on"
            self._print_once(named, f"{self.judge.name}: {self.judge.url} {remark}: {complaint}")

    def _post(self, body: bytes) -> Response:
        connection = Connection(self._address, self._transport, self.judge.timeout_seconds)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "preferent"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        with self._lock:
            self._connections.add(connection)
        try:
            response = connection.post(body, headers)
        finally:
            with self._lock:
                self._connections.discard(connection)
        return dataclasses.replace(response, body=self._hidden(response.body))

    def _stopped(self, response: Response, complaint: str) -> PlatformError:
        """Return the error that ends all calls."""
        where = f"compare.judges: {self.judge.name}: {self.judge.url} answered {response.status}"
        if 300 <= response.status < 400:
            target = self._hidden(response.headers.get("Location", "elsewhere").encode()).decode()
            return PlatformError(f"{where}, a redirect to {target}, which is not followed; give that address as url")
        if response.status in (401, 403):
            complaint += f"; check the key in {self.judge.key_variable or 'key_variable, which names none'}"
        if response.status == 404:
            complaint += f"; check url (it ends before {PATH}) and model: {self.judge.model}"
        return PlatformError(f"{where}: {complaint}")

    def _hidden(self, body: bytes) -> bytes:
        """Return what the server says without the key, which it may repeat."""
        for spelled in {self._key, self._key.replace("/", "\\/")} if self._key else ():
            body = body.replace(spelled.encode(), b"***")
        return body

    def _print_once(self, kind: str, sentence: str) -> None:
        with self._lock:
            if kind in self._printed:
                return
            self._printed.add(kind)
        print(sentence, file=sys.stderr)


def pause_before(retry: int, retry_after: str | None = None) -> float:
    """Return the seconds before the nth retry: 1, 2, 4, … up to a minute, or the server's Retry-After within limits."""
    if retry_after is not None:
        with contextlib.suppress(ValueError, TypeError):
            return min(max(_seconds(retry_after), 0.0), LONGEST_WAIT)
    return float(min(FIRST_PAUSE * 2 ** min(retry - 1, 30), LONGEST_PAUSE))


def _seconds(retry_after: str) -> float:
    """Return the seconds of a Retry-After, which is a number of seconds or a date."""
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", retry_after):
        return float(retry_after)
    return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()


def _key(name: str, variable: str) -> str:
    place = f"compare.judges: {name}: key_variable: {variable}"
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"{place} is not set in the environment; export it, or leave key_variable out")
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{place} is not a key: it holds line breaks or letters outside ASCII")
    return key
