"""The web application: routes, answers as page, JSON or CSV, refusals, and the headers that every answer carries."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from capacity_assets.charts.history import STYLES
from capacity_assets.clock import Clock
from capacity_assets.errors import (
    DATABASE_FAILURES,
    DatabaseError,
    DatabaseFailure,
    NotFoundError,
    ValidationError,
    reason_of,
    sqlstate_of,
)
from capacity_assets.periods import PERIODS
from capacity_assets.units import counted
from capacity_assets.web.asked import Asked, known_values
from capacity_assets.web.csv_files import csv_of
from capacity_assets.web.guard import Allowed, SecurityHeaders
from capacity_assets.web.names import Names
from capacity_assets.web.pages import fleet, groups, lists, subjects
from capacity_assets.web.reading import STATEMENT_TIMEOUT_SECONDS, Reader
from capacity_assets.web.rendering import Renderer

logger = logging.getLogger("capacity_assets")

SECONDS_KEPT = 10
# What is kept for half a minute is read again before anybody has to wait for it.
SECONDS_BETWEEN_READING_AHEAD = 20
ANSWER_SECONDS = STATEMENT_TIMEOUT_SECONDS + 1
# More than there are connections, because many requests wait for one query.
THREADS = 32
FORMATS = ("html", "json", "csv")
STATEMENT_CANCELLED = "57014"
STATIC = Path(__file__).with_name("static")


@dataclass(frozen=True)
class Page:
    """A page: its path, what it shows, what reads that, and which of its lists is written as CSV."""

    path: str
    title: str
    shows: type
    read: Callable[[Reader, Asked], Any]
    table: str
    in_menu: bool = False

    @property
    def name(self) -> str:
        """Name of its template."""
        return self.path.strip("/") or "fleet"


PAGES = (
    Page("/", "Fleet", fleet.FleetPage, fleet.read_fleet, "sizes", in_menu=True),
    Page("/servers", "Servers", lists.ServersPage, lists.read_servers, "servers", in_menu=True),
    Page("/databases", "Databases", lists.DatabasesPage, lists.read_databases, "databases", in_menu=True),
    Page("/groups", "Groups", groups.GroupsPage, groups.read_groups, "groups", in_menu=True),
    Page("/filling", "Fills first", lists.FillingPage, lists.read_filling, "runways", in_menu=True),
    Page("/bill", "Bill", groups.BillPage, groups.read_bill_page, "groups", in_menu=True),
    Page("/server", "Server", subjects.ServerPage, subjects.read_server, "sizes"),
    Page("/database", "Database", subjects.DatabasePage, subjects.read_database, "sizes"),
    Page("/volume", "Volume", subjects.VolumePage, subjects.read_volume, "sizes"),
    Page("/group", "Group", groups.GroupPage, groups.read_group, "sizes"),
)
SEARCH = Page("/search", "Search", lists.SearchPage, lambda _reader, _asked: None, "found")


@dataclass(frozen=True)
class Dated:
    """What a page shows, and when it was read: it may be some seconds old."""

    found: Any
    read_at: datetime


@dataclass(frozen=True)
class Serving:
    """How pages are served: to whom, under which names, and where Dagster's UI is."""

    clock: Clock
    label_keys: Sequence[str]
    hosts: Sequence[str] = ("127.0.0.1", "localhost")
    dagster_url: str | None = None
    token: str | None = None
    user_header: str | None = None
    reads_ahead: bool = True
    """Whether what every reader sees is read before anybody asks, again and again."""


def create_app(reader: Reader, serving: Serving) -> ASGIApp:
    """Put the application together; nothing is read before it starts."""
    renderer = Renderer([page for page in PAGES if page.in_menu], serving.dagster_url)
    answers = Answers(reader, Names(reader), renderer, serving)

    @asynccontextmanager
    async def read_ahead(_app: Starlette) -> AsyncIterator[None]:
        # What takes long over a large fleet is read before anybody asks for it, and again before it is too old.
        if not serving.reads_ahead:
            yield
            return
        ended = threading.Event()
        reading = threading.Thread(target=answers.read_ahead, args=(ended,), daemon=True)
        reading.start()
        try:
            yield
        finally:
            ended.set()
            await run_in_threadpool(reading.join)

    routes = [Route(page.path, answers.of(page)) for page in PAGES]
    app = Starlette(
        routes=[
            *routes,
            Route(SEARCH.path, answers.search),
            Route("/schema", schema),
            Mount("/static", StaticFiles(directory=STATIC)),
            Mount("/charts", StaticFiles(directory=STYLES)),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(serving.hosts), www_redirect=False),
            Middleware(Allowed, token=serving.token, user_header=serving.user_header),
            Middleware(GZipMiddleware, minimum_size=2000),
        ],
        lifespan=read_ahead,
        exception_handlers={404: answers.no_such_page, Exception: answers.defect},
    )
    # Around everything, so that answers to defects carry the headers too.
    return SecurityHeaders(app)


