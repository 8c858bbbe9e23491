"""One exchange with an endpoint: a POST that ends in time, follows no redirect, and can be ended from another thread.

Only the transport of httpx2 is used, because its client keeps cookies and follows redirects.
"""

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from preferent.errors import PlatformError, UsageError

LARGEST = 1 << 24
"""Maximum number of bytes in the body of a reply."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECTED = "connection.connect_tcp.complete"
"""The event in httpx2's trace for a connection that has just been opened, before any encryption."""


class TransportError(Exception):
    """A failed attempt that may be retried: its kind, the details, and the server's Retry-After."""

    def __init__(self, kind: str, detail: str, wait: str | None = None) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail, self.wait = kind, detail, wait


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an endpoint."""

    url: httpx2.URL

    @classmethod
    def of(cls, url: str, path: str) -> "Address":
        """Return the address of an endpoint's url with a path below it."""
        try:
            parsed = httpx2.URL(url)
            parsed.raw_host.decode("ascii").encode("idna")
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise UsageError(f"{url.rpartition('@')[2]}: is not a url: {error}") from None
        if parsed.userinfo:
            raise UsageError("the url contains a name or a password: put the key into an environment variable")
        if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) >= 1 << 16:
            raise UsageError(f"{url}: is not the url of an endpoint; it looks like http://localhost:8000/v1")
        base, question, query = parsed.raw_path.decode("ascii").partition("?")
        base = base.rstrip("/").removesuffix(path)
        return cls(parsed.copy_with(raw_path=f"{base}{path}{question}{query}".encode(), fragment=None))

    @property
    def secure(self) -> bool:
        return self.url.scheme == "https"

    @property
    def local(self) -> bool:
        return self.url.host in LOOPBACK

    def transport(self) -> httpx2.HTTPTransport:
        """Return a transport to the endpoint, through the environment's proxy if it names one for this host.

        No connection serves two exchanges, so that each can be ended by itself.
        """
        bypassed = self.local or urllib.request.proxy_bypass(self.url.host)
        named = "" if bypassed else urllib.request.getproxies().get(self.url.scheme, "")
        proxy = f"http://{named}" if named and "://" not in named else named or None
        try:
            return httpx2.HTTPTransport(proxy=proxy, limits=httpx2.Limits(max_keepalive_connections=0))
        except OSError as error:
            hint = "look at the environment's SSL_CERT_FILE and SSL_CERT_DIR"
            raise PlatformError(f"the certificates of authorities cannot be loaded: {error}; {hint}") from None
        except (httpx2.InvalidURL, ValueError, ImportError):
            variable, host = f"{self.url.scheme}_proxy", self.url.host
            hint = f"give a proxy such as http://HOST:PORT, or name {host} in no_proxy"
            raise PlatformError(f"the environment's {variable} cannot be used; {hint}") from None


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; `headers` are looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """An exchange that may take `timeout` seconds.

    `hang_up` ends it from another thread, for example if it is `overdue` because its reply trickles.
    """

    def __init__(self, address: Address, transport: httpx2.HTTPTransport, timeout: float) -> None:
        self._address, self._transport, self._timeout = address, transport, timeout
        self._deadline = time.monotonic() + timeout
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    @property
    def overdue(self) -> bool:
        return time.monotonic() >= self._deadline

    def hang_up(self) -> None:
        with self._lock:
            self._over = True
            self._shut_down()

    def post(self, body: bytes, headers: Mapping[str, str]) -> Response:
        """Return the endpoint's response; raise `TransportError` if no complete response arrives."""
        request = httpx2.Request(
            "POST",
            self._address.url,
            headers={**headers, "Accept-Encoding": "identity"},
            content=body,
            extensions={"timeout": httpx2.Timeout(self._timeout).as_dict(), "trace": self._watch},
        )
        try:
            with contextlib.closing(self._transport.handle_request(request)) as response:
                answer = Response(response.status_code, response.headers, _body(response))
        except (httpx2.HTTPError, OSError) as error:
            raise TransportError(self._kind(error), _cause(error)) from None
        finally:
            self._let_go()
        if self._over:  # a body of unknown length seems whole where the connection was shut down
            raise TransportError("time-out", "hung up")
        return answer

    def _watch(self, event: str, details: Mapping[str, Any]) -> None:
        """Keep a duplicate of the connection's socket, because TLS takes over the one that httpx2 opened."""
        if event == CONNECTED:
            with self._lock:
                self._socket = details["return_value"].get_extra_info("socket").dup()
                if self._over:
                    self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _kind(self, error: Exception) -> str:
        if isinstance(error, httpx2.TimeoutException) or self.overdue:
            return "time-out"
        return "no connection" if isinstance(error, httpx2.ConnectError | httpx2.ProxyError) else "cut off"


def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    for part in response.iter_raw():
        body += part
        if len(body) > LARGEST:
            raise TransportError("cut off", f"the reply is longer than {LARGEST} bytes")
    return bytes(body)


def _cause(error: BaseException) -> str:
    """Return the text of the original error, which the libraries wrapped in theirs."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__} {error}".strip()
