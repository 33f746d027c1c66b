"""The page on which people rank answers, on this machine alone.

127.0.0.1 only; each annotator has a link with a token of this run, which becomes a cookie that other sites' requests do not carry; Host and
Origin must be this page's; nothing is loaded from elsewhere; what models said is shown as text.
"""

import json
import logging
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.errors import ResourceError
from pipeline.ranking.study import Study
from pipeline.text import show_controls

_FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```[ \t]*$\n?|\Z)", re.DOTALL | re.MULTILINE)
_OPEN = "/open/"  # and an annotator's token
MAX_BODY_BYTES = 64 * 1024
_END_S = 1  # what is asked for is still answered for so long once the page ends
_HERE = Path(__file__).parent
_FILES = {"rank.js": "text/javascript", "rank.css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RankingServer:
    """A study's page; `links` are for its annotators.

    Args:
        study: What is ranked.
        annotators: Who may.
        port: To listen on; 0 takes a free one.

    Raises:
        OSError: The port is taken.
    """

    def __init__(self, study: Study, annotators: Sequence[str], port: int = 0) -> None:
        self.study = study
        self._tokens = {secrets.token_urlsafe(24): annotator for annotator in annotators}
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self.socket.getsockname()[1]
        self._cookie = f"rlhf-rank-{self.port}"  # cookies are shared by all ports of a host
        environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        self._page = environment.get_template("page.html.jinja")
        routes = [
            Route(_OPEN + "{token}", self._open, methods=["GET"]),
            Route("/", self._show, methods=["GET"]),
            Route("/judge", self._judge, methods=["POST"]),
            Route("/undo", self._undo, methods=["POST"]),
            *(Route(f"/{name}", self._serve_file, methods=["GET"]) for name in _FILES),
        ]
        self._app = Starlette(routes=routes)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._guard,
                interface="asgi3",
                log_level="error",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_END_S,
            )
        )

    @property
    def links(self) -> dict[str, str]:
        """Annotator -> the address to open."""
        return {annotator: f"http://127.0.0.1:{self.port}{_OPEN}{token}" for token, annotator in self._tokens.items()}

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        log = logging.getLogger("uvicorn.error")
        log.addFilter(self._is_serving)
        try:
            with self._server.capture_signals():  # now, not only once its loop runs: who is quick with Ctrl-C ends it as well
                self._server.run(sockets=[self.socket])
        finally:
            log.removeFilter(self._is_serving)

    def _is_serving(self, _: logging.LogRecord) -> bool:
        """Whether an error is one: a request that is cut off as the page ends, whose sender or reader hangs, is none."""
        return not self._server.should_exit

    def stop(self) -> None:
        """End `run`, which another thread called."""
        self._server.should_exit = True

    async def _guard(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse what does not come from this page, before anything is read of it."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        own = (f"127.0.0.1:{self.port}", f"localhost:{self.port}")
        origin = request.headers.get("origin")
        refused: Response | None = None
        if request.headers.getlist("host") not in ([own[0]], [own[1]]):
            refused = _refuse(HTTPStatus.MISDIRECTED_REQUEST, "found another Host; open the link that `rlhf rank` printed")
        elif request.method == "POST" and origin not in [f"http://{host}" for host in own]:
            refused = _refuse(HTTPStatus.FORBIDDEN, "found another Origin; only this page may send rankings")
        elif (length := request.headers.get("content-length", "0")) and not (length.isdecimal() and int(length) <= MAX_BODY_BYTES):
            refused = _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"found a body of {length[:20]} bytes; {MAX_BODY_BYTES} at most")
        elif not request.url.path.startswith(_OPEN) and self._annotator(request) is None:
            refused = _refuse(HTTPStatus.UNAUTHORIZED, "found no token of this run; open the link that `rlhf rank` printed")

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.lower().encode(), v.encode()) for k, v in _HEADERS.items())]
            await send(message)

        app = cast("Callable[[Any, Any, Any], Awaitable[None]]", refused or self._app)
        await app(scope, receive, send_with_headers)

    def _annotator(self, request: Request) -> str | None:
        return self._tokens.get(request.cookies.get(self._cookie, ""))

    async def _open(self, request: Request) -> Response:
        token: str = request.path_params["token"]
        if token not in self._tokens:
            return _refuse(HTTPStatus.UNAUTHORIZED, "found a link of another run; open the one that `rlhf rank` printed")
        response = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        response.set_cookie(self._cookie, token, httponly=True, samesite="strict")
        return response

    async def _show(self, request: Request) -> Response:
        annotator = self._annotator(request)
        assert annotator is not None
        return HTMLResponse(await run_in_threadpool(self._render, annotator))

    def _render(self, annotator: str) -> str:
        assignment, settings = self.study.next(annotator), self.study.settings
        shown = None if assignment is None else self.study.answers[assignment.item]
        return self._page.render(
            annotator=annotator,
            assignment=assignment,
            prompt=[{"role": each.role, "pieces": split_code(show_controls(each.content))} for each in shown.prompt] if shown else [],
            responses=[split_code(show_controls(shown.completions[each])) for each in assignment.order] if shown and assignment else [],
            progress=self.study.progress(annotator),
            settings=settings,
            guidelines=Markup(render_guidelines(settings.guidelines)),
        )

    async def _judge(self, request: Request) -> Response:
        annotator = self._annotator(request)
        assert annotator is not None
        body = await _read_body(request)
        if body is None:
            return _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"found a longer body; {MAX_BODY_BYTES} bytes at most")
        try:
            sent = json.loads(body)
            if refused := _refuse_other(sent, annotator):
                return refused
            judgement = self.study.read_judgement(annotator, sent)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            return _refuse(HTTPStatus.BAD_REQUEST, f"found no ranking ({reason[:200]}); reload the page")
        try:
            is_new = await run_in_threadpool(self.study.judge, judgement)
        except ResourceError as error:
            return _refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        return JSONResponse({"written": is_new})

    async def _undo(self, request: Request) -> Response:
        annotator = self._annotator(request)
        assert annotator is not None
        try:
            if refused := _refuse_other(json.loads(await _read_body(request) or b"{}"), annotator):
                return refused
        except (ValueError, AttributeError, RecursionError) as error:
            return _refuse(HTTPStatus.BAD_REQUEST, f"found no JSON object ({str(error)[:200]}); reload the page")
        try:
            undone = await run_in_threadpool(self.study.undo, annotator)
        except ResourceError as error:
            return _refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        if undone is None:
            return JSONResponse({"item": None})
        draft = self.study.list_said(undone)
        return JSONResponse({"item": undone.item, "repeat": undone.repeat, "order": draft.pop("order"), "draft": draft})

    async def _serve_file(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response((_HERE / name).read_text(encoding="utf-8"), media_type=_FILES[name])


async def _read_body(request: Request) -> bytes | None:
    """Read a body as it comes; None as soon as it is too long, whatever its header said."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return body


def _refuse_other(sent: dict[str, Any], annotator: str) -> Response | None:
    """Refuse what a tab of another annotator sends: a browser has one cookie, of the link that was opened last."""
    if (claimed := sent.get("annotator", annotator)) == annotator:
        return None
    found = f"found this browser to be {annotator}'s now, and this tab {str(claimed)[:100]}'s"
    return _refuse(HTTPStatus.CONFLICT, f"{found}; open the link of who ranks again, or use one browser for each; what is here is kept")


def _refuse(status: HTTPStatus, message: str) -> Response:
    return Response(message + "\n", status, media_type="text/plain")


def split_code(text: str) -> list[tuple[bool, str]]:
    """Split a text at its fenced blocks of code; returns (is code, piece). The text itself stays as it is, but for the fences.

    Example: "so:\\n```py\\nx = 1\\n```\\n" -> [(False, "so:\\n"), (True, "x = 1\\n")].
    """
    pieces: list[tuple[bool, str]] = []
    end = 0
    for match in _FENCE.finditer(text):
        pieces += [(False, text[end : match.start()]), (True, match[1])]
        end = match.end()
    return [piece for piece in [*pieces, (False, text[end:])] if piece[1].strip()]


@cache
def render_guidelines(text: str) -> str:
    """Render Markdown for the page: HTML in it is shown as text, images become links, links open beside the page."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(text)
    for token in (inner for outer in tokens for inner in outer.children or ()):
        if token.type == "link_open":
            token.attrs |= {"target": "_blank", "rel": "noopener noreferrer"}
    return str(markdown.renderer.render(tokens, markdown.options, {}))
