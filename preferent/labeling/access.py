"""The door of the label server: whose token it is, and which requests are let in.

Anything on this computer, and any page open in its browser, can send requests to a port of it. So a request needs a
token in a cookie; the name that it calls the server by must be ours (else a foreign domain could point here: DNS
rebinding); and one that changes something must come from our own page (Origin) as JSON, which no form can send.
"""

import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence, Set
from pathlib import Path
from typing import Any

from preferent import files
from preferent.data.types import digest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NAME = "tokens.json"
LARGEST = 1 << 16
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def tokens(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The token of everybody who is named; new ones are drawn, old ones stay.

    They are kept in a file that only its owner may read, so that links go on working after a restart.
    """
    path = folder / NAME
    kept: dict[str, str] = files.read_json(path) if path.exists() else {}
    found = kept | {name: secrets.token_urlsafe(24) for name in names if name not in kept}
    if found != kept:
        _write_private(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return {name: found[name] for name in names}


def _write_private(path: Path, text: str) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with files.writing(path):
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        files.sync_folder(path.parent)


def holder(given: str, tokens: Mapping[str, str]) -> str | None:
    """Whose token it is; every one is compared, each in constant time."""
    sent = given.encode(errors="replace")
    found = [name for name, token in tokens.items() if hmac.compare_digest(sent, token.encode())]
    return found[0] if found else None


def cookie(seed: int) -> str:
    """The cookie's name: one of its own for each folder, since cookies do not tell ports apart."""
    return f"preferent_{digest('cookie', str(seed))[:8]}"


def guard(app: App, origins: Set[str]) -> App:
    """The app behind the door; `origins` are the addresses that people reach it at, as `http://HOST:PORT`."""
    hosts = {origin.partition("://")[2] for origin in origins}

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = _refusal(scope, hosts, origins)
        body = None if refusal else await _body(receive)
        if body is None:
            await _refuse(_shielded(send), *(refusal or (413, f"more than {LARGEST} bytes were sent")))
        else:
            await app(scope, _replay(body, receive), _shielded(send))

    return guarded


def _refusal(scope: Scope, hosts: Set[str], origins: Set[str]) -> tuple[int, str] | None:
    """Why a request is not let in, if it is not."""
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    found = dict(headers)
    if [name for name, _ in headers].count("host") != 1 or found["host"].lower() not in hosts:
        return 403, "this server is not known by that name; open the link that it printed"
    if scope["method"] == "GET":
        return None
    if scope["method"] != "POST":
        return 405, "only GET and POST are understood here"
    if found.get("origin") not in origins:
        return 403, "this did not come from the server's own page"
    if found.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "what is sent here is JSON, as application/json"
    return None


async def _body(receive: Receive) -> bytes | None:
    """What was sent; None if it is too much, or if the sender left."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or len(body) > LARGEST:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then what comes after it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _shielded(send: Send) -> Send:
    """A `send` that adds the headers of safety to every answer."""
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def shielded(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", []) if pair[0].decode("latin-1").lower() not in HEADERS]
            message = {**message, "headers": kept + extra}
        await send(message)

    return shielded


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
