"""The web application: access, responses as HTML, JSON or files, error pages, and limits of connections.

A page is an entry of `PAGES` in `routes`, a class and a function in the module of its subject, and a template.

uvicorn limits the head of a request only with h11, waits for requests forever, and accepts connections until the
process runs out of file descriptors. `LimitedConnection` limits all three for the pages and for Dagster's web server.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import re
import resource
import secrets
import threading
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import h11
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from capacity_assets.base.errors import (
    DATABASE_FAILURES,
    INSUFFICIENT_PRIVILEGE,
    DatabaseError,
    NotFoundError,
    ValidationError,
    reason_of,
    sqlstate_of,
)
from capacity_assets.base.periods import PERIODS, Clock
from capacity_assets.base.units import counted
from capacity_assets.charts.drawing import STYLES
from capacity_assets.forecast.scenarios import ContradictionError
from capacity_assets.reading.access import MISSING_RIGHT, STATEMENT_TIMEOUT_SECONDS
from capacity_assets.reading.subjects import address, subject_address
from capacity_assets.reading.table_growth import ORDERS as TABLE_ORDERS
from capacity_assets.web.api import API, DOCUMENT, openapi, refuse_unknown_parameters
from capacity_assets.web.groups import read_groups
from capacity_assets.web.metrics import OPENMETRICS, PLAIN, MetricsScope, read_metrics
from capacity_assets.web.reader import (
    ANSWER_SECONDS,
    FILE_FORMATS,
    OF_FILES,
    PAGE_FORMATS,
    STALE_TIMES,
    PageQuery,
    Reader,
    StillReadingError,
    shared_notice,
    shared_revision,
    shared_windows,
)
from capacity_assets.web.rendering import PageRoute, page_templates
from capacity_assets.web.routes import PAGE_OF, PAGES, PARAMETERS

BY_GROUP = {"/groups", "/bill"}
CSV_TYPE = "text/csv; charset=utf-8"
EXCEL_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
REFUSED_ERRORS = (ValidationError, NotFoundError, DatabaseError, *DATABASE_FAILURES)
"""Errors that a reader sees as a sentence; any other error is a bug."""
STATUSES: Mapping[type[Exception], int] = {ContradictionError: 422, ValidationError: 400, NotFoundError: 404}
"""The status of an error; the first kind that fits counts."""
TITLES = {400: "Invalid request", 404: "Not found", 422: "Invalid request"}
"""Titles of error pages, by status."""

CHALLENGE = 'Basic realm="capacity pages", charset="UTF-8"'
REFUSAL = "Refused: log in with any user name and the token as the password, or send Authorization: Bearer TOKEN.\n"
POLICY = "Content-Security-Policy"
# Only our own scripts and styles; pages cannot be framed, and forms are sent only to this server.
HEADERS = {
    POLICY: "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

logger = logging.getLogger("capacity_assets")
SECONDS_KEPT = 10
# Values cached for half a minute are read again before a request would wait for them.
SECONDS_BETWEEN_READING_AHEAD = 20
# What takes long of these pages is kept for five minutes or longer, and only then read again.
SECONDS_BETWEEN_READING_EARLIER, WINDOWS_READ_AHEAD, GROUPS_READ_AHEAD = 300, 8, 20
# A page that is still being read waits for it again after this pause.
SECONDS_BETWEEN_ASKING = 1
# After so many seconds without any answer, a page that waits says that the database may hang.
SILENT_SECONDS = 10
# More threads than connections, because many requests wait for the same query.
THREADS = 32
# A file of 10,000 rows takes seconds of processor time, so a few are written at once, and the others wait.
FILE_THREADS, FILE_SECONDS = 2, 60
STATEMENT_CANCELLED = "57014"
STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True)
class WebOptions:
    """How pages are served: clock, label keys, host names, access, and the address of Dagster's UI."""

    clock: Clock
    label_keys: Sequence[str]
    hosts: Sequence[str] = ("127.0.0.1", "localhost")
    dagster_url: str | None = None
    token: str | None = None
    user_header: str | None = None
    metrics_databases: Sequence[str] = ()
    """Keys of labels, and labels, of the databases with metrics."""
    dagster: Engine | None = None
    """An engine on Dagster's storage, for metrics of runs; None: they are left out."""
    reads_ahead: bool = True
    """Whether to refresh figures that every reader sees, so that no reader waits for them."""


