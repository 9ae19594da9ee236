"""The pages that list: servers, databases, what fills first, and what a search finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from capacity_assets.base.periods import Period, Window
from capacity_assets.web.addresses import ROWS_PER_PAGE, Asked
from capacity_assets.web.reading import (
    FILLS_FIRST,
    ORDERS,
    UNMEASURED_SHOWN,
    NameMatch,
    Names,
    Reader,
    asked_window,
    databases,
    declared_since,
    ends_of,
    found,
    rows,
    runways,
    unmeasured_beside,
)
from capacity_assets.web.rendering import DatabaseRow, Runway, Unmeasured


@dataclass(frozen=True)
class ServerRow:
    """A server in one window."""

    server_id: int
    server: str
    engine: str
    databases: int
    size_mb: int
    change_mb: int | None
    change_percent: float | None
    measured_days: int
    window_days: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServersPage:
    """The servers of a window."""

    period: str
    window_start: date | None
    window_end: date | None
    order: str
    engines: Sequence[str]
    engine: str | None
    servers: Sequence[ServerRow]
    page: int
    has_more: bool
    newest_day: date | None
    """Newest day with a sample or an attempt of any server."""
    unmeasured: Sequence[Unmeasured]
    """The first active servers not measured on that day; only on the first page of the newest window."""
    unmeasured_servers: int


@dataclass(frozen=True)
class DatabasesPage:
    """The databases of a window."""

    period: str
    window_start: date | None
    window_end: date | None
    order: str
    engines: Sequence[str]
    engine: str | None
    label: str | None
    databases: Sequence[DatabaseRow]
    page: int
    has_more: bool
    newest_day: date | None
    """Newest day with a sample or an attempt of any server."""
    unmeasured: Sequence[Unmeasured]
    """The first active servers not measured on that day; only on the first page of the newest window."""
    unmeasured_servers: int


@dataclass(frozen=True)
class FillingPage:
    """What fills, the first one first."""

    runways: Sequence[Runway]
    declared_since: Sequence[str]
    """Servers whose limits or steps changed after the newest forecast."""
    page: int
    has_more: bool


@dataclass(frozen=True)
class SearchPage:
    """What a search finds: names that begin with the words first."""

    query: str
    found: Sequence[NameMatch]
    has_more: bool


SERVER_ORDERS = {
    "size": "size_mb DESC",
    "growth": "change_mb DESC NULLS LAST",
    "shrinkage": "change_mb",
    "percent": "change_percent DESC NULLS LAST",
    "name": "server",
}
ENGINES_SECONDS_KEPT = 30


def read_servers(reader: Reader, asked: Asked) -> ServersPage:
    """Read the list of servers. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    period, order, engine = asked.period(), asked.one_of("order", tuple(SERVER_ORDERS)), asked.text("engine") or None
    with reader.transaction() as connection:
        window = asked_window(connection, asked, period)
        listed: list[ServerRow] = []
        if window is not None:
            parameters = {
                "period": period.name,
                "start": window.start,
                "engine": engine,
                "shown": asked.rows_shown + 1,
                "skipped": (asked.page - 1) * asked.rows_shown,
            }
            query = _SERVERS.format(order=SERVER_ORDERS[order])
            listed = found(ServerRow, connection, query, parameters)
        shown, more = listed[: asked.rows_shown], len(listed) > asked.rows_shown
    place = (period.name, *ends_of(window), order, _engines(reader, period, window), engine)
    return ServersPage(*place, shown, asked.page, more, *_unmeasured(reader, asked))


def read_databases(reader: Reader, asked: Asked) -> DatabasesPage:
    """Read the list of databases. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    period, order, engine = asked.period(), asked.one_of("order", tuple(ORDERS)), asked.text("engine") or None
    label = asked.label()
    with reader.transaction() as connection:
        window = asked_window(connection, asked, period)
        page, shown = asked.page, asked.rows_shown
        listed, more = databases(
            connection, period, window, order=order, engine=engine, label=label, page=page, shown=shown
        )
    place = (period.name, *ends_of(window), order, _engines(reader, period, window), engine)
    beside = _unmeasured(reader, asked)
    return DatabasesPage(*place, None if label is None else "=".join(label), listed, asked.page, more, *beside)


def read_filling(reader: Reader, asked: Asked) -> FillingPage:
    """Read what fills first. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    changed = declared_since(reader)
    with reader.transaction() as connection:
        shown = asked.rows_shown
        paged = {"shown": shown + 1, "skipped": (asked.page - 1) * shown}
        filling = runways(connection, FILLS_FIRST, paged)
        return FillingPage(filling[:shown], changed, asked.page, len(filling) > shown)


def read_search(names: Names, asked: Asked) -> SearchPage:
    """Search the names of servers, databases and volumes. Raises ValidationError."""
    query = (asked.text("q") or "").strip()
    shown = asked.number("shown", ROWS_PER_PAGE, ROWS_PER_PAGE)
    names_found = names.search(query, shown + 1, asked.today) if query else []
    return SearchPage(query, names_found[:shown], len(names_found) > shown)


def _unmeasured(reader: Reader, asked: Asked) -> tuple[date | None, Sequence[Unmeasured], int]:
    beside = unmeasured_beside(reader, asked)
    return beside.day, beside.servers[:UNMEASURED_SHOWN], len(beside.servers)


def _engines(reader: Reader, period: Period, window: Window | None) -> list[str]:
    """Return the engines of a window: every list of it offers them, and finding them reads all of its servers."""
    if window is None:
        return []
    asked = {"period": period.name, "start": window.start}
    return reader.kept_of(
        ("engines", *asked.values()),
        lambda connection: [row.engine for row in rows(connection, _ENGINES, asked)],
        ENGINES_SECONDS_KEPT,
    )


_ENGINES = """
SELECT DISTINCT engine FROM capacity_server_growth WHERE period = :period AND window_start = :start ORDER BY 1
"""
_SERVERS = """
SELECT server_id, server, engine, databases, size_mb, change_mb,
       CAST(change_percent AS double precision) AS change_percent, measured_days, window_days, labels
FROM capacity_server_growth
WHERE period = :period AND window_start = :start AND (CAST(:engine AS text) IS NULL OR engine = :engine)
ORDER BY {order}, server_id LIMIT :shown OFFSET :skipped
"""
