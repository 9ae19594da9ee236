"""The pages of one server, database or volume: its history, when it is full, and the samples of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.base.settings import Thresholds
from capacity_assets.reading import subjects
from capacity_assets.reading.coverage import newest_measured_days
from capacity_assets.reading.forecasts import (
    Runway,
    binding_of,
    bound_by_volume,
    first_on_server,
    forecast_day,
    runway_of,
)
from capacity_assets.reading.headlines import Headline, Subject, headline_of
from capacity_assets.reading.lists import ORDERS, ListedDatabase, databases, with_usage_of_databases
from capacity_assets.reading.sizes import SizeInWindow, database_history, server_history, volume_history
from capacity_assets.reading.space import DatabaseGrowth, WhatFills, growth_inside, what_fills
from capacity_assets.reading.windows import complete_window, newest_window
from capacity_assets.web.addresses import ROWS_PER_PAGE, PageQuery
from capacity_assets.web.pages.ranges import (
    LONGEST_DAYS,
    RANGES,
    ChartRange,
    chosen_range,
    earlier_windows,
    shown_range,
    windows_in,
)
from capacity_assets.web.reader import Reader

NEIGHBOURS_SHOWN, ATTEMPTS_SHOWN, ON_VOLUME_SHOWN = 10, 14, 20
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
    """What the pages of a server, of a database and of a volume have."""

    server: subjects.ServerFacts
    headline: Headline
    period: str
    shown: ChartRange
    sizes: Sequence[SizeInWindow]
    earlier: Sequence[SizeInWindow]
    """Sizes of a year before, one for each window, where they are compared."""
    runway: Runway | None
    """Its own forecast; of a database, as if all others did not grow."""


@dataclass(frozen=True, kw_only=True)
class DeclaredPage(SubjectPage):
    """What those of a server and of a database have beside that."""

    binding: Runway | None
    """The forecast that binds: of a database, the one that fills first, of it, its server or one of its volumes.

    Of a server, that of the disk that fills before the server as a whole. None: none does, or none has a date.
    """
    steps: Sequence[subjects.StepRow]
    limits: Sequence[subjects.DeclaredLimit]
    """Declared limits: its own, and that of the server as a whole."""
    origins: Sequence[subjects.SampleOrigin]
    """Which of its samples were imported, and what measured them."""
    behind: WindowSamples | None


@dataclass(frozen=True, kw_only=True)
class ServerPage(DeclaredPage):
    """One server."""

    volumes: Sequence[subjects.ServerVolume]
    fills: WhatFills | None
    databases: Sequence[ListedDatabase]
    has_more_databases: bool
    order: str
    attempts: Sequence[subjects.Attempt]


@dataclass(frozen=True, kw_only=True)
class DatabasePage(DeclaredPage):
    """One database."""

    database: str
    labels: dict[str, str]
    neighbours: Sequence[ListedDatabase]
    inside: DatabaseGrowth | None
    """What grew inside, in the window or range that is chosen, else in the last 30 days; None: not measured twice."""


@dataclass(frozen=True, kw_only=True)
class VolumePage(SubjectPage):
    """One volume of a server."""

    volume: subjects.ServerVolume
    fills: WhatFills | None
    databases: Sequence[Runway]


def read_server(reader: Reader, query: PageQuery) -> ServerPage:
    """Read the page of a server; raises NotFoundError, ValidationError, DBAPIError."""
    number, order = query.server(), query.one_of("order", tuple(ORDERS))
    shown = shown_range(reader, query)
    period = PERIODS[shown.period]
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        newest = newest_window(connection, period)
        windows = windows_in(shown, newest) if newest else []
        earlier = earlier_windows(shown, windows)
        window = complete_window(connection, period, newest, query.today)
        listed, more = databases(
            connection, period, window, order=order, server_id=number, page=query.page, shown=ROWS_PER_PAGE
        )
        runway = runway_of(connection, query.today, number, "server", "")
        first, also = first_on_server(connection, query.today, number)
        volumes = subjects.volumes_of(connection, number, query.today)
        return ServerPage(
            server=server,
            headline=_headline(
                connection, query, reader.thresholds, server, "server", "", runway, first=first, also=also
            ),
            period=period.name,
            shown=shown,
            sizes=server_history(connection, period, windows, number, newest) if newest else [],
            earlier=server_history(connection, period, earlier, number, newest) if newest else [],
            runway=runway,
            binding=next((one for one in (first, also) if one is not None and one.subject == "volume"), None),
            steps=subjects.steps_of(connection, number, None),
            limits=subjects.declared_limits_of(connection, number, None),
            origins=subjects.origins_of(connection, number, None),
            volumes=volumes,
            fills=what_fills(connection, number, volumes, None, query.today),
            databases=with_usage_of_databases(connection, period, window, listed, reader.thresholds, query.today),
            has_more_databases=more,
            order=order,
            attempts=subjects.attempts_of(connection, number, ATTEMPTS_SHOWN),
            behind=_samples(connection, query, period, number, None),
        )


def read_database(reader: Reader, query: PageQuery) -> DatabasePage:
    """Read the page of a database; raises as `read_server`."""
    number, name = query.server(), query.needed("name")
    shown = shown_range(reader, query)
    period = PERIODS[shown.period]
    with reader.transaction() as connection:
        server = subjects.server_facts(connection, number)
        newest = newest_window(connection, period)
        windows = windows_in(shown, newest) if newest else []
        stored = subjects.newest_day_of(connection, number, name)
        if stored is None and not subjects.was_ever_sampled(connection, number, name):
            raise _no_such(f"database {name!r} on {server.server}")
        window = complete_window(connection, period, newest, query.today)
        neighbours, _ = databases(
            connection, period, window, order="size", server_id=number, shown=NEIGHBOURS_SHOWN + 1
        )
        runway = runway_of(connection, query.today, number, "database", name)
        binding = binding_of(connection, query.today, runway)
        others = [one for one in neighbours if one.database != name][:NEIGHBOURS_SHOWN]
        return DatabasePage(
            server=server,
            headline=_headline(
                connection, query, reader.thresholds, server, "database", name, runway, first=binding, stored=stored
            ),
            database=name,
            labels=stored.labels if stored else {},
            period=period.name,
            shown=shown,
            sizes=database_history(connection, period, windows, number, name),
            earlier=database_history(connection, period, earlier_windows(shown, windows), number, name),
            runway=runway,
            binding=binding,
            steps=subjects.steps_of(connection, number, name),
            limits=subjects.declared_limits_of(connection, number, name),
            origins=subjects.origins_of(connection, number, name),
            behind=_samples(connection, query, period, number, name),
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
        # Volumes have samples, and no aggregates.
        shown = replace(chosen_range(query), period="daily")
        if shown.first is not None:
            shown = replace(shown, first=max(shown.first, volume.day - timedelta(days=LONGEST_DAYS)))
        newest = PERIODS["daily"].window_of(volume.day)
        days = windows_in(shown, newest) if shown.name else PERIODS["daily"].back(newest, VOLUME_DAYS)
        runway = runway_of(connection, query.today, number, "volume", name)
        return VolumePage(
            server=server,
            headline=_headline(connection, query, reader.thresholds, server, "volume", name, runway),
            volume=volume,
            fills=what_fills(connection, number, volumes, name, query.today),
            period="daily",
            shown=shown,
            sizes=volume_history(connection, days, number, name),
            earlier=volume_history(connection, earlier_windows(shown, days), number, name),
            runway=runway,
            databases=bound_by_volume(connection, query.today, number, name, shown=ON_VOLUME_SHOWN),
        )


def _headline(  # noqa: PLR0913, PLR0917 -- what the sentence is made of
    connection: Connection,
    query: PageQuery,
    thresholds: Thresholds,
    server: subjects.ServerFacts,
    subject: str,
    name: str,
    own: Runway | None,
    *,
    first: Runway | None = None,
    also: Runway | None = None,
    stored: subjects.NewestDay | None = None,
) -> Headline:
    """Say when it is full; where there is no forecast, also when it or its server was last measured."""
    number, issued, last_measured = server.server_id, None, None
    is_gone = own is None and stored is not None and subjects.is_gone(connection, number, stored.day)
    if is_gone and stored is not None:
        last_measured = stored.day
    elif own is None:
        issued = forecast_day(connection)
        last_measured = newest_measured_days(connection, [number], query.today).get(number)
    about = Subject(server.server, subject, name, server.is_active, last_measured, is_gone=is_gone)
    return headline_of(about, own, first, thresholds, issued=issued, also=also)


def _days_inside(query: PageQuery, shown: ChartRange, period: Period) -> tuple[date, date]:
    """Return the days in which a database is looked into."""
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
    """Return the samples of the window that the address names, None without one."""
    day = query.day("window")
    if day is None:
        return None
    window = period.window_of(day)
    samples = subjects.samples_of(connection, window, server_id, database)
    measured = {sample.day for sample in samples}
    days = (window.start + timedelta(days=number) for number in range(window.elapsed_days(query.today)))
    return WindowSamples(window.start, window.end, samples, [day for day in days if day not in measured])