def create_app(reader: Reader, serving: WebOptions) -> ASGIApp:
    """Create the application; it reads nothing before it starts."""
    answers = PageServer(reader, serving)
    if serving.dagster is not None:
        reader.watch(serving.dagster)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        ended = threading.Event()
        ahead = threading.Thread(target=answers.read_ahead, args=(ended,), daemon=True)
        if serving.reads_ahead:
            ahead.start()
        try:
            yield
        finally:
            ended.set()
            # Cancelled first, because a statement may run for a minute.
            await run_in_threadpool(reader.cancel)
            if serving.reads_ahead:
                await run_in_threadpool(ahead.join)
            await run_in_threadpool(answers.close)

    app = Starlette(
        routes=[
            *(Route(page.path, answers.of(page)) for page in PAGES),
            *(Route(f"{API}/{page.name}", answers.of(page, is_api=True)) for page in PAGES),
            Route(DOCUMENT, answers.in_time(answers.described)),
            Route("/metrics", answers.in_time(answers.metrics)),
            Mount("/static", StaticFiles(directory=STATIC)),
            Mount("/charts", StaticFiles(directory=STYLES)),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(serving.hosts), www_redirect=False),
            Middleware(AccessGuard, token=serving.token, user_header=serving.user_header),
            Middleware(Compression, minimum_size=2000),
        ],
        lifespan=lifespan,
        exception_handlers={404: answers.no_such_page, Exception: answers.defect},
    )
    # Outermost, so that responses to defects have the headers too.
    return SecurityHeaders(app)


@dataclass(frozen=True)
class ReadContent:
    """The content of a page, and when it was read, which may be some seconds ago."""

    content: Any
    read_at: datetime
    identity: object = field(default_factory=object)
    """Distinguishes two contents that were read at the same moment."""


