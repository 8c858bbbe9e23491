"""The label server's pages and answers: HTTP on one side, the desk on the other."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from preferent.data.formats import row_writer
from preferent.labeling import access, label_exports
from preferent.labeling.service import LabelingService, Refused

TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
Deed = Callable[[str, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Site:
    """The answers to requests. `tokens` are by annotator, the owner's under the empty name; an annotator whose token is
    the only one works alone and is the owner."""

    desk: LabelingService
    folder: Path
    tokens: Mapping[str, str]
    secure: bool

    @property
    def cookie(self) -> str:
        return access.cookie(self.desk.settings["seed"])

    @property
    def alone(self) -> bool:
        return len(self.tokens) == 1

    def known(self, request: Request) -> str:
        """The annotator who sends a request, or the empty name of the owner."""
        name = access.holder(request.cookies.get(self.cookie, ""), self.tokens)
        if name is None:
            raise HTTPException(401, "open the link that the server printed: it knows you by it")
        return name

    def annotator(self, request: Request) -> str:
        name = self.known(request)
        if not name:
            raise HTTPException(403, "this is the owner's link; to answer questions, open an annotator's")
        return name

    def require_owner(self, request: Request) -> None:
        if self.known(request) and not self.alone:
            raise HTTPException(403, "this is for the owner, who has a link of his own")

    def told(self, name: str) -> dict[str, Any]:
        """What a page may know: whose it is and what it may ask. `folder` tells these questions from any others that
        a browser sees at this address."""
        strengths = list(range(1, self.desk.settings["strengths"] + 1)) or None
        said = {"annotator": name or None, "owner": self.alone or not name, "strengths": strengths}
        return said | {"folder": self.cookie}

    async def session(self, request: Request) -> Response:
        """Whose page it is: by the token that a link brought, which becomes a cookie; later by that cookie."""
        if request.method == "GET":
            return JSONResponse(self.told(self.known(request)))
        given = (await _sent(request)).get("token")
        name = access.holder(given, self.tokens) if isinstance(given, str) else None
        if name is None:
            raise HTTPException(401, "this link is not one of this server's; open one that it printed")
        answer = JSONResponse(self.told(name))
        token = self.tokens[name]
        answer.set_cookie(self.cookie, token, httponly=True, samesite="strict", path="/", secure=self.secure)
        return answer

    async def queue(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self.desk.queue, self.annotator(request)))

    def doing(self, deed: Deed) -> Callable[[Request], Any]:
        """The answer to a request that does something at the desk."""

        async def answer(request: Request) -> Response:
            name = self.annotator(request)
            return JSONResponse(await run_in_threadpool(deed, name, await _sent(request)))

        return answer

    async def overview(self, request: Request) -> Response:
        self.require_owner(request)
        reveal = request.query_params.get("reveal") == "1"
        return JSONResponse(await run_in_threadpool(self.desk.overview, reveal))

    async def download(self, request: Request) -> Response:
        self.require_owner(request)
        name = request.path_params["name"]
        if name not in label_exports.NAMES:
            raise HTTPException(404)
        rows = (await run_in_threadpool(self.desk.harvest)).rows[name]
        named = {"content-disposition": f'attachment; filename="{name}.jsonl"'}
        return Response(row_writer.lines(rows), headers=named, media_type="application/jsonl")

    async def write(self, request: Request) -> Response:
        self.require_owner(request)
        await _sent(request)
        found = await run_in_threadpool(self.desk.save, self.folder)
        return JSONResponse({"files": {name: len(rows) for name, rows in found.rows.items()}, "text": str(found)})


def build(desk: LabelingService, folder: Path, tokens: Mapping[str, str], origins: Sequence[str]) -> access.App:
    """The application, behind its door; `origins` are the addresses that people reach it at, the first by its links."""
    site = Site(desk, folder, tokens, secure=origins[0].startswith("https:"))
    routes = [
        Route("/api/session", site.session, methods=["GET", "POST"]),
        Route("/api/queue", site.queue, methods=["GET"]),
        Route("/api/vote", site.doing(desk.vote), methods=["POST"]),
        Route("/api/undo", site.doing(desk.undo), methods=["POST"]),
        Route("/api/flag", site.doing(desk.flag), methods=["POST"]),
        Route("/api/overview", site.overview, methods=["GET"]),
        Route("/api/export/{name}", site.download, methods=["GET"]),
        Route("/api/export", site.write, methods=["POST"]),
        Route("/", _page("index.html"), methods=["GET"]),
        Route("/owner", _page("owner.html"), methods=["GET"]),
        Route("/static/{name}", _static, methods=["GET"]),
    ]
    handlers: Mapping[Any, Any] = {Refused: _refused, HTTPException: _failed, Exception: _broken}
    return access.guard(Starlette(routes=routes, exception_handlers=handlers), frozenset(origins))


async def _sent(request: Request) -> dict[str, Any]:
    """The JSON object that was sent."""
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "what was sent is not JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "what was sent is not a JSON object")
    return value


def _file(name: str) -> Response:
    """A file of the page; the names are those in the folder, so no name leads out of it."""
    package = files("preferent")
    there = {
        path.name: path
        for folder in ("labeling/static", "evaluation/static")
        for path in package.joinpath(folder).iterdir()
    }
    kind = TYPES.get(name.rpartition(".")[2])
    if kind is None or name not in there:
        raise HTTPException(404, "there is nothing here")
    return Response(there[name].read_bytes(), media_type=kind)


def _page(name: str) -> Callable[[Request], Response]:
    return lambda _request: _file(name)


def _static(request: Request) -> Response:
    return _file(request.path_params["name"])


def _refused(_request: Request, error: Refused) -> Response:
    queue = {} if error.queue is None else {"queue": error.queue}
    return JSONResponse({"error": str(error)} | queue, error.status)


def _failed(_request: Request, error: HTTPException) -> Response:
    sentence = "there is nothing here" if error.status_code == 404 else error.detail
    return JSONResponse({"error": sentence}, error.status_code)


def _broken(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; where it runs, it says why. What was acknowledged is kept"}, 500)
