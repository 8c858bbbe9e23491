"""Remote data, the only module that reaches it: `gs://`, `s3://` and `https://` files are copied to a folder once.

fsspec and the packages of the stores are imported when the first copy is made. Within the block of `copied` the readers
open the copies, under the addresses; outside of it no address is read.
"""

import contextlib
import hashlib
import logging
import re
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from preferent import files
from preferent.config import remote_names
from preferent.config.remote_names import is_remote
from preferent.errors import DataError, PlatformError, PreferentError, UsageError
from preferent.runs import interruption
from preferent.runs.directory import DataDirectory

LARGEST = 10 << 30
"""Maximum number of bytes in a remote file."""
BLOCK = 1 << 20
SECONDS = 60
"""How long a web server may keep silent."""
VERSION = ("ETag", "etag", "generation", "VersionId", "Last-Modified", "LastModified", "updated", "created")
"""What stores and web servers say of the version of a file."""
DENIED = {"PermissionError", "NoCredentialsError", "PartialCredentialsError", "GoogleAuthError"}
UNREACHABLE = {
    *("ConnectionError", "TimeoutError", "gaierror", "ClientConnectionError", "ClientPayloadError"),
    *("EndpointConnectionError", "HTTPClientError", "TransportError"),
}
"""Names of errors, those of packages that may be missing among them."""


@dataclass(frozen=True, slots=True)
class RemoteCopy:
    """The copy of a remote file: its name in the folder, its size and digest, and what was said of the version."""

    url: str
    file: str
    size: int
    sha256: str
    version: dict[str, str]


@dataclass
class RemoteCopies:
    """The copies in a folder, and the addresses that each name stands for; both are kept in an index beside them."""

    folder: DataDirectory
    matches: dict[str, list[str]] = field(default_factory=dict)
    by_url: dict[str, RemoteCopy] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: DataDirectory) -> "RemoteCopies":
        """Return what the index of a folder lists; nothing if there is none, or it is damaged."""
        try:
            index = files.read_sealed(folder.remote_index)
        except (OSError, DataError):
            return cls(folder)
        return cls(folder, index["matches"], {row["url"]: RemoteCopy(**row) for row in index["files"]})

    def write(self) -> None:
        rows = [asdict(copy) for copy in self.by_url.values()]
        files.write_sealed(self.folder.remote_index, {"matches": self.matches, "files": rows})

    def path(self, url: str) -> Path:
        return self.folder.remote / self.by_url[url].file

    def is_whole(self, url: str) -> bool:
        """Return whether the copy of a file is there, as it was read."""
        return (
            url in self.by_url
            and self.path(url).is_file()
            and self.path(url).stat().st_size == self.by_url[url].size
            and files.sha256(self.path(url)) == self.by_url[url].sha256
        )


_copies: ContextVar[RemoteCopies | None] = ContextVar("copies", default=None)


