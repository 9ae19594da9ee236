"""The pages of one server, database or volume: its history, when it is full, and what is behind a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection

from capacity_assets.base.errors import NotFoundError
from capacity_assets.base.periods import PERIODS, Period, Window
from capacity_assets.web.addresses import Asked
from capacity_assets.web.reading import (
    ORDERS,
    Reader,
    binding_of,
    complete_window,
    databases,
    found,
    history,
    newest_window,
    rows,
    runway_of,
    runways,
    steps_of,
)
from capacity_assets.web.rendering import DatabaseRow, Runway, SizeInWindow, StepRow, refuse_nothing, with_gaps

NEIGHBOURS_SHOWN, ATTEMPTS_SHOWN = 10, 14
VOLUME_DAYS = 180


@dataclass(frozen=True)
class ServerFacts:
    """A server as it is registered; `is_active` None: it is registered no more."""

    server_id: int
    server: str
    engine: str
    is_active: bool | None
    counted_by: str | None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerSample:
    """One sample, MiB; when it was written, and whether it was corrected since."""

    day: date
    size_mb: int
    written_on: date
    is_corrected: bool


@dataclass(frozen=True)
class Behind:
    """What a window's figures were made of."""

    window_start: date
    window_end: date
    samples: Sequence[ServerSample]
    missing_days: Sequence[date]


@dataclass(frozen=True)
class Attempt:
    """What became of a server on a day."""

    day: date
    status: str
    failure: str | None
    reason: str | None


@dataclass(frozen=True)
class ServerVolume:
    """A volume of a server on its newest day, MiB."""

    volume: str
    day: date
    total_mb: int
    used_mb: int
    free_mb: int
    source: str


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
    behind: Behind | None


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
    behind: Behind | None
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


def read_server(reader: Reader, asked: Asked) -> ServerPage:
    """Read the page of the server whose number is asked for; raises NotFoundError, ValidationError, DBAPIError."""
    number, period = asked.server(), asked.period()
    with reader.transaction() as connection:
        server = _server(connection, number)
        newest = newest_window(connection, period)
        order = asked.one_of("order", tuple(ORDERS))
        window = complete_window(connection, period, newest, asked.today)
        listed, more = databases(connection, period, window, order=order, server_id=number, page=asked.page)
        return ServerPage(
            server,
            period.name,
            history(connection, _SERVER_HISTORY, period, newest, {"server": number}) if newest else [],
            runway_of(connection, number, "server", ""),
            [step for step in steps_of(connection, number, None) if step.database is None],
            found(ServerVolume, connection, _VOLUMES, {"server": number, "today": asked.today}),
            listed,
            more,
            order,
            found(Attempt, connection, _ATTEMPTS, {"server": number, "shown": ATTEMPTS_SHOWN}),
            _behind(connection, asked, period, _SERVER_SAMPLES, {"server": number}),
        )


def read_database(reader: Reader, asked: Asked) -> DatabasePage:
    """Read the page of a database; raises as `read_server`."""
    number, name, period = asked.server(), asked.needed("name"), asked.period()
    of_database = {"server": number, "database": name}
    with reader.transaction() as connection:
        server = _server(connection, number)
        newest = newest_window(connection, period)
        sizes = history(connection, _DATABASE_HISTORY, period, newest, of_database) if newest else []
        labels = rows(connection, _LABELS, of_database)
        refuse_nothing(labels or rows(connection, _EVER, of_database), f"database {name!r} on {server.server}")
        window, shown = complete_window(connection, period, newest, asked.today), NEIGHBOURS_SHOWN + 1
        neighbours, _ = databases(connection, period, window, order="size", server_id=number, shown=shown)
        runway = runway_of(connection, number, "database", name)
        return DatabasePage(
            server,
            name,
            labels[0].labels if labels else {},
            period.name,
            sizes,
            runway,
            binding_of(connection, runway),
            steps_of(connection, number, name),
            _behind(connection, asked, period, _DATABASE_SAMPLES, of_database),
            [one for one in neighbours if one.database != name][:NEIGHBOURS_SHOWN],
        )


def read_volume(reader: Reader, asked: Asked) -> VolumePage:
    """Read the page of a volume; raises as `read_server`."""
    number, name = asked.server(), asked.needed("name")
    of_volume = {"server": number, "volume": name}
    with reader.transaction() as connection:
        server = _server(connection, number)
        named = [
            one
            for one in found(ServerVolume, connection, _VOLUMES, {"server": number, "today": asked.today})
            if one.volume == name
        ]
        refuse_nothing(named, f"volume {name!r} of {server.server}")
        [volume] = named
        first = volume.day - timedelta(days=VOLUME_DAYS)
        days = PERIODS["daily"].windows_between(first, volume.day)
        ends = {"first": first, "last": volume.day}
        sizes = with_gaps(days, found(SizeInWindow, connection, _VOLUME_HISTORY, {**of_volume, **ends}))
        on_it = runways(connection, _BOUND_BY_VOLUMES, of_volume)
        return VolumePage(server, volume, "daily", sizes, runway_of(connection, number, "volume", name), on_it)