class Answers:
    """Answers requests with pages, or with a page that says what is wrong."""

    def __init__(self, reader: Reader, names: Names, renderer: Renderer, serving: Serving) -> None:
        """Answer with what `reader` and `names` find."""
        self._reader, self._names, self._renderer, self._serving = reader, names, renderer, serving
        # A separate pool, so that static files do not wait for the database.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="pages")

    def of(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a page."""

        async def answer(request: Request) -> Response:
            return await self._in_time(request, page, lambda asked: self._read(page, asked))

        return answer

    async def _in_time(self, request: Request, page: Page, read: Callable[[Asked], Dated]) -> Response:
        """Answer from a thread, or refuse after the time limit; the query still finishes, for repeated requests."""
        answering = self._threads.submit(self._answer, request, page, read)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(answering), ANSWER_SECONDS)
        except TimeoutError:
            return self._refused(request, self._asked(request), 503, _slow(ANSWER_SECONDS))

    def read_ahead(self, ended: threading.Event) -> None:
        """Read what every reader sees until the event is set; what fails is said to who asks."""
        pages = {page.path: page for page in PAGES}
        ahead: list[Callable[[], object]] = [
            partial(self._read_now, pages["/groups"]),
            *(partial(self._read_now, pages["/"], period=name) for name in PERIODS),
            lambda: self._names.search("-", 1, self._serving.clock.today()),
        ]
        while not ended.is_set():
            for read in ahead:
                if ended.is_set():
                    return
                try:
                    read()
                except (DatabaseError, *DATABASE_FAILURES):
                    break
                except Exception:
                    logger.exception("A page that is read ahead has a defect. The other pages work.")
            ended.wait(SECONDS_BETWEEN_READING_AHEAD)

    def _read_now(self, page: Page, **values: str) -> None:
        page.read(self._reader, Asked(page.path, values, self._serving.label_keys, self._serving.clock.today()))

    def _read(self, page: Page, asked: Asked) -> Dated:
        """Read a page, or return what was read within the last seconds: in the morning many ask the same."""
        if asked.values.get("format") == "csv":
            # Not cached: two hundred times as many rows, for a single reader.
            return self._now(page.read(self._reader, asked))
        values = tuple(sorted((name, value) for name, value in asked.values.items() if name != "format"))
        key = (page.path, values, asked.today)
        return self._reader.kept(key, lambda: self._now(page.read(self._reader, asked)), SECONDS_KEPT)

    def _now(self, found: Any) -> Dated:
        return Dated(found, self._serving.clock.local_now())

    async def search(self, request: Request) -> Response:
        """Answer a search."""
        return await self._in_time(request, SEARCH, lambda asked: self._now(lists.read_search(self._names, asked)))

    def no_such_page(self, request: Request, _error: Exception) -> Response:
        """Answer an address that is none."""
        return self._refused(request, self._asked(request), 404, "There is no such page.")

    def defect(self, request: Request, _error: Exception) -> Response:
        """Answer where a page has a defect; the server's log has the traceback."""
        text = "This page has a defect, which is in the log of the server. Nothing was changed. The other pages work."
        return self._refused(request, self._asked(request), 500, text)

    def _asked(self, request: Request) -> Asked:
        return Asked(
            request.url.path,
            known_values(request.query_params),
            self._serving.label_keys,
            self._serving.clock.today(),
        )

    def _answer(self, request: Request, page: Page, read: Callable[[Asked], Dated]) -> Response:
        asked = self._asked(request)
        try:
            form = asked.one_of("format", FORMATS)
            self._reader.refuse_a_newer_schema()
            dated = read(asked)
        except ValidationError as error:
            return self._refused(request, asked, 400, str(error))
        except NotFoundError as error:
            return self._refused(request, asked, 404, str(error))
        except (DatabaseError, *DATABASE_FAILURES) as error:
            return self._refused(request, asked, 503, _trouble(error))
        found = dated.found
        if form == "json":
            return Response(TypeAdapter(page.shows).dump_json(found, indent=1), media_type="application/json")
        if form == "csv":
            return csv_of(page, found)
        user = request.headers.get(self._serving.user_header) if self._serving.user_header else None
        return HTMLResponse(self._renderer.page(page.name, page.title, asked, dated, user))

    def _refused(self, request: Request, asked: Asked, status: int, text: str) -> Response:
        if request.query_params.get("format") in {"json", "csv"}:
            return JSONResponse({"error": text}, status_code=status)
        return HTMLResponse(self._renderer.refusal(asked, status, text), status_code=status)


def _slow(seconds: int) -> str:
    waited = counted(seconds, "second")
    return (
        f"The database did not answer within {waited}. The figures are not affected. Try again, or narrow the "
        "request: one server, one group, or a longer period."
    )


def _trouble(error: DatabaseError | DatabaseFailure) -> str:
    """Say why the database gave no answer."""
    if isinstance(error, DatabaseError):
        return str(error)
    if sqlstate_of(error) == STATEMENT_CANCELLED:
        return _slow(STATEMENT_TIMEOUT_SECONDS)
    logger.warning("The pages cannot read the database: %s", reason_of(error))
    if sqlstate_of(error) is not None:
        return f"The database refuses: {reason_of(error)}. Nothing was changed. The server's log says more."
    # Where it is, is no business of readers.
    return "The database is away or busy. Nothing was changed. Try again in a moment."


def schema(_request: Request) -> Response:
    """Describe the JSON of every page."""
    pages = (*PAGES, SEARCH)
    return JSONResponse({page.path: TypeAdapter(page.shows).json_schema(mode="serialization") for page in pages})
