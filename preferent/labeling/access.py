"""Access control of the label server: who a token belongs to, and which requests are accepted.

Any program on this computer, and any page open in its browser, can send requests to a local port. Every request
therefore needs a token in a cookie. The host that it names must be one of the server's own; otherwise a foreign domain
could point here (DNS rebinding). A request that changes something must come from the server's own page (Origin) and
carry JSON, which no HTML form can send.
"""

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence, Set
from pathlib import Path
from typing import Any

from preferent import files
from preferent.errors import DataError
from preferent.labeling import assignment

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
    """Return the token of each name. Existing tokens stay; missing ones are drawn.

    They are kept in a file that only its owner may read, so that links still work after a restart.
    """
    path = folder / NAME
    kept = files.read_json(path) if path.exists() else {}
    if not isinstance(kept, dict) or not all(isinstance(token, str) and token for token in kept.values()):
        raise DataError(f"{path}: is no object of tokens by name; restore it, or remove it to make new links")
    complete: dict[str, str] = kept | {name: secrets.token_urlsafe(24) for name in names if name not in kept}
    if complete != kept:
        files.write_atomic(path, json.dumps(complete, indent=1, ensure_ascii=False) + "\n", private=True)
    return {name: complete[name] for name in names}


def holder(token: str, tokens: Mapping[str, str]) -> str | None:
    """Return the name that a token belongs to, or None. It is compared with every token, each in constant time."""
    sent = token.encode(errors="replace")
    names = [name for name, known in tokens.items() if hmac.compare_digest(sent, known.encode())]
    return names[0] if names else None


def cookie(secret: str) -> str:
    """Return the cookie's name. Each folder has its own, because cookies do not distinguish ports."""
    return f"preferent_{assignment.keyed(secret, 'cookie')[:8]}"


def guard(app: App, origins: Set[str]) -> App:
    """Wrap the app in access control. `origins` are the addresses that it is reached at, as `http://HOST:PORT`."""
    hosts = {origin.partition("://")[2] for origin in origins}

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = _refusal(scope, hosts, origins)
        body = None if refusal else await _body(receive)
        if body is None:
            await _refuse(_secured(send), *(refusal or (413, f"the request is larger than {LARGEST} bytes")))
        else:
            await app(scope, _replay(body, receive), _secured(send))

    return guarded


def _refusal(scope: Scope, hosts: Set[str], origins: Set[str]) -> tuple[int, str] | None:
    """Return the status and the reason with which a request is refused, or None if it is accepted."""
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    headers = dict(pairs)
    if [name for name, _ in pairs].count("host") != 1 or headers["host"].lower() not in hosts:
        return 403, "this server does not answer to that host name; open the link that it printed"
    if scope["method"] == "GET":
        return None
    if scope["method"] != "POST":
        return 405, "only GET and POST are supported"
    if headers.get("origin") not in origins:
        return 403, "the request did not come from the server's own page"
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return 415, "the content type is not application/json; send JSON"
    return None


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request; None if it is too large, or if the sender disconnected."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or len(body) > LARGEST:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields the body again, and then the messages after it."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _secured(send: Send) -> Send:
    """Return a `send` that adds the security headers to every response."""
    extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", []) if pair[0].decode("latin-1").lower() not in HEADERS]
            message = {**message, "headers": kept + extra}
        await send(message)

    return secured


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
