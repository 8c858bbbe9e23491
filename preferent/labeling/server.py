"""Run the label server: its address, its links, and an orderly shutdown."""

import asyncio
import socket
import sys
import webbrowser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from preferent.errors import PlatformError, UsageError
from preferent.labeling import access, app
from preferent.labeling.service import LabelingService

PORT = 8484
PORTS = 20
ANYWHERE = ("", "0.0.0.0", "::")
LOCAL = ("127.0.0.1", "::1")
SECONDS_TO_FINISH = 2
SECONDS_TO_ASK = 10.0
"""How long a connection may take to send a whole request, from its first byte or the moment when it was opened."""
STRANGERS = 64
"""How many connections of one address may be open that have shown no token."""
STRANGERS_IN_ALL = 512


def listen(host: str, port: int | None, previous_port: int | None) -> socket.socket:
    """Return a listening socket: at `port`; or else at the previous port, so that links still work; or at the first
    free port."""
    ports = [port] if port is not None else [previous_port] if previous_port else range(PORT, PORT + PORTS)
    for number in ports:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Without an explicit protocol asyncio does not switch off Nagle's algorithm.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror
    raise PlatformError(
        f"{host}:{ports[0] if len(ports) == 1 else f'{PORT} and the next {PORTS - 1} ports'}: {reason}; "
        "choose another address with --host, or another port with --port (this changes the links)"
    )


def origins(host: str, port: int, url: str | None) -> list[str]:
    """Return the addresses at which people may reach the server. The first is the one that links name."""
    if host.startswith("["):
        raise UsageError(f"--host {host}: write the address without brackets: {host.strip('[]')}")
    own = socket.gethostname() if host in ANYWHERE else f"[{host}]" if ":" in host else host
    local = ["127.0.0.1", "localhost"] if host in (*ANYWHERE, "127.0.0.1", "localhost") else []
    addresses = [*([_origin(url)] if url else []), *(_origin(f"http://{name}:{port}") for name in [own, *local])]
    return list(dict.fromkeys(addresses))


def _origin(url: str) -> str:
    """Return an address as browsers write the origin of a page: in lower case, without the scheme's default port."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{url}: is not an address: {error}; check --host and --url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(f"--url {url}: write it as https://NAME or http://NAME:PORT, without a path")
    default_port = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(default_port)}"


def links(address: str, tokens: dict[str, str]) -> list[str]:
    """Return a line per link. The token follows #, a part of the address that browsers neither send nor log."""
    alone = len(tokens) == 1
    width = max(len(name or "the owner") for name in tokens)
    lines = [f"  {name:{width}}  {address}/#{token}" for name, token in tokens.items() if name]
    owner_token = next(iter(tokens.values())) if alone else tokens[""]
    return [*lines, f"  {'overview' if alone else 'the owner':{width}}  {address}/owner#{owner_token}"]


class Visitors:
    """The open connections that have shown no token, oldest first. Beyond the limits the oldest is closed: silent ones
    cannot keep others out, and many people at one address, each with a token, are no strangers."""

    def __init__(self) -> None:
        self._strangers: dict[Any, Visit] = {}

    def enter(self, client: tuple[str, int], visit: "Visit") -> None:
        """Add a new connection; close the oldest stranger of its address, or of all, where there are too many."""
        neighbours = [other for (host, _), other in self._strangers.items() if host == client[0]]
        if len(neighbours) >= STRANGERS:
            neighbours[0].transport.abort()
        elif len(self._strangers) >= STRANGERS_IN_ALL:
            next(iter(self._strangers.values())).transport.abort()
        self._strangers[client] = visit

    def leave(self, client: Any) -> None:
        """Forget a connection that has closed, or one that has shown a token."""
        self._strangers.pop(client, None)


class Visit(H11Protocol):
    """A connection to the server, which must send its requests in time."""

    def __init__(self, *args: Any, visitors: Visitors, **options: Any) -> None:
        super().__init__(*args, **options)
        self._visitors = visitors
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = self.client or ("", id(self))
        self._visitors.enter(self.client, self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._visitors.leave(self.client)
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait()
        else:
            self._stop_waiting()

    def _wait(self) -> None:
        """Close the connection unless its request is complete in time."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(SECONDS_TO_ASK, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def serve(
    service: LabelingService,
    folder: Path,
    listener: socket.socket,
    names: Sequence[str],
    addresses: Sequence[str],
    browser: bool = False,
) -> None:
    """Serve until a signal asks to stop. `names` are those who get a link; a single annotator is the owner too.

    With `browser` the first link is opened.
    """
    tokens = access.tokens(folder, names)
    plain = addresses[0].startswith("http:") and listener.getsockname()[0] not in LOCAL
    if plain:
        print("plain HTTP: whoever is on the network between can read the links; see --url", file=sys.stderr)
    lines = links(addresses[0], tokens)
    print("\n".join([f"{folder}: open", *lines]), flush=True)
    if browser:
        webbrowser.open(lines[0].split()[-1])
    visitors = Visitors()
    config = uvicorn.Config(
        app.build(service, folder, tokens, addresses, visitors.leave),
        http=partial(Visit, visitors=visitors),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    uvicorn.Server(config).run(sockets=[listener])
