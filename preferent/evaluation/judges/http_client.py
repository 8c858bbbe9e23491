"""One exchange with an endpoint: a POST that ends in time, follows no redirect, and can be hung up."""

import contextlib
import http.client
import socket
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from preferent.errors import UsageError

LARGEST = 1 << 24
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TransportError(Exception):
    """A try that failed and may be made again: its kind, what was seen, and how long the server asked to wait."""

    def __init__(self, kind: str, detail: str, wait: str | None = None) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail, self.wait = kind, detail, wait


@dataclass(frozen=True, slots=True)
class Address:
    """Where an endpoint is: `path` with its query, as the request line names it."""

    secure: bool
    host: str
    port: int | None
    path: str

    @classmethod
    def of(cls, url: str, path: str) -> "Address":
        """An endpoint's url with a path below it."""
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url}: is no url: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url}: is no endpoint's url; it looks like http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UsageError("a url with a name or password in it: put the key into an environment variable")
        base = parts.path.rstrip("/").removesuffix(path)
        query = f"?{parts.query}" if parts.query else ""
        return cls(parts.scheme == "https", parts.hostname, port, urllib.parse.quote(base + path, "/%:@") + query)

    @property
    def local(self) -> bool:
        return self.host in LOOPBACK

    def connection(self, timeout: float) -> tuple[http.client.HTTPConnection, str]:
        """A connection that is not open yet, through the environment's proxy where it names one; and the target."""
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        proxy = None if self.local or urllib.request.proxy_bypass(self.host) else _proxy(self.secure)
        if proxy is None:
            return kind(self.host, self.port, timeout=timeout), self.path
        via = kind(proxy[0], proxy[1], timeout=timeout)
        if self.secure:
            via.set_tunnel(self.host, self.port)
            return via, self.path
        port = f":{self.port}" if self.port else ""
        return via, f"http://{self.host}{port}{self.path}"


def _proxy(secure: bool) -> tuple[str, int | None] | None:
    named = urllib.request.getproxies().get("https" if secure else "http")
    if named is None:
        return None
    parts = urllib.parse.urlsplit(named if "//" in named else f"//{named}")
    return (parts.hostname, parts.port) if parts.hostname else None


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """An exchange that may take `timeout` seconds; `hang_up` ends it from another thread, also where it is `overdue`
    since its reply trickles."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._connection, self._target = address.connection(timeout)
        self._deadline = time.monotonic() + timeout
        self._over = False

    @property
    def overdue(self) -> bool:
        return time.monotonic() >= self._deadline

    def hang_up(self) -> None:
        self._over = True
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS: another thread reads there

    def post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """What the endpoint answers; a `Fault` where nothing whole comes."""
        met = "no connection"
        try:
            self._connection.connect()
            if self._over:
                raise TimeoutError("hung up")
            met = "cut off"
            self._connection.request("POST", self._target, body, dict(headers))
            response = self._connection.getresponse()
            return Response(response.status, dict(response.headers.items()), self._all(response))
        except (OSError, http.client.HTTPException) as error:
            late = isinstance(error, TimeoutError) or self.overdue
            raise TransportError("time-out" if late else met, f"{type(error).__name__} {error}".strip()) from None
        finally:
            self._connection.close()

    def _all(self, response: http.client.HTTPResponse) -> bytes:
        """The whole body; http.client does not mind one that is shorter than it was said to be."""
        parts, size = [], 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if size > LARGEST:
                raise http.client.HTTPException(f"the reply is longer than {LARGEST} bytes")
        said = response.headers.get("Content-Length", "")
        if said.isdigit() and size < int(said):
            raise http.client.IncompleteRead(b"".join(parts), int(said) - size)
        return b"".join(parts)
