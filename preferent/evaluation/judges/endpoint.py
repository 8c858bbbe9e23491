"""Any OpenAI-compatible endpoint as a judge: calls side by side, tried again where that may help, never redirected.

`wire` speaks to it. Its key comes from the environment and goes into one header, nowhere else.
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
"""Seconds that a server's Retry-After is heeded at the most."""
LOOK_EVERY = 0.1
MAY_PASS = (408, 409, 425, 429)
"""Client errors that may pass by themselves; so may all from 500 on."""


class Endpoint:
    """An endpoint that the recipe describes; `pause` waits some seconds (it is an argument for tests)."""

    def __init__(self, judge: JudgeSection, key: str | None, pause: Callable[[float], object] | None = None) -> None:
        assert judge.url is not None
        self.judge, self._key = judge, key
        self._address = Address.of(judge.url, PATH)
        self._transport = self._address.transport()
        self._leaving = threading.Event()
        self._pause = pause or self._leaving.wait
        self._lock = threading.Lock()
        self._wires: set[Connection] = set()
        self._refused: set[str] = set()
        self._told: set[str] = set()
        if key and not self._address.secure and not self._address.local:
            self._tell("plain", f"the key of {judge.name} goes to {judge.url} unencrypted; https would hide it")

    @classmethod
    def of(cls, judge: JudgeSection, pause: Callable[[float], object] | None = None) -> "Endpoint":
        """The endpoint with its key from the environment."""
        return cls(judge, None if judge.key_variable is None else _key(judge.name, judge.key_variable), pause)

    @property
    def identity(self) -> Mapping[str, Any]:
        judge = self.judge
        return {"url": judge.url, "model": judge.model} | chat_completion.parameters(judge)

    def ask(self, calls: Sequence[Call]) -> Generator[tuple[Call, Reply | Failure], None, None]:
        """No more than `concurrency` calls are under way or not yet handed over, so a kill loses no more than those."""
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
                self._hang_up(lambda wire: wire.overdue)
                done = wait(running, LOOK_EVERY, FIRST_COMPLETED).done
                replies_first = sorted(done, key=lambda future: future.exception() is not None)
                for future in replies_first:
                    yield running.pop(future), future.result()
        finally:
            self._leaving.set()
            self._hang_up(lambda wire: True)
            pool.shutdown(wait=False, cancel_futures=True)

    def _hang_up(self, which: Callable[[Connection], bool]) -> None:
        with self._lock:
            for wire in filter(which, self._wires):
                wire.hang_up()

    def _answer(self, call: Call) -> Reply | Failure:
        """The reply to a call, tried as often as the recipe allows; a reply that stays empty is one without verdict."""
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
        self._tell(fault.kind, f"{where}; tried again after {seconds:g} s, later ones of the kind silently")
        self._pause(seconds)

    def _try(self, call: Call) -> Reply:
        """One reply. A parameter that the endpoint refuses is given up, once for all calls."""
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
                remark = "does not take a question of this length, which stays without verdict, as will others silently"
                self._tell("long", f"{self.judge.name}: {self.judge.url} {remark}: {complaint}")
                return Reply(f"(The question is too long for the endpoint: {complaint})")
            named = chat_completion.refused(self.judge, refused, response.status, response.body)
            if named is None:
                raise self._stopped(response, complaint)
            with self._lock:
                self._refused.add(named)
            self._tell(named, f"{self.judge.name}: {self.judge.url} refuses {named}; asked without: {complaint}")

    def _post(self, body: bytes) -> Response:
        wire = Connection(self._address, self._transport, self.judge.timeout_seconds)
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "preferent"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        with self._lock:
            self._wires.add(wire)
        try:
            response = wire.post(body, headers)
        finally:
            with self._lock:
                self._wires.discard(wire)
        return dataclasses.replace(response, body=self._hidden(response.body))

    def _stopped(self, response: Response, complaint: str) -> PlatformError:
        """Why no further call makes sense."""
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
        """What the server says without the key, which it may repeat."""
        for spelled in {self._key, self._key.replace("/", "\\/")} if self._key else ():
            body = body.replace(spelled.encode(), b"***")
        return body

    def _tell(self, once: str, sentence: str) -> None:
        with self._lock:
            if once in self._told:
                return
            self._told.add(once)
        print(sentence, file=sys.stderr)


def pause_before(retry: int, retry_after: str | None = None) -> float:
    """Seconds before the nth further try: 1, 2, 4, … up to a minute, or what the server's Retry-After asks, within
    limits."""
    if retry_after is not None:
        with contextlib.suppress(ValueError, TypeError):
            return min(max(_seconds(retry_after), 0.0), LONGEST_WAIT)
    return float(min(FIRST_PAUSE * 2 ** min(retry - 1, 30), LONGEST_PAUSE))


def _seconds(retry_after: str) -> float:
    """What a Retry-After means: a number of seconds, or a date."""
    if re.fullmatch(r"\s*\d+(\.\d*)?\s*", retry_after):
        return float(retry_after)
    return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()


def _key(name: str, variable: str) -> str:
    place = f"compare.judges: {name}: key_variable: {variable}"
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"{place} is not set in the environment; export it, or leave key_variable out")
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{place} holds what no key can be made of (line breaks or letters outside ASCII)")
    return key
