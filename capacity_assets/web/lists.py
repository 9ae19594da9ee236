"""The pages that list servers and databases, and the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

from capacity_assets.base.periods import Period, Window
from capacity_assets.reading.coverage import UnmeasuredServer, servers_missing_in
from capacity_assets.reading.lists import (
    ORDERS,
    SERVER_ORDERS,
    ListedDatabase,
    ListedServer,
    NameMatch,
    databases,
    engines,
    servers,
    with_usage_of_databases,
    with_usage_of_servers,
)
from capacity_assets.web.addresses import ROWS_PER_PAGE, PageQuery, chosen_window
from capacity_assets.web.reader import UNMEASURED_SECONDS, Reader, found_names, shared_unmeasured

UNMEASURED_SHOWN = 20
ENGINES_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class ListPage:
    """A list of a window."""

    period: str
    window_start: date | None
    window_end: date | None
    order: str
    engines: Sequence[str]
    engine: str | None
    page: int
    has_more: bool
    newest_day: date | None
    """Newest day with a sample or an attempt of any server."""
    unmeasured: Sequence[UnmeasuredServer]
    """The first active servers without a sample of that day; only on the first page of the newest window."""
    unmeasured_servers: int
    has_samples: bool
    """Whether any server was ever measured."""


@dataclass(frozen=True, kw_only=True)
class ServersPage(ListPage):
    """The servers of a window."""

    servers: Sequence[ListedServer]


@dataclass(frozen=True, kw_only=True)
class DatabasesPage(ListPage):
    """The databases of a window."""

    label: str | None
    databases: Sequence[ListedDatabase]


@dataclass(frozen=True)
class SearchPage:
    """The names that match a search, what fills first before the others; without words, what fills first."""

    query: str
    found: Sequence[NameMatch]
    has_more: bool


def read_servers(reader: Reader, query: PageQuery) -> ServersPage:
    """Read the list of servers. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    period, order, engine = query.period(), query.one_of("order", tuple(SERVER_ORDERS)), query.text("engine") or None
    with reader.transaction() as connection:
        window = chosen_window(connection, query, period)
    missing, unmeasured = _unmeasured(reader, query, period, window)
    # Servers without a size come first in every order.
    shown, skipped = query.rows_shown, (query.page - 1) * query.rows_shown
    first = [one for one in missing if engine in {None, one.engine}]
    listed_first = first[skipped : skipped + shown]
    with reader.transaction() as connection:
        measured, has_more = servers(
            connection,
            period,
            window,
            order=order,
            engine=engine,
            skipped=max(skipped - len(first), 0),
            shown=shown - len(listed_first),
        )
        listed = with_usage_of_servers(
            connection, period, window, [*listed_first, *measured], unmeasured, reader.thresholds, query.today
        )
    has_more = has_more or len(first) > skipped + shown
    return ServersPage(servers=listed, has_more=has_more, **_list_values(reader, query, period, window, order))


def _unmeasured(
    reader: Reader, query: PageQuery, period: Period, window: Window | None
) -> tuple[Sequence[UnmeasuredServer], Mapping[int, UnmeasuredServer]]:
    """Return the servers without a row in a window, and for the newest window, those not measured on the last day."""
    if window is None:
        return [], {}
    is_newest = not query.day("window")
    read = partial(servers_missing_in, period=period, window=window, with_never_measured=is_newest)
    missing = reader.read_cached(("missing", period.name, window.start, is_newest), read, UNMEASURED_SECONDS)
    newest = shared_unmeasured(reader, query.today).servers if is_newest else ()
    by_number = {one.server_id: one for one in newest}
    # The newest day has the reason of the failure.
    return [by_number.get(one.server_id, one) for one in missing], by_number


def read_databases(reader: Reader, query: PageQuery) -> DatabasesPage:
    """Read the list of databases. Raises ValidationError, sqlalchemy.exc.DBAPIError."""
    period, order, label = query.period(), query.one_of("order", tuple(ORDERS)), query.label()
    with reader.transaction() as connection:
        window = chosen_window(connection, query, period)
        listed, has_more = databases(
            connection,
            period,
            window,
            order=order,
            engine=query.text("engine") or None,
            label=label,
            page=query.page,
            shown=query.rows_shown,
        )
        with_usage = with_usage_of_databases(connection, period, window, listed, reader.thresholds, query.today)
    return DatabasesPage(
        databases=with_usage,
        has_more=has_more,
        label=None if label is None else "=".join(label),
        **_list_values(reader, query, period, window, order),
    )


def _list_values(reader: Reader, query: PageQuery, period: Period, window: Window | None, order: str) -> dict[str, Any]:
    """Return the values that all lists of a window have."""
    engine = query.text("engine") or None
    known_engines: Sequence[str] = ()
    if window is not None:
        # Finding them reads all servers of the window.
        read = partial(engines, period=period, window=window)
        known_engines = reader.read_cached(("engines", period.name, window.start), read, ENGINES_SECONDS)
    newest_day, unmeasured, has_samples = None, [], False
    if query.page == 1 and not query.day("window"):
        newest = shared_unmeasured(reader, query.today)
        newest_day, has_samples = newest.day, newest.has_samples
        unmeasured = [one for one in newest.servers if engine in {None, one.engine}]
    return {
        "period": period.name,
        "window_start": window and window.start,
        "window_end": window and window.end,
        "order": order,
        "engines": known_engines,
        "engine": engine,
        "page": query.page,
        "newest_day": newest_day,
        "unmeasured": unmeasured[:UNMEASURED_SHOWN],
        "unmeasured_servers": len(unmeasured),
        "has_samples": has_samples,
    }


def read_search(reader: Reader, query: PageQuery) -> SearchPage:
    """Search the names of servers, databases, volumes and groups. Raises ValidationError."""
    words = (query.text("q") or "").strip()
    shown = query.number("shown", ROWS_PER_PAGE, ROWS_PER_PAGE)
    matches = found_names(reader, words, shown + 1, query.today)
    return SearchPage(words, matches[:shown], len(matches) > shown)