@contextlib.contextmanager
def copied(names: Sequence[str], folder: DataDirectory | None = None) -> Iterator[list[dict[str, Any]]]:
    """Copy the remote files among `names` (addresses, globs) to a folder, and let the readers open the copies in the
    block.

    Yield the facts of the copies. What an earlier process has copied is taken as it is. Without a folder the copies are
    removed at the end.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = DataDirectory(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        copies = RemoteCopies.read(folder)
        urls = [url for name in dict.fromkeys(names) if is_remote(name) for url in _fetch(name, copies)]
        token = _copies.set(copies)
        try:
            yield [asdict(copies.by_url[url]) for url in dict.fromkeys(urls)]
        finally:
            _copies.reset(token)


def matches(name: str) -> list[str]:
    """Return the addresses of the copied files that an address or a glob names, sorted."""
    copies = _copies.get()
    if copies is not None and name in copies.matches:
        return copies.matches[name]
    if copies is not None and name in copies.by_url:
        return [name]
    _require(name)
    raise UsageError(
        f"{name}: is remote, and is not read here: `data check`, `data convert` and, in a recipe, "
        f"{remote_names.FIELDS} read remote files; copy it here and name the copy"
    )


def path_of(url: str) -> Path:
    """Return the copy of a remote file."""
    (url,) = matches(url)
    copies = _copies.get()
    assert copies is not None, "matches knows the address"
    return copies.path(url)


def _require(name: str) -> None:
    try:
        remote_names.require(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _fetch(name: str, copies: RemoteCopies) -> list[str]:
    """Copy the files that a name stands for, except those that are there; return their addresses."""
    _require(name)
    if name not in copies.matches:
        with explained(name):
            copies.matches[name] = _find(name)
    for url in copies.matches[name]:
        if not copies.is_whole(url):
            copies.by_url[url] = _copy(url, copies.folder.remote)
            copies.write()
    return copies.matches[name]


def _find(name: str) -> list[str]:
    """Return the addresses of the files that match a glob of a store, sorted, or the address itself."""
    scheme, _, path = name.partition("://")
    if scheme == "https" or not re.search(r"[*\[]", path):
        return [name]
    found = file_system(name).glob(path, detail=True)
    urls = sorted(f"{scheme}://{key.lstrip('/')}" for key, facts in found.items() if facts["type"] == "file")
    if not urls:
        raise FileNotFoundError(name)
    for url in urls:
        if not url.isprintable():
            raise DataError(f"{name}: matches a file whose name holds a control character: {url!a}; rename it")
    return urls


def _copy(url: str, folder: Path) -> RemoteCopy:
    """Copy a remote file, which must stay the same until the last byte is read."""
    with explained(url):
        system = file_system(url)
        before = _facts(system, url)
    size = before["size"]
    _require_size(url, size or 0)
    print(f"reading {url}{'' if size is None else f' ({size:,} bytes)'}", file=sys.stderr)
    digest, written = hashlib.sha256(), 0

    def blocks() -> Iterator[bytes]:
        nonlocal written
        with explained(url):
            with system.open(url, "rb") as stream:
                while block := stream.read(BLOCK):
                    interruption.stop().check()
                    written += len(block)
                    _require_size(url, written)
                    digest.update(block)
                    yield block
            if _facts(system, url) != before or size not in (None, written):
                raise _changed(url)

    name = _name(url)
    files.write_blocks(folder / name, blocks())
    version = {key: value for key, value in before.items() if key != "size"}
    return RemoteCopy(url, name, written, digest.hexdigest(), version)


def _name(url: str) -> str:
    """Return the name of a copy, the same whichever other files there are; its end tells the layout to people."""
    end = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2], flags=re.ASCII)[-100:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{end}"


def _require_size(url: str, size: int) -> None:
    if size > LARGEST:
        raise PlatformError(
            f"{url}: is larger than {LARGEST:,} bytes, the most that is read of a remote file; split it, or copy it "
            "here and name the copy"
        )


def _changed(url: str) -> PlatformError:
    return PlatformError(f"{url}: changed while it was read; run the same command again once nobody writes to it")


def _facts(system: Any, url: str) -> dict[str, Any]:
    """Return the size of a remote file and what is said of its version."""
    system.invalidate_cache()
    info: Mapping[str, Any] = system.info(url)
    if info["type"] != "file":
        raise UsageError(f"{url}: is a folder; name the files in it, for example {url.rstrip('/')}/*.jsonl")
    return {"size": info["size"]} | {key: str(info[key]) for key in VERSION if info.get(key)}


def file_system(url: str) -> Any:
    """Return fsspec's file system for the scheme of an address."""
    import fsspec  # slow to import, and few need it

    for package in ("fsspec", "gcsfs", "s3fs"):  # they print what they try again; the last error tells all
        logging.getLogger(package).setLevel(logging.CRITICAL)
    scheme = url.partition("://")[0]
    options = {"get_client": _client, "block_size": 0} if scheme == "https" else {}
    return fsspec.filesystem(scheme, **options)


async def _client(**options: Any) -> Any:
    """Return an HTTP client that connects by https alone, never to `remote_names.LOCAL`, and unpacks nothing."""
    import aiohttp

    watch = aiohttp.TraceConfig()
    watch.on_request_redirect.append(_check_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(), socket_factory=_socket),
        trace_configs=[watch],
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        **{key: value for key, value in options.items() if key != "loop"},
    )


async def _check_redirect(_session: Any, _context: Any, answer: Any) -> None:
    """Refuse a redirect to an address that is not read; unlike a name in a recipe it may hold a signature."""
    target = urljoin(str(answer.response.url), answer.response.headers.get("Location", ""))
    try:
        remote_names.require(re.sub(r"[?#].*", "", target, flags=re.DOTALL))
    except ValueError as error:
        raise PlatformError(f"{answer.url.host}: redirects to an address that is not read: {error}") from None


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address, whichever name or redirect led there."""
    family, kind, protocol, _, place = address
    if remote_names.is_local_host(place[0]):
        raise PlatformError(f"the name leads to {place[0]}, which is {remote_names.LOCAL}; no data is read from there")
    return socket.socket(family, kind, protocol)


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn an error of fsspec or of the packages of the stores into one sentence."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, PreferentError):  # the packages of the stores have errors of their own
            raise _explanation(url, error) from None
        raise


def _explanation(url: str, error: BaseException) -> PreferentError:
    """Return an error as a message for the user, by the errors that it was raised from."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if isinstance(causes[-1], PreferentError):
        return type(causes[-1])(f"{url}: {causes[-1]}")
    if isinstance(error, ImportError):
        return PlatformError(f"{url}: needs a missing package: pip install 'preferent[remote]'")
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    status = next((status for cause in causes if (status := _status(cause))), 0)
    text = " ".join(re.sub(r"(//)[^/\s]*@|[?#][^\s'\"]*", r"\1", str(causes[-1])).split())[:200]
    if "FileExpired" in names:
        return _changed(url)
    if names & DENIED or status in (401, 403) or text.startswith("Forbidden"):
        return PlatformError(
            f"{url}: access is denied, or there are no credentials; they come from the environment alone, as the "
            "tools of the store leave them there (aws configure, gcloud auth application-default login)"
        )
    if names & UNREACHABLE:
        return PlatformError(f"{url}: cannot be reached ({text or type(causes[-1]).__name__}); check the network")
    if "FileNotFoundError" in names and status in (0, 404):
        return PlatformError(f"{url}: no such file or bucket; check the name")
    return PlatformError(f"{url}: cannot be read: {type(causes[-1]).__name__} {text}")


def _status(error: BaseException) -> int:
    """Return the HTTP status that an error tells; 0 if it tells none."""
    told = vars(error).get("status", vars(error).get("code"))
    return told if isinstance(told, int) else 0