class PageServer:
    """Answers requests with pages or error pages."""

    def __init__(self, reader: Reader, serving: WebOptions) -> None:
        self._reader, self._serving = reader, serving
        self._templates = page_templates(PAGES, serving.dagster_url, reader.thresholds)
        self._metrics_scope = MetricsScope.of(serving.clock.zone, serving.metrics_databases)
        # A separate pool, so that static files do not wait for the database.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pages")
        self._file_threads = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")

    def close(self) -> None:
        """Wait for running queries, which have a time limit."""
        self._threads.shutdown()
        self._file_threads.shutdown(cancel_futures=True)
        self._reader.close()

    def of(self, page: PageRoute, *, is_api: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a page, or of its answer in the API."""
        return self.in_time(partial(self._answer, page=page, is_api=is_api))

    def in_time(self, respond: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint that responds from a thread, or says after the time limit that it is still reading.

        The query continues, so that a repeated request finds its result. A file has more time, because it is not kept.
        """

        async def answer(request: Request) -> Response:
            is_file = request.query_params.get("format") in FILE_FORMATS
            threads, seconds = (self._file_threads, FILE_SECONDS) if is_file else (self._threads, ANSWER_SECONDS)
            answering = threads.submit(respond, request)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(answering), seconds)
            except TimeoutError:
                return self._still_reading(request, seconds)

        return answer

    def json_of(self, page: PageRoute, parameters: Mapping[str, str]) -> bytes:
        """Return an answer of the API as JSON; raises REFUSED_ERRORS."""
        refuse_unknown_parameters(page, parameters)
        self._reader.refuse_a_newer_schema()
        return page.json(self._read(page, self._query(page.path, parameters)).content)

    @property
    def label_keys(self) -> Sequence[str]:
        """The keys of labels by which there are groups."""
        return self._serving.label_keys

    def described(self, _request: Request) -> Response:
        """Answer with the description of the API."""
        return JSONResponse(openapi(self.label_keys))

    def metrics(self, request: Request) -> Response:
        """Answer with the metrics, or a sentence in plain text."""
        try:
            self._reader.refuse_a_newer_schema()
            today = self._serving.clock.today()
            packed = read_metrics(self._reader, today, self._metrics_scope, self._serving.dagster)
        except REFUSED_ERRORS as error:
            status, sentence = refusal_of(error)
            return PlainTextResponse(f"{sentence}\n", status)
        takes_openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
        form = OPENMETRICS if takes_openmetrics else PLAIN
        return _unpacked_if_needed(request, packed, form)

    def read_ahead(self, ended: threading.Event) -> None:
        """Refresh figures that every reader sees until the event is set; a failure is shown by the next request."""
        ahead: list[tuple[str, dict[str, str]]] = [
            *(("/", {"period": name}) for name in PERIODS),
            *(("/changes", {"period": name}) for name in PERIODS),
            *((path, {}) for path in ("/groups", "/bill", "/budget", "/accuracy")),
            *(("/tables", {"order": order}) for order in TABLE_ORDERS),
            ("/search", {"q": "-", "shown": "1"}),
            ("/databases", {}),
        ]
        earlier_read_at = -math.inf
        while not ended.is_set():
            is_due = time.monotonic() - earlier_read_at >= SECONDS_BETWEEN_READING_EARLIER
            with suppress(DatabaseError, *DATABASE_FAILURES):
                for path, values in chain(ahead, self._earlier() if is_due else ()):
                    if ended.is_set():
                        return
                    self._read_one_ahead(path, values)
                earlier_read_at = time.monotonic() if is_due else earlier_read_at
            ended.wait(SECONDS_BETWEEN_READING_AHEAD)

    def _earlier(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Yield what is read ahead less often: changes of earlier windows, the newest first, and the largest groups."""
        for period in PERIODS.values():
            _, last = shared_windows(self._reader, self._query("/changes", {}), period)
            for window in reversed(period.back(last, WINDOWS_READ_AHEAD) if last else ()):
                yield "/changes", {"period": period.name, "window": window.start.isoformat()}
        page = read_groups(self._reader, self._query("/groups", {}))
        for group in page.groups[:GROUPS_READ_AHEAD]:
            yield "/group", {"by": page.grouped_by, "name": group.name or ""}

    def _read_one_ahead(self, path: str, values: Mapping[str, str]) -> None:
        try:
            PAGE_OF[path].read(self._reader, self._query(path, values))
        except (DatabaseError, *DATABASE_FAILURES):
            raise
        except Exception:
            logger.exception("A page that is read ahead has a defect. The other pages work.")

    def _read(self, page: PageRoute, query: PageQuery) -> ReadContent:
        """Read a page, or return what was read within the last seconds."""

        def read() -> ReadContent:
            return ReadContent(page.read(self._reader, query), self._serving.clock.local_now())

        if not page.is_cached or query.is_file:
            # A file is not cached, because it is large and for a single reader.
            return read()
        values = tuple(sorted((name, value) for name, value in query.values.items() if name not in OF_FILES))
        return self._reader.cached((page.path, values, query.today, shared_revision(self._reader)), read, SECONDS_KEPT)

    def no_such_page(self, request: Request, _error: Exception) -> Response:
        """Answer an unknown address."""
        what = f"answer; see {DOCUMENT}" if _is_of_the_api(request) else "page"
        return self._refuse(request, 404, f"There is no such {what}.")

    def defect(self, request: Request, _error: Exception) -> Response:
        """Answer for a page with a defect; the server's log has the traceback."""
        text = "This page has a defect; see the server's log. The other pages work."
        return self._refuse(request, 500, text)

    def _query(self, path: str, parameters: Mapping[str, str]) -> PageQuery:
        known = {name: value for name, value in parameters.items() if name in PARAMETERS or name in OF_FILES}
        return PageQuery(path, known, self._serving.label_keys, self._serving.clock.today())

    def _answer(self, request: Request, page: PageRoute, *, is_api: bool) -> Response:
        query = self._query(page.path, request.query_params)
        try:
            if is_api:
                return Response(self.json_of(page, request.query_params), media_type="application/json")
            form = query.one_of("format", PAGE_FORMATS)
            of_file = {"format", "list"} if page.other_lists else {"format"}
            refuse_unknown_parameters(page, (name for name in request.query_params if name not in of_file))
            listed = query.one_of("list", ("", *page.other_lists))
            self._reader.refuse_a_newer_schema()
            answer = self._read(page, query)
            if form == "html":
                user = request.headers.get(self._serving.user_header) if self._serving.user_header else None
                notice = shared_notice(self._reader, query.today) if page.has_figures else ""
                packed = self._render(page, query, answer, user, notice)
                return _unpacked_if_needed(request, packed, HTMLResponse.media_type)
        except StillReadingError:
            return self._still_reading(request, ANSWER_SECONDS)
        except REFUSED_ERRORS as error:
            return self._refuse(request, *refusal_of(error))
        if form == "json":
            return Response(page.json(answer.content), media_type="application/json")
        written, media_type = (page.csv, CSV_TYPE) if form == "csv" else (page.workbook, EXCEL_TYPE)
        name = "-".join(filter(None, (page.name, listed)))
        headers = {"Content-Disposition": f'attachment; filename="{name}.{form}"'}
        return Response(written(answer.content, listed), media_type=media_type, headers=headers)

    def _render(self, page: PageRoute, query: PageQuery, answer: ReadContent, user: str | None, notice: str) -> bytes:
        """Return the page as compressed HTML, rendered once for all readers of the same content."""

        def render() -> bytes:
            values = {"page": answer.content, "crumbs": _crumbs(page, answer.content), "read_at": answer.read_at}
            if getattr(answer.content, "window_start", None):
                newest, _ = shared_windows(self._reader, query, PERIODS[answer.content.period])
                values["newest"] = newest and newest.start
            template = self._templates.get_template(f"{page.name}.html.j2")
            html = template.render(**values, notice=notice, query=query, title=page.title, user=user, listed=page.table)
            return gzip.compress(html.encode(), mtime=0)

        if not page.is_cached:
            return render()
        key = ("html", page.path, tuple(sorted(query.values.items())), user, notice, answer.identity)
        # Kept as long as its content may be shown.
        return self._reader.cached(key, render, SECONDS_KEPT * STALE_TIMES, stale_times=1)

    def _still_reading(self, request: Request, seconds: int) -> Response:
        """Respond with a page that says what is being read and reloads itself; a script gets status 503."""
        page = PAGE_OF.get(request.url.path)
        if _is_from_a_script(request):
            return self._refuse(request, 503, _slow(seconds))
        if page is None:
            return PlainTextResponse(f"{_slow(seconds)}\n", 503)
        what = page.description[0].lower() + page.description[1:]
        text, title = f"Reading from the database: {what}", f"{page.title}: loading"
        silent = int(self._reader.silent_seconds)
        if silent >= SILENT_SECONDS:
            title = f"{page.title}: the database does not answer"
            text = (
                f"The database has answered nothing for {counted(silent, 'second')}. It hangs, is overloaded, or a "
                "lock blocks the reading. `capacity check`, `pg_stat_activity` and its log show why."
            )
        answer = self._page_of_text(
            request, 202, f"{text} The page opens automatically when everything is read.", title
        )
        # The page loads itself again by a header, which works without scripts too.
        answer.headers["Refresh"] = str(SECONDS_BETWEEN_ASKING)
        return answer

    def _refuse(self, request: Request, status: int, text: str) -> Response:
        if _is_from_a_script(request):
            return JSONResponse({"error": text}, status_code=status)
        return self._page_of_text(request, status, text, TITLES.get(status, "No answer"))

    def _page_of_text(self, request: Request, status: int, text: str, title: str) -> Response:
        page = PAGE_OF.get(request.url.path)
        paths = dict.fromkeys(("/", *((*page.above, page.path) if page else ())))
        leads_to = [PAGE_OF[path] for path in paths if PAGE_OF[path].in_menu]
        shown = {"title": title, "status": status, "text": text, "user": None, "leads_to": leads_to}
        query = self._query(request.url.path, request.query_params)
        html = self._templates.get_template("refusal.html.j2").render(**shown, query=query)
        return HTMLResponse(html, status_code=status)


def _crumbs(page: PageRoute, content: Any) -> list[tuple[str, str]]:
    """Return title and address of the pages above a page: a server for a database, a list by the same grouping."""
    return [
        (content.server.server, subject_address("server", content.server.server_id))
        if path == "/server"
        else (content.database, subject_address("database", content.server.server_id, content.database))
        if path == "/database"
        else (PAGE_OF[path].title, address(path, by=content.grouped_by if path in BY_GROUP else None))
        for path in page.above
    ]


def _unpacked_if_needed(request: Request, packed: bytes, media_type: str) -> Response:
    """Answer with compressed content, or unpack it if the client does not accept gzip."""
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Response(packed, media_type=media_type, headers=headers)
    # GZipMiddleware adds the same Vary.
    return Response(gzip.decompress(packed), media_type=media_type)


def _is_from_a_script(request: Request) -> bool:
    return request.query_params.get("format") in {"json", *FILE_FORMATS} or _is_of_the_api(request)


def _is_of_the_api(request: Request) -> bool:
    return request.url.path.startswith("/api")


def _slow(seconds: int) -> str:
    waited = counted(seconds, "second")
    return (
        f"The database did not answer within {waited}. The figures are not affected. Try again, or narrow the "
        "request: one server, one group, or a longer period."
    )


def refusal_of(error: Exception) -> tuple[int, str]:
    """Return the status and the sentence of one of REFUSED_ERRORS."""
    for kind, status in STATUSES.items():
        if isinstance(error, kind):
            return status, str(error)
    return 503, _trouble(error)


def _trouble(error: Exception) -> str:
    if not isinstance(error, DATABASE_FAILURES):
        return str(error)
    if sqlstate_of(error) == STATEMENT_CANCELLED:
        return _slow(STATEMENT_TIMEOUT_SECONDS)
    logger.warning("The pages cannot read the database: %s", reason_of(error))
    if sqlstate_of(error) == INSUFFICIENT_PRIVILEGE:
        return f"The database refuses the query: {reason_of(error)}. {MISSING_RIGHT}"
    if sqlstate_of(error) is not None:
        return f"The database refuses the query: {reason_of(error)}. See the server's log."
    # Do not reveal the address of the database.
    return "The database is unavailable or busy. Try again in a moment."


REFUSED_GZIP = re.compile(r"(^|,)\s*gzip\s*;\s*q\s*=\s*0(\.0*)?\s*(,|$)", re.IGNORECASE)


class Compression(GZipMiddleware):
    """Compresses for clients that accept it; Starlette's also does for those that refuse it with a weight of 0."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whether it takes compressed content is all that is read of this header."""
        if scope["type"] == "http" and REFUSED_GZIP.search(Headers(scope=scope).get("accept-encoding", "")):
            others = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = {**scope, "headers": others}
        await super().__call__(scope, receive, send)


class SecurityHeaders:
    """Adds headers to every response.

    If a response already has a content security policy, ours is added and both apply.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str] = HEADERS) -> None:
        self._app, self._headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    if name != POLICY:
                        del headers[name]
                    headers.append(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


class AccessGuard:
    """Allows requests with the token, or with a user named by a proxy; all requests if neither is configured.

    The browser asks for the token as a password and sends it only to this port. It would send a cookie to every port of
    the host, where other programs may listen.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, user_header: str | None) -> None:
        self._app, self._token, self._user_header = app, token, user_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._user_header and not headers.get(self._user_header):
            refusal = f"Refused: the proxy named no user in {self._user_header}."
            await PlainTextResponse(f"{refusal}\n", status_code=403)(scope, receive, send)
        elif self._token is None or secrets.compare_digest(_token_in(headers), self._token.encode()):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(REFUSAL, 401, {"WWW-Authenticate": CHALLENGE})(scope, receive, send)


