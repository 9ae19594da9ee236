"""The pages of one server, database or volume: its history, when it is full, and the samples of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period
from capacity_assets.reading import subjects
from capacity_assets.reading.filling import Runway, binding_of, bound_by_volume, runway_of
from capacity_assets.reading.lists import ORDERS, DatabaseRow, databases
from capacity_assets.reading.sizes import SizeInWindow, database_history, server_history, volume_history
from capacity_assets.reading.subjects import Attempt, Sample, ServerFacts, ServerVolume, StepRow, server_facts
from capacity_assets.reading.windows import complete_window, newest_window
from capacity_assets.web.addresses import ROWS_PER_PAGE, PageQuery
from capacity_assets.web.reader import Reader

NEIGHBOURS_SHOWN, ATTEMPTS_SHOWN, ON_VOLUME_SHOWN = 10, 14, 20
VOLUME_DAYS = 180


@dataclass(frozen=True)
class WindowSamples:
    """The samples of a window."""

    window_start: date
    window_end: date
    samples: Sequence[Sample]
    missing_days: Sequence[date]


@dataclass(frozen=True)
class ServerPage:
    """One server."""

    server: ServerFacts
    period: str
    sizes: Sequence[SizeInWindow]
    runway: Runway | None
    steps: Sequence[StepRow]
    volumes: Sequence[ServerVolume]
    databases: Sequence[DatabaseRow]
    has_more_databases: bool
    order: str
    attempts: Sequence[Attempt]
    behind: WindowSamples | None


@dataclass(frozen=True)
class DatabasePage:
    """One database."""

    server: ServerFacts
    database: str
    labels: dict[str, str]
    period: str
    sizes: Sequence[SizeInWindow]
    runway: Runway | None
    """The forecast of the database alone, as if all others did not grow."""
    binding: Runway | None
    """The forecast that fills first, of the database, its server or one of its volumes; None: none has a date."""
    steps: Sequence[StepRow]
    behind: WindowSamples | None
    neighbours: Sequence[DatabaseRow]


@dataclass(frozen=True)
class VolumePage:
    """One volume of a server."""

    server: ServerFacts
    volume: ServerVolume
    period: str
    sizes: Sequence[SizeInWindow]
    runway: Runway | None
    databases: Sequence[Runway]


def read_server(reader: Reader, query: PageQuery) -> ServerPage:
    """Read the page of a server; raises NotFoundError, ValidationError, DBAPIError."""
    number, period, order = query.server(), query.period(), query.one_of("order", tuple(ORDERS))
    with reader.transaction() as connection:
        server = server_facts(connection, number)
        newest = newest_window(connection, period)
        window = complete_window(connection, period, newest, query.today)
        listed, more = databases(
            connection, period, window, order=order, server_id=number, page=query.page, shown=ROWS_PER_PAGE
        )
        return ServerPage(
            server,
            period.name,
            server_history(connection, period, newest, number) if newest else [],
            runway_of(connection, number, "server", ""),
            subjects.steps_of(connection, number, None),
            subjects.volumes_of(connection, number, query.today),
            listed,
            more,
            order,
            subjects.attempts_of(connection, number, ATTEMPTS_SHOWN),
            _samples(connection, query, period, number, None),
        )


def read_database(reader: Reader, query: PageQuery) -> DatabasePage:
    """Read the page of a database; raises as `read_server`."""
    number, name, period = query.server(), query.needed("name"), query.period()
    with reader.transaction() as connection:
        server = server_facts(connection, number)
        newest = newest_window(connection, period)
        sizes = database_history(connection, period, newest, number, name) if newest else []
        labels = subjects.labels_of_database(connection, number, name)
        if labels is None and not subjects.was_ever_sampled(connection, number, name):
            raise _no_such(f"database {name!r} on {server.server}")
        window, shown = complete_window(connection, period, newest, query.today), NEIGHBOURS_SHOWN + 1
        neighbours, _ = databases(connection, period, window, order="size", server_id=number, shown=shown)
        runway = runway_of(connection, number, "database", name)
        return DatabasePage(
            server,
            name,
            labels or {},
            period.name,
            sizes,
            runway,
            binding_of(connection, runway),
            subjects.steps_of(connection, number, name),
            _samples(connection, query, period, number, name),
            [one for one in neighbours if one.database != name][:NEIGHBOURS_SHOWN],
        )


def read_volume(reader: Reader, query: PageQuery) -> VolumePage:
    """Read the page of a volume; raises as `read_server`."""
    number, name = query.server(), query.needed("name")
    with reader.transaction() as connection:
        server = server_facts(connection, number)
        volume = next((one for one in subjects.volumes_of(connection, number, query.today) if one.volume == name), None)
        if volume is None:
            raise _no_such(f"volume {name!r} of {server.server}")
        days = PERIODS["daily"].windows_between(volume.day - timedelta(days=VOLUME_DAYS), volume.day)
        sizes = volume_history(connection, days, number, name)
        on_it = bound_by_volume(connection, number, name, shown=ON_VOLUME_SHOWN)
        return VolumePage(server, volume, "daily", sizes, runway_of(connection, number, "volume", name), on_it)


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
