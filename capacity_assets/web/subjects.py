"""The pages of servers, databases and volumes: their lists, the search, and the page of each.

The page of a single server, database or volume has its history, its forecast, and the samples of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from sqlalchemy import Connection, Row

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import Thresholds
from capacity_assets.base.units import BYTES_PER_GB
from capacity_assets.reading import subjects
from capacity_assets.reading.coverage import UnmeasuredServer, newest_measured_days, servers_missing_in
from capacity_assets.reading.forecasts import (
    Severity,
    StoredRunway,
    binding_of,
    bound_by_volume,
    first_on_server,
    forecast_day,
    runway_of,
    volume_severities,
)
from capacity_assets.reading.lists import (
    NAME_KINDS,
    ORDERS,
    SERVER_ORDERS,
    DatabaseInList,
    NameMatch,
    ServerInList,
    database_keys,
    databases,
    databases_of_keys,
    engines,
    is_sorted_as_a_whole,
    servers,
    with_usage_of_databases,
    with_usage_of_servers,
)
from capacity_assets.reading.risks import Headline, PageSubject, headline_of
from capacity_assets.reading.sizes import SizeInWindow, database_history, server_history, used_history, volume_history
from capacity_assets.reading.space import (
    RetainedWal,
    SpaceDay,
    SpaceUsage,
    in_cents,
    retained_wal_on,
    space_history,
    space_usage,
)
from capacity_assets.reading.table_growth import ORDERS as TABLE_ORDERS
from capacity_assets.reading.table_growth import (
    DatabaseGrowth,
    IndexSize,
    ListedObject,
    ObjectList,
    TableSize,
    are_measured,
    compared_samples,
    compared_until,
    growth_inside,
    list_objects,
    mean_price_of_database,
    newest_day_of_table,
    table_history,
)
from capacity_assets.web.forecasts import DecisionRow, decision_rows
from capacity_assets.web.reader import (
    LONGEST_DAYS,
    MOST_COLUMNS,
    RANGES,
    ROWS_PER_PAGE,
    UNMEASURED_SECONDS,
    ChartRange,
    PageQuery,
    Reader,
    chosen_range,
    chosen_window,
    every_few,
    found_names,
    shared_revision,
    shared_unmeasured,
    shared_windows,
    shown_range,
)

NEIGHBOURS_SHOWN, ATTEMPTS_SHOWN, ON_VOLUME_SHOWN = 10, 14, 20
DAILY = PERIODS["daily"]
VOLUME_DAYS = 180
INSIDE_DAYS, TABLE_DAYS = 30, 366


@dataclass(frozen=True)
class WindowSamples:
    """The samples of a window."""

    window_start: date
    window_end: date
    samples: Sequence[subjects.Sample]
    missing_days: Sequence[date]


@dataclass(frozen=True, kw_only=True)
class SubjectPage:
    """Common contents of the pages of servers, databases and volumes."""

    server: subjects.ServerFacts
    headline: Headline
    period: str
    shown: ChartRange
    sizes: Sequence[SizeInWindow]
    earlier: Sequence[SizeInWindow]
    """Sizes of the previous year, one for each window, if they are compared."""
    runway: StoredRunway | None
    """Its own forecast; of a database, as if the others did not grow."""
    used: Sequence[SizeInWindow] = ()
    """The used space inside the files of a database, if this is forecast."""
    binding: StoredRunway | None = None
    """The binding forecast: for a database, the earliest of its own, its server's and its volumes'.

    For a server, that of the volume that fills before the server as a whole. None: there is no such forecast.
    """
    steps: Sequence[subjects.DeclaredStep] = ()
    limits: Sequence[subjects.DeclaredLimit] = ()
    """Declared limits: its own, and that of the whole server."""
    decisions: Sequence[DecisionRow] = ()
    """Decisions on it, and on the server or volumes that it shares, whether or not they are open."""
    origins: Sequence[subjects.SampleOrigin] = ()
    """Origins of imported samples."""
    retained_wal: Sequence[RetainedWal] = ()
    """Too much WAL retained by slots or the archiver: of the server, or on the volume that is shown or binds."""
    behind: WindowSamples | None = None


@dataclass(frozen=True, kw_only=True)
class ServerPage(SubjectPage):
    """One server."""

    volumes: Sequence[subjects.ServerVolume]
    volume_severities: Mapping[str, Severity]
    """How urgent the forecasts of volumes are, by volume; those that are not urgent are left out."""
    fills: SpaceUsage | None
    databases: Sequence[DatabaseInList]
    has_more_databases: bool
    listed_window_start: date | None
    """First day of the window of `databases`; None: none was computed."""
    order: str
    attempts: Sequence[subjects.Attempt]


@dataclass(frozen=True, kw_only=True)
class DatabasePage(SubjectPage):
    """One database."""

    database: str
    labels: dict[str, str]
    neighbours: Sequence[DatabaseInList]
    listed_window_start: date | None
    """First day of the window of `neighbours`; None: none was computed."""
    inside: DatabaseGrowth | None
    """What grew inside, in the chosen window or range, otherwise in the last 30 days; None: not measured twice."""


@dataclass(frozen=True, kw_only=True)
class VolumePage(SubjectPage):
    """One volume of a server."""

    volume: subjects.ServerVolume
    fills: SpaceUsage | None
    uses: Sequence[SpaceDay]
    """Its uses by day, at most MOST_COLUMNS days at equal distances; empty: only its whole use is known."""
    databases: Sequence[StoredRunway]


@dataclass(frozen=True, kw_only=True)
class TablePage:
    """One table of a database, with its indexes."""

    server: subjects.ServerFacts
    database: str
    schema: str
    table: str
    shown: ChartRange
    sizes: Sequence[TableSize]
    weekly_change_bytes: int | None
    """Mean growth in a week, over the days on which it was listed; None: only one."""
    indexes: Sequence[IndexSize]
    amount: Decimal | None
    """Its cost in a month with its indexes, by the newest final bill; None: it has no price."""
    free_amount: Decimal | None
    """The part of this for dead rows and free pages; None: also if these are unknown."""
    currency: str | None


def read_server(reader: Reader, query: PageQuery) -> ServerPage:
    """Read the page of a server; raises NotFoundError, ValidationError, DBAPIError."""
    number, order = query.server(), query.one_of("order", tuple(ORDERS))
    shown = shown_range(reader, query)
    period = PERIODS[shown.period]
    newest, window = shared_windows(reader, query, period)
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        listed, more = databases(
            connection, period, window, order=order, server_id=number, page=query.page, shown=ROWS_PER_PAGE
        )
        volumes = subjects.volumes_of(connection, number, query.today)
        # Without a newest window there are no windows to read.
        newest_or_today = newest or period.window_of(query.today)
        history = partial(server_history, connection, period, server_id=number, newest=newest_or_today)
        return ServerPage(
            **_values(connection, query, reader.thresholds, server, "server"),
            **_history(shown, shown.windows(newest), history),
            **_declarations(connection, query, period, number, None),
            decisions=decision_rows(connection, query.today, every=True, server_id=number),
            volumes=volumes,
            volume_severities=volume_severities(connection, query.today, number, reader.thresholds),
            fills=space_usage(connection, number, volumes, None, query.today),
            databases=with_usage_of_databases(connection, period, window, listed, reader.thresholds, query.today),
            has_more_databases=more,
            listed_window_start=None if window is None else window.start,
            order=order,
            attempts=subjects.attempts_of(connection, number, ATTEMPTS_SHOWN),
        )


def read_database(reader: Reader, query: PageQuery) -> DatabasePage:
    """Read the page of a database; raises as `read_server`."""
    number, name = query.server(), query.needed("name")
    shown = shown_range(reader, query)
    period = PERIODS[shown.period]
    newest, window = shared_windows(reader, query, period)
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        stored = subjects.newest_day_of(connection, number, name)
        if stored is None and not subjects.was_ever_sampled(connection, number, name):
            raise _no_such(f"database {name!r} on {server.server}")
        neighbours, _ = databases(
            connection, period, window, order="size", server_id=number, shown=NEIGHBOURS_SHOWN + 1
        )
        others = [database for database in neighbours if database.database != name][:NEIGHBOURS_SHOWN]
        history = partial(database_history, connection, period, server_id=number, database=name)
        values = _values(connection, query, reader.thresholds, server, "database", name, stored)
        runway, windows = values["runway"], shown.windows(newest)
        is_of_used = runway is not None and runway.allocated_mb is not None
        return DatabasePage(
            **values,
            used=used_history(connection, period, windows, number, name) if is_of_used else [],
            **_history(shown, windows, history),
            **_declarations(connection, query, period, number, name),
            decisions=[
                decision
                for decision in decision_rows(connection, query.today, every=True, server_id=number)
                if decision.subject != "database" or decision.name == name
            ],
            database=name,
            labels=stored.labels if stored else {},
            listed_window_start=None if window is None else window.start,
            neighbours=with_usage_of_databases(connection, period, window, others, reader.thresholds, query.today),
            inside=growth_inside(connection, number, name, *_days_inside(query, shown, period)),
        )


def read_volume(reader: Reader, query: PageQuery) -> VolumePage:
    """Read the page of a volume; raises as `read_server`."""
    number, name = query.server(), query.needed("name")
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        volumes = subjects.volumes_of(connection, number, query.today)
        volume = next((measured for measured in volumes if measured.volume == name), None)
        if volume is None:
            raise _no_such(f"volume {name!r} of {server.server}")
        # Volumes have samples but no aggregates.
        shown = replace(chosen_range(query), period=DAILY.name)
        if shown.first is not None:
            shown = replace(shown, first=max(shown.first, volume.day - timedelta(days=LONGEST_DAYS)))
        newest = DAILY.window_of(volume.day)
        days = shown.windows(newest) if shown.name else DAILY.back(newest, VOLUME_DAYS)
        history = partial(volume_history, connection, server_id=number, volume=name)
        drawn = [day.start for day in every_few(days, MOST_COLUMNS)]
        uses = space_history(connection, number, volumes, name, drawn)
        return VolumePage(
            **_values(connection, query, reader.thresholds, server, "volume", name),
            **_history(shown, days, history),
            steps=subjects.steps_of(connection, number, None),
            decisions=[
                decision
                for decision in decision_rows(connection, query.today, every=True, server_id=number)
                if decision.subject == "server" or (decision.subject, decision.name) == ("volume", name)
            ],
            volume=volume,
            fills=space_usage(connection, number, volumes, name, query.today),
            uses=uses if any(space_day.uses for space_day in uses) else (),
            databases=bound_by_volume(connection, query.today, number, name, shown=ON_VOLUME_SHOWN),
        )


def read_table(reader: Reader, query: PageQuery) -> TablePage:
    """Read the page of a table; raises as `read_server`."""
    number, database, name = query.server(), query.needed("database"), query.needed("name")
    place = (number, database, query.text("schema") or "", name)
    shown = replace(chosen_range(query), period=DAILY.name)
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        last = newest_day_of_table(connection, *place)
        if last is None:
            raise _no_such(f"table {name!r} in {database} on {server.server} among those measured")
        newest = DAILY.window_of(last)
        days = shown.windows(newest) if shown.name else DAILY.back(newest, TABLE_DAYS)
        history = table_history(connection, *place, [day.start for day in days])
        bill = subjects.newest_final(subjects.bill_issues(connection))
        price = None if bill is None else mean_price_of_database(connection, bill.month, bill.issue, number, database)
    now = history.listed[-1] if history.listed else None
    return TablePage(
        server=server,
        database=database,
        schema=place[2],
        table=name,
        shown=shown,
        sizes=history.sizes,
        weekly_change_bytes=history.weekly_change_bytes,
        indexes=history.indexes,
        amount=None if now is None else _amount(price, now.total_bytes),
        free_amount=None if now is None else _amount(price, now.free_bytes),
        currency=None if bill is None else bill.currency,
    )


def _amount(price: Decimal | None, size_bytes: int | None) -> Decimal | None:
    return None if price is None or size_bytes is None else in_cents(price * size_bytes / BYTES_PER_GB)


def _values(  # noqa: PLR0913, PLR0917 -- the subject, and what its headline says
    connection: Connection,
    query: PageQuery,
    thresholds: Thresholds,
    server: subjects.ServerFacts,
    subject: str,
    name: str = "",
    stored: subjects.NewestDay | None = None,
) -> dict[str, Any]:
    """Return the server, the forecasts and the headline, which without a forecast names the last measurement."""
    number, issued, last_measured = server.server_id, None, None
    own, first, also, binding = runway_of(connection, query.today, number, subject, name), None, None, None
    if subject == "server":
        first, also = first_on_server(connection, query.today, number)
        binding = next((runway for runway in (first, also) if runway is not None and runway.subject == "volume"), None)
    elif subject == "database":
        first = binding = binding_of(connection, query.today, own)
    is_gone = own is None and stored is not None and subjects.is_gone(connection, number, stored.day)
    if is_gone and stored is not None:
        last_measured = stored.day
    elif own is None:
        issued = forecast_day(connection)
        last_measured = newest_measured_days(connection, [number], query.today).get(number)
    about = PageSubject(server.server, subject, name, server.is_active, last_measured, is_gone=is_gone)
    headline = headline_of(about, own, first, thresholds, issued=issued, also=also)
    volume = name if subject == "volume" else None if binding is None else binding.name
    is_server = subject == "server"
    large = retained_wal_on(connection, query.today, number) if is_server or volume else ()
    retained_wal = [wal for wal in large if is_server or wal.volume == volume]
    return {"server": server, "headline": headline, "runway": own, "binding": binding, "retained_wal": retained_wal}


def _history(
    shown: ChartRange, windows: Sequence[Window], history: Callable[[Sequence[Window]], list[SizeInWindow]]
) -> dict[str, Any]:
    return {
        "period": shown.period,
        "shown": shown,
        "sizes": history(windows),
        "earlier": history(shown.earlier(windows)),
    }


def _declarations(
    connection: Connection, query: PageQuery, period: Period, server_id: int, database: str | None
) -> dict[str, Any]:
    return {
        "steps": subjects.steps_of(connection, server_id, database),
        "limits": subjects.declared_limits_of(connection, server_id, database),
        "origins": subjects.origins_of(connection, server_id, database),
        "behind": _samples(connection, query, period, server_id, database),
    }


def _days_inside(query: PageQuery, shown: ChartRange, period: Period) -> tuple[date, date]:
    day = query.day("window")
    if day is not None:
        window = period.window_of(day)
        return window.start, window.end
    last = shown.last or query.today
    _, days = RANGES.get(shown.name or "", ("", INSIDE_DAYS))
    return shown.first or last - timedelta(days=days), last


def _no_such(subject: str) -> NotFoundError:
    return NotFoundError(f"There is no {subject}: it was never measured, or has another name.")


def _samples(
    connection: Connection, query: PageQuery, period: Period, server_id: int, database: str | None
) -> WindowSamples | None:
    day = query.day("window")
    if day is None:
        return None
    window = period.window_of(day)
    samples = subjects.samples_of(connection, window, server_id, database)
    measured = {sample.day for sample in samples}
    days = (window.start + timedelta(days=number) for number in range(window.elapsed_days(query.today)))
    return WindowSamples(window.start, window.end, samples, [day for day in days if day not in measured])


UNMEASURED_SHOWN = 20
ENGINES_SECONDS = 30
SORTED_SECONDS, SORTED_AT_ONCE = 10, 1000
"""Pages of a list of databases without an index are parts of one sorting. Only the order is kept, not the figures."""
COMPARED_SECONDS, TABLES_SECONDS, TABLES_AT_ONCE = 60, 1800, 500
"""Pages of a list of tables are parts of one comparison, which takes far longer than reading its rows. It is kept while
the compared samples are the same, which is looked up more often."""
MOST_LABELLED = 100_000
"""A number that no fleet exceeds, to read all databases of a label or engine."""


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
    """The first active servers without a sample of the newest day; only on the first page of the newest window."""
    unmeasured_servers: int
    has_samples: bool
    """Whether any server was ever measured."""
    out_of_service: Annotated[frozenset[int], Field(exclude=True)] = frozenset()
    """The servers of the listed rows that are out of service now; not in JSON."""


@dataclass(frozen=True, kw_only=True)
class ServersPage(ListPage):
    """The servers of a window."""

    servers: Sequence[ServerInList]


@dataclass(frozen=True, kw_only=True)
class DatabasesPage(ListPage):
    """The databases of a window."""

    label: str | None
    databases: Sequence[DatabaseInList]


@dataclass(frozen=True, kw_only=True)
class TablesPage(ListPage):
    """Tables and indexes with their change in a window, of the fleet, of one server or of a label."""

    label: str | None
    of_server: subjects.ServerFacts | None
    is_measured: bool
    """Whether any were measured in the last month."""
    tables: Sequence[ListedObject]
    counted_bytes: int | None
    """Dead rows and free pages in all rows of the list; in the order `unwritten`, these tables with their indexes.

    None in other orders.
    """
    amount: Decimal | None
    """The cost of these in a month, by the newest final bill; None: nothing has a price, or another order."""
    currency: str | None


@dataclass(frozen=True)
class SearchPage:
    """The names that match a search, by fill date; without words, what fills first."""

    query: str
    found: Sequence[NameMatch]
    has_more: bool


def read_servers(reader: Reader, query: PageQuery) -> ServersPage:
    """Read the list of servers. Raises ValidationError, NotFoundError, sqlalchemy.exc.DBAPIError."""
    period, order, engine = query.period(), query.one_of("order", tuple(SERVER_ORDERS)), query.text("engine") or None
    window = chosen_window(reader, query, period)
    missing, unmeasured = _unmeasured_in_window(reader, query, period, window)
    # Servers without a size come first in every order.
    shown, skipped = query.rows_shown, (query.page - 1) * query.rows_shown
    first = [server for server in missing if engine in {None, server.engine}]
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
        # A file has no column for recent sizes.
        listed = with_usage_of_servers(
            connection,
            period,
            window,
            [*listed_first, *measured],
            unmeasured,
            reader.thresholds,
            query.today,
            with_recent=not query.is_file,
        )
        if not listed:
            subjects.refuse_unknown_filters(connection, engine, None)
        retired = subjects.out_of_service(connection, [row.server_id for row in listed])
    has_more = has_more or len(first) > skipped + shown
    values = _list_values(reader, query, period, window, order)
    return ServersPage(servers=listed, has_more=has_more, out_of_service=retired, **values)


def _unmeasured_in_window(
    reader: Reader, query: PageQuery, period: Period, window: Window | None
) -> tuple[Sequence[UnmeasuredServer], Mapping[int, UnmeasuredServer]]:
    """Return the servers without a row in a window, and for the newest window, those not measured on the last day."""
    if window is None:
        return [], {}
    is_newest = not query.day("window")
    read = partial(servers_missing_in, period=period, window=window, with_never_measured=is_newest)
    missing = reader.read_cached(("missing", period.name, window.start, is_newest), read, UNMEASURED_SECONDS)
    newest = shared_unmeasured(reader, query.today).servers if is_newest else ()
    by_number = {server.server_id: server for server in newest}
    # The newest day has the reason of the failure.
    return [by_number.get(server.server_id, server) for server in missing], by_number


def read_databases(reader: Reader, query: PageQuery) -> DatabasesPage:
    """Read the list of databases. Raises ValidationError, NotFoundError, sqlalchemy.exc.DBAPIError."""
    period, order = query.period(), query.one_of("order", tuple(ORDERS))
    engine, label = query.text("engine") or None, query.label()
    window = chosen_window(reader, query, period)
    sorts_all = is_sorted_as_a_whole(period, order) and label is None and not query.is_file
    shown, keys = query.rows_shown, _keys_in_order(reader, query, period, window, order) if sorts_all else []
    with reader.transaction() as connection:
        if sorts_all and window is not None:
            listed, has_more = databases_of_keys(connection, period, window, order, keys[:shown]), len(keys) > shown
        else:
            listed, has_more = databases(
                connection, period, window, order=order, engine=engine, label=label, page=query.page, shown=shown
            )
        if not listed:
            subjects.refuse_unknown_filters(connection, engine, label)
        with_usage = with_usage_of_databases(
            connection, period, window, listed, reader.thresholds, query.today, with_recent=not query.is_file
        )
        retired = subjects.out_of_service(connection, [row.server_id for row in listed])
    return DatabasesPage(
        databases=with_usage,
        has_more=has_more,
        out_of_service=retired,
        label=None if label is None else "=".join(label),
        **_list_values(reader, query, period, window, order),
    )


def _keys_in_order(
    reader: Reader, query: PageQuery, period: Period, window: Window | None, order: str
) -> Sequence[tuple[int, str]]:
    """Return the databases of a page and, if there are more, the next one. Many pages share one sorting."""
    if window is None:
        return []
    skipped, engine = (query.page - 1) * query.rows_shown, query.text("engine") or None
    start = skipped % SORTED_AT_ONCE
    read = partial(database_keys, period=period, window=window, order=order, engine=engine)
    read = partial(read, skipped=skipped - start, shown=SORTED_AT_ONCE + 1)
    key = ("sorted", period.name, window.start, order, engine, skipped - start, shared_revision(reader))
    return reader.read_cached(key, read, SORTED_SECONDS)[start:][: query.rows_shown + 1]


def read_tables(reader: Reader, query: PageQuery) -> TablesPage:
    """Read the list of tables and indexes. Raises ValidationError, NotFoundError, sqlalchemy.exc.DBAPIError."""
    period, order, label = query.period("weekly"), query.one_of("order", TABLE_ORDERS), query.label()
    engine, server = query.text("engine") or None, query.server() if query.text("server") else None
    window = chosen_window(reader, query, period)
    with reader.transaction() as connection:
        bill = subjects.newest_final(subjects.bill_issues(connection))
        of_server = None if server is None else subjects.server_facts(connection, server)
        among = partial(
            databases, connection, period, window, order="name", server_id=server, engine=engine, label=label
        )
        places = among(shown=MOST_LABELLED)[0] if engine or label else None
        if places is not None and not places:
            subjects.refuse_unknown_filters(connection, engine, label)
        servers = (server,) if server is not None else None
        is_measured = are_measured(connection, query.today)
    shown_list = ObjectList((), has_more=False, counted_bytes=None, amount=None)
    if window is not None:
        parameters: dict[str, Any] = {"order": order, "bill": bill}
        skipped = (query.page - 1) * query.rows_shown
        start = skipped % TABLES_AT_ONCE
        parameters |= {"skipped": skipped - start, "shown": max(query.rows_shown, TABLES_AT_ONCE)}
        compared: dict[str, Any] = {"first": window.start, "last": window.end, "servers": servers}
        if places is not None:
            compared["servers"] = tuple(database.server_id for database in places)
            compared["databases"] = tuple(database.database for database in places)
        find = partial(_compared, compared=compared)
        days, until = reader.read_cached(("compared", *compared.values()), find, COMPARED_SECONDS)
        read = partial(list_objects, days=days, **parameters)
        part = reader.read_cached(("tables", hash(tuple(days)), until, *parameters.values()), read, TABLES_SECONDS)
        end = start + query.rows_shown
        has_more = part.has_more or len(part.objects) > end
        shown_list = replace(part, objects=part.objects[start:end], has_more=has_more)
    return TablesPage(
        tables=shown_list.objects,
        has_more=shown_list.has_more,
        counted_bytes=shown_list.counted_bytes,
        amount=shown_list.amount,
        currency=None if bill is None else bill.currency,
        label=None if label is None else "=".join(label),
        of_server=of_server,
        is_measured=is_measured,
        **_list_values(reader, query, period, window, order),
    )


def _compared(connection: Connection, compared: Mapping[str, Any]) -> tuple[Sequence[Row[Any]], datetime | None]:
    """Return the compared samples, and a moment that changes when one of them is taken again."""
    return compared_samples(connection, **compared), compared_until(connection, compared["first"], compared["last"])


def _list_values(reader: Reader, query: PageQuery, period: Period, window: Window | None, order: str) -> dict[str, Any]:
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
        unmeasured = [server for server in newest.servers if engine in {None, server.engine}]
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
    """Search the names of servers, databases, volumes, groups and tables. Raises ValidationError."""
    words, kind = (query.text("q") or "").strip(), query.one_of("kind", ("", *NAME_KINDS))
    shown = query.number("shown", query.rows_shown, query.rows_shown)
    matches = found_names(reader, words, shown + 1, query.today, kind)
    return SearchPage(words, matches[:shown], len(matches) > shown)
