"""What the report says, as numbers: read from the stored aggregates and the samples, never computed anew.

Everything adds up in whole megabytes. A database is *new* or *gone* only if its server was measured in both windows;
one whose server was not is *not comparable*, because nobody knows. How it looks is the business of `charts` and `page`.
"""

from __future__ import annotations

import hashlib
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
LONGEST_IN_A_FILE_NAME = 50


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


NOT_COMPARABLE = (Kind.APPEARED, Kind.MISSING)
"""What became of these is not known, so it is neither growth nor the opposite."""


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
    counted_by_others: int
    unmeasured_servers: Sequence[str]
    computed_at: datetime | None
    first_sample: date | None
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
    def known_change_mb(self) -> int | None:
        """Change of the databases whose server was measured in both windows; None where there is none of these."""
        known = [self.changes[kind] for kind in Kind if kind not in NOT_COMPARABLE]
        if not any(change.databases for change in known):
            return None
        return sum(change.change_mb for change in known)

    @property
    def not_comparable_databases(self) -> int:
        """Databases of servers that were measured in one of the two windows only."""
        return sum(self.changes[kind].databases for kind in NOT_COMPARABLE)

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
        """The days of the two windows that can be known: from the oldest total of a server there is to the newest."""
        if self.first_sample is None or self.last_sample is None:
            return ()
        first, last = max(self.before.start, self.first_sample), min(self.window.end, self.last_sample)
        return tuple(first + timedelta(days=n) for n in range((last - first).days + 1))

    @property
    def is_open(self) -> bool:
        """Whether the window is not over, or its last days were not measured."""
        return self.last_sample is not None and self.last_sample < self.window.end

    @property
    def unmeasured_days(self) -> tuple[date, ...]:
        """Days on which no server was measured."""
        return tuple(day for day in self.days if not self.measured_servers.get(day))

    @property
    def partly_measured_days(self) -> tuple[tuple[date, int], ...]:
        """Days on which some, but not all of the active servers were measured, and how many were."""
        counts = ((day, self.measured_servers.get(day, 0)) for day in self.days)
        return tuple((day, count) for day, count in counts if 0 < count < self.active_servers)

    @property
    def is_empty(self) -> bool:
        """Whether neither window has a row."""
        return not any(change.databases for change in self.changes.values())

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows of the history, oldest first, from the first one with rows on."""
        oldest = min((bar.window_start for bar in self.history), default=self.window.start)
        return tuple(window for window in _windows_shown(self.period, self.window) if window.start >= oldest)


def file_name(period: Period, window: Window, server: str | None = None) -> str:
    """Name the file of a report: its period and window, and the server if it is of one."""
    return f"growth-{period.name}-{window.key}{'' if server is None else f'-{_in_a_file_name(server)}'}.html"


def _in_a_file_name(server: str) -> str:
    """The name itself if it can be one; else what is left of it, told apart from others by a mark."""
    plain = re.sub(r"[^\w.-]+", "_", server)[:LONGEST_IN_A_FILE_NAME]
    return plain if plain == server else f"{plain}-{hashlib.sha256(server.encode()).hexdigest()[:8]}"


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
            # Right after a load the statistics know nothing of the windows, and the planner would loop over pairs.
            connection.execute(text("SET LOCAL enable_nestloop = off"))
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
        named = re.findall(r"(?<!:):(\w+)", query)
        return connection.execute(text(query), {name: parameters[name] for name in named}).all()

    changes = {
        Kind(row.kind): Change(row.databases, int(row.before_mb), int(row.size_mb)) for row in rows(queries.CHANGES)
    }
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
            Server(row.name, row.engine, row.databases, int(row.before_mb), int(row.size_mb))
            for row in rows(queries.SERVERS)
        ],
        history=[Bar(row.window_start, row.series, int(row.size_mb)) for row in rows(queries.HISTORY)],
        measured_servers={row.day: row.servers for row in rows(queries.MEASURED)},
        active_servers=ends.active_servers,
        counted_by_others=ends.counted_by_others,
        unmeasured_servers=[row.name for row in rows(queries.UNMEASURED)],
        computed_at=ends.computed_at,
        first_sample=ends.first_sample,
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
