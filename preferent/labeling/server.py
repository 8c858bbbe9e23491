"""Run the label server: its address, its links, and an orderly shutdown."""

import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from preferent.errors import PlatformError, UsageError
from preferent.labeling import access, app
from preferent.labeling.service import LabelingService

PORT = 8484
PORTS = 20
ANYWHERE = ("", "0.0.0.0", "::")
SECONDS_TO_FINISH = 2


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


def serve(
    service: LabelingService, folder: Path, listener: socket.socket, names: Sequence[str], addresses: Sequence[str]
) -> None:
    """Serve until a signal asks to stop. `names` are those who get a link; a single annotator is the owner too."""
    tokens = access.tokens(folder, names)
    print("\n".join([f"{folder}: open", *links(addresses[0], tokens)]), flush=True)
    config = uvicorn.Config(
        app.build(service, folder, tokens, addresses),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=256,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    uvicorn.Server(config).run(sockets=[listener])
