"""The pages of one server, database or volume: its history, its forecast, and the samples of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.base.settings import Thresholds
from capacity_assets.reading import subjects
from capacity_assets.reading.coverage import newest_measured_days
from capacity_assets.reading.forecasts import (
    StoredRunway,
    binding_of,
    bound_by_volume,
    first_on_server,
    forecast_day,
    runway_of,
)
from capacity_assets.reading.headlines import Headline, PageSubject, headline_of
from capacity_assets.reading.lists import ORDERS, ListedDatabase, databases, with_usage_of_databases
from capacity_assets.reading.sizes import SizeInWindow, database_history, server_history, used_history, volume_history
from capacity_assets.reading.space import DatabaseGrowth, SpaceUsage, growth_inside, space_usage
from capacity_assets.reading.windows import complete_window, newest_window
from capacity_assets.web.addresses import (
    LONGEST_DAYS,
    RANGES,
    ROWS_PER_PAGE,
    ChartRange,
    PageQuery,
    chosen_range,
    shown_range,
)
from capacity_assets.web.forecasts import DecisionRow, decision_rows
from capacity_assets.web.reader import Reader

NEIGHBOURS_SHOWN, ATTEMPTS_SHOWN, ON_VOLUME_SHOWN = 10, 14, 20
DAILY = PERIODS["daily"]
VOLUME_DAYS = 180
INSIDE_DAYS = 30


@dataclass(frozen=True)
class WindowSamples:
    """The samples of a window."""

    window_start: date
    window_end: date
    samples: Sequence[subjects.Sample]
    missing_days: Sequence[date]


@dataclass(frozen=True, kw_only=True)
class SubjectPage:
    """What the pages of servers, databases and volumes have in common."""

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
    """What was used inside the files of a database, if its forecast is of that."""
    binding: StoredRunway | None = None
    """The forecast that binds: of a database, the earliest of its own, its server's and its volumes'.

    Of a server, that of the volume that fills before the server as a whole. None: without a date.
    """
    steps: Sequence[subjects.DeclaredStep] = ()
    limits: Sequence[subjects.DeclaredLimit] = ()
    """Declared limits: its own, and that of the server as a whole."""
    decisions: Sequence[DecisionRow] = ()
    """Decisions on it, and on the server or volumes that it shares, whether or not they are open."""
    origins: Sequence[subjects.SampleOrigin] = ()
    """Origins of imported samples."""
    behind: WindowSamples | None = None


@dataclass(frozen=True, kw_only=True)
class ServerPage(SubjectPage):
    """One server."""

    volumes: Sequence[subjects.ServerVolume]
    fills: SpaceUsage | None
    databases: Sequence[ListedDatabase]
    has_more_databases: bool
    order: str
    attempts: Sequence[subjects.Attempt]


@dataclass(frozen=True, kw_only=True)
class DatabasePage(SubjectPage):
    """One database."""

    database: str
    labels: dict[str, str]
    neighbours: Sequence[ListedDatabase]
    inside: DatabaseGrowth | None
    """What grew inside, in the chosen window or range, else in the last 30 days; None: not measured twice."""


@dataclass(frozen=True, kw_only=True)
class VolumePage(SubjectPage):
    """One volume of a server."""

    volume: subjects.ServerVolume
    fills: SpaceUsage | None
    databases: Sequence[StoredRunway]


def read_server(reader: Reader, query: PageQuery) -> ServerPage:
    """Read the page of a server; raises NotFoundError, ValidationError, DBAPIError."""
    number, order = query.server(), query.one_of("order", tuple(ORDERS))
    shown = shown_range(reader, query)
    period = PERIODS[shown.period]
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        newest = newest_window(connection, period)
        window = complete_window(connection, period, newest, query.today)
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
            **_declared(connection, query, period, number, None),
            decisions=decision_rows(connection, query.today, every=True, server_id=number),
            volumes=volumes,
            fills=space_usage(connection, number, volumes, None, query.today),
            databases=with_usage_of_databases(connection, period, window, listed, reader.thresholds, query.today),
            has_more_databases=more,
            order=order,
            attempts=subjects.attempts_of(connection, number, ATTEMPTS_SHOWN),
        )


def read_database(reader: Reader, query: PageQuery) -> DatabasePage:
    """Read the page of a database; raises as `read_server`."""
    number, name = query.server(), query.needed("name")
    shown = shown_range(reader, query)
    period = PERIODS[shown.period]
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        newest = newest_window(connection, period)
        stored = subjects.newest_day_of(connection, number, name)
        if stored is None and not subjects.was_ever_sampled(connection, number, name):
            raise _no_such(f"database {name!r} on {server.server}")
        window = complete_window(connection, period, newest, query.today)
        neighbours, _ = databases(
            connection, period, window, order="size", server_id=number, shown=NEIGHBOURS_SHOWN + 1
        )
        others = [one for one in neighbours if one.database != name][:NEIGHBOURS_SHOWN]
        history = partial(database_history, connection, period, server_id=number, database=name)
        values = _values(connection, query, reader.thresholds, server, "database", name, stored)
        runway, windows = values["runway"], shown.windows(newest)
        is_of_used = runway is not None and runway.allocated_mb is not None
        return DatabasePage(
            **values,
            used=used_history(connection, period, windows, number, name) if is_of_used else [],
            **_history(shown, windows, history),
            **_declared(connection, query, period, number, name),
            decisions=[
                one
                for one in decision_rows(connection, query.today, every=True, server_id=number)
                if one.subject != "database" or one.name == name
            ],
            database=name,
            labels=stored.labels if stored else {},
            neighbours=with_usage_of_databases(connection, period, window, others, reader.thresholds, query.today),
            inside=growth_inside(connection, number, name, *_days_inside(query, shown, period)),
        )


def read_volume(reader: Reader, query: PageQuery) -> VolumePage:
    """Read the page of a volume; raises as `read_server`."""
    number, name = query.server(), query.needed("name")
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        volumes = subjects.volumes_of(connection, number, query.today)
        volume = next((one for one in volumes if one.volume == name), None)
        if volume is None:
            raise _no_such(f"volume {name!r} of {server.server}")
        # Volumes have samples but no aggregates.
        shown = replace(chosen_range(query), period=DAILY.name)
        if shown.first is not None:
            shown = replace(shown, first=max(shown.first, volume.day - timedelta(days=LONGEST_DAYS)))
        newest = DAILY.window_of(volume.day)
        days = shown.windows(newest) if shown.name else DAILY.back(newest, VOLUME_DAYS)
        history = partial(volume_history, connection, server_id=number, volume=name)
        return VolumePage(
            **_values(connection, query, reader.thresholds, server, "volume", name),
            **_history(shown, days, history),
            steps=subjects.steps_of(connection, number, None),
            decisions=[
                one
                for one in decision_rows(connection, query.today, every=True, server_id=number)
                if one.subject == "server" or (one.subject, one.name) == ("volume", name)
            ],
            volume=volume,
            fills=space_usage(connection, number, volumes, name, query.today),
            databases=bound_by_volume(connection, query.today, number, name, shown=ON_VOLUME_SHOWN),
        )


def _values(  # noqa: PLR0913, PLR0917 -- the subject, and what its headline says
    connection: Connection,
    query: PageQuery,
    thresholds: Thresholds,
    server: subjects.ServerFacts,
    subject: str,
    name: str = "",
    stored: subjects.NewestDay | None = None,
) -> dict[str, Any]:
    """Return the server, the forecasts and the headline, which without a forecast says when it was last measured."""
    number, issued, last_measured = server.server_id, None, None
    own, first, also, binding = runway_of(connection, query.today, number, subject, name), None, None, None
    if subject == "server":
        first, also = first_on_server(connection, query.today, number)
        binding = next((one for one in (first, also) if one is not None and one.subject == "volume"), None)
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
    return {"server": server, "headline": headline, "runway": own, "binding": binding}


def _history(
    shown: ChartRange, windows: Sequence[Window], history: Callable[[Sequence[Window]], list[SizeInWindow]]
) -> dict[str, Any]:
    return {
        "period": shown.period,
        "shown": shown,
        "sizes": history(windows),
        "earlier": history(shown.earlier(windows)),
    }


def _declared(
    connection: Connection, query: PageQuery, period: Period, server_id: int, database: str | None
) -> dict[str, Any]:
    return {
        "steps": subjects.steps_of(connection, server_id, database),
        "limits": subjects.declared_limits_of(connection, server_id, database),
        "origins": subjects.origins_of(connection, server_id, database),
        "behind": _samples(connection, query, period, server_id, database),
    }


def _days_inside(query: PageQuery, shown: ChartRange, period: Period) -> tuple[date, date]:
    """Return the days between which tables and indexes of a database are compared."""
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
    """Return the samples of the window of the address, if it has one."""
    day = query.day("window")
    if day is None:
        return None
    window = period.window_of(day)
    samples = subjects.samples_of(connection, window, server_id, database)
    measured = {sample.day for sample in samples}
    days = (window.start + timedelta(days=number) for number in range(window.elapsed_days(query.today)))
    return WindowSamples(window.start, window.end, samples, [day for day in days if day not in measured])