def _token_in(headers: Headers) -> bytes:
    """Return the token, sent by a script as Bearer or by a browser as password; empty if there is none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return b64decode(credentials, validate=True).partition(b":")[2]
    return credentials.encode() if scheme.lower() == "bearer" else b""


LARGEST_HEAD_BYTES = 32 * 1024
REQUEST_SECONDS = 10
"""Time for a request to arrive completely, from the connection or the previous response on."""
STALLED_SECONDS = 30
"""Time after which a client that reads nothing of its response is disconnected."""
SECONDS_BETWEEN_CHECKS = 1
MOST_CONNECTIONS = 1000
# Few, because pending connections are accepted before any of them is counted.
BACKLOG = 64


def uvicorn_limits() -> dict[str, Any]:
    """Return the uvicorn options that limit clients."""
    return {"http": LimitedConnection, "h11_max_incomplete_event_size": LARGEST_HEAD_BYTES, "backlog": BACKLOG}


def most_connections() -> int:
    """Return the maximum number of connections: half of the limit on open files, at most MOST_CONNECTIONS."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 2)


class LimitedConnection(H11Protocol):
    """Closes connections of slow clients; beyond the limit, the connection that has waited longest for its client."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Start the time limit for the request."""
        super().connection_made(transport)
        self._waits_since = self._moved_at = self.loop.time()
        self._unsent = 0
        self._check = self.loop.call_later(SECONDS_BETWEEN_CHECKS, self._check_progress)
        if len(self.connections) > most_connections():
            self._make_room()

    def on_response_complete(self) -> None:
        """Start the time limit for the next request."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to the WebSocket protocol, which pings its clients."""
        self._check.cancel()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop checking the connection."""
        self._check.cancel()
        super().connection_lost(exc)

    @property
    def _is_sending(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _check_progress(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._moved_at = unsent, now
        is_slow = self._is_sending and now - self._waits_since > REQUEST_SECONDS
        if is_slow or (unsent and now - self._moved_at > STALLED_SECONDS):
            self.transport.abort()
        else:
            self._check = self.loop.call_later(SECONDS_BETWEEN_CHECKS, self._check_progress)

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client; requests in progress continue."""
        ours = [client for client in self.connections if isinstance(client, LimitedConnection)]
        waiting = [client for client in ours if client._is_sending or client.transport.get_write_buffer_size()]  # noqa: SLF001 -- ours
        longest = min(waiting, key=lambda client: client._waits_since)  # noqa: SLF001 -- as above
        # Discarded here, because new connections may arrive before connection_lost is called.
        self.connections.discard(longest)
        longest.transport.abort()
