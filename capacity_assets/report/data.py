"""What the report says, as numbers: read from the stored aggregates and the samples, never computed anew.

Everything adds up in whole megabytes. A database is *new* or *gone* only if its server was measured in both windows;
one whose server was not is *not comparable*, because nobody knows. How it looks is the business of `charts` and `page`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError

from capacity_assets.aggregation.errors import NotFoundError, database_error
from capacity_assets.periods import Period, Window
from capacity_assets.report import queries

WINDOWS_SHOWN = 13
DATABASES_LISTED = 10
"""Of each kind; a server's own page lists all its databases."""
SERVERS_LISTED = 20


class Kind(StrEnum):
    """What became of a database from one window to the next."""

    GROWN = "grown"
    SHRUNK = "shrunk"
    SAME = "same"
    NEW = "new"
    GONE = "gone"
    APPEARED = "appeared"
    """Its server has no row in the window before."""
    MISSING = "missing"
    """Its server has no row in this window."""


@dataclass(frozen=True)
class Change:
    """What all databases of one kind add up to, MB."""

    databases: int = 0
    before_mb: int = 0
    size_mb: int = 0

    @property
    def change_mb(self) -> int:
        """Sum of their changes."""
        return self.size_mb - self.before_mb


@dataclass(frozen=True)
class Database:
    """One database in the two windows; a size is None where it has no row."""

    server: str
    name: str
    before_mb: int | None
    size_mb: int | None

    @property
    def change_mb(self) -> int:
        """How it changed, an absent one counting as nothing."""
        return (self.size_mb or 0) - (self.before_mb or 0)


@dataclass(frozen=True)
class Server:
    """One server in the two windows: the sums of its databases, MB."""

    name: str
    engine: str
    databases: int
    before_mb: int
    size_mb: int

    @property
    def change_mb(self) -> int:
        """How it changed."""
        return self.size_mb - self.before_mb


@dataclass(frozen=True)
class Bar:
    """One series' size in one window: an engine of the fleet, or a database of the server, MB."""

    window_start: date
    series: str
    size_mb: int


@dataclass(frozen=True)
class Report:
    """One window of the fleet, or of `server` alone."""

    period: Period
    window: Window
    server: str | None
    changes: Mapping[Kind, Change]
    databases: Mapping[Kind, Sequence[Database]]
    servers: Sequence[Server]
    history: Sequence[Bar]
    measured_servers: Mapping[date, int]
    active_servers: int
    unmeasured_servers: Sequence[str]
    computed_at: datetime | None
    last_sample: date | None

    @property
    def before(self) -> Window:
        """The window it is compared with."""
        return self.period.previous(self.window)

    @property
    def start_mb(self) -> int:
        """Sum of the mean sizes in the window before."""
        return sum(change.before_mb for change in self.changes.values())

    @property
    def end_mb(self) -> int:
        """Sum of the mean sizes in this window."""
        return sum(change.size_mb for change in self.changes.values())

    @property
    def steps(self) -> tuple[tuple[Kind, int], ...]:
        """What leads from start to end, in this order: start + all of these = end, exactly."""
        shown = (Kind.GROWN, Kind.SHRUNK, Kind.NEW, Kind.GONE, Kind.APPEARED, Kind.MISSING)
        return tuple((kind, self.changes[kind].change_mb) for kind in shown)

    @property
    def comparable_before_mb(self) -> int:
        """Size in the window before, of the databases that have a row in both."""
        return sum(self.changes[kind].before_mb for kind in (Kind.GROWN, Kind.SHRUNK, Kind.SAME))

    @property
    def comparable_change_mb(self) -> int:
        """Change of the databases that have a row in both windows."""
        return sum(self.changes[kind].change_mb for kind in (Kind.GROWN, Kind.SHRUNK))

    @property
    def days(self) -> tuple[date, ...]:
        """Every day of the two windows up to the last one with a sample, measured or not."""
        last = min(self.window.end, self.last_sample or self.window.end)
        return tuple(self.before.start + timedelta(days=n) for n in range((last - self.before.start).days + 1))

    @property
    def is_open(self) -> bool:
        """Whether days of the window are still to come."""
        return self.last_sample is None or self.last_sample < self.window.end

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the history, oldest first, those without rows included."""
        return _windows_shown(self.period, self.window)


def file_name(period: Period, window: Window, server: str | None = None) -> str:
    """Name the file of a report: its period and window, and the server if it is of one."""
    of_server = "" if server is None else f"-{re.sub(r'[^A-Za-z0-9._-]+', '_', server)}"
    return f"growth-{period.name}-{window.key}{of_server}.html"


def read_report(engine: Engine, period: Period, window: Window, server: str | None = None) -> Report:
    """Read the report of one window: of all servers, or of the one of that name.

    Raises:
        NotFoundError: no server of that name is registered.
        DatabaseError: the database failed.
    """
    try:
        with engine.connect() as connection:
            # One state of the tables throughout, or the sums would not add up while a run writes.
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            return _read(connection, period, window, server)
    except DBAPIError as error:
        raise database_error(error, doing="reading the report's figures", kept="Nothing was written.") from error


def _read(connection: Connection, period: Period, window: Window, server: str | None) -> Report:
    parameters: dict[str, object] = {
        "period": period.name,
        "start": window.start,
        "before": period.previous(window).start,
        "end": window.end,
        "oldest": _windows_shown(period, window)[0].start,
        "server": _server_id(connection, server),
        "listed": DATABASES_LISTED,
        "servers_listed": SERVERS_LISTED,
    }

    def rows(query: str) -> Sequence[Row[tuple[object, ...]]]:
        return connection.execute(
            text(query), {name: parameters[name] for name in parameters if f":{name}" in query}
        ).all()

    changes = {Kind(row.kind): Change(row.databases, row.before_mb, row.size_mb) for row in rows(queries.CHANGES)}
    listed = [
        (Kind(row.kind), Database(row.server, row.name, row.before_mb, row.size_mb)) for row in rows(queries.LISTED)
    ]
    [ends] = rows(queries.ENDS)
    return Report(
        period=period,
        window=window,
        server=server,
        changes={kind: changes.get(kind, Change()) for kind in Kind},
        databases={kind: [database for its, database in listed if its is kind] for kind in Kind},
        servers=[
            Server(row.name, row.engine, row.databases, row.before_mb, row.size_mb) for row in rows(queries.SERVERS)
        ],
        history=[Bar(row.window_start, row.series, row.size_mb) for row in rows(queries.HISTORY)],
        measured_servers={row.day: row.servers for row in rows(queries.MEASURED)},
        active_servers=ends.active_servers,
        unmeasured_servers=[row.name for row in rows(queries.UNMEASURED)],
        computed_at=ends.computed_at,
        last_sample=ends.last_sample,
    )


def _windows_shown(period: Period, window: Window) -> tuple[Window, ...]:
    windows = [window]
    while len(windows) < WINDOWS_SHOWN:
        windows.append(period.previous(windows[-1]))
    return tuple(reversed(windows))


def _server_id(connection: Connection, server: str | None) -> int | None:
    if server is None:
        return None
    found = connection.execute(text("SELECT id FROM instances WHERE name = :name"), {"name": server}).scalar()
    if found is None:
        raise NotFoundError(
            f"There is no server {server!r}: names are compared letter by letter. The view "
            "capacity_server_growth lists those that are known. Nothing was written."
        )
    return int(found)