def _server(connection: Connection, number: int) -> ServerFacts:
    registered = found(ServerFacts, connection, _SERVER, {"server": number})
    if registered:
        return registered[0]
    query = "SELECT server, engine FROM capacity_server_growth WHERE server_id = :server LIMIT 1"
    known = rows(connection, query, {"server": number})
    if not known:
        raise NotFoundError(f"There is no server of the number {number}.")
    return ServerFacts(number, known[0].server, known[0].engine, None, None)


def _behind(
    connection: Connection, asked: Asked, period: Period, query: str, parameters: dict[str, Any]
) -> Behind | None:
    """Return the samples of the window that is asked for, None without one."""
    day = asked.day("window")
    if day is None:
        return None
    window = period.window_of(day)
    of_window = {**parameters, "days": window.dates}
    samples = found(ServerSample, connection, query, of_window)
    measured = {sample.day for sample in samples}
    return Behind(window.start, window.end, samples, _missing(window, measured, asked.today))


def _missing(window: Window, measured: set[date], today: date) -> list[date]:
    days = (window.start + timedelta(days=number) for number in range(window.elapsed_days(today)))
    return [day for day in days if day not in measured]


_SERVER = """
SELECT server_id, server, engine, is_active, counted_by, labels FROM capacity_servers WHERE server_id = :server
"""
_SIZES = """
SELECT window_start, window_end, size_mb, change_mb, CAST(change_percent AS double precision) AS change_percent,
       largest_size_mb AS largest_mb, smallest_size_mb AS smallest_mb, measured_days
"""
_SERVER_HISTORY = f"""{_SIZES}
FROM capacity_server_growth
WHERE server_id = :server AND period = :period AND window_start = ANY (CAST(:starts AS date[]))
ORDER BY window_start
"""
_DATABASE_HISTORY = f"""{_SIZES}
FROM capacity_growth
WHERE server_id = :server AND database = :database AND period = :period
  AND window_start = ANY (CAST(:starts AS date[]))
ORDER BY window_start
"""
# The keys begin with the window or the day, so these are asked for one after another, the newest first.
_LABELS = """
WITH ends AS (
    SELECT (SELECT window_start FROM capacity_growth WHERE period = 'daily' ORDER BY window_start DESC LIMIT 1) AS last,
           (SELECT window_start FROM capacity_growth WHERE period = 'daily' ORDER BY window_start LIMIT 1) AS first
)
SELECT newest.labels FROM ends CROSS JOIN generate_series(0, ends.last - ends.first) AS back
CROSS JOIN LATERAL (SELECT labels FROM capacity_growth
                    WHERE period = 'daily' AND window_start = ends.last - back AND server_id = :server
                      AND database = :database LIMIT 1) AS newest
LIMIT 1
"""
_EVER = """
WITH ends AS (
    SELECT (SELECT day FROM capacity_samples ORDER BY day DESC LIMIT 1) AS last,
           (SELECT day FROM capacity_samples ORDER BY day LIMIT 1) AS first
)
SELECT 1 FROM ends CROSS JOIN generate_series(0, ends.last - ends.first) AS back
CROSS JOIN LATERAL (SELECT 1 FROM capacity_samples
                    WHERE day = ends.last - back AND server_id = :server AND database = :database LIMIT 1) AS sample
LIMIT 1
"""
_WRITTEN = "CAST(created_at AS date) AS written_on, updated_at > created_at AS is_corrected"
_DATABASE_SAMPLES = f"""
SELECT day, size_mb, {_WRITTEN} FROM capacity_samples
WHERE server_id = :server AND database = :database AND day = ANY (CAST(:days AS date[])) ORDER BY day
"""  # noqa: S608 -- a constant of this module
_SERVER_SAMPLES = f"""
SELECT day, size_mb, {_WRITTEN} FROM capacity_server_samples
WHERE server_id = :server AND day = ANY (CAST(:days AS date[])) ORDER BY day
"""  # noqa: S608 -- as above
_VOLUMES = """
SELECT volume, day, total_mb, used_mb, free_mb, source FROM (
    SELECT DISTINCT ON (volume) * FROM capacity_volumes
    WHERE server_id = :server AND day <= :today
      AND day > (SELECT max(day) FROM capacity_volumes WHERE server_id = :server AND day <= :today) - 31
    ORDER BY volume, day DESC
) AS newest ORDER BY total_mb DESC, volume
"""
_VOLUME_HISTORY = """
SELECT day AS window_start, day AS window_end, used_mb AS size_mb, 1 AS measured_days FROM capacity_volumes
WHERE server_id = :server AND volume = :volume AND day BETWEEN :first AND :last
"""
_BOUND_BY_VOLUMES = """
WHERE server_id = :server AND subject = 'database' AND binds = 'volume'
  AND (volumes IS NULL OR :volume = ANY (volumes)) ORDER BY size_mb DESC, name LIMIT 20
"""
_ATTEMPTS = """
SELECT day, status, failure, reason FROM capacity_attempts WHERE server_id = :server ORDER BY day DESC LIMIT :shown
"""
