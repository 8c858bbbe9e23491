"""The label server as a process: its address, its links, and leaving in good order."""

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


def listen(host: str, port: int | None, before: int | None) -> socket.socket:
    """A socket at an address: at `port`; or else at the port of `before`, so that links go on working; or at the first
    free one."""
    wanted = [port] if port is not None else [before] if before else range(PORT, PORT + PORTS)
    for number in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: else asyncio leaves Nagle on
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, number))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            why = error.strerror
    raise PlatformError(
        f"{host}:{', '.join(map(str, wanted)) if len(wanted) == 1 else f'{PORT} and the next {PORTS - 1}'}: {why}; "
        "give another address with --host, or another port with --port (the links change with it)"
    )


def origins(host: str, port: int, url: str | None) -> list[str]:
    """The addresses that people may reach the server at; the first is the one that links name."""
    if host.startswith("["):
        raise UsageError(f"--host {host}: write it without brackets: {host.strip('[]')}")
    own = socket.gethostname() if host in ANYWHERE else f"[{host}]" if ":" in host else host
    local = ["127.0.0.1", "localhost"] if host in (*ANYWHERE, "127.0.0.1", "localhost") else []
    found = [*([_origin(url)] if url else []), *(_origin(f"http://{name}:{port}") for name in [own, *local])]
    return list(dict.fromkeys(found))


def _origin(url: str) -> str:
    """An address as browsers write the origin of a page: in small letters, without the port that the scheme has."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{url}: is no address: {error}; see --host and --url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(f"--url {url}: write it as https://NAME or http://NAME:PORT, without a path")
    usual = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(usual)}"


def links(address: str, tokens: dict[str, str]) -> list[str]:
    """A line for everybody who has a link; the token stands behind #, which browsers do not send or log."""
    alone = len(tokens) == 1
    width = max(len(name or "the owner") for name in tokens)
    lines = [f"  {name:{width}}  {address}/#{token}" for name, token in tokens.items() if name]
    shown = next(iter(tokens.values())) if alone else tokens[""]
    return [*lines, f"  {'overview' if alone else 'the owner':{width}}  {address}/owner#{shown}"]


def serve(
    desk: LabelingService, folder: Path, listener: socket.socket, names: Sequence[str], addresses: Sequence[str]
) -> None:
    """Serve until a signal asks to leave; `names` are the annotators, one alone is the owner too."""
    tokens = access.tokens(folder, names)
    print("\n".join([f"{folder}: open", *links(addresses[0], tokens)]), flush=True)
    config = uvicorn.Config(
        app.build(desk, folder, tokens, addresses),
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
