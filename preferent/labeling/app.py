"""The HTTP interface of the labeling service: its pages and its JSON endpoints."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preferent.data.formats import row_writer
from preferent.labeling import access
from preferent.labeling.service import LabelingService, Refused

TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
NOT_FOUND = "no such address"
Action = Callable[[str, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Site:
    """The endpoints. `tokens` are by annotator, the owner's under the empty name. An annotator whose token is the only
    one works alone and is the owner too."""

    service: LabelingService
    folder: Path
    tokens: Mapping[str, str]
    secure: bool
    recognise: Callable[[Any], None]
    """Told of the address and port from which a valid token came."""

    @property
    def cookie(self) -> str:
        return access.cookie(self.service.settings["secret"])

    @property
    def alone(self) -> bool:
        return len(self.tokens) == 1

    def sender(self, request: Request) -> str:
        """Return the annotator who sent a request, or the empty name of the owner."""
        name = access.holder(request.cookies.get(self.cookie, ""), self.tokens)
        if name is None:
            raise HTTPException(401, "the server does not know you; open the link that it printed")
        self.recognise(request.client)
        return name

    def annotator(self, request: Request) -> str:
        """Return the annotator who sent a request, and refuse the owner."""
        name = self.sender(request)
        if not name:
            raise HTTPException(403, "this is the owner's link; to answer questions, open an annotator's link")
        return name

    def require_owner(self, request: Request) -> None:
        """Refuse everybody but the owner."""
        if self.sender(request) and not self.alone:
            raise HTTPException(403, "this page is for the owner; open the owner's link")

    def identity(self, name: str) -> dict[str, Any]:
        """Return what a page may know: who uses it, what it asks, and the scale of strength. `folder` distinguishes
        these questions from others that a browser has seen at this address."""
        strengths = list(range(1, self.service.settings["strengths"] + 1)) or None
        return {
            "annotator": name or None,
            "owner": self.alone or not name,
            "asks": self.service.asks,
            "strengths": strengths,
            "folder": self.cookie,
        }

    async def session(self, request: Request) -> Response:
        """Identify the sender: on POST by the token of a link, which becomes a cookie; on GET by that cookie."""
        if request.method == "GET":
            return JSONResponse(self.identity(self.sender(request)))
        sent = (await _json_object(request)).get("token")
        name = access.holder(sent, self.tokens) if isinstance(sent, str) else None
        if name is None:
            raise HTTPException(401, "this link does not belong to this server; open a link that it printed")
        self.recognise(request.client)
        response = JSONResponse(self.identity(name))
        token = self.tokens[name]
        response.set_cookie(self.cookie, token, httponly=True, samesite="strict", path="/", secure=self.secure)
        return response

    async def queue(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.service.queue, self.annotator(request)))

    def endpoint(self, action: Action) -> Callable[[Request], Any]:
        """Return the endpoint that lets an annotator perform an action."""

        async def answer(request: Request) -> Response:
            name = self.annotator(request)
            return JSONResponse(await run_in_threadpool(action, name, await _json_object(request)))

        return answer

    async def overview(self, request: Request) -> Response:
        self.require_owner(request)
        reveal = request.query_params.get("reveal") == "1"
        return JSONResponse(await run_in_threadpool(self.service.overview, reveal))

    async def download(self, request: Request) -> Response:
        self.require_owner(request)
        name = request.path_params["name"]
        rows = dict((await run_in_threadpool(self.service.exports)).rows).get(name)
        if rows is None:
            raise HTTPException(404)
        headers = {"content-disposition": f'attachment; filename="{name}.jsonl"'}
        return Response(row_writer.lines(rows), headers=headers, media_type="application/jsonl")

    async def write(self, request: Request) -> Response:
        self.require_owner(request)
        await _json_object(request)
        exports = await run_in_threadpool(self.service.save, self.folder)
        counts = {name: len(rows) for name, rows in exports.rows.items()}
        return JSONResponse({"files": counts, "text": str(exports)})


def build(
    service: LabelingService,
    folder: Path,
    tokens: Mapping[str, str],
    origins: Sequence[str],
    recognise: Callable[[Any], None] = lambda client: None,
) -> access.App:
    """Build the application with its access control. `origins` are the addresses that it is reached at; the first is
    the one that links name."""
    site = Site(service, folder, tokens, secure=origins[0].startswith("https:"), recognise=recognise)
    routes = [
        Route("/api/session", site.session, methods=["GET", "POST"]),
        Route("/api/queue", site.queue, methods=["GET"]),
        Route("/api/vote", site.endpoint(service.vote), methods=["POST"]),
        Route("/api/undo", site.endpoint(service.undo), methods=["POST"]),
        Route("/api/flag", site.endpoint(service.flag), methods=["POST"]),
        Route("/api/overview", site.overview, methods=["GET"]),
        Route("/api/export/{name}", site.download, methods=["GET"]),
        Route("/api/export", site.write, methods=["POST"]),
        Route("/", _page("index.html"), methods=["GET"]),
        Route("/owner", _page("owner.html"), methods=["GET"]),
        Route("/static/{name}", _static, methods=["GET"]),
    ]
    handlers: Mapping[Any, Any] = {Refused: _refused, HTTPException: _failed, Exception: _broken}
    return access.guard(Starlette(routes=routes, exception_handlers=handlers), frozenset(origins))


async def _json_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body is not a JSON object")
    return body


@cache
def _files() -> Mapping[str, Traversable]:
    """Return the files of the pages by name. Only names in this table are served, so no name leads out of it."""
    folders = [files("preferent").joinpath(folder) for folder in ("labeling/static", "evaluation/static")]
    return {path.name: path for folder in folders for path in folder.iterdir()}


def _file(name: str) -> Response:
    """Return a file of the pages as a response."""
    media_type = TYPES.get(name.rpartition(".")[2])
    if media_type is None or name not in _files():
        raise HTTPException(404, NOT_FOUND)
    return Response(_files()[name].read_bytes(), media_type=media_type)


def _page(name: str) -> Callable[[Request], Response]:
    return lambda _request: _file(name)


def _static(request: Request) -> Response:
    return _file(request.path_params["name"])


def _refused(_request: Request, error: Refused) -> Response:
    queue = {} if error.queue is None else {"queue": error.queue}
    return JSONResponse({"error": str(error)} | queue, error.status)


def _failed(_request: Request, error: HTTPException) -> Response:
    reason = NOT_FOUND if error.status_code == 404 else error.detail
    return JSONResponse({"error": reason}, error.status_code)


def _broken(_request: Request, _error: Exception) -> Response:
    reason = "the server failed; its terminal shows the cause. Everything that it acknowledged is kept"
    return JSONResponse({"error": reason}, 500)
